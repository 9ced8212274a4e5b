// The outputs of all chunks from their samples and the states before them.
#pragma once

#include "../shared/half.cuh"
#include "scan_chunks.cuh"

namespace s4_fast::cuda {
namespace {

// y, whose channels each have states and a response of their own, or where ADJOINT the gradient of u, to which all
// channels of grad_y add.
template <class R, class S>
struct Outputs {
    const R *samples;         // or NULL for 0
    const Complex<R> *leave;  // (channels, H, ...), as COLUMNS reads it
    const Complex<R> *states[2];
    R *partial;  // (batch, channels, H, L), or NULL where there is one block of states
    S *out;
    bool time_major;
    int64_t channels, next_direction;  // from a direction's `leave` to the next one's
};

// The places where the outputs of a chunk begin, in (batch, channels, H, L) and as they lie.
struct Row {
    int64_t start, target;
};

template <class R>
struct OutputTables {
    static constexpr int T = CHUNK<R>;
    Complex<R> powers[TILE_STATES][T];
    Complex<R> states[TILE_CHUNKS][TILE_STATES];  // as they leave, conjugated
    Samples<R, TILE_CHUNKS, T> samples;
    R response[2 * T];
    Chunk chunks[TILE_CHUNKS];
    Row rows[TILE_CHUNKS];
    Node<R> nodes[TILE_STATES];
};

// Makes the row of the chunk that this thread has found.
template <bool ADJOINT, class R, class S>
S4_FAST_INLINE void find_row(OutputTables<R> &tables, const Scan &scan, const Outputs<R, S> &outputs, int64_t channel) {
    if (threadIdx.x >= TILE_CHUNKS) return;
    const Chunk &chunk = tables.chunks[threadIdx.x];
    const int64_t start = ADJOINT ? chunk.u : chunk.y + channel * scan.channel();
    int64_t target = start;
    if (outputs.time_major) {  // from (batch, channels, H, L) to (batch, L, channels, H)
        const int64_t features = scan.H * outputs.channels, l = start % scan.L, row = start / scan.L;
        target = (row / features * scan.L + l) * features + row % features;
    }
    tables.rows[threadIdx.x] = {start, target};
}

// sums[a][b] += Re sum_k states lambda^{length-1-t}, for t = j + b THREAD_COLUMNS and rows that need not be whole: each
// has powers of its own.
template <class R, int THREAD_SAMPLES>
S4_FAST_INLINE void add_short_states(R (&sums)[THREAD_CHUNKS][THREAD_SAMPLES], const OutputTables<R> &tables, int here,
                                     int i, int j) {
#pragma unroll
    for (int a = 0; a < THREAD_CHUNKS; ++a) {
        const int last = tables.chunks[i + a * THREAD_ROWS].length - 1;
#pragma unroll 1
        for (int k = 0; k < here; ++k) {
            const Complex<R> left = tables.states[i + a * THREAD_ROWS][k];
#pragma unroll
            for (int b = 0; b < THREAD_SAMPLES; ++b) {
                const int t = j + b * THREAD_COLUMNS;
                const Complex<R> right = tables.powers[k][t < last ? last - t : 0];
                sums[a][b] += left.re * right.re + left.im * right.im;
            }
        }
    }
}

// The same for whole rows, or with lambda^t where not FLIPPED.
template <bool FLIPPED, class R, int THREAD_SAMPLES>
S4_FAST_INLINE void add_states(R (&sums)[THREAD_CHUNKS][THREAD_SAMPLES], const OutputTables<R> &tables, int here, int i,
                               int j) {
    constexpr int STEP = FLIPPED ? -THREAD_COLUMNS : THREAD_COLUMNS;
    const int start = FLIPPED ? CHUNK<R> - 1 - j : j;
#pragma unroll 2
    for (int k = 0; k < here; ++k) {
        Complex<R> left[THREAD_CHUNKS], right[THREAD_SAMPLES];
#pragma unroll
        for (int a = 0; a < THREAD_CHUNKS; ++a) left[a] = tables.states[i + a * THREAD_ROWS][k];
#pragma unroll
        for (int b = 0; b < THREAD_SAMPLES; ++b) right[b] = tables.powers[k][start + b * STEP];
#pragma unroll
        for (int a = 0; a < THREAD_CHUNKS; ++a)
#pragma unroll
            for (int b = 0; b < THREAD_SAMPLES; ++b) sums[a][b] += left[a].re * right[b].re + left[a].im * right[b].im;
    }
}

// What the states before a chunk are multiplied by to give its outputs: powers of the nodes, and a weight per state,
// leave (channels, H, n).
struct Powers {
    static S4_FAST_INLINE int64_t per_feature(const Scan &scan) { return scan.n; }

