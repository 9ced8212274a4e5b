// The outputs of all chunks from their samples and the states before them.
#pragma once

#include "scan_chunks.cuh"

namespace s4_fast {
namespace {

template <class R>
struct ResponseTables {
    Node<R> nodes[K];
    Complex<R> products[K];
};

// response[h, d] = 2 Re sum_n C B lambda^d for d < T, and D at d = 0.
template <class R>
__global__ void __launch_bounds__(CHUNK<R>) scan_response_kernel(Scan scan, const Complex<R> *x, const Complex<R> *B,
                                                                 const Complex<R> *C, const R *D, R *response) {
    constexpr int T = CHUNK<R>;
    auto &tables = shared_memory<ResponseTables<R>>();
    const int64_t h = blockIdx.x;
    R sum = 0;
    for (int64_t first = 0; first < scan.n; first += K) {
        const int states = int(scan.n - first < K ? scan.n - first : K);
        __syncthreads();
        load_nodes(tables.nodes, scan, h, first, x);
        if (threadIdx.x < states) {
            const int64_t index = h * scan.n + first + threadIdx.x;
            tables.products[threadIdx.x] = C[index] * B[index];
        }
        __syncthreads();
        for (int k = 0; k < states; ++k) sum += real_product(tables.products[k], power(tables.nodes[k], threadIdx.x));
    }
    sum *= 2;
    response[h * T + threadIdx.x] = threadIdx.x == 0 && D ? sum + D[h] : sum;
}

template <class R>
struct OutputTables {
    static constexpr int T = CHUNK<R>;
    Complex<R> coefficients[K][T];  // conjugated
    Complex<R> states[M][K];
    Samples<R, M, T> samples;
    R response[2 * T];  // after T zeros
    Chunk chunks[M];
    Node<R> nodes[K];
    Complex<R> factors[K];
};

// The outputs of a share of the tiles of one feature, K states at a time: later passes add to what earlier ones wrote.
template <class R, bool REVERSED>
__global__ void __launch_bounds__(THREADS, 4)
    scan_output_kernel(Scan scan, Shares shares, int64_t tiles, const R *samples, const Complex<R> *x,
                       const Complex<R> *B, const Complex<R> *C, const R *response, const Complex<R> *states, R *out) {
    constexpr int T = CHUNK<R>, RT = T / THREAD_COLUMNS;
    auto &tables = shared_memory<OutputTables<R>>();
    const int64_t share = blockIdx.x / scan.H, h = blockIdx.x % scan.H;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    for (int entry = threadIdx.x; entry < 2 * T; entry += THREADS)
        tables.response[entry] = entry < T ? R(0) : response[h * T + entry - T];
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t first = 0; first < scan.n; first += K) {
        const int here = int(scan.n - first < K ? scan.n - first : K);
        __syncthreads();
        load_nodes(tables.nodes, scan, h, first, x);
        __syncthreads();
        if (threadIdx.x < here)
            tables.factors[threadIdx.x] =
                coefficient<!REVERSED>(B, C, h * scan.n + first + threadIdx.x, tables.nodes[threadIdx.x]);
        __syncthreads();
        for (int entry = threadIdx.x; entry < here * T; entry += THREADS) {
            const int k = entry / T, t = entry % T;
            tables.coefficients[k][t] = conj(tables.factors[k] * power(tables.nodes[k], t));
        }
        for (int64_t tile = share * shares.each; tile < end; ++tile) {
            __syncthreads();
            find_chunks(tables.chunks, scan, h, tile);
            __syncthreads();
            for (int entry = threadIdx.x; entry < M * K; entry += THREADS) {
                const Chunk chunk = tables.chunks[entry / K];
                const bool present = chunk.length && entry % K < here;
                tables.states[entry / K][entry % K] =
                    present ? states[chunk.states + first + entry % K] : Complex<R>{0, 0};
            }
            if (first == 0) load_samples<REVERSED>(tables.samples, tables.chunks, samples);
            __syncthreads();
            R sums[RM][RT] = {};
#pragma unroll 2
            for (int k = 0; k < here; ++k) {
                Complex<R> left[RM], right[RT];
#pragma unroll
                for (int a = 0; a < RM; ++a) left[a] = tables.states[i + a * THREAD_ROWS][k];
#pragma unroll
                for (int b = 0; b < RT; ++b) right[b] = tables.coefficients[k][j + b * THREAD_COLUMNS];
#pragma unroll
                for (int a = 0; a < RM; ++a)
#pragma unroll
                    for (int b = 0; b < RT; ++b) sums[a][b] += left[a].re * right[b].re + left[a].im * right[b].im;
            }
            if (first == 0) {
#pragma unroll 2
                for (int s = 0; s < T; ++s) {
                    R left[RM], right[RT];
#pragma unroll
                    for (int a = 0; a < RM; ++a) left[a] = tables.samples[i + a * THREAD_ROWS][s];
#pragma unroll
                    for (int b = 0; b < RT; ++b) right[b] = tables.response[T + j + b * THREAD_COLUMNS - s];
#pragma unroll
                    for (int a = 0; a < RM; ++a)
#pragma unroll
                        for (int b = 0; b < RT; ++b) sums[a][b] += left[a] * right[b];
                }
            }
#pragma unroll
            for (int a = 0; a < RM; ++a) {
                const Chunk chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
                for (int b = 0; b < RT; ++b) {
                    const int t = j + b * THREAD_COLUMNS;
                    if (t >= chunk.length) continue;
                    R &target = out[chunk.samples + (REVERSED ? chunk.length - 1 - t : t)];
                    target = first == 0 ? sums[a][b] : target + sums[a][b];
                }
            }
        }
    }
}

template <class R>
R *take_response(Call &call, const Scan &scan) {
    return call.take<R>(scan.H * CHUNK<R>);
}

template <bool REVERSED, class R>
void find_outputs(Call &call, const Scan &scan, R *response, const Complex<R> *states, const R *samples,
                  const Complex<R> *x, const Complex<R> *B, const Complex<R> *C, const R *D, R *out) {
    call.launch("scan_response_kernel", scan_response_kernel<R>, scan.H, CHUNK<R>, sizeof(ResponseTables<R>), scan, x,
                B, C, D, response);
    const Shares shares(tiles(scan), ENOUGH_BLOCKS / scan.H);
    call.launch("scan_output_kernel", scan_output_kernel<R, REVERSED>, shares.count * scan.H, THREADS,
                sizeof(OutputTables<R>), scan, shares, tiles(scan), samples, x, B, C, response, states, out);
}

}  // namespace
}  // namespace s4_fast
