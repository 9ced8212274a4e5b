// Tables of powers in shared memory, as the products on tensor cores take them.
//
// A table has a row for each time t of a chunk and two columns for each state. It is the right operand of both products
// of a scan, of samples by powers where its rows are summed over, and of states by powers where its columns are.
//
// A lane (g, q) reads the samples 8 q to 8 q + 7 of each half of a chunk, 32 a + 8 q + i, at once. In the product over
// them, step s of half a takes its samples i = 4 s to 4 s + 3 as the columns 2 q, 2 q + 1, 2 q + 8 and 2 q + 9 of its
// left operand. Block j of the outputs of half a has 32 a + 8 (c / 2) + 2 j + c % 2 in its column c, so that a lane
// gets eight neighbouring outputs of the four blocks together.
#pragma once

#include <type_traits>

#include "../shared/halves.cuh"
#include "scan_chunks.cuh"

namespace s4_fast::cuda::tensor {
namespace {

// Samples of a chunk, states of a block, rows of a warp's products.
constexpr int CHUNK_SAMPLES = 64, STATES = 32, ROWS = 16;

// Warps of a block, at most where there are few rows.
constexpr int WARPS = 4;

static_assert(CHUNK_SAMPLES == CHUNK<float>);

template <int PARTS>
struct PowerTable {
    alignas(16) uint16_t part[PARTS][CHUNK_SAMPLES][2 * STATES];

    // Eight neighbouring columns of a row. Eight rows that are read at once have them in different banks.
    S4_FAST_INLINE const uint16_t *at(int p, int row, int column) const {
        return &part[p][row][(column / 8 ^ row % 8) * 8];
    }

    // At time 16 run + t. Neighbours in the table are the eight times of one column block, which are read at once.
    S4_FAST_INLINE void set(int run, int t, int state, Complex<float> value) {
        store(run / 2 * 32 + run % 2 * 4 + (t / 8 * 2 + t % 8 / 2 * 8 + t % 2),
              (state / 4 ^ run % 2 * 4) ^ (t / 8 * 2 + t % 2), state, value);
    }

    S4_FAST_INLINE void set_row(int row, int state, Complex<float> value) {
        store(row, state / 4 ^ row % 8, state, value);
    }

   private:
    S4_FAST_INLINE void store(int row, int place, int state, Complex<float> value) {
        uint32_t words[PARTS];
        split(value.re, value.im, words);
#pragma unroll
        for (int p = 0; p < PARTS; ++p)
            *reinterpret_cast<uint32_t *>(&part[p][row][8 * place + 2 * (state % 4)]) = words[p];
    }
};

// Two right operands of neighbouring blocks.
template <int PARTS>
struct Operands {
    uint32_t first[PARTS][2], second[PARTS][2];

