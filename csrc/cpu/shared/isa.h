// Which instruction set the kernels use. Files *.isa.cpp are compiled once for each, in a namespace of its name.
#pragma once

namespace s4_fast::cpu {

enum class Isa { portable, avx2, avx512 };

// The one in use: the best that this processor has, or the one that was chosen.
Isa isa();

}  // namespace s4_fast::cpu

#if defined(S4_FAST_HAS_AVX512)
#define S4_FAST_CASE_AVX512(call)     \
    case ::s4_fast::cpu::Isa::avx512: \
        return avx512::call;
#else
#define S4_FAST_CASE_AVX512(call)
#endif

#if defined(S4_FAST_HAS_AVX2)
#define S4_FAST_CASE_AVX2(call)     \
    case ::s4_fast::cpu::Isa::avx2: \
        return avx2::call;
#else
#define S4_FAST_CASE_AVX2(call)
#endif

// return <namespace in use>::call
#define S4_FAST_RETURN_FROM_ISA(call) \
    switch (::s4_fast::cpu::isa()) {  \
        S4_FAST_CASE_AVX512(call)     \
        S4_FAST_CASE_AVX2(call)       \
        default:                      \
            return portable::call;    \
    }

// Declares in the namespace of every instruction set.
#define S4_FAST_DECLARE_FOR_ISAS(...) \
    namespace avx512 {                \
    __VA_ARGS__                       \
    }                                 \
    namespace avx2 {                  \
    __VA_ARGS__                       \
    }                                 \
    namespace portable {              \
    __VA_ARGS__                       \
    }
