// The gradients' sums over all chunks (scan_gradients.cuh) on tensor cores: the four warps of a block go through the
// same 16 rows. Two have what the states S are multiplied by, P, P' and, by the recurrence, S itself, for half of the
// states each; one has what the gradients conj(G) are multiplied by, U and U'; the last one has the correlation.
// conj(G) is read as the adjoint scan left it.
#pragma once

#include "scan_gradients.cuh"
#include "tensor_call.cuh"

namespace s4_fast::cuda::tensor {
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

struct GradientTables {
    PowerTable<STATE_PARTS> powers, weighted;  // lambda^t and t / T lambda^t, scaled
    Decays decays;
    Complex<float> enter[STATES];
    float down[STATES];  // of what the products give
};

// Lags within a chunk: 32 apart, 4 (steps), less 2 for the second half of a step's samples, and what the places in a
// product of 16 x 8 add to that.
using Correlation = float[2][3][2][4];

struct CorrelationTile {
    float of[2][3][2][16][8];
};

template <class S>
S4_FAST_INLINE void make_gradient_tables(GradientTables &tables, const Scan &scan, int64_t h, int64_t first,
                                         const Sources<S> &in) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t index = h * scan.n + first + lane;
    const bool present = first + lane < scan.n;
    const Node<float> node = present ? in.nodes[index] : Node<float>{0, 0, 0};
    const Scale scale = scale_to(growth(node, scan.L));
    const Complex<float> weights[1] = {{scale.up, 0}};
    each_power(scan, node, weights, warp, WARPS, [&](int run, int t, const Complex<float>(&values)[1]) {
        tables.powers.set(run, t, lane, values[0]);
        tables.weighted.set(run, t, lane, float(16 * run + t) * (1.0f / CHUNK_SAMPLES) * values[0]);
    });
    if (warp > 0) return;
    tables.decays.set(scan, present ? in.wide[index] : Node<double>{0, 0, 0});
    tables.enter[lane] = present ? in.enter[index] : Complex<float>{0, 0};
    tables.down[lane] = scale.down;
}

// sums[i][...] of the state blocks 2 j and 2 j + 1: samples by a table, from its last row on if FLIPPED.
template <bool FLIPPED, int SAMPLES>
S4_FAST_INLINE void find_moments(float (&sums)[2][4], const SampleOperands<SAMPLES> &samples,
                                 const PowerTable<STATE_PARTS> &table, int j) {
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            const auto right = over_samples<FLIPPED>(table, a, s, j);
            multiply(sums[0], samples.of[a][s], right.first);
            multiply(sums[1], samples.of[a][s], right.second);
        }
}

// One tile of rows that are gone through forwards.
struct Walk {
    Row rows[2];
    Steps whole_steps;

    S4_FAST_INLINE Walk(const Cut &cut, int64_t h, int64_t tile, bool aligned) {
        find_rows(rows, cut, h, tile);
        whole_steps.find<false>(cut, tile, aligned);
    }

    // No row that only stands in another's place has any.
    S4_FAST_INLINE int length(const Cut &cut, int row, int64_t step) const {
        return rows[row].present ? rows[row].length<false>(cut, step) : 0;
    }
};

// The samples of a step, scaled, and what undoes that: each row of its own, or all alike once each is multiplied by its
// `factors`, if there are any. Those of a short chunk are moved up to its end if `late`, for lambda^{length-1-t}.
template <class S>
S4_FAST_INLINE void load_operands(SampleOperands<SAMPLE_PARTS<S>> &operands, float (&unit)[2], const Cut &cut,
                                  const Walk &walk, int64_t step, bool late, const S *from,
                                  const float *factors = nullptr) {
    Samples8<S> samples[2][2];
    const int64_t start[2] = {walk.rows[0].of_samples<false>(cut, step), walk.rows[1].of_samples<false>(cut, step)};
    if (walk.whole_steps.have(step) && from) {
        load_whole(samples, start, from);
    } else {
        int length[2], moved[2];
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            length[row] = walk.length(cut, row, step);
            moved[row] = late ? missing(length[row]) : 0;
        }
        load_short(samples, start, length, moved, from);
    }
    float up[2], largest[2];
