// States of many nodes carried from chunk to chunk in double.
#pragma once

#include "arena.h"
#include "powers.h"

namespace s4_fast {
namespace S4_FAST_ISA {

// A complex number per node, re and im apart, padded to whole vectors.
struct State {
    int64_t n, np;
    double *re, *im;

    State(Arena &memory, int64_t n, int64_t np)
        : n(n), np(np), re(memory.take<double>(np)), im(memory.take<double>(np)) {}

    // `scale` times n pairs, or zero.
    template <class T>
    void set(const T *pairs, double scale = 1) const {
        for (int64_t i = 0; i < np; ++i) {
            re[i] = pairs && i < n ? scale * double(pairs[2 * i]) : 0;
            im[i] = pairs && i < n ? scale * double(pairs[2 * i + 1]) : 0;
        }
    }

    void save(double *to) const {
        for (int64_t i = 0; i < np; ++i) to[i] = re[i], to[np + i] = im[i];
    }
    void restore(const double *from) const {
        for (int64_t i = 0; i < np; ++i) re[i] = from[i], im[i] = from[np + i];
    }

    template <class T>
    void write(T *pairs) const {
        if (pairs == nullptr) return;
        for (int64_t i = 0; i < n; ++i) put(pairs, i, {re[i], im[i]});
    }
};

// How many recurrences run side by side, so that one need not wait for its last step.
constexpr int kChains = kRegisters == 32 ? 4 : 2;

// Replaces the inputs of `rows` chunks, rows (re, im) of 2 np numbers, by the states before them, and takes the state over
// them. The adjoint runs from the last row to the first.
template <class T, int Chains>
void carry_chains(const Jumps<T> &jumps, const State &state, int64_t i, bool adjoint, int64_t rows, T *local) {
    const int64_t np = state.np, step = adjoint ? -2 * np : 2 * np;
    Jump<T> jump[Chains];
    DoubleVector re[Chains], im[Chains];
#pragma GCC unroll 4
    for (int v = 0; v < Chains; ++v) {
        const int64_t at = i + v * kLanes<double>;
        jump[v].set(jumps, at, adjoint);
        re[v] = load(state.re + at), im[v] = load(state.im + at);
    }
    T *row = local + (adjoint ? (rows - 1) * 2 * np : 0) + i;
    for (int64_t m = 0; m < rows; ++m, row += step) {
#pragma GCC unroll 4
        for (int v = 0; v < Chains; ++v) {
            T *at = row + v * kLanes<double>;
            const DoubleVector in_re = load_double(at), in_im = load_double(at + np);
            store_double(at, re[v]), store_double(at + np, im[v]);
            jump[v].apply(re[v], im[v], in_re, in_im);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < Chains; ++v) {
        const int64_t at = i + v * kLanes<double>;
        store(state.re + at, re[v]), store(state.im + at, im[v]);
    }
}

template <class T>
void carry(const Jumps<T> &jumps, const State &state, bool adjoint, int64_t rows, T *local) {
    int64_t i = 0;
    for (; i + kChains * kLanes<double> <= state.np; i += kChains * kLanes<double>) {
        carry_chains<T, kChains>(jumps, state, i, adjoint, rows, local);
    }
    for (; i < state.np; i += kLanes<double>) carry_chains<T, 1>(jumps, state, i, adjoint, rows, local);
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
