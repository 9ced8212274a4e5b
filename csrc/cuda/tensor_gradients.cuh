// The gradients' sums over all chunks (scan_gradients.cuh) on tensor cores: pairs of warps go through 16 rows.
//
// One of a pair has what the states S are multiplied by: P, P' and, by the recurrence, S itself. The other one has what
// the gradients conj(G) are multiplied by, U and U', and the correlation. conj(G) is read as the adjoint scan left it.
#pragma once

#include "scan_gradients.cuh"
#include "tensor_call.cuh"

namespace s4_fast {
namespace tensor {
namespace {

template <class S>
struct Sources {
    const Node<float> *nodes;
    const Node<double> *wide;
    const Complex<float> *enter, *leave;  // (H, n)
    const S *u, *grad_y;                  // (batch, H, L), or NULL for 0
    const Complex<float> *initial;        // (batch, H, segments, n), or NULL for 0
    const Complex<float> *gradients;      // (batch, H, chunks, n)
    bool aligned;
};

template <int PARTS>
struct GradientTables {
    PowerTable<PARTS> powers, weighted;  // lambda^t and t / T lambda^t, scaled
    Complex<float> decay[2][STATES], enter[STATES];
    float down[STATES];  // of what the products give
    Node<float> nodes[STATES];
};

// Lags within a chunk: 32 apart, 4 (steps), less 2 for the second half of a step's samples, and what the places in a
// product of 16 x 8 add to that.
using Correlation = float[2][3][2][4];

struct CorrelationTile {
    float of[2][3][2][16][8];
};

template <int PARTS, class S>
S4_FAST_INLINE void make_gradient_tables(GradientTables<PARTS> &tables, const Scan &scan, int64_t h, int64_t first,
                                         const Sources<S> &in) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t index = h * scan.n + first + lane;
    const bool present = first + lane < scan.n;
    const Node<float> node = present ? in.nodes[index] : Node<float>{0, 0, 0};
    const Scale scale = scale_to(grown_by(scan, node));
    each_power(scan, node, warp, WARPS, [&](int t, Complex<float> power) {
        tables.powers.set(t, lane, scale.up * power);
        tables.weighted.set(t, lane, scale.up * (float(t) * (1.0f / T)) * power);
    });
    if (warp > 0) return;
    set_decay(tables.decay, present ? power(in.wide[index], T) : Wide{0, 0});
    tables.enter[lane] = present ? in.enter[index] : Complex<float>{0, 0};
    tables.down[lane] = scale.down;
    tables.nodes[lane] = node;
}

// sums[i][...] of the state blocks 2 j and 2 j + 1: samples by a table, from its last row on if FLIPPED.
template <bool FLIPPED, int PARTS, int SAMPLES>
S4_FAST_INLINE void find_moments(float (&sums)[2][4], const SampleOperands<SAMPLES> &samples,
                                 const PowerTable<PARTS> &table, int j) {
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            const auto right = over_samples<FLIPPED>(table, a, s, j);
            multiply(sums[0], samples.of[a][s], right.first);
            multiply(sums[1], samples.of[a][s], right.second);
        }
}

// The samples of a step, scaled, and what undoes that. All rows alike if `together`.
template <class S>
S4_FAST_INLINE void load_operands(SampleOperands<SAMPLE_PARTS<S>> &operands, float (&unit)[2], const Cut &cut,
                                  const Row (&rows)[2], int64_t step, const int (&moved)[2], const S *from,
                                  bool aligned, bool together) {
    Samples8<S> samples[2][2];
    load_chunk<false>(samples, cut, rows, step, moved, from, aligned);
    float up[2], largest[2];
#pragma unroll
    for (int row = 0; row < 2; ++row)
        largest[row] = largest_of_row(fmaxf(samples[row][0].largest(), samples[row][1].largest()));
    if (together) largest[0] = largest[1] = largest_of_warp(fmaxf(largest[0], largest[1]));
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const Scale scale = scale_to(largest[row]);
        up[row] = scale.up;
        unit[row] = scale.down;
    }
    operands.set(samples, up);
}

// correlation += what the chunk of 16 rows adds at each lag: grad_y and u, transposed, rows being summed over.
template <int PARTS>
S4_FAST_INLINE void correlate(Correlation &correlation, const SampleOperands<PARTS> &late,
                              const SampleOperands<PARTS> &early, float unit) {
    uint32_t left[2][2][PARTS][4], right[2][2][2][PARTS][2];
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
            for (int p = 0; p < PARTS; ++p)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    left[a][s][p][i % 2 * 2 + i / 2] = transpose_halves(late.of[a][s][p][i]);
                    right[a][s][i / 2][p][i % 2] = transpose_halves(early.of[a][s][p][i]);
                }
#pragma unroll
    for (int apart = 0; apart < 2; ++apart)
#pragma unroll
        for (int steps = 0; steps < 3; ++steps)
