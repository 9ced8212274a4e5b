// Instructions of a whole warp, which all of its lanes must reach: matrix products of halves and of doubles, and the
// moves that bring matrices into the lanes as these products take them.
//
// A lane is (g, q) = (lane / 4, lane % 4). Of a matrix of 8 x 8 halves it has the neighbours (g, 2 q) and (g, 2 q + 1)
// in one word. A product of 16 x 16 by 16 x 8 takes
//     a[0], a[1] = rows g and g + 8, columns 2 q and 2 q + 1;   a[2], a[3] = the same, columns 2 q + 8 and 2 q + 9;
//     b[0], b[1] = rows 2 q and 2 q + 1, and 2 q + 8 and 2 q + 9, of column g;
//     sum[0], sum[1] = row g, columns 2 q and 2 q + 1;   sum[2], sum[3] = row g + 8.
// A product of 8 x 4 by 4 x 8 doubles takes a = row g, column q, b = row q, column g, and the first of these two rows
// of sums.
#pragma once

#include "half.cuh"

namespace s4_fast::cuda {

constexpr int WARP = 32;

// Four matrices, a word of each.
struct Matrices {
    uint32_t word[4];
};

#ifdef S4_FAST_EMULATE

S4_FAST_INLINE uint32_t pack_halves(float low, float high) {
    Half a, b;
    store_value(a, low);
    store_value(b, high);
    return uint32_t(b.bits) << 16 | a.bits;
}

S4_FAST_INLINE float low_half(uint32_t word) { return load_value(Half{uint16_t(word)}); }
S4_FAST_INLINE float high_half(uint32_t word) { return load_value(Half{uint16_t(word >> 16)}); }

// The sum as a tensor core forms it: all terms cut off at the 24th bit below the largest one, and so is their sum.
inline float truncated_sum(const double *terms, int count) {
    double largest = 0, sum = 0;
    for (int i = 0; i < count; ++i) {
        if (!std::isfinite(terms[i])) return float(std::accumulate(terms, terms + count, 0.0));
        largest = std::max(largest, std::fabs(terms[i]));
    }
    if (largest == 0) return 0;
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 24);
    for (int i = 0; i < count; ++i) sum += std::trunc(terms[i] / unit) * unit;
    if (sum == 0) return 0;
    const double last = std::ldexp(1.0, std::max(std::ilogb(sum), -126) - 23);
    return float(std::trunc(sum / last) * last);
}

S4_FAST_INLINE void multiply_halves(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const emulation::Exchange warp({a[0], a[1], a[2], a[3], b[0], b[1]});
    const unsigned g = warp.lane / 4, q = warp.lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = i / 2, column = 2 * q + i % 2;
        double terms[17] = {sum[i]};
        for (unsigned k = 0; k < 16; k += 2) {
            const uint32_t left = uint32_t(warp[4 * g + k % 8 / 2][row + k / 8 * 2]);
            const uint32_t right = uint32_t(warp[4 * column + k % 8 / 2][4 + k / 8]);
            terms[1 + k] = double(low_half(left)) * low_half(right);
            terms[2 + k] = double(high_half(left)) * high_half(right);
        }
        sum[i] = truncated_sum(terms, 17);
    }
}

