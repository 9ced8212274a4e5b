// Tables of powers as the matrix products take them, and transposes.
#pragma once

#include <utility>

#include "half.h"
#include "powers.h"

namespace s4_fast::cpu::S4_FAST_ISA {

// One vector of alternating lanes of the lower or upper halves of a and b.
template <bool UPPER, class V, int... I>
inline V zipped(V a, V b, std::integer_sequence<int, I...>) {
    constexpr int COUNT = int(sizeof...(I));
    return __builtin_shufflevector(a, b, (I / 2 + (UPPER ? COUNT / 2 : 0) + I % 2 * COUNT)...);
}

// The transpose of a square of vectors: each round moves a bit of the row's number into the column's.
template <class T>
inline void transpose_square(Vector<T> (&rows)[LANES<T>]) {
    constexpr int HALF = LANES<T> / 2;
    using Lanes = std::make_integer_sequence<int, LANES<T>>;
#pragma GCC unroll 4
    for (int round = 1; round < LANES<T>; round *= 2) {
        Vector<T> next[LANES<T>];
#pragma GCC unroll 8
        for (int i = 0; i < HALF; ++i) {
            next[2 * i] = zipped<false>(rows[i], rows[i + HALF], Lanes());
            next[2 * i + 1] = zipped<true>(rows[i], rows[i + HALF], Lanes());
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES<T>; ++i) rows[i] = next[i];
    }
}

// to[j * ldt + i] = from[i * ldf + j], or plus that if `ADD`, for i < rows, j < columns. Not inlined: callers would
// grow too large to have their products inlined.
template <bool ADD = false, class From, class To>
__attribute__((noinline)) void transpose(int64_t rows, int64_t columns, const From *from, int64_t ldf, To *to,
                                         int64_t ldt) {
    using T = decltype(widened(*from));
    const int64_t whole_rows = rows / LANES<T> * LANES<T>, whole_columns = columns / LANES<T> * LANES<T>;
    for (int64_t i = 0; i < whole_rows; i += LANES<T>) {
        for (int64_t j = 0; j < whole_columns; j += LANES<T>) {
            Vector<T> square[LANES<T>];
#pragma GCC unroll 16
            for (int k = 0; k < LANES<T>; ++k) square[k] = load_wide(from + (i + k) * ldf + j);
            transpose_square<T>(square);
#pragma GCC unroll 16
            for (int k = 0; k < LANES<T>; ++k) {
                To *const at = to + (j + k) * ldt + i;
                store_wide(at, ADD ? load_wide(at) + square[k] : square[k]);
            }
        }
    }
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
            To &at = to[j * ldt + i];
            const T value = widened(from[i * ldf + j]);
            narrow(ADD ? widened(at) + value : value, at);
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
    for (int64_t i = 0; i < np; i += LANES<double>) {
        const DoubleVector re = load(a_re + i), im = load(a_im + i), by_re = load(b.re + i), by_im = load(b.im + i);
        store_double(out + i, re * by_re - im * by_im);
        store_double(out + np + i, sign * (re * by_im + im * by_re));
    }
}

}  // namespace s4_fast::cpu::S4_FAST_ISA
