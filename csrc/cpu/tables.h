// Tables of powers as the matrix products take them.
#pragma once

#include "powers.h"

namespace s4_fast {
namespace S4_FAST_ISA {

// to (columns, rows) = from (rows, columns).
template <class T>
void transpose(int64_t rows, int64_t columns, const T *from, T *to) {
    constexpr int64_t kTile = 16;
    for (int64_t i = 0; i < rows; i += kTile) {
        for (int64_t j = 0; j < columns; ++j) {
            for (int64_t k = i; k < rows && k < i + kTile; ++k) to[j * rows + k] = from[k * columns + j];
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
