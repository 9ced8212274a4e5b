// The one matrix product of the CPU kernels: few columns, which stay in registers, many rows.
#pragma once

#include "simd.h"

namespace s4_fast::cpu::S4_FAST_ISA {

// A matrix of coefficients: element (i, k) at data[i * row + k * column], one of the steps 1.
template <class T>
struct Coefficients {
    const T *data;
    int64_t row, column;
};

// sum_{k < depth} a(i, k) w[k * ldw + j]. A step ldw of -1 makes w a Toeplitz matrix.
template <class T>
struct Product {
    int64_t depth;
    Coefficients<T> a;
    const T *w;
    int64_t ldw;
};

// Adds to the vectors FROM <= j < TO of the sums, and moves the product on. Called, it would keep the sums in memory.
template <class T, int FROM, int TO, int ROWS, int VECTORS>
__attribute__((always_inline)) inline void add_product(Product<T> &p, int64_t depth, Vector<T> (&sums)[ROWS][VECTORS]) {
    for (int64_t k = 0; k < depth; ++k, p.a.data += p.a.column, p.w += p.ldw) {
        Vector<T> row[VECTORS];
#pragma GCC unroll 8
        for (int j = FROM; j < TO; ++j) row[j] = load(p.w + j * LANES<T>);
#pragma GCC unroll 32
        for (int i = 0; i < ROWS; ++i) {
            const T factor = p.a.data[i * p.a.row];
#pragma GCC unroll 8
            for (int j = FROM; j < TO; ++j) sums[i][j] += factor * row[j];
        }
    }
}

// How a second product goes on after its depth: not at all, or a vector of rows of w at a time, with one vector of
// columns less each time from the left or from the right. So much of a triangular Toeplitz matrix is not zero.
enum class Tail { none, right, left };

template <class T, Tail TAIL, int STEP, int ROWS, int VECTORS>
__attribute__((always_inline)) inline void add_tail(Product<T> &p, Vector<T> (&sums)[ROWS][VECTORS]) {
    if constexpr (TAIL != Tail::none && STEP < VECTORS) {
        constexpr int FROM = TAIL == Tail::right ? STEP : 0, TO = TAIL == Tail::right ? VECTORS : VECTORS - STEP;
        add_product<T, FROM, TO>(p, LANES<T>, sums);
        add_tail<T, TAIL, STEP + 1>(p, sums);
    }
}

template <class T, int ROWS, int VECTORS, Tail TAIL>
void multiply_tile(int64_t first, Product<T> p, Product<T> q, T *out, int64_t ldo, bool add) {
    Vector<T> sums[ROWS][VECTORS];
#pragma GCC unroll 32
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) {
            sums[i][j] = add ? load(out + (first + i) * ldo + j * LANES<T>) : Vector<T>{};
        }
    }
    p.a.data += first * p.a.row, q.a.data += first * q.a.row;
    add_product<T, 0, VECTORS>(p, p.depth, sums);
    add_product<T, 0, VECTORS>(q, q.depth, sums);
    add_tail<T, TAIL, 1>(q, sums);
#pragma GCC unroll 32
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) store(out + (first + i) * ldo + j * LANES<T>, sums[i][j]);
    }
}

template <class T, int ROWS, int VECTORS, Tail TAIL>
inline void multiply_rest(int64_t first, int64_t rows, const Product<T> &p, const Product<T> &q, T *out, int64_t ldo,
                          bool add) {
    if constexpr (ROWS > 0) {
        if (rows - first == ROWS) return multiply_tile<T, ROWS, VECTORS, TAIL>(first, p, q, out, ldo, add);
        multiply_rest<T, ROWS - 1, VECTORS, TAIL>(first, rows, p, q, out, ldo, add);
    }
}

// out[i * ldo + j] = [itself, if add, +] p + q for i < rows and as many columns as `Vectors` vectors have.
template <class T, int VECTORS, Tail TAIL = Tail::none>
void multiply_columns(int64_t rows, const Product<T> &p, const Product<T> &q, T *out, int64_t ldo, bool add) {
    // Sums, one row of w, and a factor: as many as there are registers.
    constexpr int ROWS = VECTORS == 1 ? 12 : (REGISTERS == 32 ? 24 : 12) / VECTORS;
    int64_t first = 0;
    for (; first + ROWS <= rows; first += ROWS) multiply_tile<T, ROWS, VECTORS, TAIL>(first, p, q, out, ldo, add);
    multiply_rest<T, ROWS - 1, VECTORS, TAIL>(first, rows, p, q, out, ldo, add);
}

// out[i * ldo + j] = [itself, if add, +] p for i < rows, j < columns, a number of whole vectors.
template <class T>
void multiply(int64_t rows, int64_t columns, Product<T> p, T *out, int64_t ldo, bool add) {
    constexpr int WIDE = REGISTERS == 32 ? 4 : 2;
    const Product<T> none = {0, p.a, p.w, p.ldw};
    for (; columns >= WIDE * LANES<T>; columns -= WIDE * LANES<T>) {
        multiply_columns<T, WIDE>(rows, p, none, out, ldo, add);
        p.w += WIDE * LANES<T>, out += WIDE * LANES<T>;
    }
    if constexpr (WIDE == 4) {
        for (; columns >= 2 * LANES<T>; columns -= 2 * LANES<T>) {
            multiply_columns<T, 2>(rows, p, none, out, ldo, add);
            p.w += 2 * LANES<T>, out += 2 * LANES<T>;
        }
    }
    for (; columns > 0; columns -= LANES<T>, p.w += LANES<T>, out += LANES<T>) {
        multiply_columns<T, 1>(rows, p, none, out, ldo, add);
    }
}

}  // namespace s4_fast::cpu::S4_FAST_ISA