#pragma unroll
            for (int second = 0; second < 2; ++second) {
                float sums[4] = {};
#pragma unroll
                for (int a = apart; a < 2; ++a)
#pragma unroll
                    for (int s = 0; s < 2; ++s) {
                        const int from = s - (steps - 1);
                        if (from == 0 || from == 1) multiply(sums, left[a][s], right[a - apart][from][second]);
                    }
#pragma unroll
                for (int i = 0; i < 4; ++i) correlation[apart][steps][second][i] += unit * sums[i];
            }
}

// Of a place in a product of 16 x 8, the sample that it is of, less what its step and half add.
S4_FAST_INLINE int sample_at(int place) { return place % 8 / 2 * 8 + place % 2 + place / 8 * 2; }

// The sums of four lanes' states over the lanes that have other rows.
S4_FAST_INLINE Complex<float> sum_rows(Complex<float> value) {
#pragma unroll
    for (int mask = 4; mask < WARP; mask *= 2) {
        value.re += shuffle_xor(value.re, mask);
        value.im += shuffle_xor(value.im, mask);
    }
    return value;
}

S4_FAST_INLINE Complex<float> of_row(const float (&sums)[4], int row, float unit) {
    return {unit * sums[2 * row], unit * sums[2 * row + 1]};
}

// conj(G) of the states of blocks 2 j and 2 j + 1 and both rows.
template <class S>
S4_FAST_INLINE void load_gradients(Complex<float> (&found)[2][2], const Sources<S> &in, const Cut &cut,
                                   const Row (&rows)[2], int64_t step, int64_t first, int j) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int64_t k = first + 4 * (2 * j + i) + threadIdx.x % 4,
                          chunk = rows[row].chunk + rows[row].at<false>(cut, step);
            const bool present = rows[row].length_at<false>(cut, step) && k < cut.scan.n;
            found[i][row] = present ? in.gradients[chunk * cut.scan.n + k] : Complex<float>{0, 0};
        }
}

// Sums of the states' side over a tile: S P, S P' / T, and length conj(G) lambda^length S.
template <class S, int PARTS>
S4_FAST_INLINE void sum_states(Complex<float> (&sums)[3][8], const GradientTables<PARTS> &tables, const Cut &cut,
                               int64_t h, int64_t tile, int64_t first, const Sources<S> &in) {
    const int lane = threadIdx.x % WARP, q = lane % 4;
    Row rows[2];
    rows[0].find(cut, h, tile * ROWS + lane / 4);
    rows[1].find(cut, h, tile * ROWS + lane / 4 + 8);
    Complex<float> state[8][2];
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int64_t k = first + 4 * j + q;
            const bool present = in.initial && rows[row].segment >= 0 && k < cut.scan.n;
            state[j][row] = present ? in.initial[rows[row].states * cut.scan.n + k] : Complex<float>{0, 0};
        }
#pragma unroll 1
    for (int64_t step = 0; step < cut.each; ++step) {
        int length[2], moved[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            length[row] = rows[row].length_at<false>(cut, step);
            moved[row] = missing(length[row]);
        }
        SampleOperands<SAMPLE_PARTS<S>> u, grad_y;
        float of_u[2], of_y[2];
        const int unmoved[2] = {0, 0};
        load_operands(u, of_u, cut, rows, step, moved, in.u, in.aligned, false);
        load_operands(grad_y, of_y, cut, rows, step, unmoved, in.grad_y, in.aligned, false);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            Complex<float> gradients[2][2];
            load_gradients(gradients, in, cut, rows, step, first, j);
            float entered[2][4] = {}, left[2][4] = {}, weighted[2][4] = {};
            find_moments<true>(entered, u, tables.powers, j);
            find_moments<false>(left, grad_y, tables.powers, j);
            find_moments<false>(weighted, grad_y, tables.weighted, j);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int block = 2 * j + i, k = 4 * block + q;
                const float down = tables.down[k];
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    Complex<float> &s = state[block][row];
                    const float unit = of_y[row] * down;
                    sums[0][block] += s * of_row(left[i], row, unit);
                    sums[1][block] += s * of_row(weighted[i], row, unit);
                    s = decayed<PARTS>(tables.decay, tables.nodes, k, length[row], s);
                    sums[2][block] += float(length[row]) * (gradients[i][row] * s);
                    s += tables.enter[k] * of_row(entered[i], row, of_u[row] * down);
                }
            }
        }
    }
}