#pragma unroll
    for (int row = 0; row < 2; ++row)
        largest[row] = largest_of_row(fmaxf(samples[row][0].largest(), samples[row][1].largest()));
    if (factors) largest[0] = largest[1] = largest_of_warp(fmaxf(factors[0] * largest[0], factors[1] * largest[1]));
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const Scale scale = scale_to(largest[row]);
        up[row] = walk.rows[row].present ? scale.up * (factors ? factors[row] : 1.0f) : 0.0f;
        unit[row] = scale.down;
    }
    operands.set(samples, up);
}

// correlation += what the chunk of 16 rows adds at each lag: grad_y and u, transposed, rows being summed over.
template <int PARTS>
S4_FAST_INLINE void correlate(Correlation &correlation, const SampleOperands<PARTS> &late,
                              const SampleOperands<PARTS> &early, float unit) {
    uint32_t left[2][2][PARTS][4];
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
            for (int p = 0; p < PARTS; ++p)
#pragma unroll
                for (int i = 0; i < 4; ++i) left[a][s][p][i % 2 * 2 + i / 2] = transpose_halves(late.of[a][s][p][i]);
#pragma unroll
    for (int from = 0; from < 2; ++from)
#pragma unroll
        for (int second = 0; second < 2; ++second) {
            uint32_t right[2][PARTS][2];
#pragma unroll
            for (int s = 0; s < 2; ++s)
#pragma unroll
                for (int p = 0; p < PARTS; ++p)
#pragma unroll
                    for (int i = 0; i < 2; ++i) right[s][p][i] = transpose_halves(early.of[from][s][p][2 * second + i]);
#pragma unroll
            for (int a = from; a < 2; ++a)
#pragma unroll
                for (int steps = 0; steps < 3; ++steps) {
                    float sums[4] = {};
#pragma unroll
                    for (int s = 0; s < 2; ++s) {
                        const int other = s - (steps - 1);
                        if (other == 0 || other == 1) multiply(sums, left[a][s], right[other]);
                    }
#pragma unroll
                    for (int i = 0; i < 4; ++i) correlation[a - from][steps][second][i] += unit * sums[i];
                }
        }
}

// The sample that a place in a product of 16 x 8 is of, less what its step and half add.
S4_FAST_INLINE int sample_at(int place) { return place % 8 / 2 * 8 + place % 2 + place / 8 * 2; }

S4_FAST_INLINE Complex<float> of_row(const float (&sums)[4], int row, float unit) {
    return {unit * sums[2 * row], unit * sums[2 * row + 1]};
}

// conj(G) of the states of blocks 2 j and 2 j + 1 and both rows, for those of which `first` is the first.
template <class S>
S4_FAST_INLINE void load_gradients(Complex<float> (&found)[2][2], const Sources<S> &in, const Cut &cut,
                                   const Walk &walk, int64_t step, int64_t first, int j) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const bool present = walk.length(cut, row, step);
        const int64_t chunk = walk.rows[row].sequence * cut.scan.chunks + walk.rows[row].number<false>(cut, step);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int64_t k = first + 4 * (2 * j + i) + threadIdx.x % 4;
            found[i][row] = present && k < cut.scan.n ? in.gradients[chunk * cut.scan.n + k] : Complex<float>{0, 0};
        }
    }
}

// State blocks of a warp on the states' side.
constexpr int HALF = 4;

// sums += S P, S P' / T, and length conj(G) lambda^length S, for the states of half of the blocks.
template <class S>
S4_FAST_INLINE void sum_states(Complex<float> (&sums)[3][HALF], const GradientTables &tables, const Cut &cut, int64_t h,
                               int64_t tile, int64_t first, int half, const Sources<S> &in) {
    const int q = threadIdx.x % 4 + 4 * HALF * half;
    const Walk walk(cut, h, tile, in.aligned);
    Complex<float> state[HALF][2];
#pragma unroll
    for (int j = 0; j < HALF; ++j)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const int64_t k = first + 4 * j + q;
            const bool present = in.initial && k < cut.scan.n;
            state[j][row] =
                present ? in.initial[walk.rows[row].of_segments(cut) * cut.scan.n + k] : Complex<float>{0, 0};
        }
