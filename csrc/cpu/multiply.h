// The one matrix product of the CPU kernels: few columns, which stay in registers, many rows.
#pragma once

#include "simd.h"

namespace s4_fast {
namespace S4_FAST_ISA {

// A matrix of coefficients: element (i, k) at data[i * row + k * column], one of the steps 1.
template <class T>
struct Coefficients {
    const T *data;
    int64_t row, column;
};

template <class T, int Rows, int Vectors>
inline void multiply_tile(int64_t depth, Coefficients<T> a, const T *w, int64_t ldw, T *out, int64_t ldo, bool add) {
    Vector<T> sums[Rows][Vectors];
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) {
            sums[i][j] = add ? load(out + i * ldo + j * kLanes<T>) : Vector<T>{};
        }
    }
    for (int64_t k = 0; k < depth; ++k) {
        Vector<T> row[Vectors];
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) row[j] = load(w + k * ldw + j * kLanes<T>);
        const T *from = a.data + k * a.column;
#pragma GCC unroll 32
        for (int i = 0; i < Rows; ++i) {
            const T factor = from[i * a.row];
#pragma GCC unroll 8
            for (int j = 0; j < Vectors; ++j) sums[i][j] += factor * row[j];
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) store(out + i * ldo + j * kLanes<T>, sums[i][j]);
    }
}

template <class T, int Rows, int Vectors>
inline void multiply_rest(int64_t rows, int64_t depth, Coefficients<T> a, const T *w, int64_t ldw, T *out, int64_t ldo,
                          bool add) {
    if constexpr (Rows > 0) {
        if (rows == Rows) return multiply_tile<T, Rows, Vectors>(depth, a, w, ldw, out, ldo, add);
        multiply_rest<T, Rows - 1, Vectors>(rows, depth, a, w, ldw, out, ldo, add);
    }
}

template <class T, int Vectors>
void multiply_columns(int64_t rows, int64_t depth, Coefficients<T> a, const T *w, int64_t ldw, T *out, int64_t ldo,
                      bool add) {
    // Sums, one row of w, and a factor: as many as there are registers.
    constexpr int kRows = Vectors == 1 ? 12 : (kRegisters == 32 ? 24 : 12) / Vectors;
    for (; rows >= kRows; rows -= kRows, a.data += kRows * a.row, out += kRows * ldo) {
        multiply_tile<T, kRows, Vectors>(depth, a, w, ldw, out, ldo, add);
    }
    multiply_rest<T, kRows - 1, Vectors>(rows, depth, a, w, ldw, out, ldo, add);
}

// out[i * ldo + j] = [itself, if add, +] sum_k a(i, k) w[k * ldw + j] for i < rows, j < columns, a number of whole vectors.
// A step ldw of -1 makes w a Toeplitz matrix.
template <class T>
void multiply(int64_t rows, int64_t depth, int64_t columns, Coefficients<T> a, const T *w, int64_t ldw, T *out,
              int64_t ldo, bool add) {
    constexpr int kWide = kRegisters == 32 ? 4 : 2;
    int64_t j = 0;
    for (; j + kWide * kLanes<T> <= columns; j += kWide * kLanes<T>) {
        multiply_columns<T, kWide>(rows, depth, a, w + j, ldw, out + j, ldo, add);
    }
    if constexpr (kWide == 4) {
        for (; j + 2 * kLanes<T> <= columns; j += 2 * kLanes<T>) {
            multiply_columns<T, 2>(rows, depth, a, w + j, ldw, out + j, ldo, add);
        }
    }
    for (; j < columns; j += kLanes<T>) multiply_columns<T, 1>(rows, depth, a, w + j, ldw, out + j, ldo, add);
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