// Sums of the gradients' side: conj(G) U, conj(G) U' / T, and the correlation.
template <class S, int PARTS>
S4_FAST_INLINE void sum_gradients(Complex<float> (&sums)[3][8], Correlation &correlation,
                                  const GradientTables<PARTS> &tables, const Cut &cut, int64_t h, int64_t tile,
                                  int64_t first, const Sources<S> &in) {
    const int lane = threadIdx.x % WARP, q = lane % 4;
    Row rows[2];
    rows[0].find(cut, h, tile * ROWS + lane / 4);
    rows[1].find(cut, h, tile * ROWS + lane / 4 + 8);
#pragma unroll 1
    for (int64_t step = 0; step < cut.each; ++step) {
        int moved[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) moved[row] = missing(rows[row].length_at<false>(cut, step));
        SampleOperands<SAMPLE_PARTS<S>> u;
        float of_u[2];
        load_operands(u, of_u, cut, rows, step, moved, in.u, in.aligned, true);
        if (first == 0) {
            SampleOperands<SAMPLE_PARTS<S>> grad_y;
            float of_y[2];
            load_operands(grad_y, of_y, cut, rows, step, moved, in.grad_y, in.aligned, true);
            correlate(correlation, grad_y, u, of_y[0] * of_u[0]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            Complex<float> gradients[2][2];
            load_gradients(gradients, in, cut, rows, step, first, j);
            float zeroth[2][4] = {}, weighted[2][4] = {};
            find_moments<true>(zeroth, u, tables.powers, j);
            find_moments<true>(weighted, u, tables.weighted, j);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int block = 2 * j + i;
                const float unit = of_u[0] * tables.down[4 * block + q];
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    sums[0][block] += gradients[i][row] * of_row(zeroth[i], row, unit);
                    sums[1][block] += gradients[i][row] * of_row(weighted[i], row, unit);
                }
            }
        }
    }
}

// parts[share, pair, side, parameter, h, state] and correlations[share, pair, h, lag].
template <class S>
__global__ void __launch_bounds__(WARPS *WARP)
    tensor_gradients_kernel(const __grid_constant__ Cut cut, int64_t shares, int64_t blocks,
                            const __grid_constant__ Sources<S> in, Complex<float> *parts, float *correlations) {
    constexpr int PARTS = TABLE_PARTS<S>, PAIRS = WARPS / 2;
    auto &tables = shared_memory<GradientTables<PARTS>>();
    auto &tiles = shared_memory<CorrelationTile[PAIRS]>();
    static_assert(sizeof(tiles) <= sizeof(tables));
    const Scan &scan = cut.scan;
    const int64_t h = blockIdx.x % scan.H, block = blockIdx.x / scan.H % blocks, share = blockIdx.x / scan.H / blocks;
    const int64_t first = block * STATES;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, pair = warp / 2, q = lane % 4;
    const bool of_states = warp % 2 == 0;
    make_gradient_tables(tables, scan, h, first, in);
    __syncthreads();
    Complex<float> sums[3][8] = {};
    Correlation correlation = {};
    if (of_states) {
        for (int64_t tile = share * PAIRS + pair; tile < cut.tiles(); tile += shares * PAIRS)
            sum_states(sums, tables, cut, h, tile, first, in);
    } else {
        for (int64_t tile = share * PAIRS + pair; tile < cut.tiles(); tile += shares * PAIRS)
            sum_gradients(sums, correlation, tables, cut, h, tile, first, in);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int64_t k = first + 4 * j + q, index = h * scan.n + k;
        const Complex<float> plain = sum_rows(sums[0][j]), weighted = float(T) * sum_rows(sums[1][j]);
        const Complex<float> rest = sum_rows(sums[2][j]);
        if (lane >= 4 || k >= scan.n) continue;
        const Complex<float> zero = {0, 0};
        Complex<float> *const to = parts + (share * WARPS + warp) * PARAMETERS * scan.H * scan.n + index;
        to[OF_C * scan.H * scan.n] = of_states ? power(in.nodes[index], 1) * plain : zero;
        to[OF_B * scan.H * scan.n] = of_states ? zero : plain;
        to[OF_X * scan.H * scan.n] =
            of_states ? in.leave[index] * (plain + weighted) + rest : in.enter[index] * weighted;
    }
    if (first > 0) return;
    __syncthreads();
    if (!of_states) {
#pragma unroll
        for (int apart = 0; apart < 2; ++apart)
#pragma unroll
            for (int steps = 0; steps < 3; ++steps)
#pragma unroll
                for (int second = 0; second < 2; ++second)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        tiles[pair].of[apart][steps][second][lane / 4 + i / 2 * 8][2 * q + i % 2] =
                            correlation[apart][steps][second][i];
    }
    __syncthreads();
    for (int entry = threadIdx.x; entry < PAIRS * T; entry += WARPS * WARP) {
        const int lag = entry % T, of_pair = entry / T;
        float sum = 0;
        for (int key = 0; key < 12; ++key)
            for (int place = 0; place < 16 * 8; ++place) {
                const int base = 32 * (key / 6) + 4 * (key / 2 % 3 - 1) - 2 * (key % 2);
                if (base + sample_at(place / 8) - sample_at(place % 8) == lag)
                    sum += (&tiles[of_pair].of[0][0][0][0][0])[key * 128 + place];
            }
        correlations[((share * PAIRS + of_pair) * scan.H + h) * T + lag] = sum;
    }
}

}  // namespace
}  // namespace tensor
}  // namespace s4_fast
