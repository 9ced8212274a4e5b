// The half types as they lie in memory, and what turns them into numbers and back on either side.
#pragma once

#include <cstdint>
#include <cstring>

#include "complex.cuh"

namespace s4_fast::cuda {

struct BFloat16 {
    uint16_t bits;
};

struct Half {
    uint16_t bits;
};

S4_FAST_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

S4_FAST_INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

S4_FAST_INLINE float load_value(float value) { return value; }
S4_FAST_INLINE double load_value(double value) { return value; }
S4_FAST_INLINE float load_value(BFloat16 value) { return from_bits(uint32_t(value.bits) << 16); }

S4_FAST_INLINE float load_value(Half value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16, rest = uint32_t(value.bits & 0x7fffu) << 13;
    if (rest >= 0x7c00u << 13) return from_bits(sign | rest | 0x7f800000u);
    // The product with 2^112 moves the exponent, and makes subnormal numbers normal.
    return from_bits(sign | bits_of(from_bits(rest) * 5.192296858534828e33f));
}

S4_FAST_INLINE void store_value(float &target, float value) { target = value; }
S4_FAST_INLINE void store_value(double &target, double value) { target = value; }

// To the nearest, and to even where two are as near.
S4_FAST_INLINE void store_value(BFloat16 &target, float value) {
    const uint32_t bits = bits_of(value);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target.bits = is_nan ? uint16_t(0x7fc0u) : uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

S4_FAST_INLINE void store_value(Half &target, float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    uint32_t half;
    if (size > 0x7f800000u)
        half = 0x7e00u;
    else if (size >= 0x47800000u)
        half = 0x7c00u;
    else if (size < 0x38800000u)  // subnormal: the sum with 1/2 rounds where the last bit of the result is
        half = bits_of(from_bits(size) + 0.5f) - 0x3f000000u;
    else
        half = (size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13;
    target.bits = uint16_t(sign | half);
}

}  // namespace s4_fast::cuda
