// States of many nodes carried from chunk to chunk in double.
#pragma once

#include "arena.h"
#include "powers.h"

namespace s4_fast::cpu::S4_FAST_ISA {

// How many recurrences run side by side, so that one need not wait for its last step.
constexpr int CHAINS = REGISTERS == 32 ? 4 : 2;
// Chunks that float states pass between two that are carried in double: few enough roundings not to be seen.
constexpr int GROUP = 4;

// The factors over one chunk and over GROUP chunks.
template <class T>
struct Carry {
    Jumps<T> one, group;

    int64_t np;

    Carry(Arena &memory, int64_t np) : one(memory, np), group(memory, np), np(np) {}

    // Makes them for chunks of `chunk` samples of L.
    void set(int64_t n, Split x, Split lambda, int64_t chunk, int64_t L) const {
        one.set(n, np, x, lambda, chunk, L / chunk);
        if constexpr (sizeof(T) == sizeof(float)) square_up(np, one.high, GROUP, group.high);
    }

    // Replaces the inputs of `rows` chunks, rows (re, im) of 2 np numbers, by the states before them, and takes the
    // state over them. The adjoint runs from the last row to the first.
    void over(Split state, bool adjoint, int64_t rows, T *local) const {
        int64_t wide = 0, grouped = 0;
        if constexpr (sizeof(T) == sizeof(float)) {
            wide = np / LANES<float> * LANES<float>, grouped = rows / GROUP * GROUP;
            T *first = local + (adjoint ? rows - 1 : 0) * 2 * np;
            const int64_t step = adjoint ? -2 * np : 2 * np;
            for (int64_t i = 0; i < wide; i += LANES<float>)
                groups(state, i, adjoint, grouped / GROUP, first + i, step);
        }
        one_by_one(state, 0, wide, adjoint, rows - grouped, local + (adjoint ? 0 : grouped) * 2 * np);
        one_by_one(state, wide, np, adjoint, rows, local);
    }

   private:
    // The states begin <= i < end.
    void one_by_one(Split state, int64_t begin, int64_t end, bool adjoint, int64_t rows, T *local) const {
        if (rows == 0) return;
        int64_t i = begin;
        for (; i + CHAINS * LANES<double> <= end; i += CHAINS * LANES<double>) {
            chains<CHAINS>(state, i, adjoint, rows, local);
        }
        for (; i < end; i += LANES<double>) chains<1>(state, i, adjoint, rows, local);
    }

    template <int COUNT>
    void chains(Split state, int64_t i, bool adjoint, int64_t rows, T *local) const {
        const int64_t step = adjoint ? -2 * np : 2 * np;
        Jump<T> jump[COUNT];
        DoubleVector re[COUNT], im[COUNT];
#pragma GCC unroll 4
        for (int v = 0; v < COUNT; ++v) {
            const int64_t at = i + v * LANES<double>;
            jump[v].set(one, at, adjoint);
            re[v] = load(state.re + at), im[v] = load(state.im + at);
        }
        T *row = local + (adjoint ? rows - 1 : 0) * 2 * np + i;
        for (int64_t m = 0; m < rows; ++m, row += step) {
#pragma GCC unroll 4
            for (int v = 0; v < COUNT; ++v) {
                T *at = row + v * LANES<double>;
                const DoubleVector in_re = load_double(at), in_im = load_double(at + np);
                store_double(at, re[v]), store_double(at + np, im[v]);
                jump[v].apply(re[v], im[v], in_re, in_im);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < COUNT; ++v) {
            const int64_t at = i + v * LANES<double>;
            store(state.re + at, re[v]), store(state.im + at, im[v]);
        }
    }

    // One vector of float states over `count` groups of rows from `row` on, `step` apart.
    void groups(Split state, int64_t i, bool adjoint, int64_t count, float *row, int64_t step) const {
        constexpr int64_t HALF = LANES<double>;
        const FloatVector a = joined(load(one.high.re + i), load(one.high.re + i + HALF));
        FloatVector b = joined(load(one.high.im + i), load(one.high.im + i + HALF));
        if (adjoint) b = -b;
        Jump<T> low, high;
        low.set(group, i, adjoint), high.set(group, i + HALF, adjoint);
        DoubleVector low_re = load(state.re + i), low_im = load(state.im + i);
        DoubleVector high_re = load(state.re + i + HALF), high_im = load(state.im + i + HALF);
        for (int64_t m = 0; m < count; ++m, row += GROUP * step) {
            FloatVector in_re[GROUP], in_im[GROUP];
#pragma GCC unroll 4
            for (int g = 0; g < GROUP; ++g) in_re[g] = load(row + g * step), in_im[g] = load(row + g * step + np);
            FloatVector sum_re = in_re[0], sum_im = in_im[0];
            FloatVector re = joined(low_re, high_re), im = joined(low_im, high_im);
#pragma GCC unroll 4
            for (int g = 0; g < GROUP; ++g) {
                store(row + g * step, re), store(row + g * step + np, im);
                if (g + 1 == GROUP) break;
                const FloatVector next_re = in_re[g] + a * re - b * im,
                                  next_sum = in_re[g + 1] + a * sum_re - b * sum_im;
                im = in_im[g] + a * im + b * re, sum_im = in_im[g + 1] + a * sum_im + b * sum_re;
                re = next_re, sum_re = next_sum;
            }
            low.apply(low_re, low_im, lower(sum_re), lower(sum_im));
            high.apply(high_re, high_im, upper(sum_re), upper(sum_im));
        }
        store(state.re + i, low_re), store(state.im + i, low_im);
        store(state.re + i + HALF, high_re), store(state.im + i + HALF, high_im);
    }
};

}  // namespace s4_fast::cpu::S4_FAST_ISA
