// Powers of nodes lambda = exp(x), in double.
#pragma once

#include <cmath>

#include "arena.h"
#include "simd.h"

namespace s4_fast::cpu::S4_FAST_ISA {

struct Complex {
    double re, im;
};

inline Complex operator*(Complex a, Complex b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
inline Complex operator*(double a, Complex b) { return {a * b.re, a * b.im}; }
inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
inline Complex conj(Complex a) { return {a.re, -a.im}; }

template <class T>
inline Complex get(const T *pairs, int64_t i) {
    return {double(pairs[2 * i]), double(pairs[2 * i + 1])};
}

template <class T>
inline void put(T *pairs, int64_t i, Complex value) {
    pairs[2 * i] = T(value.re), pairs[2 * i + 1] = T(value.im);
}

// A complex number per node in double, re and im apart, padded to whole vectors.
struct Split {
    double *re, *im;

    Split(double *re, double *im) : re(re), im(im) {}
    Split(Arena &memory, int64_t np) : re(memory.take<double>(np)), im(memory.take<double>(np)) {}

    Complex get(int64_t i) const { return {re[i], im[i]}; }
    void put(int64_t i, Complex value) const { re[i] = value.re, im[i] = value.im; }

    // To n pairs.
    template <class T>
    void write(T *pairs, int64_t n) const {
        for (int64_t i = 0; i < n; ++i) pairs[2 * i] = T(re[i]), pairs[2 * i + 1] = T(im[i]);
    }

    // `scale` times n pairs, or zero.
    template <class T>
    void set(const T *pairs, int64_t n, int64_t np, double scale = 1) const {
        for (int64_t i = 0; i < np; ++i) re[i] = im[i] = 0;
        for (int64_t i = 0; pairs && i < n; ++i) {
            re[i] = scale * double(pairs[2 * i]), im[i] = scale * double(pairs[2 * i + 1]);
        }
    }
};

// exp(re + i im) for |re| < 700 and |im| < 10^6: the quarter turns in im are then counted exactly, and three parts of
// 33 bits of pi/2 leave the rest of im to 2^-53. The polynomials are those of fdlibm and Taylor's.
inline void exponential(DoubleVector re, DoubleVector im, DoubleVector &out_re, DoubleVector &out_im) {
    // Adding it rounds to an integer, which the low bits then hold.
    constexpr double ROUND = 6755399441055744.0;
    const DoubleVector shifted = re * 1.4426950408889634 + ROUND, twos = shifted - ROUND;
    const DoubleVector r = (re - twos * 6.93147180369123816490e-01) - twos * 1.90821492927058770002e-10;
    constexpr double TAYLOR[] = {
        1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
        1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1.0,         1.0};
    DoubleVector size = DoubleVector{} + TAYLOR[0];
#pragma GCC unroll 16
    for (int k = 1; k < 14; ++k) size = size * r + TAYLOR[k];
    const IndexVector exponent = (IndexVector)shifted << 52;
    size = (DoubleVector)((IndexVector)size + exponent);

    const DoubleVector turned = im * 0.63661977236758134 + ROUND, quarters = turned - ROUND;
    const DoubleVector angle = ((im - quarters * 1.57079632673412561417e+00) - quarters * 6.07710050630396597660e-11) -
                               quarters * 2.02226624871116645580e-21;
    const DoubleVector z = angle * angle;
    DoubleVector sin = z * 1.58969099521155010221e-10 - 2.50507602534068634195e-08;
    sin = (sin * z + 2.75573137070700676789e-06) * z - 1.98412698298579493134e-04;
    sin = (sin * z + 8.33333333332248946124e-03) * z - 1.66666666666666324348e-01;
    sin = angle + angle * (z * sin);
    DoubleVector cos = z * -1.13596475577881948265e-11 + 2.08757232129817482790e-09;
    cos = (cos * z - 2.75573143513906633035e-07) * z + 2.48015872894767294178e-05;
    cos = (cos * z - 1.38888888888741095749e-03) * z + 4.16666666666666019037e-02;
    cos = 1.0 - (0.5 * z - z * z * cos);
    const IndexVector quarter = (IndexVector)turned;
    const DoubleVector x = (quarter & 1) != 0 ? sin : cos, y = (quarter & 1) != 0 ? cos : sin;
    out_re = size * (((quarter + 1) & 2) != 0 ? -x : x);
    out_im = size * ((quarter & 2) != 0 ? -y : y);
}

// The exponentials of np numbers, a multiple of a vector; in place too.
inline void exponentials(int64_t np, Split x, Split out) {
    int64_t far = 0;
    for (int64_t i = 0; i < np; ++i) far |= !(::fabs(x.re[i]) < 700) | !(::fabs(x.im[i]) < 1e6);
    for (int64_t i = 0; i < np && far; ++i) {
        const double size = ::exp(x.re[i]), angle = x.im[i];
        out.re[i] = size * ::cos(angle), out.im[i] = size * ::sin(angle);
    }
    for (int64_t i = 0; i < np && !far; i += LANES<double>) {
        DoubleVector re, im;
        exponential(load(x.re + i), load(x.im + i), re, im);
        store(out.re + i, re), store(out.im + i, im);
    }
}

// out = base^count elementwise, for a power of two `count`. Each square doubles the relative error.
inline void square_up(int64_t np, Split base, int64_t count, Split out) {
    for (int64_t i = 0; i < np; i += LANES<double>) {
        DoubleVector re = load(base.re + i), im = load(base.im + i);
        for (int64_t k = 1; k < count; k *= 2) {
            const DoubleVector squared = re * re - im * im;
            im = 2 * re * im, re = squared;
        }
        store(out.re + i, re), store(out.im + i, im);
    }
}

// lambda^t of np nodes for t < count, by doubling: rows (count, np).
struct PowerTable {
    int64_t np, count;
    double *re, *im;

    PowerTable(Arena &memory, int64_t np, int64_t count)
        : np(np), count(count), re(memory.take<double>(count * np)), im(memory.take<double>(count * np)) {}

    void fill(Split lambda) const {
        for (int64_t i = 0; i < np; i += LANES<double>) {
            DoubleVector by_re = load(lambda.re + i), by_im = load(lambda.im + i);
            double *row_re = re + i, *row_im = im + i;
            store(row_re, DoubleVector{} + 1), store(row_im, DoubleVector{});
            for (int64_t done = 1; done < count; done *= 2) {
                for (int64_t t = 0; t < done && done + t < count; ++t) {
                    const DoubleVector a = load(row_re + t * np), b = load(row_im + t * np);
                    store(row_re + (done + t) * np, a * by_re - b * by_im);
                    store(row_im + (done + t) * np, a * by_im + b * by_re);
                }
                const DoubleVector squared = by_re * by_re - by_im * by_im;
                by_im = 2 * by_re * by_im, by_re = squared;
            }
        }
    }
};

// lambda^count as the factor of a recurrence over some steps, which multiplies its rounding error by their number. For
// float, squares of lambda have digits to spare. For double and many steps, the part that a double loses is kept where
// the processor has a wider type.
template <class T>
struct Jumps {
    Split high, low;

    static constexpr bool LOW = sizeof(T) == sizeof(double);
    static constexpr int64_t MANY_STEPS = 512;

    Jumps(Arena &memory, int64_t np) : high(memory, np), low(memory, LOW ? np : 0) {}

    void set(int64_t n, int64_t np, Split x, Split lambda, int64_t count, int64_t steps) const {
        if constexpr (!LOW) {
            square_up(np, lambda, count, high);
            return;
        }
        for (int64_t i = 0; i < np; ++i) {
            high.re[i] = double(count) * x.re[i], high.im[i] = double(count) * x.im[i];
            low.re[i] = low.im[i] = 0;
        }
        exponentials(np, high, high);
        for (int64_t i = 0; i < n && steps > MANY_STEPS; ++i) {
            const long double phase = static_cast<long double>(x.im[i]) * count;
            const long double size = ::expl(static_cast<long double>(x.re[i]) * count);
            const long double re = size * ::cosl(phase), im = size * ::sinl(phase);
            high.re[i] = double(re), high.im[i] = double(im);
            low.re[i] = double(re - high.re[i]), low.im[i] = double(im - high.im[i]);
        }
    }
};

// One vector of states, s <- lambda^count s + input, and its adjoint, s <- conj(lambda^count) s + input.
template <class T>
struct Jump {
    DoubleVector re, im, low_re, low_im;

    void set(const Jumps<T> &jumps, int64_t i, bool adjoint) {
        re = load(jumps.high.re + i), im = load(jumps.high.im + i);
        if (adjoint) im = -im;
        if constexpr (Jumps<T>::LOW) {
            low_re = load(jumps.low.re + i), low_im = load(jumps.low.im + i);
            if (adjoint) low_im = -low_im;
        }
    }

    inline void apply(DoubleVector &s_re, DoubleVector &s_im, DoubleVector in_re, DoubleVector in_im) const {
        if constexpr (Jumps<T>::LOW) {
            in_re = in_re + low_re * s_re - low_im * s_im;
            in_im = in_im + low_re * s_im + low_im * s_re;
        }
        const DoubleVector out_re = in_re + re * s_re - im * s_im;
        s_im = in_im + re * s_im + im * s_re;
        s_re = out_re;
    }
};

}  // namespace s4_fast::cpu::S4_FAST_ISA
