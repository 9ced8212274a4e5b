// Complex numbers in registers and in memory: pairs of reals, loaded and stored as one vector.
#pragma once

#ifdef S4_FAST_EMULATE
#include "emulate.h"
#endif

#define S4_FAST_INLINE __device__ __forceinline__

namespace s4_fast::cuda {

template <class R>
struct alignas(2 * sizeof(R)) Complex {
    R re, im;
};

using Wide = Complex<double>;

template <class R>
S4_FAST_INLINE Complex<R> operator+(Complex<R> a, Complex<R> b) {
    return {a.re + b.re, a.im + b.im};
}

template <class R>
S4_FAST_INLINE Complex<R> operator-(Complex<R> a, Complex<R> b) {
    return {a.re - b.re, a.im - b.im};
}

template <class R>
S4_FAST_INLINE Complex<R> operator*(Complex<R> a, Complex<R> b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <class R>
S4_FAST_INLINE Complex<R> operator*(R a, Complex<R> b) {
    return {a * b.re, a * b.im};
}

template <class R>
S4_FAST_INLINE void operator+=(Complex<R> &a, Complex<R> b) {
    a = a + b;
}

template <class R>
S4_FAST_INLINE Complex<R> conj(Complex<R> a) {
    return {a.re, -a.im};
}

// Re(a b)
template <class R>
S4_FAST_INLINE R real_product(Complex<R> a, Complex<R> b) {
    return a.re * b.re - a.im * b.im;
}

template <class To, class From>
S4_FAST_INLINE Complex<To> convert(Complex<From> a) {
    return {To(a.re), To(a.im)};
}

}  // namespace s4_fast::cuda
