// Reciprocals of differences of complex numbers, over the whole range of the type.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../shared/complex.cuh"

namespace s4_fast::cuda {

// Nodes are one row for all features or one for each.
inline void check_node_rows(int64_t z_rows, int64_t H) {
    if (z_rows != 1 && z_rows != H)
        throw std::runtime_error("cauchy_mult: z has " + std::to_string(z_rows) +
                                 " rows, expected 1 or H = " + std::to_string(H));
}

// 1/d. Scaled by a power of two where |d|^2 would leave the range: S4's nodes near omega = -1 are as large as 1/eps.
S4_FAST_INLINE Complex<float> reciprocal(Complex<float> d) {
    const float size = fmaxf(fabsf(d.re), fabsf(d.im));
    const float scale = size > 0x1p40f ? 0x1p-80f : size < 0x1p-40f ? 0x1p96f : 1.0f;
    d = scale * d;
    // Right to 2 units in the last place where the divisor is far from the ends of the range, as it is here.
    return __fdividef(scale, d.re * d.re + d.im * d.im) * conj(d);
}

S4_FAST_INLINE Complex<double> reciprocal(Complex<double> d) {
    const double size = fmax(fabs(d.re), fabs(d.im));
    const double scale = size > 0x1p400 ? 0x1p-600 : size < 0x1p-400 ? 0x1p600 : 1.0;
    d = scale * d;
    return (scale / (d.re * d.re + d.im * d.im)) * conj(d);
}

// The reciprocals that a state with pole w contributes to a node z: 1/(z - w), and in a symmetric sum 1/(z - w*).
template <class R>
struct Reciprocals {
    Complex<R> own, paired;
};

template <bool SYMMETRIC, class R>
S4_FAST_INLINE Reciprocals<R> reciprocals(Complex<R> z, Complex<R> w) {
    return {reciprocal(z - w), SYMMETRIC ? reciprocal(z - conj(w)) : Complex<R>{0, 0}};
}

}  // namespace s4_fast::cuda
