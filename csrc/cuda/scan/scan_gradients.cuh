// The gradients' sums over all chunks. With S_m, conj(G_m) and lambda as in scan_chunks.cuh, and over each chunk
//     P = sum_t lambda^{t+1} dy_t,   U = sum_i lambda^i u[last - i],   P' and U' with factors t + 1 and i,
//     R[d] = sum of dy_t u_{t-d} within all chunks:
//     conj(grad_C) = 2 sum_m S_m P + 2 B sum_{d>=0} R[d] lambda^d,
//     conj(grad_B) = sum_m conj(G_m) U + 2 C sum_{d>=0} R[d] lambda^d,
//     conj(grad_x) = sum_m 2 C S_m P' + conj(G_m) (length lambda^length S_m + B U') + 2 C B sum_{d>=0} d R[d] lambda^d,
// those of B and x summed over the channels. The second direction has R_m and conj(Q_m) for S_m and conj(G_m), its own
// C,
//     P = sum_t lambda^{length-1-t} dy_t,   U = sum_i lambda^i u[first + i],   P' and U' with the exponents as factors,
// and R[-1-d] in place of R[d].
#pragma once

#include "scan_outputs.cuh"

namespace s4_fast::cuda {
namespace {

enum { OF_C, OF_B, OF_X, PARAMETERS };

// u and the channels of y's gradient, or NULL for 0; what each direction carries, and its gradient.
template <class R>
struct Paired {
    const R *u, *grad_y;
    const Complex<R> *enter, *leave;
    const Complex<R> *states[2], *gradients[2];
};

template <class R>
struct ParameterTables {
    Complex<R> powers[CHUNK<R>][TILE_STATES];
    Samples<R, TILE_CHUNKS, CHUNK<R>> samples;
    Complex<R> sums[THREAD_ROWS][TILE_STATES];
    Complex<R> enter[TILE_STATES], leave[TILE_STATES];
    Chunk chunks[TILE_CHUNKS];
    Node<R> nodes[TILE_STATES];
};

// The sums over the chunks of a share of the tiles, for TILE_STATES states of a feature in a direction and a channel,
// the first of which has those with U too: parts[share, direction, channel, parameter, h, state].
template <class R>
S4_FAST_INLINE void parameters_block(unsigned id, const Scan &scan, const Shares &shares, int64_t tiles,
                                     const Node<R> *nodes, const Paired<R> &in, Complex<R> *parts) {
    constexpr int THREAD_STATES = TILE_STATES / THREAD_COLUMNS;
    auto &tables = shared_memory<ParameterTables<R>>();
    // None of these is more than there are blocks.
    const unsigned blocks = unsigned((scan.n + TILE_STATES - 1) / TILE_STATES), H = unsigned(scan.H),
                   c = unsigned(scan.c);
    const unsigned block = id / blocks / H, h = id / blocks % H, channel = block % c;
    const int64_t share = block / c / unsigned(scan.directions), first = int64_t(id % blocks) * TILE_STATES;
    const int direction = int(block / c % unsigned(scan.directions));
    const Complex<R> *const S = in.states[direction], *const conj_G = in.gradients[direction];
    const R *const grad_y = in.grad_y ? in.grad_y + channel * scan.channel() : nullptr;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    load_nodes(tables.nodes, scan, h, first, nodes);
    if (threadIdx.x < TILE_STATES) {
        const int64_t k = first + threadIdx.x, row = direction * scan.c + channel;
        const bool present = k < scan.n;
        tables.enter[threadIdx.x] = present ? in.enter[h * scan.n + k] : Complex<R>{0, 0};
        tables.leave[threadIdx.x] = present ? in.leave[(row * scan.H + h) * scan.n + k] : Complex<R>{0, 0};
    }
    __syncthreads();
    make_powers(tables.powers, tables.nodes, scan);
    const R lag = direction == 0 ? 1 : 0;
    Complex<R> whole[THREAD_STATES], sums[PARAMETERS][THREAD_STATES] = {};
#pragma unroll
    for (int b = 0; b < THREAD_STATES; ++b)
        whole[b] = power(tables.nodes[j + b * THREAD_COLUMNS], scan.T < scan.L ? scan.T : scan.L);
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        __syncthreads();
        find_chunks(tables.chunks, scan, h, tile);
        Complex<R> zeroth[THREAD_CHUNKS][THREAD_STATES], weighted[THREAD_CHUNKS][THREAD_STATES];
        if (channel == 0) {
            __syncthreads();
            load_samples(tables.samples, tables.chunks, direction == 0, in.u, false);
            __syncthreads();
            inner_moments<true, R, THREAD_CHUNKS, THREAD_STATES>(tables.powers, tables.samples, i, j, zeroth, weighted);
#pragma unroll
            for (int a = 0; a < THREAD_CHUNKS; ++a) {
                const Chunk &chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
                for (int b = 0; b < THREAD_STATES; ++b) {
                    const int k = j + b * THREAD_COLUMNS;
                    if (!chunk.length || first + k >= scan.n) continue;
                    const Complex<R> g = conj_G[chunk.states + first + k], s = S[chunk.states + first + k];
                    const Complex<R> decay = chunk.length == scan.T ? whole[b] : power(tables.nodes[k], chunk.length);
                    sums[OF_B][b] += g * zeroth[a][b];
                    sums[OF_X][b] += g * (R(chunk.length) * (decay * s) + tables.enter[k] * weighted[a][b]);
                }
            }
        }
        __syncthreads();
        load_samples(tables.samples, tables.chunks, direction == 1, grad_y, true);
        __syncthreads();
        inner_moments<true, R, THREAD_CHUNKS, THREAD_STATES>(tables.powers, tables.samples, i, j, zeroth, weighted);
#pragma unroll
        for (int a = 0; a < THREAD_CHUNKS; ++a) {
            const Chunk &chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
            for (int b = 0; b < THREAD_STATES; ++b) {
                const int k = j + b * THREAD_COLUMNS;
                if (!chunk.length || first + k >= scan.n) continue;
                const Complex<R> s = S[chunk.states + first + k];
                sums[OF_C][b] += s * zeroth[a][b];
                sums[OF_X][b] += tables.leave[k] * (s * (lag * zeroth[a][b] + weighted[a][b]));
            }
        }
    }
    for (int parameter = 0; parameter < PARAMETERS; ++parameter) {
        __syncthreads();
#pragma unroll
        for (int b = 0; b < THREAD_STATES; ++b)
            tables.sums[i][j + b * THREAD_COLUMNS] = parameter == OF_C   ? sums[OF_C][b]
                                                     : parameter == OF_B ? sums[OF_B][b]
                                                                         : sums[OF_X][b];
        __syncthreads();
        if (threadIdx.x >= TILE_STATES || first + threadIdx.x >= scan.n) continue;
        Complex<R> sum = {0, 0};
        for (int row = 0; row < THREAD_ROWS; ++row) sum += tables.sums[row][threadIdx.x];
        if (parameter == OF_C && direction == 0) sum = power(tables.nodes[threadIdx.x], 1) * sum;
        parts[((int64_t(block) * PARAMETERS + parameter) * scan.H + h) * scan.n + first + threadIdx.x] = sum;
    }
}

template <class R>
struct CorrelationTables {
    static constexpr int T = CHUNK<R>;
    Samples<R, TILE_CHUNKS, T> late, early;
    R sums[THREADS * 4 / T][T];
    Chunk chunks[TILE_CHUNKS];
};

// R[d], or R[-d] in the second direction, over a share of the tiles of a feature and a channel,
// parts[share, direction, channel, h, d]. A thread has four neighbouring d.
template <class R>
S4_FAST_INLINE void correlation_block(unsigned id, const Scan &scan, const Shares &shares, int64_t tiles,
                                      const Paired<R> &in, R *parts) {
    constexpr int T = CHUNK<R>, ROWS = THREADS * 4 / T;
    auto &tables = shared_memory<CorrelationTables<R>>();
    const unsigned H = unsigned(scan.H), c = unsigned(scan.c);
    const unsigned block = id / H, h = id % H, channel = block % c;
    const int64_t share = block / c / unsigned(scan.directions);
    const bool ahead = block / c % unsigned(scan.directions);
    const R *const grad_y = in.grad_y ? in.grad_y + channel * scan.channel() : nullptr;
    const int d = threadIdx.x % (T / 4) * 4, row = threadIdx.x / (T / 4);
    R sums[4] = {};
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        find_chunks(tables.chunks, scan, h, tile);
        __syncthreads();
        load_samples(tables.late, tables.chunks, false, ahead ? in.u : grad_y, !ahead);
        load_samples(tables.early, tables.chunks, false, ahead ? grad_y : in.u, ahead);
        __syncthreads();
        for (int m = row; m < TILE_CHUNKS; m += ROWS) {
            R window[4] = {}, products[4] = {};  // early[t - d - e], and their products with late[t]
            for (int t = d; t < T; ++t) {
                const R g = tables.late[m][t];
                window[0] = tables.early[m][t - d];
#pragma unroll
                for (int e = 0; e < 4; ++e) products[e] += g * window[e];
#pragma unroll
                for (int e = 3; e > 0; --e) window[e] = window[e - 1];
            }
            // Chunk by chunk: one long sum would round more.
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[e] += products[e];
        }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) tables.sums[row][d + e] = sums[e];
    __syncthreads();
    if (threadIdx.x >= T) return;
    R sum = 0;
    for (int p = 0; p < ROWS; ++p) sum += tables.sums[p][threadIdx.x];
    parts[(int64_t(block) * H + h) * T + threadIdx.x] = sum;
}

