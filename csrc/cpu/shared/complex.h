// Complex numbers in vectors, and what joins and separates their parts. For *.isa.cpp alone.
#pragma once

#include <type_traits>
#include <utility>

#include "simd.h"

// Whether __builtin_fma is an instruction.
#if defined(__FMA__) || defined(__FP_FAST_FMA) || defined(__ARM_FEATURE_FMA)
#define S4_FAST_HAS_FMA 1
#else
#define S4_FAST_HAS_FMA 0
#endif

#define S4_FAST_INLINE static inline __attribute__((always_inline))

namespace s4_fast::cpu::S4_FAST_ISA {

// Entries `I` of the concatenation of a and b.
template <class T, int... I>
S4_FAST_INLINE Vector<T> shuffle(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, I...);
#else
    typedef typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type Index;
    typedef Index Mask __attribute__((vector_size(VECTOR_BYTES)));
    return __builtin_shuffle(a, b, Mask{I...});
#endif
}

// Which entries of two interleaved vectors are the real parts (FIRST = 0) or imaginary parts (1).
template <int FIRST, int... I>
constexpr auto separated(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, (FIRST + 2 * I)...>{};
}

// The entries of the real parts and of the imaginary parts in turn, from `FIRST` on.
template <int FIRST, int... I>
constexpr auto joined(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, (FIRST + I / 2 + (I % 2) * int(sizeof...(I)))...>{};
}

typedef DoubleVector vec;

struct ComplexVector {
    vec re, im;
};

S4_FAST_INLINE ComplexVector times(ComplexVector a, ComplexVector b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// conj(a) b
S4_FAST_INLINE ComplexVector conj_times(ComplexVector a, ComplexVector b) {
    return {a.re * b.re + a.im * b.im, a.re * b.im - a.im * b.re};
}

S4_FAST_INLINE ComplexVector reciprocal(ComplexVector a) {
    const vec scale = 1.0 / (a.re * a.re + a.im * a.im);
    return {a.re * scale, -a.im * scale};
}

S4_FAST_INLINE void subtract(ComplexVector &a, ComplexVector b) { a.re -= b.re, a.im -= b.im; }

// The first `count` complex numbers, if they are fewer than a vector has; the rest are 0.
template <class T>
S4_FAST_INLINE ComplexVector load_complex(const T *from, int64_t count) {
    constexpr auto ALL = std::make_integer_sequence<int, LANES<double>>{};
    T some[2 * LANES<double>];
    if (count < LANES<double>) {
        for (int64_t i = 0; i < 2 * LANES<double>; ++i) some[i] = i < 2 * count ? from[i] : T(0);
        from = some;
    }
    const vec a = load_double(from), b = load_double(from + LANES<double>);
    return {shuffle<double>(a, b, separated<0>(ALL)), shuffle<double>(a, b, separated<1>(ALL))};
}

template <class T>
S4_FAST_INLINE void store_complex(T *to, ComplexVector z, int64_t count) {
    constexpr auto ALL = std::make_integer_sequence<int, LANES<double>>{};
    T some[2 * LANES<double>];
    T *target = count < LANES<double> ? some : to;
    store_double(target, shuffle<double>(z.re, z.im, joined<0>(ALL)));
    store_double(target + LANES<double>, shuffle<double>(z.re, z.im, joined<LANES<double> / 2>(ALL)));
    if (count < LANES<double>)
        for (int64_t i = 0; i < 2 * count; ++i) to[i] = some[i];
}

}  // namespace s4_fast::cpu::S4_FAST_ISA
