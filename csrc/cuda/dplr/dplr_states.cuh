// The states before all chunks of a DPLR scan, and their gradients: what each chunk gives, the transition of a chunk,
// and the carry, in double with one in double. A rounded transition would be wrong by 2^-24 in every chunk.
#pragma once

#include <utility>

#include "dplr_chains.cuh"

namespace s4_fast::cuda {
namespace {

// One recurrence over a whole sequence, from the channels of a signal. Where ADJOINT the state is a gradient, and the
// transition transposed.
template <class R>
struct Run {
    bool backwards, adjoint, of_y;
    int64_t channels;
    const R *samples;         // or NULL for 0
    const Complex<R> *table;  // (channels, H, T, n)
    const Complex<R> *initial;
    Complex<R> *final;
    Complex<R> *states;
};

// A call has at most two directions of its states and two of their gradients.
template <class R>
struct Runs {
    Run<R> each[4];
    int count;
};

template <class R>
const Complex<R> *add_run(Call &call, const Scan &scan, Runs<R> &runs, Run<R> run) {
    run.states = call.take<Complex<R>>(scan.batch * scan.H * scan.chunks * scan.n);
    runs.each[runs.count++] = run;
    return run.states;
}

// A^length as (kinds, H, 2 n, 2 n): of a whole chunk, and of the last one where that is shorter. `columns` has
// A^length[i, j] at (j, i), `rows` at (i, j), or is NULL.
struct Transitions {
    int lengths[2], kinds;
    double *columns, *rows;
    S4_FAST_INLINE int of(const Scan &scan, int64_t chunk) const { return chunk == scan.chunks - 1 ? kinds - 1 : 0; }
};

inline Transitions take_transitions(Call &call, const Scan &scan, bool adjoint) {
    const int whole = int(std::min(scan.T, scan.L)), last = int(scan.L - (scan.chunks - 1) * scan.T);
    Transitions transitions{{whole, last}, last == whole ? 1 : 2, nullptr, nullptr};
    const int64_t size = transitions.kinds * scan.H * 4 * scan.n * scan.n;
    transitions.columns = call.take<double>(size);
    if (adjoint) transitions.rows = call.take<double>(size);
    return transitions;
}

template <class R>
struct ChunkTables {
    Complex<R> table[CHUNK<R>][TILE_STATES];
    Samples<R, TILE_CHUNKS, CHUNK<R>> samples;
    Chunk chunks[TILE_CHUNKS];
};

// states[batch, h, chunk, state] = what the chunk's samples alone leave behind, for TILE_STATES states and a share of
// the tiles.
template <class R>
S4_FAST_INLINE void chunk_block(int64_t id, const Scan &scan, const Shares &shares, int64_t tiles, int64_t blocks,
                                const Runs<R> &runs) {
    constexpr int THREAD_STATES = TILE_STATES / THREAD_COLUMNS, T = CHUNK<R>;
    auto &tables = shared_memory<ChunkTables<R>>();
    const Run<R> &run = runs.each[id % runs.count];
    const int64_t block = id / runs.count, share = block / (scan.H * blocks), h = block / blocks % scan.H;
    const int64_t first = block % blocks * TILE_STATES;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        __syncthreads();
        find_chunks(tables.chunks, scan, h, tile);
        Complex<R> sums[THREAD_CHUNKS][THREAD_STATES] = {};
        for (int64_t channel = 0; channel < run.channels; ++channel) {
            __syncthreads();
            const Complex<R> *const from = run.table + (channel * scan.H + h) * T * scan.n + first;
            for (int entry = threadIdx.x; entry < T * TILE_STATES; entry += THREADS) {
                const int t = entry / TILE_STATES, k = entry % TILE_STATES;
                tables.table[t][k] = first + k < scan.n ? from[t * scan.n + k] : Complex<R>{0, 0};
            }
            const R *const samples = run.samples ? run.samples + channel * scan.channel() : nullptr;
            load_samples(tables.samples, tables.chunks, !run.backwards, samples, run.of_y);
            __syncthreads();
            Complex<R> moments[THREAD_CHUNKS][THREAD_STATES], unused[THREAD_CHUNKS][THREAD_STATES];
            inner_moments<false, R, THREAD_CHUNKS, THREAD_STATES>(tables.table, tables.samples, i, j, moments, unused);
#pragma unroll
            for (int a = 0; a < THREAD_CHUNKS; ++a)
#pragma unroll
                for (int b = 0; b < THREAD_STATES; ++b) sums[a][b] += moments[a][b];
        }
#pragma unroll
        for (int a = 0; a < THREAD_CHUNKS; ++a) {
            const Chunk &chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
            for (int b = 0; b < THREAD_STATES; ++b) {
                const int64_t state = first + j + b * THREAD_COLUMNS;
                if (chunk.length && state < scan.n) run.states[chunk.states + state] = sums[a][b];
            }
        }
    }
}

// a^e for e >= 0.
S4_FAST_INLINE Wide integer_power(Wide a, int e) {
    Wide power = {1, 0};
    for (; e > 0; e >>= 1, a = a * a)
        if (e & 1) power = power * a;
    return power;
}

// The real (re, im) of 2 conj(v), whose product with those of s is 2 Re(v s).
S4_FAST_INLINE Wide doubled(Wide v) { return {2 * v.re, -2 * v.im}; }

// Terms of a transition that a block has at once.
constexpr int SLICE = 16;

struct TransitionTables {
    Wide left[SLICE][TILE_STATES], right[SLICE][TILE_STATES], powers[TILE_STATES];
};

// K x TILE_STATES states of a transition.
S4_FAST_INLINE void transition_block(int64_t id, const Scan &scan, const Transitions &to, int rank, const Wide *systems,
                                     const Wide *low) {
    constexpr int THREAD_STATES = TILE_STATES / THREAD_COLUMNS;
    auto &tables = shared_memory<TransitionTables>();
    const int64_t n = scan.n, blocks = (n + TILE_STATES - 1) / TILE_STATES, table = scan.H * scan.T * n;
    const int64_t first_column = id % blocks * TILE_STATES, first_row = id / blocks % blocks * TILE_STATES;
    const int64_t h = id / (blocks * blocks) % scan.H, kind = id / (blocks * blocks * scan.H);
    const int length = kind == 0 ? to.lengths[0] : to.lengths[1];
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    const System system = system_at(const_cast<Wide *>(systems), rank, n, h);
    if (threadIdx.x < TILE_STATES)
        tables.powers[threadIdx.x] = first_row == first_column && first_row + threadIdx.x < n
                                         ? integer_power(system.a[first_row + threadIdx.x], length)
                                         : Wide{0, 0};
    Wide of_re[THREAD_CHUNKS][THREAD_STATES] = {},
         of_im[THREAD_CHUNKS][THREAD_STATES] = {};  // the rows of a state's re and of its im
    for (int r = 0; r < rank; ++r)
        for (int start = 0; start < length; start += SLICE) {
            const Wide *const reach = low + r * table + h * scan.T * n, *const fade = reach + rank * table;
            __syncthreads();
            for (int entry = threadIdx.x; entry < SLICE * TILE_STATES; entry += THREADS) {
                const int s = entry / TILE_STATES, k = entry % TILE_STATES, t = start + s;
                const bool within = t < length;
                tables.left[s][k] =
                    within && first_row + k < n ? reach[(length - 1 - t) * n + first_row + k] : Wide{0, 0};
                tables.right[s][k] =
                    within && first_column + k < n ? doubled(fade[t * n + first_column + k]) : Wide{0, 0};
            }
            __syncthreads();
#pragma unroll 1
            for (int s = 0; s < SLICE; ++s) {
                Wide left[THREAD_CHUNKS], right[THREAD_STATES];
#pragma unroll
                for (int a = 0; a < THREAD_CHUNKS; ++a) left[a] = tables.left[s][i + a * THREAD_ROWS];
#pragma unroll
                for (int b = 0; b < THREAD_STATES; ++b) right[b] = tables.right[s][j + b * THREAD_COLUMNS];
#pragma unroll
                for (int a = 0; a < THREAD_CHUNKS; ++a)
#pragma unroll
                    for (int b = 0; b < THREAD_STATES; ++b) {
                        of_re[a][b] += left[a].re * right[b];
                        of_im[a][b] += left[a].im * right[b];
                    }
            }
        }
    const int64_t N = 2 * n, start = (kind * scan.H + h) * N * N;
#pragma unroll
    for (int a = 0; a < THREAD_CHUNKS; ++a) {
        const int64_t row = first_row + i + a * THREAD_ROWS;
#pragma unroll
        for (int b = 0; b < THREAD_STATES; ++b) {
            const int64_t column = first_column + j + b * THREAD_COLUMNS;
            if (row >= n || column >= n) continue;
            const Wide power = row == column ? tables.powers[i + a * THREAD_ROWS] : Wide{0, 0};
            const Wide re = Wide{power.re, -power.im} - of_re[a][b], im = Wide{power.im, power.re} - of_im[a][b];
            auto *const columns = reinterpret_cast<Wide *>(to.columns + start + 2 * column * N + 2 * row);
            columns[0] = {re.re, im.re};
            columns[n] = {re.im, im.im};
            if (!to.rows) continue;
            auto *const rows = reinterpret_cast<Wide *>(to.rows + start + 2 * row * N + 2 * column);
            rows[0] = re;
            rows[n] = im;
        }
    }
}

// What the chunks alone leave behind, then the transitions.
template <class R>
__global__ void __launch_bounds__(THREADS, 3)
    dplr_chunks_kernel(Scan scan, Shares shares, int64_t tiles, int64_t blocks, int64_t of_chunks, int rank,
                       const Wide *systems, const Wide *low, const __grid_constant__ Transitions transitions,
                       const __grid_constant__ Runs<R> runs) {
    const int64_t block = blockIdx.x;
    if (block < of_chunks) return chunk_block(block, scan, shares, tiles, blocks, runs);
    transition_block(block - of_chunks, scan, transitions, rank, systems, low);
}

// Threads along the rows of a transition, in two halves of its columns.
constexpr int ALONG = THREADS / 2;

// Replaces what the chunks leave behind by the state before each, for BATCH rows of a feature: s <- A^length s + local.
template <class R, int BATCH>
__global__ void __launch_bounds__(THREADS, 4)
    dplr_carry_kernel(Scan scan, const __grid_constant__ Transitions transitions,
                      const __grid_constant__ Runs<R> runs) {
    const int64_t N = 2 * scan.n, block = blockIdx.x / runs.count, h = block % scan.H, first = block / scan.H * BATCH;
    const Run<R> &run = runs.each[blockIdx.x % runs.count];
    double *s = &shared_memory<double>(), *following = s + BATCH * N, *const other = following + BATCH * N;
    const int at = threadIdx.x % ALONG, half = threadIdx.x / ALONG;
    const auto *const initial = reinterpret_cast<const R *>(run.initial);
    auto *const states = reinterpret_cast<R *>(run.states), *const final = reinterpret_cast<R *>(run.final);
    for (int64_t entry = threadIdx.x; entry < BATCH * N; entry += THREADS) {
        const int64_t row = first + entry / N;
        s[entry] = initial && row < scan.batch ? double(initial[(row * scan.H + h) * N + entry % N]) : 0.0;
    }
    __syncthreads();
    for (int64_t p = 0; p < scan.chunks; ++p) {
        const int64_t chunk = run.backwards ? scan.chunks - 1 - p : p;
        const bool goes_on = final || p < scan.chunks - 1;
        const double *const matrix =
            (run.adjoint ? transitions.rows : transitions.columns) + (transitions.of(scan, chunk) * scan.H + h) * N * N;
        for (int64_t start = 0; start < N; start += ALONG) {
            const int64_t i = start + at;
            const bool present = i < N;
            double sums[BATCH] = {};
            if (present && half == 0)
#pragma unroll
                for (int b = 0; b < BATCH; ++b) {
                    if (first + b >= scan.batch) continue;
                    R &state = states[(((first + b) * scan.H + h) * scan.chunks + chunk) * N + i];
                    sums[b] = double(state);
                    state = R(s[b * N + i]);
                }
            if (!goes_on) continue;
            if (present)
#pragma unroll 4
                for (int64_t j = half * scan.n; j < (half + 1) * scan.n; ++j) {
                    const double factor = matrix[j * N + i];
#pragma unroll
                    for (int b = 0; b < BATCH; ++b) sums[b] += factor * s[b * N + j];
                }
            if (half == 1)
#pragma unroll
                for (int b = 0; b < BATCH; ++b) other[b * ALONG + at] = sums[b];
            __syncthreads();
            if (present && half == 0)
#pragma unroll
                for (int b = 0; b < BATCH; ++b) following[b * N + i] = sums[b] + other[b * ALONG + at];
            __syncthreads();
        }
        double *const left = s;
        s = following;
        following = left;
    }
    if (!final) return;
    for (int64_t entry = threadIdx.x; entry < BATCH * N; entry += THREADS) {
        const int64_t row = first + entry / N;
        if (row < scan.batch) final[(row * scan.H + h) * N + entry % N] = R(s[entry]);
    }
}

template <class R, int BATCH>
void carry_states(Call &call, const Scan &scan, const Transitions &transitions, const Runs<R> &runs) {
    call.launch("dplr_carry_kernel", dplr_carry_kernel<R, BATCH>, runs.count * scan.H * divide_up(scan.batch, BATCH),
                THREADS, BATCH * (4 * scan.n + ALONG) * sizeof(double), scan, transitions, runs);
}

template <class R>
void find_dplr_states(Call &call, const Scan &scan, int rank, const Maps<R> &maps, const Transitions &transitions,
                      const Runs<R> &runs) {
    const int64_t blocks = divide_up(scan.n, TILE_STATES);
    const Shares shares(tiles(scan), ENOUGH_BLOCKS / (scan.H * blocks * runs.count));
    const int64_t of_chunks = runs.count * shares.count * scan.H * blocks;
    call.launch("dplr_chunks_kernel", dplr_chunks_kernel<R>, of_chunks + transitions.kinds * scan.H * blocks * blocks,
                THREADS, std::max(sizeof(ChunkTables<R>), sizeof(TransitionTables)), scan, shares, tiles(scan), blocks,
                of_chunks, rank, maps.systems, maps.low, transitions, runs);
    if (scan.batch == 1)
        carry_states<R, 1>(call, scan, transitions, runs);
    else
        carry_states<R, 4>(call, scan, transitions, runs);
}

}  // namespace
}  // namespace s4_fast::cuda