    template <class R>
    static S4_FAST_INLINE void load(OutputTables<R> &tables, const Scan &scan, const Tables<R> &made, int64_t h,
                                    int64_t first, int here) {
        constexpr int T = CHUNK<R>;
        __syncthreads();
        load_nodes(tables.nodes, scan, h, first, made.nodes);
        __syncthreads();
        for (int entry = threadIdx.x; entry < here * T; entry += THREADS)
            tables.powers[entry / T][entry % T] = bounded_power(tables.nodes[entry / T], entry % T, scan.L);
    }

    template <class R>
    static S4_FAST_INLINE void load_direction(OutputTables<R> &, const Scan &, const Complex<R> *, int) {}

    template <class R>
    static S4_FAST_INLINE Complex<R> enter(const Complex<R> *leave, int k, Complex<R> s) {
        return conj(leave[k] * s);
    }
};

// The outputs of a share of the tiles of one feature and channel, TILE_STATES states at a time: what earlier passes
// have found lies in `partial`.
template <bool ADJOINT, class COLUMNS, class R, class S>
S4_FAST_INLINE void output_block(unsigned block, const Scan &scan, const Shares &shares, int64_t tiles,
                                 const Tables<R> &made, const Outputs<R, S> &outputs) {
    constexpr int T = CHUNK<R>, THREAD_SAMPLES = T / THREAD_COLUMNS;
    auto &tables = shared_memory<OutputTables<R>>();
    const unsigned H = unsigned(scan.H), channels = ADJOINT ? 1 : unsigned(outputs.channels);  // no more than blocks
    const unsigned h = block % H, channel = ADJOINT ? 0 : block / H % channels;
    const int64_t share = block / H / channels;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t first = 0; first < scan.n; first += TILE_STATES) {
        const int here = int(scan.n - first < TILE_STATES ? scan.n - first : TILE_STATES);
        COLUMNS::load(tables, scan, made, h, first, here);
        for (int64_t tile = share * shares.each; tile < end; ++tile) {
            __syncthreads();
            find_chunks(tables.chunks, scan, h, tile);
            find_row<ADJOINT>(tables, scan, outputs, channel);
            __syncthreads();
            bool whole = true;
#pragma unroll
            for (int a = 0; a < THREAD_CHUNKS; ++a) {
                const int length = tables.chunks[i + a * THREAD_ROWS].length;
                whole = whole && (length == T || length == 0);
            }
            R sums[THREAD_CHUNKS][THREAD_SAMPLES] = {};
#pragma unroll 1
            for (int direction = 0; direction < scan.directions; ++direction) {
                const Complex<R> *const leave = outputs.leave + direction * outputs.next_direction +
                                                (channel * scan.H + h) * COLUMNS::per_feature(scan) + first;
                const Complex<R> *const states = outputs.states[direction];
                __syncthreads();
                COLUMNS::load_direction(tables, scan, leave, here);
                for (int entry = threadIdx.x; entry < TILE_CHUNKS * TILE_STATES; entry += THREADS) {
                    const int k = entry % TILE_STATES;
                    const Chunk &chunk = tables.chunks[entry / TILE_STATES];
                    const bool present = chunk.length && k < here;
                    tables.states[entry / TILE_STATES][k] =
                        present ? COLUMNS::enter(leave, k, states[chunk.states + first + k]) : Complex<R>{0, 0};
                }
                __syncthreads();
                if (direction == int(ADJOINT))
                    add_states<false>(sums, tables, here, i, j);
                else if (whole)
                    add_states<true>(sums, tables, here, i, j);
                else
                    add_short_states(sums, tables, here, i, j);
            }
#pragma unroll 1
            for (unsigned from = 0; first == 0 && from < (ADJOINT ? unsigned(scan.c) : 1); ++from) {
                const R *const samples = outputs.samples ? outputs.samples + from * scan.channel() : nullptr;
                __syncthreads();
                load_samples(tables.samples, tables.chunks, false, samples, ADJOINT);
                const R *const row = made.response + ((ADJOINT ? from : channel) * scan.H + h) * 2 * T;
                for (int lag = threadIdx.x; lag < 2 * T; lag += THREADS)
                    tables.response[lag] = !ADJOINT ? row[lag] : lag == 0 ? R(0) : row[2 * T - lag];
                __syncthreads();
#pragma unroll 2
                for (int s = 0; s < T; ++s) {
                    R left[THREAD_CHUNKS], right[THREAD_SAMPLES];
#pragma unroll
                    for (int a = 0; a < THREAD_CHUNKS; ++a) left[a] = tables.samples[i + a * THREAD_ROWS][s];
#pragma unroll
                    for (int b = 0; b < THREAD_SAMPLES; ++b) right[b] = tables.response[T + j + b * THREAD_COLUMNS - s];
#pragma unroll
                    for (int a = 0; a < THREAD_CHUNKS; ++a)
#pragma unroll
                        for (int b = 0; b < THREAD_SAMPLES; ++b) sums[a][b] += left[a] * right[b];
                }
            }
            const bool complete = first + TILE_STATES >= scan.n;
            const int64_t step = outputs.time_major ? scan.H * outputs.channels : 1;
#pragma unroll
            for (int a = 0; a < THREAD_CHUNKS; ++a) {
                const int row = i + a * THREAD_ROWS, length = tables.chunks[row].length;
                const int64_t start = tables.rows[row].start;
                int64_t target = tables.rows[row].target + j * step;
#pragma unroll
                for (int b = 0; b < THREAD_SAMPLES; ++b, target += THREAD_COLUMNS * step) {
                    const int t = j + b * THREAD_COLUMNS;
                    if (t >= length) continue;
                    const R sum = first == 0 ? sums[a][b] : outputs.partial[start + t] + sums[a][b];
                    if (complete)
                        store_value(outputs.out[target], sum);
                    else
                        outputs.partial[start + t] = sum;
                }
            }
        }
    }
}

// Before ready(): room for the outputs of each block of states but the last.
template <class R>
R *take_partial(Call &call, const Scan &scan, int64_t channels) {
    return scan.n > TILE_STATES ? call.take<R>(scan.batch * channels * scan.H * scan.L) : nullptr;
}

inline int64_t output_blocks(const Scan &scan, const Shares &shares, int64_t channels) {
    return shares.count * channels * scan.H;
}

inline Shares output_shares(const Scan &scan, int64_t channels) {
    return {tiles(scan), ENOUGH_BLOCKS / (scan.H * channels)};
}

template <class R, class S>
__global__ void __launch_bounds__(THREADS, 4)
    scan_output_kernel(Scan scan, Shares shares, int64_t tiles, const __grid_constant__ Tables<R> made,
                       const __grid_constant__ Outputs<R, S> outputs) {
    output_block<false, Powers>(blockIdx.x, scan, shares, tiles, made, outputs);
}

template <class R, class S>
void find_outputs(Call &call, const Scan &scan, const Tables<R> &made, const Outputs<R, S> &outputs) {
    const Shares shares = output_shares(scan, outputs.channels);
    call.launch("scan_output_kernel", scan_output_kernel<R, S>, output_blocks(scan, shares, outputs.channels), THREADS,
                sizeof(OutputTables<R>), scan, shares, tiles(scan), made, outputs);
}

}  // namespace
}  // namespace s4_fast::cuda