#pragma unroll 1
    for (int64_t step = 0; step < cut.each; ++step) {
        // One operand after the other: there are no registers for both.
        SampleOperands<SAMPLE_PARTS<S>> samples;
        float unit[2];
        load_operands(samples, unit, cut, walk, step, false, in.grad_y);
#pragma unroll
        for (int j = 0; j < HALF / 2; ++j) {
            float plain[2][4] = {}, weighted[2][4] = {};
            find_moments<false>(plain, samples, tables.powers, HALF / 2 * half + j);
            find_moments<false>(weighted, samples, tables.weighted, HALF / 2 * half + j);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const int block = 2 * j + i;
                    const float down = unit[row] * tables.down[4 * block + q];
                    sums[0][block] += state[block][row] * of_row(plain[i], row, down);
                    sums[1][block] += state[block][row] * of_row(weighted[i], row, down);
                }
        }
        load_operands(samples, unit, cut, walk, step, true, in.u);
#pragma unroll
        for (int j = 0; j < HALF / 2; ++j) {
            Complex<float> gradients[2][2];
            load_gradients(gradients, in, cut, walk, step, first + 4 * HALF * half, j);
            float entered[2][4] = {};
            find_moments<true>(entered, samples, tables.powers, HALF / 2 * half + j);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const int block = 2 * j + i, k = 4 * block + q, length = walk.length(cut, row, step);
                    Complex<float> &s = state[block][row];
                    s = tables.decays.of(k, length, s);
                    sums[2][block] += float(length) * (gradients[i][row] * s);
                    s += tables.enter[k] * of_row(entered[i], row, unit[row] * tables.down[k]);
                }
        }
    }
}

// sums += conj(G) U, conj(G) U' / T
template <class S>
S4_FAST_INLINE void sum_gradients(Complex<float> (&sums)[2][2 * HALF], const GradientTables &tables, const Cut &cut,
                                  int64_t h, int64_t tile, int64_t first, const Sources<S> &in) {
    const Walk walk(cut, h, tile, in.aligned);
#pragma unroll 1
    for (int64_t step = 0; step < cut.each; ++step) {
        SampleOperands<SAMPLE_PARTS<S>> u;
        float of_u[2];
        load_operands(u, of_u, cut, walk, step, true, in.u);
#pragma unroll
        for (int j = 0; j < HALF; ++j) {
            Complex<float> gradients[2][2];
            load_gradients(gradients, in, cut, walk, step, first, j);
            float plain[2][4] = {}, weighted[2][4] = {};
            find_moments<true>(plain, u, tables.powers, j);
            find_moments<true>(weighted, u, tables.weighted, j);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const int block = 2 * j + i;
                    const float down = of_u[row] * tables.down[4 * block + threadIdx.x % 4];
                    sums[0][block] += gradients[i][row] * of_row(plain[i], row, down);
                    sums[1][block] += gradients[i][row] * of_row(weighted[i], row, down);
                }
        }
    }
}

template <class S>
S4_FAST_INLINE void sum_correlation(Correlation &correlation, const Cut &cut, int64_t h, int64_t tile,
                                    const Sources<S> &in) {
    const Walk walk(cut, h, tile, in.aligned);
#pragma unroll 1
    for (int64_t step = 0; step < cut.each; ++step) {
        SampleOperands<SAMPLE_PARTS<S>> u, grad_y;
        float of_u[2], of_y[2];
        load_operands(u, of_u, cut, walk, step, false, in.u);
        load_operands(grad_y, of_y, cut, walk, step, false, in.grad_y, of_u);
        correlate(correlation, grad_y, u, of_y[0]);
    }
}

// What a warp leaves for a state: parts[share, side, parameter, h, state].
S4_FAST_INLINE void store_parts(Complex<float> *parts, const Scan &scan, int64_t index, Complex<float> of_C,
                                Complex<float> of_B, Complex<float> of_x) {
    const int64_t size = scan.H * scan.n;
    parts[OF_C * size + index] = of_C;
    parts[OF_B * size + index] = of_B;
    parts[OF_X * size + index] = of_x;
}

// A correlation by the lags that it has at each place.
S4_FAST_INLINE void spread(CorrelationTile &tile, const Correlation &correlation) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int apart = 0; apart < 2; ++apart)
#pragma unroll
        for (int steps = 0; steps < 3; ++steps)
#pragma unroll
            for (int second = 0; second < 2; ++second)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    tile.of[apart][steps][second][lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] =
                        correlation[apart][steps][second][i];
}

