// The causal convolution y[b, c, h, l] = sum_{j <= l} k[c, h, j] u[b, h, l - j] + D[c, h] u[b, h, l], a feature at a
// time.
#pragma once

#include <cstdint>

#include "../shared/isa.h"

namespace s4_fast::cpu {

// As in s4_fast.h; what may be absent is null.
template <class T>
struct Conv {
    int64_t batch, c, H, L, Lk;
    const T *u, *k, *D;

    // Those that have an effect.
    int64_t taps() const { return Lk < L ? Lk : L; }

    int64_t row(int64_t b, int64_t h) const { return (b * H + h) * L; }
    int64_t row(int64_t b, int64_t channel, int64_t h) const { return ((b * c + channel) * H + h) * L; }
};

template <class T>
struct ConvForward {
    Conv<T> conv;
    T *y;
};

template <class T>
struct ConvBackward {
    Conv<T> conv;
    const T *grad_y;
    T *grad_u;
    bool kernel, skip;  // whether their gradients are wanted
};

// What one worker does: the rows first <= b < last of feature h. A backward pass writes what they add to the gradients
// of k, rows of the channels `step` numbers apart, and D, H apart.
template <class T>
struct ConvPiece {
    int64_t h, first, last;
    T *grad_k;
    int64_t step;
    double *grad_D;
};

// Bytes of the tables that all workers of a call read, and what fills them; bytes of a worker's scratch memory, and its
// work.
// clang-format off
S4_FAST_DECLARE_FOR_ISAS(
    template <class T> int64_t conv_table_bytes(const Conv<T> &conv);
    template <class T> void conv_tables(const Conv<T> &conv, char *tables);
    template <class Problem> int64_t conv_scratch(const Problem &problem);
    template <class Problem, class T>
    void conv(const Problem &problem, const ConvPiece<T> &piece, char *tables, char *scratch);)
// clang-format on

}  // namespace s4_fast::cpu
