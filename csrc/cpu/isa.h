// STAND-IN until the choice of the instruction set is merged.
#pragma once

namespace s4_fast {

enum class Isa { portable, avx2, avx512 };

Isa isa();

}  // namespace s4_fast

#if defined(S4_FAST_HAS_AVX512) && defined(S4_FAST_HAS_AVX2)
#define S4_FAST_CHOOSE(function)                                                    \
    (::s4_fast::isa() == ::s4_fast::Isa::avx512 ? ::s4_fast::avx512::function       \
     : ::s4_fast::isa() == ::s4_fast::Isa::avx2 ? ::s4_fast::avx2::function         \
                                                : ::s4_fast::portable::function)
#else
#define S4_FAST_CHOOSE(function) (::s4_fast::portable::function)
#endif
