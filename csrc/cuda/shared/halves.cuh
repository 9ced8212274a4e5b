// Float32 numbers as sums of halves, for products on tensor cores.
//
// A half has 11 bits, the sum of two has 22, and a product that leaves out lower part times lower part is wrong by
// 2^-22. Below 2^-14 a half loses bits, so what is split is first scaled by a power of two to at most 2^12: what two
// halves leave of it is then 2^-37 of the largest, and what one half leaves 2^-12 of a number that is 2^-26 of it.
#pragma once

#include "warp.cuh"

namespace s4_fast::cuda {

// Binary digits above 1 of what is scaled.
constexpr int SCALED_BITS = 12;

// A power of two and its inverse.
struct Scale {
    float up, down;
};

// The scale that brings `largest` to [2^11, 2^12). What is not finite stays so.
S4_FAST_INLINE Scale scale_to(float largest) {
    const uint32_t exponent = bits_of(largest) >> 23 & 0xffu, used = exponent < SCALED_BITS ? SCALED_BITS : exponent;
    return {from_bits((253u + SCALED_BITS - used) << 23), from_bits((used + 1 - SCALED_BITS) << 23)};
}

// Words of two halves each that add up to (low, high).
template <int PARTS>
S4_FAST_INLINE void split(float low, float high, uint32_t (&words)[PARTS]) {
    words[0] = pack_halves(low, high);
    if constexpr (PARTS > 1) words[1] = pack_halves(low - low_half(words[0]), high - high_half(words[0]));
}

// sum += a b
template <int A, int B>
S4_FAST_INLINE void multiply(float (&sum)[4], const uint32_t (&a)[A][4], const uint32_t (&b)[B][2]) {
    if constexpr (A > 1) multiply_halves(sum, a[1], b[0]);
    if constexpr (B > 1) multiply_halves(sum, a[0], b[1]);
    multiply_halves(sum, a[0], b[0]);
}

// 16 bytes, read and written at once.
struct alignas(16) Vector {
    uint32_t word[4];
};

S4_FAST_INLINE void store_vector(void *to, const Vector &value) {
#ifdef S4_FAST_EMULATE
    *static_cast<Vector *>(to) = value;
#else
    // The compiler makes four stores of an assignment.
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]),
                   "r"(value.word[3])
                 : "memory");
#endif
}

// Whether every row of L samples begins where a vector may be read and written at once.
template <class S>
bool is_aligned(const S *samples, int64_t L) {
    return L * int64_t(sizeof(S)) % int64_t(sizeof(Vector)) == 0 && uintptr_t(samples) % sizeof(Vector) == 0;
}

// Eight neighbouring samples as they lie in memory.
template <class S>
struct Samples8 {
    static constexpr int VECTORS = 8 * sizeof(S) / sizeof(Vector);
    Vector vectors[VECTORS];

    S4_FAST_INLINE void load(const S *from) {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) vectors[i] = reinterpret_cast<const Vector *>(from)[i];
    }

    S4_FAST_INLINE void store(S *to) const {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) store_vector(reinterpret_cast<Vector *>(to) + i, vectors[i]);
    }

    // Those from `first` to `end` of the eight at `from`, zeros for the others.
    S4_FAST_INLINE void load(const S *from, int first, int end) {
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) vectors[i] = {};
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i >= first && i < end) set(i, from[i]);
    }

    S4_FAST_INLINE void store(S *to, int first, int end) const {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i >= first && i < end) to[i] = get(i);
    }

    S4_FAST_INLINE uint32_t &word(int i) { return vectors[i / 4].word[i % 4]; }
    S4_FAST_INLINE uint32_t word(int i) const { return vectors[i / 4].word[i % 4]; }

    S4_FAST_INLINE void set(int i, S value) {
        if constexpr (sizeof(S) == 4)
            word(i) = bits_of(value);
        else
            word(i / 2) |= uint32_t(value.bits) << (i % 2 * 16);
    }

    S4_FAST_INLINE S get(int i) const {
        if constexpr (sizeof(S) == 4)
            return from_bits(word(i));
        else
            return {uint16_t(word(i / 2) >> (i % 2 * 16))};
    }

    // Samples 2 i and 2 i + 1.
    S4_FAST_INLINE float low(int i) const {
        if constexpr (std::is_same_v<S, float>)
            return from_bits(word(2 * i));
        else if constexpr (std::is_same_v<S, Half>)
            return low_half(word(i));
        else
            return from_bits(word(i) << 16);
    }

    S4_FAST_INLINE float high(int i) const {
        if constexpr (std::is_same_v<S, float>)
            return from_bits(word(2 * i + 1));
        else if constexpr (std::is_same_v<S, Half>)
            return high_half(word(i));
        else
            return from_bits(word(i) & 0xffff0000u);
    }

    S4_FAST_INLINE void set_pair(int i, float low, float high) {
        if constexpr (std::is_same_v<S, float>) {
            word(2 * i) = bits_of(low);
            word(2 * i + 1) = bits_of(high);
        } else {
            pack_values(word(i), low, high, S{});
        }
    }

    // The largest absolute value. One that is no number may be passed over.
    S4_FAST_INLINE float largest() const {
        if constexpr (std::is_same_v<S, float>) {
            float most = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(from_bits(word(i))));
            return most;
        } else {
            uint32_t most = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) most = max_pairs(most, word(i) & 0x7fff7fffu);
            const uint32_t bits = most >> 16 > (most & 0xffffu) ? most >> 16 : most & 0xffffu;
            return load_value(S{uint16_t(bits)});
        }
    }
};

}  // namespace s4_fast::cuda
