// Signals in half precision, which are numbers of type float while they are worked with. For *.isa.cpp alone.
#pragma once

#include <cstdint>

#include "simd.h"

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace s4_fast::cpu {

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

namespace S4_FAST_ISA {

typedef uint16_t HalfBits __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t FloatBits __attribute__((vector_size(VECTOR_BYTES)));

inline uint32_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float of_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

inline float widened(float value) { return value; }
inline double widened(double value) { return value; }
inline float widened(BFloat16 value) { return of_bits(uint32_t(value.bits) << 16); }
inline float widened(Float16 value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
    // Below the normal range an integer: a float below its own would count as zero here.
    if (rest < 0x0400) return of_bits(bits_of(float(rest) * 0x1p-24f) | sign);
    return of_bits(((rest << 13) + (rest < 0x7c00 ? 0x38000000u : 0x70000000u)) | sign);
}

// To the nearest, and of two to the even one. What is not a number remains so.
inline void narrow(float value, float &to) { to = value; }
inline void narrow(double value, double &to) { to = value; }
inline void narrow(float value, BFloat16 &to) {
    const uint32_t bits = bits_of(value);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    to.bits = uint16_t(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void narrow(float value, Float16 &to) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t rest;
    if (size >= 0x477ff000) {
        rest = size > 0x7f800000 ? 0x7e00 | (size >> 13 & 0x1ff) : 0x7c00;
    } else if (size < 0x38800000) {
        // The sum's last digit is that of the smallest numbers.
        rest = bits_of(of_bits(size) + 0.5f) - bits_of(0.5f);
    } else {
        rest = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    }
    to.bits = uint16_t(sign | rest);
}

// A vector of the type that is worked with, from and to memory of any.
inline FloatVector load_wide(const float *from) { return load(from); }
inline DoubleVector load_wide(const double *from) { return load(from); }
inline FloatVector load_wide(const BFloat16 *from) {
    HalfBits half;
    __builtin_memcpy(&half, from, sizeof half);
    return (FloatVector)(__builtin_convertvector(half, FloatBits) << 16);
}
inline FloatVector load_wide(const Float16 *from) {
#if defined(__AVX512F__)  // masked: GCC warns of what the plain ones leave uninitialised
    return (FloatVector)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__F16C__)
    return (FloatVector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#else
    FloatVector wide;
    for (int i = 0; i < LANES<float>; ++i) wide[i] = widened(from[i]);
    return wide;
#endif
}

inline void store_wide(float *to, FloatVector v) { store(to, v); }
inline void store_wide(double *to, DoubleVector v) { store(to, v); }
inline void store_wide(BFloat16 *to, FloatVector v) {
    const FloatBits bits = (FloatBits)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const FloatBits nan = bits >> 16 | 0x40;
    const HalfBits half = __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded, HalfBits);
    __builtin_memcpy(to, &half, sizeof half);
}
inline void store_wide(Float16 *to, FloatVector v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to),
                        _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < LANES<float>; ++i) narrow(v[i], to[i]);
#endif
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast::cpu
