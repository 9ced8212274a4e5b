// Powers of nodes lambda = exp(x), in double.
#pragma once

#include <cmath>

#include "simd.h"

namespace s4_fast {
namespace S4_FAST_ISA {

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

inline Complex exp(Complex x) {
    const double size = ::exp(x.re);
    return {size * ::cos(x.im), size * ::sin(x.im)};
}

// lambda^count for a power of two `count`. A square doubles the relative error: at most 2^5 roundings of a double for
// float, which has 2^29 to spare, and an exponential of an exact product for double.
template <class T>
inline Complex power_of_two(Complex x, Complex lambda, int64_t count) {
    if (sizeof(T) == sizeof(double)) return exp(double(count) * x);
    for (; count > 1; count /= 2) lambda = lambda * lambda;
    return lambda;
}

// re, im[t] = lambda^t for t < count, which is a power of two.
inline void fill_powers(Complex lambda, int64_t count, double *re, double *im) {
    re[0] = 1, im[0] = 0;
    for (int64_t done = 1; done < count; done *= 2, lambda = lambda * lambda) {
        for (int64_t t = 0; t < done; ++t) {
            re[done + t] = re[t] * lambda.re - im[t] * lambda.im;
            im[done + t] = re[t] * lambda.im + im[t] * lambda.re;
        }
    }
}

// lambda^count of n states as the factor of a recurrence over many steps, which multiplies its rounding error by the
// number of steps: for double the part that a double loses is kept where the processor has a wider type.
template <class T>
struct Jumps {
    double *re, *im, *low_re, *low_im;

    static constexpr bool kLow = sizeof(T) == sizeof(double);

    template <class Memory>
    Jumps(Memory &memory, int64_t np)
        : re(memory.template take<double>(np)),
          im(memory.template take<double>(np)),
          low_re(kLow ? memory.template take<double>(np) : nullptr),
          low_im(kLow ? memory.template take<double>(np) : nullptr) {}

    void set(int64_t i, Complex x, Complex lambda, int64_t count) const {
        if constexpr (kLow) {
            const long double phase = static_cast<long double>(x.im) * count;
            const long double size = ::expl(static_cast<long double>(x.re) * count);
            const long double wide_re = size * ::cosl(phase), wide_im = size * ::sinl(phase);
            re[i] = double(wide_re), im[i] = double(wide_im);
            low_re[i] = double(wide_re - re[i]), low_im[i] = double(wide_im - im[i]);
        } else {
            const Complex power = power_of_two<T>(x, lambda, count);
            re[i] = power.re, im[i] = power.im;
        }
    }

    void clear(int64_t i) const {
        re[i] = im[i] = 0;
        if constexpr (kLow) low_re[i] = low_im[i] = 0;
    }

    Complex get(int64_t i) const { return {re[i], im[i]}; }
};

// One vector of states, s <- lambda^count s + input, and its adjoint, s <- conj(lambda^count) s + input.
template <class T>
struct Jump {
    DoubleVector re, im, low_re, low_im;

    void set(const Jumps<T> &jumps, int64_t i, bool adjoint) {
        re = load(jumps.re + i), im = load(jumps.im + i);
        if (adjoint) im = -im;
        if constexpr (Jumps<T>::kLow) {
            low_re = load(jumps.low_re + i), low_im = load(jumps.low_im + i);
            if (adjoint) low_im = -low_im;
        }
    }

    inline void apply(DoubleVector &s_re, DoubleVector &s_im, DoubleVector in_re, DoubleVector in_im) const {
        if constexpr (Jumps<T>::kLow) {
            in_re = in_re + low_re * s_re - low_im * s_im;
            in_im = in_im + low_re * s_im + low_im * s_re;
        }
        const DoubleVector out_re = in_re + re * s_re - im * s_im;
        s_im = in_im + re * s_im + im * s_re;
        s_re = out_re;
    }
};

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