// Two neighbouring threads call it, each for half of the places. The sample of a late place, 0 to 31, has no bit 2.
S4_FAST_INLINE float sum_at(const CorrelationTile &tile, int lag, int half) {
    float sum = 0;
#pragma unroll
    for (int steps = 0; steps < 3; ++steps)
#pragma unroll
        for (int second = 0; second < 2; ++second)
#pragma unroll
            for (int early = 0; early < 8; ++early) {
                const int late = lag - 32 * half - 4 * (steps - 1) + 2 * second + sample_at(early);
                const unsigned at = late, place = at / 2 % 2 * 8 + at / 8 * 2 + at % 2;
                if ((late & ~27) == 0) sum += tile.of[half][steps][second][place][early];
            }
    return sum + shuffle_xor(sum, 1);
}

// Into parts, and correlations[share, h, lag]: by each block for a share of the tiles.
template <class S>
__global__ void __launch_bounds__(WARPS *WARP, 2)
    tensor_gradients_kernel(const __grid_constant__ Cut cut, int64_t shares, int64_t blocks,
                            const __grid_constant__ Sources<S> in, Complex<float> *parts, float *correlations) {
    auto &tables = shared_memory<GradientTables>();
    auto &found = shared_memory<CorrelationTile>();
    static_assert(sizeof(found) <= sizeof(tables));
    const Scan &scan = cut.scan;
    const int64_t h = blockIdx.x % scan.H, block = blockIdx.x / scan.H % blocks, share = blockIdx.x / scan.H / blocks;
    const int64_t first = block * STATES;
    // A warp's number says what it sums, and where it runs. Blocks that may share a multiprocessor are turned, as the
    // sums take different times.
    const int warp = (threadIdx.x / WARP + blockIdx.x / 128) % WARPS, lane = threadIdx.x % WARP;
    make_gradient_tables(tables, scan, h, first, in);
    __syncthreads();
    parts += (share * 2 + warp / 2) * PARAMETERS * scan.H * scan.n;
    if (warp < 2) {
        Complex<float> sums[3][HALF] = {};
#pragma unroll 1
        for (int64_t tile = share; tile < cut.tiles(); tile += shares)
            sum_states(sums, tables, cut, h, tile, first, warp, in);
#pragma unroll
        for (int j = 0; j < HALF; ++j) {
            const int64_t k = first + 4 * (HALF * warp + j) + lane % 4, index = h * scan.n + k;
            const Complex<float> plain = sum_rows(sums[0][j]), weighted = sum_rows(sums[1][j]);
            const Complex<float> rest = sum_rows(sums[2][j]);
            if (lane < 4 && k < scan.n)
                store_parts(parts, scan, index, power(in.nodes[index], 1) * plain, {0, 0},
                            in.leave[index] * (plain + float(CHUNK_SAMPLES) * weighted) + rest);
        }
    } else if (warp == 2) {
        Complex<float> sums[2][2 * HALF] = {};
#pragma unroll 1
        for (int64_t tile = share; tile < cut.tiles(); tile += shares)
            sum_gradients(sums, tables, cut, h, tile, first, in);
#pragma unroll
        for (int j = 0; j < 2 * HALF; ++j) {
            const int64_t k = first + 4 * j + lane % 4, index = h * scan.n + k;
            const Complex<float> plain = sum_rows(sums[0][j]), weighted = sum_rows(sums[1][j]);
            if (lane < 4 && k < scan.n)
                store_parts(parts, scan, index, {0, 0}, plain, float(CHUNK_SAMPLES) * (in.enter[index] * weighted));
        }
    }
    if (first > 0) return;
    Correlation correlation = {};
    if (warp == 3) {
#pragma unroll 1
        for (int64_t tile = share; tile < cut.tiles(); tile += shares) sum_correlation(correlation, cut, h, tile, in);
    }
    __syncthreads();
    if (warp == 3) spread(found, correlation);
    __syncthreads();
    const int lag = threadIdx.x / 2;
    const float sum = sum_at(found, lag, threadIdx.x % 2);
    if (threadIdx.x % 2 == 0) correlations[(share * scan.H + h) * CHUNK_SAMPLES + lag] = sum;
}

}  // namespace
}  // namespace s4_fast::cuda::tensor
