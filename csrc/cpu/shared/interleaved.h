// Complex numbers in vectors of doubles with their parts in turn, as memory has them. For *.isa.cpp alone.
#pragma once

#include "complex.h"

namespace s4_fast::cpu::S4_FAST_ISA {

// Complex numbers in a vector.
constexpr int64_t PAIRS = LANES<double> / 2;

template <int... I>
constexpr auto neighbours(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, (I ^ 1)...>{};
}

template <int PART, int... I>
constexpr auto doubled(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, ((I & ~1) + PART)...>{};
}

S4_FAST_INLINE vec swapped(vec z) {
    return shuffle<double>(z, z, neighbours(std::make_integer_sequence<int, LANES<double>>{}));
}

// The real parts (PART = 0) or the imaginary parts (1), each twice.
template <int PART>
S4_FAST_INLINE vec parts(vec z) {
    return shuffle<double>(z, z, doubled<PART>(std::make_integer_sequence<int, LANES<double>>{}));
}

// -1 for a real part, 1 for an imaginary part.
S4_FAST_INLINE vec signs() {
    vec made = {};
    for (int lane = 0; lane < LANES<double>; ++lane) made[lane] = lane % 2 ? 1 : -1;
    return made;
}

// a b
S4_FAST_INLINE vec product(vec a, vec b) { return parts<0>(a) * b + parts<1>(a) * (signs() * swapped(b)); }

// conj(a) b
S4_FAST_INLINE vec conj_product(vec a, vec b) { return parts<0>(a) * b - parts<1>(a) * (signs() * swapped(b)); }

// The first `count` complex numbers, if they are fewer than a vector has; the rest are 0.
template <class T>
S4_FAST_INLINE vec load_pairs(const T *from, int64_t count) {
    if (count >= PAIRS) return load_double(from);
    T some[LANES<double>] = {};
    for (int64_t i = 0; i < 2 * count; ++i) some[i] = from[i];
    return load_double(some);
}

template <class T>
S4_FAST_INLINE void store_pairs(T *to, vec z, int64_t count) {
    if (count >= PAIRS) return store_double(to, z);
    for (int64_t i = 0; i < 2 * count; ++i) to[i] = T(z[i]);
}

// body(i, count) for the complex numbers i, ..., i + count - 1 of n, `count` being a vector's but for the last ones.
template <class Body>
S4_FAST_INLINE void over_pairs(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + PAIRS <= n; i += PAIRS) body(i, PAIRS);
    if (i < n) body(i, n - i);
}

}  // namespace s4_fast::cpu::S4_FAST_ISA
