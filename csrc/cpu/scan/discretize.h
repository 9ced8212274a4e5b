// The nodes of a feature from its continuous parameters, z = rate dt A, in double.
//
//     zero-order hold: x = z,                   phi = (e^z - 1)/z
//     bilinear:        x = log((2 + z)/(2 - z)), phi = 1/(1 - z/2)       B_bar = rate dt phi B
#pragma once

#include "../shared/complex.h"
#include "../shared/powers.h"
#include "scan.h"

namespace s4_fast::cpu::S4_FAST_ISA {

inline ComplexVector at(Split of, int64_t i) { return {load(of.re + i), load(of.im + i)}; }
inline void store_at(Split to, int64_t i, ComplexVector value) {
    store(to.re + i, value.re), store(to.im + i, value.im);
}

// rate dt, A and B of feature h, np of each; the steps after the n-th are 0.
template <class T>
void read_system(const System<T> &s, int64_t h, int64_t n, int64_t np, double *step, Split A, Split B) {
    const int64_t copy = h % s.copies * n;
    for (int64_t i = 0; i < np; ++i) step[i] = A.re[i] = A.im[i] = B.re[i] = B.im[i] = 0;
    if (s.dt_states == 1) {
        const double dt = double(s.dt[h]), rated = s.rate * (s.log_dt ? ::exp(dt) : dt);
        for (int64_t i = 0; i < n; ++i) step[i] = rated;
    } else {
        for (int64_t i = 0; i < n; ++i) B.re[i] = double(s.dt[h * n + i]);
        if (s.log_dt) exponentials(np, B, B);
        for (int64_t i = 0; i < n; ++i) step[i] = s.rate * B.re[i];
        for (int64_t i = 0; i < np; ++i) B.re[i] = B.im[i] = 0;
    }
    for (int64_t i = 0; i < n; ++i) A.re[i] = double(s.A_real[copy + i]);
    if (s.log_decay) {
        exponentials(np, A, A);
        for (int64_t i = 0; i < np; ++i) A.re[i] = -A.re[i];
    }
    for (int64_t i = 0; i < n; ++i) {
        const double frequency = double(s.A_imag[copy + i]);
        A.im[i] = s.conjugate ? -frequency : frequency;
        B.put(i, s.B ? get(s.B, copy + i) : Complex{1, 0});
    }
}

inline ComplexVector select(IndexVector which, ComplexVector a, ComplexVector b) {
    return {which ? a.re : b.re, which ? a.im : b.im};
}

// sum_k factors[k] z^k
template <int COUNT>
inline ComplexVector series(const double (&factors)[COUNT], ComplexVector z) {
    ComplexVector total = {DoubleVector{} + factors[COUNT - 1], {}};
#pragma GCC unroll 16
    for (int k = COUNT - 2; k >= 0; --k) total = times(total, z), total.re += factors[k];
    return total;
}

// The lanes in which a quotient by z would magnify roundings.
inline IndexVector near_zero(ComplexVector z) { return z.re * z.re + z.im * z.im < 0.25; }

constexpr int TERMS = 15;
struct Factors {
    double phi[TERMS], slope[TERMS];

    constexpr Factors() : phi(), slope() {
        double inverse = 1;  // 1/(k + 1)!
        for (int k = 0; k < TERMS; ++k) {
            inverse /= k + 1;
            phi[k] = inverse, slope[k] = inverse * (k + 1) / (k + 2);
        }
    }
};
constexpr Factors FACTORS;

// (e^z - 1)/z, and its derivative (e^z - phi)/z, for power = e^z.
inline ComplexVector phi_of(ComplexVector z, ComplexVector power) {
    power.re -= 1;
    return select(near_zero(z), series(FACTORS.phi, z), times(power, reciprocal(z)));
}
inline ComplexVector phi_slope(ComplexVector z, ComplexVector power, ComplexVector phi) {
    subtract(power, phi);
    return select(near_zero(z), series(FACTORS.slope, z), times(power, reciprocal(z)));
}

inline ComplexVector phi_bilinear(ComplexVector z) { return reciprocal({1 - 0.5 * z.re, -0.5 * z.im}); }

// log((2 + z)/(2 - z)) in a form that does not cancel for small z.
inline Complex log_bilinear(Complex z) {
    const double a = z.re / 2, b = z.im / 2;
    return {-::log1p(-4 * a / ((1 + a) * (1 + a) + b * b)) / 2, ::atan2(2 * b, (1 - a) * (1 + a) - b * b)};
}

// x, lambda = exp(x) and B_bar of feature h; `step` is scratch memory for np numbers. What takes only lambda of float,
// whose powers lose few of its digits, need not have x.
template <class T>
void discretize(const System<T> &s, int64_t h, int64_t n, int64_t np, double *step, Split x, Split lambda, Split B) {
    if (s.x) {
        x.set(s.x + 2 * h * n, n, np), B.set(s.B + 2 * h * n, n, np);
        exponentials(np, x, lambda);
        return;
    }
    read_system(s, h, n, np, step, x, B);
    for (int64_t i = 0; i < np; i += LANES<double>) {
        const DoubleVector by = load(step + i);
        const ComplexVector z = {by * load(x.re + i), by * load(x.im + i)};
        store_at(x, i, z), store(B.re + i, by * load(B.re + i)), store(B.im + i, by * load(B.im + i));
        if (!s.bilinear) continue;
        const ComplexVector phi = phi_bilinear(z);
        store_at(B, i, times(at(B, i), phi));
        store_at(lambda, i, times({1 + 0.5 * z.re, 0.5 * z.im}, phi));
    }
    if (!s.bilinear) {
        exponentials(np, x, lambda);
        for (int64_t i = 0; i < np; i += LANES<double>)
            store_at(B, i, times(at(B, i), phi_of(at(x, i), at(lambda, i))));
    } else if (sizeof(T) == sizeof(double)) {
        for (int64_t i = 0; i < n; ++i) x.put(i, log_bilinear(x.get(i)));
        exponentials(np, x, lambda);
    }
}

}  // namespace s4_fast::cpu::S4_FAST_ISA
