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
// Chunks that float states pass between two that are carried in double: few enough roundings not to be seen.
constexpr int kGroup = 4;

// The factors over one chunk and over kGroup chunks.
template <class T>
struct Carry {
    Jumps<T> one, group;

    Carry(Arena &memory, int64_t np) : one(memory, np), group(memory, np) {}

    void set(int64_t i, Complex x, Complex lambda, int64_t chunk) const {
        one.set(i, x, lambda, chunk);
        if (sizeof(T) == sizeof(float)) group.set(i, x, lambda, kGroup * chunk);
    }
    void clear(int64_t i) const { one.clear(i), group.clear(i); }

    // Replaces the inputs of `rows` chunks, rows (re, im) of 2 np numbers, by the states before them, and takes the state
    // over them. The adjoint runs from the last row to the first.
    void over(const State &state, bool adjoint, int64_t rows, T *local) const {
        const int64_t np = state.np;
        int64_t grouped = 0;
        if constexpr (sizeof(T) == sizeof(float)) {
            grouped = rows / kGroup * kGroup;
            T *first = local + (adjoint ? rows - 1 : 0) * 2 * np;
            const int64_t step = adjoint ? -2 * np : 2 * np;
            for (int64_t i = 0; i < np; i += kLanes<float>) groups(state, i, adjoint, grouped / kGroup, first + i, step);
        }
        T *rest = local + (adjoint ? 0 : grouped) * 2 * np;
        int64_t i = 0;
        for (; i + kChains * kLanes<double> <= np; i += kChains * kLanes<double>) {
            chains<kChains>(state, i, adjoint, rows - grouped, rest);
        }
        for (; i < np; i += kLanes<double>) chains<1>(state, i, adjoint, rows - grouped, rest);
    }

   private:
    template <int Chains>
    void chains(const State &state, int64_t i, bool adjoint, int64_t rows, T *local) const {
        const int64_t np = state.np, step = adjoint ? -2 * np : 2 * np;
        Jump<T> jump[Chains];
        DoubleVector re[Chains], im[Chains];
#pragma GCC unroll 4
        for (int v = 0; v < Chains; ++v) {
            const int64_t at = i + v * kLanes<double>;
            jump[v].set(one, at, adjoint);
            re[v] = load(state.re + at), im[v] = load(state.im + at);
        }
        T *row = local + (adjoint ? rows - 1 : 0) * 2 * np + i;
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

    // One vector of float states over `count` groups of rows from `row` on, `step` apart.
    void groups(const State &state, int64_t i, bool adjoint, int64_t count, float *row, int64_t step) const {
        constexpr int64_t kHalf = kLanes<double>;
        const int64_t np = state.np;
        const FloatVector a = joined(load(one.re + i), load(one.re + i + kHalf));
        FloatVector b = joined(load(one.im + i), load(one.im + i + kHalf));
        if (adjoint) b = -b;
        Jump<T> low, high;
        low.set(group, i, adjoint), high.set(group, i + kHalf, adjoint);
        DoubleVector low_re = load(state.re + i), low_im = load(state.im + i);
        DoubleVector high_re = load(state.re + i + kHalf), high_im = load(state.im + i + kHalf);
        for (int64_t m = 0; m < count; ++m, row += kGroup * step) {
            FloatVector in_re[kGroup], in_im[kGroup];
#pragma GCC unroll 4
            for (int g = 0; g < kGroup; ++g) in_re[g] = load(row + g * step), in_im[g] = load(row + g * step + np);
            FloatVector sum_re = in_re[0], sum_im = in_im[0];
            FloatVector re = joined(low_re, high_re), im = joined(low_im, high_im);
#pragma GCC unroll 4
            for (int g = 0; g < kGroup; ++g) {
                store(row + g * step, re), store(row + g * step + np, im);
                if (g + 1 == kGroup) break;
                const FloatVector next_re = in_re[g] + a * re - b * im, next_sum = in_re[g + 1] + a * sum_re - b * sum_im;
                im = in_im[g] + a * im + b * re, sum_im = in_im[g + 1] + a * sum_im + b * sum_re;
                re = next_re, sum_re = next_sum;
            }
            low.apply(low_re, low_im, lower(sum_re), lower(sum_im));
            high.apply(high_re, high_im, upper(sum_re), upper(sum_im));
        }
        store(state.re + i, low_re), store(state.im + i, low_im);
        store(state.re + i + kHalf, high_re), store(state.im + i + kHalf, high_im);
    }
};

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