// How many blocks of each kind a launch has, in this order, and the shares of each.
struct Deal {
    Shares of_parameters, of_outputs, of_correlation;
    int64_t parameters, outputs, correlation;
};

// What the sums over the chunks of a call are left in.
template <class R>
struct Sums {
    Complex<R> *parameters;
    R *correlation;
};

// The gradient of u and the sums for those of the parameters: all that waits for the states alone, in one launch.
template <class R, class S>
__global__ void __launch_bounds__(THREADS, sizeof(R) == sizeof(float) ? 4 : 2)
    scan_gradients_kernel(Scan scan, Deal deal, int64_t tiles, const __grid_constant__ Tables<R> made,
                          const __grid_constant__ Outputs<R, S> outputs, const __grid_constant__ Paired<R> in,
                          Sums<R> sums) {
    unsigned block = blockIdx.x;
    if (block < deal.parameters)
        return parameters_block(block, scan, deal.of_parameters, tiles, made.nodes, in, sums.parameters);
    block -= unsigned(deal.parameters);
    if (block < deal.outputs) return output_block<true, Powers>(block, scan, deal.of_outputs, tiles, made, outputs);
    block -= unsigned(deal.outputs);
    correlation_block(block, scan, deal.of_correlation, tiles, in, sums.correlation);
}

}  // namespace
}  // namespace s4_fast::cuda
