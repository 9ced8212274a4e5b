// Tables of powers as the matrix products take them, and transposes.
#pragma once

#include <utility>

#include "half.h"
#include "powers.h"

namespace s4_fast {
namespace S4_FAST_ISA {

// One vector of alternating lanes of the lower or upper halves of a and b.
template <bool Upper, class V, int... I>
inline V zipped(V a, V b, std::integer_sequence<int, I...>) {
    constexpr int kCount = int(sizeof...(I));
    return __builtin_shufflevector(a, b, (I / 2 + (Upper ? kCount / 2 : 0) + I % 2 * kCount)...);
}

// The transpose of a square of vectors: each round moves a bit of the row's number into the column's.
template <class T>
inline void transpose_square(Vector<T> (&rows)[kLanes<T>]) {
    constexpr int kHalf = kLanes<T> / 2;
    using Lanes = std::make_integer_sequence<int, kLanes<T>>;
#pragma GCC unroll 4
    for (int round = 1; round < kLanes<T>; round *= 2) {
        Vector<T> next[kLanes<T>];
#pragma GCC unroll 8
        for (int i = 0; i < kHalf; ++i) {
            next[2 * i] = zipped<false>(rows[i], rows[i + kHalf], Lanes());
            next[2 * i + 1] = zipped<true>(rows[i], rows[i + kHalf], Lanes());
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) rows[i] = next[i];
    }
}

// to[j * ldt + i] = from[i * ldf + j], or plus that if `Add`, for i < rows, j < columns. Not inlined: callers would
// grow too large to have their products inlined.
template <bool Add = false, class From, class To>
__attribute__((noinline)) void transpose(int64_t rows, int64_t columns, const From *from, int64_t ldf, To *to,
                                         int64_t ldt) {
    using T = decltype(widened(*from));
    const int64_t whole_rows = rows / kLanes<T> * kLanes<T>, whole_columns = columns / kLanes<T> * kLanes<T>;
    for (int64_t i = 0; i < whole_rows; i += kLanes<T>) {
        for (int64_t j = 0; j < whole_columns; j += kLanes<T>) {
            Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
            for (int k = 0; k < kLanes<T>; ++k) square[k] = load_wide(from + (i + k) * ldf + j);
            transpose_square<T>(square);
#pragma GCC unroll 16
            for (int k = 0; k < kLanes<T>; ++k) {
                To *const at = to + (j + k) * ldt + i;
                store_wide(at, Add ? load_wide(at) + square[k] : square[k]);
            }
        }
    }
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
            To &at = to[j * ldt + i];
            const T value = widened(from[i * ldf + j]);
            narrow(Add ? widened(at) + value : value, at);
        }
    }
}

template <class T>
void clear(T *out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[i] = 0;
}

// A row of a table: a b elementwise, or its conjugate, as np real and np imaginary parts.
template <class T>
void write_products(int64_t np, const double *a_re, const double *a_im, Split b, bool conjugate, T *out) {
    const double sign = conjugate ? -1 : 1;
    for (int64_t i = 0; i < np; i += kLanes<double>) {
        const DoubleVector re = load(a_re + i), im = load(a_im + i), by_re = load(b.re + i), by_im = load(b.im + i);
        store_double(out + i, re * by_re - im * by_im);
        store_double(out + np + i, sign * (re * by_im + im * by_re));
    }
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