    S4_FAST_INLINE void set(int p, const Matrices &found) {
        first[p][0] = found.word[0];
        first[p][1] = found.word[1];
        second[p][0] = found.word[2];
        second[p][1] = found.word[3];
    }
};

// The rows t of samples by the columns of the state blocks 2 j and 2 j + 1, for step s of half a; from the last row on
// if FLIPPED.
template <bool FLIPPED, int PARTS>
S4_FAST_INLINE Operands<PARTS> over_samples(const PowerTable<PARTS> &table, int a, int s, int j) {
    const int lane = threadIdx.x % WARP;
    const int row = lane % 16 + 32 * a + 16 * s;
    const int column = lane / 16 * 8 + 16 * j;
    Operands<PARTS> found;
#pragma unroll
    for (int p = 0; p < PARTS; ++p)
        found.set(p, load_matrices<true>(table.at(p, FLIPPED ? CHUNK_SAMPLES - 1 - row : row, column)));
    return found;
}

// The columns of the state blocks 2 k and 2 k + 1 by the rows of the output blocks 2 j and 2 j + 1 of half a.
template <bool FLIPPED, int PARTS>
S4_FAST_INLINE Operands<PARTS> over_states(const PowerTable<PARTS> &table, int a, int k, int j) {
    const int lane = threadIdx.x % WARP;
    const int row = lane % 8 + lane / 16 * 8 + 32 * a + 16 * j;
    const int column = lane / 8 % 2 * 8 + 16 * k;
    Operands<PARTS> found;
#pragma unroll
    for (int p = 0; p < PARTS; ++p)
        found.set(p, load_matrices<false>(table.at(p, FLIPPED ? CHUNK_SAMPLES - 1 - row : row, column)));
    return found;
}

// visit(run, t, weights lambda^{16 run + t}) for this lane's state and a warp's share of the times, 0 beyond L: a
// product of the weights, one power in 16 and one of 16, which are themselves products of four.
template <int WEIGHTS, class Visit>
S4_FAST_INLINE void each_power(const Scan &scan, Node<float> node, const Complex<float> (&weights)[WEIGHTS], int warp,
                               int warps, Visit visit) {
    constexpr int RUN = 16;
    Complex<float> powers[RUN] = {{1, 0}};
#pragma unroll
    for (int t = 1; t < RUN; ++t) {
        const int rest = t & (t - 1);
        powers[t] = rest ? powers[rest] * powers[t - rest] : bounded_power(node, t, scan.L);
    }
#pragma unroll 1
    for (int run = warp; run < CHUNK_SAMPLES / RUN; run += warps) {
        const Complex<float> step = bounded_power(node, RUN * run, scan.L);
        const int64_t left = scan.L - RUN * run;
        Complex<float> factors[WEIGHTS];
#pragma unroll
        for (int i = 0; i < WEIGHTS; ++i) factors[i] = weights[i] * step;
#pragma unroll
        for (int t = 0; t < RUN; ++t) {
            Complex<float> values[WEIGHTS];
#pragma unroll
            for (int i = 0; i < WEIGHTS; ++i) values[i] = t < left ? factors[i] * powers[t] : Complex<float>{0, 0};
            visit(run, t, values);
        }
    }
}

// The last time of a row that has as many samples as L has.
S4_FAST_INLINE float last_step(int64_t L) { return float(CHUNK_SAMPLES < L ? CHUNK_SAMPLES - 1 : L - 1); }

// How much lambda^t is at most within a row.
S4_FAST_INLINE float growth(Node<float> node, int64_t L) { return fmaxf(1.0f, exp2f(node.high * last_step(L))); }

// What a state decays by: over a whole chunk, lambda^T and what that is more than a float; over the short one at the
// end.
struct Decays {
    Complex<float> whole[2][STATES], last[STATES];

    S4_FAST_INLINE void set(const Scan &scan, Node<double> node) {
        const int state = threadIdx.x % WARP;
        const Wide wide = power(node, CHUNK_SAMPLES);
        whole[0][state] = convert<float>(wide);
        whole[1][state] = convert<float>(wide - convert<double>(whole[0][state]));
        last[state] = convert<float>(power(node, scan.length(scan.chunks - 1)));
    }

    // Over a chunk of `length` samples.
    S4_FAST_INLINE Complex<float> of(int k, int length, Complex<float> s) const {
        if (length == CHUNK_SAMPLES) return whole[0][k] * s + whole[1][k] * s;
        return length ? last[k] * s : s;
    }
};

// What a row's states and samples are, at most, over the four lanes that have them.
S4_FAST_INLINE float largest_of_row(float value) {
    value = fmaxf(value, shuffle_xor(value, 1));
    return fmaxf(value, shuffle_xor(value, 2));
}

S4_FAST_INLINE float largest_of_warp(float value) {
#pragma unroll
    for (int mask = 1; mask < WARP; mask *= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}

// The sum over the lanes that have the same states of other rows.
S4_FAST_INLINE Complex<float> sum_rows(Complex<float> value) {
#pragma unroll
    for (int mask = 4; mask < WARP; mask *= 2) value += {shuffle_xor(value.re, mask), shuffle_xor(value.im, mask)};
    return value;
}

// Left operands: the samples of a chunk of rows g and g + 8, scaled and split.
template <int PARTS>
struct SampleOperands {
    uint32_t of[2][2][PARTS][4];  // half, step

    template <class S>
    S4_FAST_INLINE void set(const Samples8<S> (&samples)[2][2], const float (&scale)[2]) {
#pragma unroll
        for (int a = 0; a < 2; ++a)
#pragma unroll
            for (int row = 0; row < 2; ++row)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    uint32_t words[PARTS];
                    split(samples[row][a].low(i) * scale[row], samples[row][a].high(i) * scale[row], words);
#pragma unroll
                    for (int p = 0; p < PARTS; ++p) of[a][i / 2][p][i % 2 * 2 + row] = words[p];
                }
    }
};

// The halves in which samples are split: as many as their type has bits for. States, and what follows from them alone,
// are as accurate as float32 whatever the signal: what gives them has two. What gives the outputs is rounded with
// these.
template <class S>
constexpr int SAMPLE_PARTS = std::is_same_v<S, float> ? 2 : 1;
template <class S>
constexpr int OUTPUT_PARTS = std::is_same_v<S, BFloat16> ? 1 : 2;
constexpr int STATE_PARTS = 2;

}  // namespace
}  // namespace s4_fast::cuda::tensor
