// Vectors of as many doubles, or floats, as a register of the instruction set holds, and complex numbers in them. For
// *.isa.cpp alone. The linker must find nothing in their objects that it may share between instruction sets, so they
// use no function of the standard library's headers.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#if defined(__AVX512F__)
#define S4_FAST_BYTES 64
#elif defined(__AVX2__)
#define S4_FAST_BYTES 32
#else
#define S4_FAST_BYTES 16
#endif

// Whether __builtin_fma is an instruction.
#if defined(__FMA__) || defined(__FP_FAST_FMA) || defined(__ARM_FEATURE_FMA)
#define S4_FAST_HAS_FMA 1
#else
#define S4_FAST_HAS_FMA 0
#endif

#define S4_FAST_INLINE static inline __attribute__((always_inline))

namespace s4_fast {
namespace S4_FAST_ISA {

template <class T>
struct Lanes {
    typedef T type __attribute__((vector_size(S4_FAST_BYTES), may_alias));
    static constexpr int count = S4_FAST_BYTES / sizeof(T);
};

typedef Lanes<double>::type vec;
constexpr int kLanes = Lanes<double>::count;

// Entries ``I`` of the concatenation of a and b.
template <class T, class V, int... I>
S4_FAST_INLINE V shuffle(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, I...);
#else
    typedef typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type Index;
    typedef Index Mask __attribute__((vector_size(sizeof(V))));
    return __builtin_shuffle(a, b, Mask{I...});
#endif
}

template <int First, int Step, int... I>
constexpr auto every(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, (First + Step * I)...>{};
}

// First, First + size, First + 1, First + 1 + size, ...: where interleaving half of a and half of b finds its entries.
template <int First, int... I>
constexpr auto alternating(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, (First + I / 2 + (I % 2) * int(sizeof...(I)))...>{};
}

template <int... I>
constexpr auto swapped(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, (I ^ 1)...>{};
}

template <int Odd, int... I>
constexpr auto doubled(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, ((I & ~1) + Odd)...>{};
}

struct Complex {
    vec re, im;
};

S4_FAST_INLINE Complex times(Complex a, Complex b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// conj(a) b
S4_FAST_INLINE Complex conj_times(Complex a, Complex b) {
    return {a.re * b.re + a.im * b.im, a.re * b.im - a.im * b.re};
}

S4_FAST_INLINE Complex reciprocal(Complex a) {
    vec scale = 1.0 / (a.re * a.re + a.im * a.im);
    return {a.re * scale, -a.im * scale};
}

template <class T>
S4_FAST_INLINE vec load_as_double(const T *from) {
    typedef T Narrow __attribute__((vector_size(kLanes * sizeof(T))));
    Narrow narrow;
    memcpy(&narrow, from, sizeof narrow);
    return __builtin_convertvector(narrow, vec);
}

template <class T>
S4_FAST_INLINE void store_from_double(T *to, vec value) {
    typedef T Narrow __attribute__((vector_size(kLanes * sizeof(T))));
    Narrow narrow = __builtin_convertvector(value, Narrow);
    memcpy(to, &narrow, sizeof narrow);
}

// The first ``count`` of kLanes complex numbers; the rest are 0.
template <class T>
S4_FAST_INLINE Complex load_complex(const T *from, int64_t count) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
    T some[2 * kLanes];
    if (count < kLanes) {
        memset(some, 0, sizeof some);
        for (int64_t i = 0; i < 2 * count; ++i) some[i] = from[i];
        from = some;
    }
    vec a = load_as_double(from), b = load_as_double(from + kLanes);
    return {shuffle<double>(a, b, every<0, 2>(lanes)), shuffle<double>(a, b, every<1, 2>(lanes))};
}

template <class T>
S4_FAST_INLINE void store_complex(T *to, Complex z, int64_t count) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
    T some[2 * kLanes];
    T *all = count < kLanes ? some : to;
    store_from_double(all, shuffle<double>(z.re, z.im, alternating<0>(lanes)));
    store_from_double(all + kLanes, shuffle<double>(z.re, z.im, alternating<kLanes / 2>(lanes)));
    if (count < kLanes)
        for (int64_t i = 0; i < 2 * count; ++i) to[i] = some[i];
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast

