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

#include "scan_states.cuh"

namespace s4_fast {
namespace {

enum { OF_C, OF_B, OF_X, PARAMETERS };

// u and the channels of y's gradient, or NULL for 0; what each direction carries, and its gradient.
template <class R>
struct Paired {
    const R *u, *grad_y;
    const Complex<R> *B, *C;
    const Complex<R> *states[2], *gradients[2];
};

template <class R>
struct ParameterTables {
    Complex<R> powers[CHUNK<R>][K];
    Samples<R, M, CHUNK<R>> samples;
    Complex<R> sums[THREAD_ROWS][K];
    Chunk chunks[M];
    Node<R> nodes[K];
};

// The sums over the chunks of a share of the tiles, for K states of a feature in a direction and a channel, the first
// of which has those with U too: parts[share, direction, channel, parameter, h, state].
template <class R>
__global__ void __launch_bounds__(THREADS, 2)
    scan_parameters_kernel(Scan scan, Shares shares, int64_t tiles, int64_t blocks, const Node<R> *nodes,
                           const __grid_constant__ Paired<R> in, Complex<R> *parts) {
    constexpr int RK = K / THREAD_COLUMNS;
    auto &tables = shared_memory<ParameterTables<R>>();
    const int64_t block = blockIdx.x / (scan.H * blocks), h = blockIdx.x / blocks % scan.H;
    const int64_t first = blockIdx.x % blocks * K, channel = block % scan.c;
    const int64_t share = block / (scan.c * scan.directions);
    const int direction = int(block / scan.c % scan.directions);
    const Complex<R> *const S = in.states[direction], *const conj_G = in.gradients[direction];
    const R *const grad_y = in.grad_y ? in.grad_y + channel * scan.channel() : nullptr;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    load_nodes(tables.nodes, scan, h, first, nodes);
    __syncthreads();
    make_powers(tables.powers, tables.nodes, scan);
    const R lag = direction == 0 ? 1 : 0;
    Complex<R> lagged[RK], whole[RK], enter[RK], leave[RK], sums[PARAMETERS][RK] = {};
#pragma unroll
    for (int b = 0; b < RK; ++b) {
        const int64_t k = j + b * THREAD_COLUMNS, index = h * scan.n + first + k;
        const bool present = first + k < scan.n;
        lagged[b] = power(tables.nodes[k], direction == 0 ? 1 : 0);
        whole[b] = power(tables.nodes[k], scan.T < scan.L ? scan.T : scan.L);
        enter[b] = present ? in.B[index] : Complex<R>{0, 0};
        leave[b] = present ? R(2) * in.C[(direction * scan.c + channel) * scan.H * scan.n + index] : Complex<R>{0, 0};
    }
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        __syncthreads();
        find_chunks(tables.chunks, scan, h, tile);
        Complex<R> zeroth[RM][RK], weighted[RM][RK];
        if (channel == 0) {
            __syncthreads();
            load_samples(tables.samples, tables.chunks, direction == 0, in.u, false);
            __syncthreads();
            inner_moments<true, R, RM, RK>(tables.powers, tables.samples, i, j, zeroth, weighted);
#pragma unroll
            for (int a = 0; a < RM; ++a) {
                const Chunk &chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
                for (int b = 0; b < RK; ++b) {
                    const int k = j + b * THREAD_COLUMNS;
                    if (!chunk.length || first + k >= scan.n) continue;
                    const Complex<R> g = conj_G[chunk.states + first + k], s = S[chunk.states + first + k];
                    const Complex<R> decay = chunk.length == scan.T ? whole[b] : power(tables.nodes[k], chunk.length);
                    sums[OF_B][b] += g * zeroth[a][b];
                    sums[OF_X][b] += g * (R(chunk.length) * (decay * s) + enter[b] * weighted[a][b]);
                }
            }
        }
        __syncthreads();
        load_samples(tables.samples, tables.chunks, direction == 1, grad_y, true);
        __syncthreads();
        inner_moments<true, R, RM, RK>(tables.powers, tables.samples, i, j, zeroth, weighted);
#pragma unroll
        for (int a = 0; a < RM; ++a) {
            const Chunk &chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
            for (int b = 0; b < RK; ++b) {
                const int k = j + b * THREAD_COLUMNS;
                if (!chunk.length || first + k >= scan.n) continue;
                const Complex<R> s = lagged[b] * S[chunk.states + first + k];
                sums[OF_C][b] += s * zeroth[a][b];
                sums[OF_X][b] += leave[b] * (s * (lag * zeroth[a][b] + weighted[a][b]));
            }
        }
    }
    for (int parameter = 0; parameter < PARAMETERS; ++parameter) {
        __syncthreads();
#pragma unroll
        for (int b = 0; b < RK; ++b)
            tables.sums[i][j + b * THREAD_COLUMNS] = parameter == OF_C   ? sums[OF_C][b]
                                                     : parameter == OF_B ? sums[OF_B][b]
                                                                         : sums[OF_X][b];
        __syncthreads();
        if (threadIdx.x >= K || first + threadIdx.x >= scan.n) continue;
        Complex<R> sum = {0, 0};
        for (int row = 0; row < THREAD_ROWS; ++row) sum += tables.sums[row][threadIdx.x];
        parts[((block * PARAMETERS + parameter) * scan.H + h) * scan.n + first + threadIdx.x] = sum;
    }
}

template <class R>
struct CorrelationTables {
    static constexpr int T = CHUNK<R>;
    Samples<R, M, T> late, early;
    R sums[THREADS * 4 / T][T];
    Chunk chunks[M];
};

// R[d], or R[-d] in the second direction, over a share of the tiles of a feature and a channel,
// parts[share, direction, channel, h, d]. A thread has four neighbouring d.
template <class R>
__global__ void __launch_bounds__(THREADS)
    scan_correlation_kernel(Scan scan, Shares shares, int64_t tiles, const __grid_constant__ Paired<R> in, R *parts) {
    constexpr int T = CHUNK<R>, ROWS = THREADS * 4 / T;
    auto &tables = shared_memory<CorrelationTables<R>>();
    const int64_t block = blockIdx.x / scan.H, h = blockIdx.x % scan.H, channel = block % scan.c;
    const int64_t share = block / (scan.c * scan.directions);
    const bool ahead = block / scan.c % scan.directions;
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
        for (int m = row; m < M; m += ROWS) {
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
    parts[(block * scan.H + h) * T + threadIdx.x] = sum;
}

}  // namespace
}  // namespace s4_fast
