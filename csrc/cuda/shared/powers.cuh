// Powers of exp(x) whose phase is exact whatever the exponent.
//
// A phase is a 64-bit fixed-point fraction of a turn. Multiplied by an integer it wraps around modulo a turn, so the
// range reduction is exact and costs nothing. No result here depends on whether a product and a sum are fused.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "complex.cuh"

namespace s4_fast::cuda {

// turns modulo 1, in units of 2^-64.
S4_FAST_INLINE uint64_t fixed_point(double turns) {
    // What rounding puts below -1/2 would not fit.
    double fraction = fmax(turns - floor(turns + 0.5), -0.5);
    return uint64_t(int64_t(floor(fraction * 18446744073709551616.0 + 0.5)));
}

// y / (2 pi) modulo 1, in units of 2^-64.
S4_FAST_INLINE uint64_t phase(float y) { return fixed_point(double(y) * 0.15915494309189535); }

S4_FAST_INLINE uint64_t phase(double y) {
    // One rounded product would be wrong by 2^-54 turns, times l. So y and 1/(2 pi) are cut into parts of 24 bits and a
    // rest, whose large products are exact.
    double high = double(float(y)), low = y - high;
    return fixed_point(high * 0.15915493667125702) + fixed_point(low * 0.15915493667125702) +
           fixed_point(high * 6.4206382432985265e-09) +
           fixed_point(high * 7.34273885092955e-17 + low * 6.420638316725915e-09);
}

// cos r + i sin r for |r| <= pi/4, by the polynomials of Cephes.
S4_FAST_INLINE Complex<float> eighth(float r) {
    float z = r * r;
    float sin = -1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f);
    float cos = 4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f);
    return {1.0f - 0.5f * z + z * z * cos, r + r * z * sin};
}

S4_FAST_INLINE Complex<double> eighth(double r) {
    double z = r * r;
    double sin = 2.75573136213857245213e-6 + z * (-2.50507477628578072866e-8 + z * 1.58962301576546568060e-10);
    sin = -1.66666666666666307295e-1 + z * (8.33333333332211858878e-3 + z * (-1.98412698295895385996e-4 + z * sin));
    double cos = -2.75573141792967388112e-7 + z * (2.08757008419747316778e-9 + z * -1.13585365213876817300e-11);
    cos = 2.48015872888517045348e-5 + z * cos;
    cos = 4.16666666666665929218e-2 + z * (-1.38888888888730564116e-3 + z * cos);
    return {1.0 - 0.5 * z + z * z * cos, r + r * z * sin};
}

template <class R>
S4_FAST_INLINE Complex<R> quarter_turns(Complex<R> a, uint32_t quarters) {
    R re = quarters & 1 ? a.im : a.re, im = quarters & 1 ? a.re : a.im;
    return {(quarters + 1) & 2 ? -re : re, quarters & 2 ? -im : im};
}

// exp(2 pi i fixed / 2^64)
template <class R>
S4_FAST_INLINE Complex<R> turn(uint64_t fixed);

template <>
S4_FAST_INLINE Complex<float> turn<float>(uint64_t fixed) {
    uint32_t high = uint32_t(fixed >> 32), quarters = (high + 0x20000000u) >> 30;
    return quarter_turns(eighth(float(int32_t(high - (quarters << 30))) * 1.4629180792671596e-09f), quarters);
}

template <>
S4_FAST_INLINE Complex<double> turn<double>(uint64_t fixed) {
    uint64_t quarters = (fixed + 0x2000000000000000u) >> 62;
    double angle = double(int64_t(fixed - (quarters << 62))) * 3.4061215800865545e-19;
    return quarter_turns(eighth(angle), uint32_t(quarters));
}

// cos + i sin of pi k / L for 0 <= k <= L / 2, both to their relative precision.
S4_FAST_INLINE Complex<double> half_angle(int64_t k, int64_t L) {
    bool near_zero = 4 * k <= L;
    Complex<double> a = eighth(double(near_zero ? 2 * k : L - 2 * k) * (1.5707963267948966 / double(L)));
    return near_zero ? a : Complex<double>{a.im, a.re};
}

// The logarithm of lambda as power() takes it: the phase, and the decay in two parts.
template <class R>
struct Node {
    uint64_t phase;
    R high, low;
};

// The node of exp(x), in the precision in which lambda^l is wanted.
template <class R>
S4_FAST_INLINE Node<R> node_of(Complex<double> x);

template <>
S4_FAST_INLINE Node<double> node_of<double>(Complex<double> x) {
    return {phase(x.im), x.re, 0.0};
}

template <>
S4_FAST_INLINE Node<float> node_of<float>(Complex<double> x) {
    // Twelve bits of log2 |lambda|, whose product with l is exact, and the rest times log 2.
    double bits = x.re * 1.4426950408889634;
    float high = float(bits);
    uint32_t word;
    memcpy(&word, &high, sizeof word);
    word &= 0xfffff000u;
    memcpy(&high, &word, sizeof word);
    return {phase(x.im), high, float((bits - double(high)) * 0.6931471805599453)};
}

S4_FAST_INLINE Node<double> make_node(Complex<double> x) { return node_of<double>(x); }

S4_FAST_INLINE Node<float> make_node(Complex<float> x) {
    Node<float> node = node_of<float>({x.re, 0.0});
    node.phase = phase(x.im);
    return node;
}

// lambda^l for l >= 0.
S4_FAST_INLINE Complex<double> power(Node<double> node, int64_t l) {
    return exp(node.high * double(l)) * turn<double>(node.phase * uint64_t(l));
}

S4_FAST_INLINE Complex<float> power(Node<float> node, int64_t l) {
    float steps = float(l), rest = node.low * steps;
    float size = exp2f(node.high * steps) * (1.0f + rest * (1.0f + 0.5f * rest));
    return size * turn<float>(node.phase * uint64_t(l));
}

}  // namespace s4_fast::cuda