inline uint64_t double_bits(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline double double_from(uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

S4_FAST_INLINE void multiply_doubles(double (&sum)[2], double a, double b) {
    const emulation::Exchange warp({double_bits(a), double_bits(b)});
    const unsigned g = warp.lane / 4, q = warp.lane % 4;
    for (unsigned i = 0; i < 2; ++i)
        for (unsigned k = 0; k < 4; ++k)
            sum[i] = fma(double_from(warp[4 * g + k][0]), double_from(warp[4 * (2 * q + i) + k][1]), sum[i]);
}

template <bool TRANSPOSED>
S4_FAST_INLINE Matrices load_matrices(const uint16_t *row) {
    const emulation::Exchange warp({reinterpret_cast<uint64_t>(row)});
    const unsigned g = warp.lane / 4, q = warp.lane % 4;
    Matrices found;
    for (unsigned i = 0; i < 4; ++i) {
        auto row_of = [&](unsigned r) { return reinterpret_cast<const uint16_t *>(warp[8 * i + r][0]); };
        unsigned banks = 0;
        for (unsigned r = 0; r < 8; ++r) banks |= 1u << warp[8 * i + r][0] / 16 % 8;
        if (banks != 0xff) throw std::logic_error("rows of a matrix that begin in the same banks");
        const uint16_t low = TRANSPOSED ? row_of(2 * q)[g] : row_of(g)[2 * q];
        const uint16_t high = TRANSPOSED ? row_of(2 * q + 1)[g] : row_of(g)[2 * q + 1];
        found.word[i] = uint32_t(high) << 16 | low;
    }
    return found;
}

S4_FAST_INLINE uint32_t transpose_halves(uint32_t word) {
    const emulation::Exchange warp({word});
    const unsigned g = warp.lane / 4, q = warp.lane % 4;
    auto half_of = [&](unsigned row) { return uint32_t(warp[4 * row + g / 2][0]) >> (g % 2 * 16) & 0xffffu; };
    return half_of(2 * q + 1) << 16 | half_of(2 * q);
}

S4_FAST_INLINE float shuffle_xor(float value, int mask) {
    const emulation::Exchange warp({bits_of(value)});
    return from_bits(uint32_t(warp[warp.lane ^ unsigned(mask)][0]));
}

S4_FAST_INLINE double shuffle_xor(double value, int mask) {
    const emulation::Exchange warp({double_bits(value)});
    return double_from(warp[warp.lane ^ unsigned(mask)][0]);
}

S4_FAST_INLINE uint32_t max_pairs(uint32_t a, uint32_t b) {
    return std::max(a & 0xffff0000u, b & 0xffff0000u) | std::max(a & 0xffffu, b & 0xffffu);
}

S4_FAST_INLINE void pack_values(uint32_t &target, float low, float high, Half) { target = pack_halves(low, high); }

S4_FAST_INLINE void pack_values(uint32_t &target, float low, float high, BFloat16) {
    BFloat16 a, b;
    store_value(a, low);
    store_value(b, high);
    target = uint32_t(b.bits) << 16 | a.bits;
}

#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800

// Such GPUs lack these instructions. Where the library is built for them too, the calls that would come here are
// refused.
template <class Result>
S4_FAST_INLINE Result not_here() {
    __trap();
    return Result{};
}

S4_FAST_INLINE uint32_t pack_halves(float, float) { return not_here<uint32_t>(); }
S4_FAST_INLINE float low_half(uint32_t) { return not_here<float>(); }
S4_FAST_INLINE float high_half(uint32_t) { return not_here<float>(); }
S4_FAST_INLINE void multiply_halves(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) { __trap(); }
S4_FAST_INLINE void multiply_doubles(double (&)[2], double, double) { __trap(); }
template <bool TRANSPOSED>
S4_FAST_INLINE Matrices load_matrices(const uint16_t *) {
    return not_here<Matrices>();
}
S4_FAST_INLINE uint32_t transpose_halves(uint32_t) { return not_here<uint32_t>(); }
S4_FAST_INLINE float shuffle_xor(float, int) { return not_here<float>(); }
S4_FAST_INLINE double shuffle_xor(double, int) { return not_here<double>(); }
S4_FAST_INLINE uint32_t max_pairs(uint32_t, uint32_t) { return not_here<uint32_t>(); }
template <class S>
S4_FAST_INLINE void pack_values(uint32_t &, float, float, S) {
    __trap();
}

#else

S4_FAST_INLINE uint32_t pack_halves(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

S4_FAST_INLINE float low_half(uint32_t word) {
    float value;
    asm("{ .reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, a; }" : "=f"(value) : "r"(word));
    return value;
}

S4_FAST_INLINE float high_half(uint32_t word) {
    float value;
    asm("{ .reg .f16 a, b; mov.b32 {a, b}, %1; cvt.f32.f16 %0, b; }" : "=f"(value) : "r"(word));
    return value;
}

S4_FAST_INLINE void multiply_halves(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

S4_FAST_INLINE void multiply_doubles(double (&sum)[2], double a, double b) {
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+d"(sum[0]), "+d"(sum[1])
        : "d"(a), "d"(b));
}

// Matrix i has the rows where lanes 8 i to 8 i + 7 point, in shared memory, each aligned to 16 bytes. Its transpose
// brings a lane (2 q, g) and (2 q + 1, g).
template <bool TRANSPOSED>
S4_FAST_INLINE Matrices load_matrices(const uint16_t *row) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    Matrices found;
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(found.word[0]), "=r"(found.word[1]), "=r"(found.word[2]), "=r"(found.word[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(found.word[0]), "=r"(found.word[1]), "=r"(found.word[2]), "=r"(found.word[3])
                     : "r"(address)
                     : "memory");
    return found;
}

S4_FAST_INLINE uint32_t transpose_halves(uint32_t word) {
    uint32_t turned;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(word));
    return turned;
}

S4_FAST_INLINE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
S4_FAST_INLINE double shuffle_xor(double value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

S4_FAST_INLINE uint32_t max_pairs(uint32_t a, uint32_t b) { return __vmaxu2(a, b); }

S4_FAST_INLINE void pack_values(uint32_t &target, float low, float high, Half) { target = pack_halves(low, high); }

S4_FAST_INLINE void pack_values(uint32_t &target, float low, float high, BFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(target) : "f"(high), "f"(low));
}

#endif

}  // namespace s4_fast::cuda
