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

// sum_{k < depth} a(i, k) w[k * ldw + j]. A step ldw of -1 makes w a Toeplitz matrix.
template <class T>
struct Product {
    int64_t depth;
    Coefficients<T> a;
    const T *w;
    int64_t ldw;
};

// Adds to the vectors From <= j < To of the sums, and moves the product on. Called, it would keep the sums in memory.
template <class T, int From, int To, int Rows, int Vectors>
__attribute__((always_inline)) inline void add_product(Product<T> &p, int64_t depth, Vector<T> (&sums)[Rows][Vectors]) {
    for (int64_t k = 0; k < depth; ++k, p.a.data += p.a.column, p.w += p.ldw) {
        Vector<T> row[Vectors];
#pragma GCC unroll 8
        for (int j = From; j < To; ++j) row[j] = load(p.w + j * kLanes<T>);
#pragma GCC unroll 32
        for (int i = 0; i < Rows; ++i) {
            const T factor = p.a.data[i * p.a.row];
#pragma GCC unroll 8
            for (int j = From; j < To; ++j) sums[i][j] += factor * row[j];
        }
    }
}

// How a second product goes on after its depth: not at all, or a vector of rows of w at a time, with one vector of
// columns less each time from the left or from the right. So much of a triangular Toeplitz matrix is not zero.
enum class Tail { none, right, left };

template <class T, Tail tail, int Step, int Rows, int Vectors>
__attribute__((always_inline)) inline void add_tail(Product<T> &p, Vector<T> (&sums)[Rows][Vectors]) {
    if constexpr (tail != Tail::none && Step < Vectors) {
        constexpr int kFrom = tail == Tail::right ? Step : 0, kTo = tail == Tail::right ? Vectors : Vectors - Step;
        add_product<T, kFrom, kTo>(p, kLanes<T>, sums);
        add_tail<T, tail, Step + 1>(p, sums);
    }
}

template <class T, int Rows, int Vectors, Tail tail>
void multiply_tile(int64_t first, Product<T> p, Product<T> q, T *out, int64_t ldo, bool add) {
    Vector<T> sums[Rows][Vectors];
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) {
            sums[i][j] = add ? load(out + (first + i) * ldo + j * kLanes<T>) : Vector<T>{};
        }
    }
    p.a.data += first * p.a.row, q.a.data += first * q.a.row;
    add_product<T, 0, Vectors>(p, p.depth, sums);
    add_product<T, 0, Vectors>(q, q.depth, sums);
    add_tail<T, tail, 1>(q, sums);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) store(out + (first + i) * ldo + j * kLanes<T>, sums[i][j]);
    }
}

template <class T, int Rows, int Vectors, Tail tail>
inline void multiply_rest(int64_t first, int64_t rows, const Product<T> &p, const Product<T> &q, T *out, int64_t ldo,
                          bool add) {
    if constexpr (Rows > 0) {
        if (rows - first == Rows) return multiply_tile<T, Rows, Vectors, tail>(first, p, q, out, ldo, add);
        multiply_rest<T, Rows - 1, Vectors, tail>(first, rows, p, q, out, ldo, add);
    }
}

// out[i * ldo + j] = [itself, if add, +] p + q for i < rows and as many columns as `Vectors` vectors have.
template <class T, int Vectors, Tail tail = Tail::none>
void multiply_columns(int64_t rows, const Product<T> &p, const Product<T> &q, T *out, int64_t ldo, bool add) {
    // Sums, one row of w, and a factor: as many as there are registers.
    constexpr int kRows = Vectors == 1 ? 12 : (kRegisters == 32 ? 24 : 12) / Vectors;
    int64_t first = 0;
    for (; first + kRows <= rows; first += kRows) multiply_tile<T, kRows, Vectors, tail>(first, p, q, out, ldo, add);
    multiply_rest<T, kRows - 1, Vectors, tail>(first, rows, p, q, out, ldo, add);
}

// out[i * ldo + j] = [itself, if add, +] p for i < rows, j < columns, a number of whole vectors.
template <class T>
void multiply(int64_t rows, int64_t columns, Product<T> p, T *out, int64_t ldo, bool add) {
    constexpr int kWide = kRegisters == 32 ? 4 : 2;
    const Product<T> none = {0, p.a, p.w, p.ldw};
    for (; columns >= kWide * kLanes<T>; columns -= kWide * kLanes<T>) {
        multiply_columns<T, kWide>(rows, p, none, out, ldo, add);
        p.w += kWide * kLanes<T>, out += kWide * kLanes<T>;
    }
    if constexpr (kWide == 4) {
        for (; columns >= 2 * kLanes<T>; columns -= 2 * kLanes<T>) {
            multiply_columns<T, 2>(rows, p, none, out, ldo, add);
            p.w += 2 * kLanes<T>, out += 2 * kLanes<T>;
        }
    }
    for (; columns > 0; columns -= kLanes<T>, p.w += kLanes<T>, out += kLanes<T>) {
        multiply_columns<T, 1>(rows, p, none, out, ldo, add);
    }
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
