// The states before all chunks: what each chunk gives, by a matrix product, then the carry, in double. A rounded lambda
// would be wrong by 2^-24, and the response at lag t by t times as much.
#pragma once

#include <numeric>

#include "scan_chunks.cuh"

namespace s4_fast::cuda {
namespace {

// One recurrence over a whole sequence, from the channels of a signal: those that are carried side by side share their
// launches. What the carry of an adjoint sees is conjugated.
template <class R>
struct Recurrence {
    bool backwards, adjoint, of_y;
    int64_t channels;
    const R *samples;         // or NULL for 0
    const Complex<R> *enter;  // (channels, H, n)
    const Complex<R> *initial;
    Complex<R> *final;
    Complex<R> *states;
    Wide *segments;
};

// A call has at most two directions of its states and two of their gradients.
template <class R>
struct Recurrences {
    Recurrence<R> each[4];
    int count;
};

// Chunks of a segment: those are carried one after the other, segments side by side.
constexpr int64_t SEGMENT = 64;

inline int64_t segments_of(const Scan &scan) { return divide_up(scan.chunks, SEGMENT); }

template <class R>
S4_FAST_INLINE Wide initial_state(const Recurrence<R> &run, int64_t index) {
    if (!run.initial) return {0, 0};
    const Wide s = convert<double>(run.initial[index]);
    return run.adjoint ? conj(s) : s;
}

// s <- lambda^length s + local over the chunks of a segment; visit(chunk, s) sees s before each.
template <class R, class Visit>
S4_FAST_INLINE Wide carry(const Scan &scan, const Recurrence<R> &run, int64_t row, int64_t segment, int64_t state,
                          Node<double> node, Wide s, Visit visit) {
    constexpr int AT_ONCE = 8;  // loads that do not wait for each other
    const Wide whole = power(node, scan.T), last = power(node, scan.length(scan.chunks - 1));
    const int64_t end = (segment + 1) * SEGMENT < scan.chunks ? (segment + 1) * SEGMENT : scan.chunks;
    const bool backwards = run.backwards;
    Complex<R> *const base = run.states + row * scan.chunks * scan.n + state;
    for (int64_t p = segment * SEGMENT; p < end; p += AT_ONCE) {
        Complex<R> local[AT_ONCE];
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q)
            if (p + q < end) local[q] = base[(backwards ? scan.chunks - 1 - p - q : p + q) * scan.n];
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q) {
            if (p + q >= end) break;
            const int64_t chunk = backwards ? scan.chunks - 1 - p - q : p + q;
            visit(base[chunk * scan.n], s);
            s = (chunk == scan.chunks - 1 ? last : whole) * s + convert<double>(local[q]);
        }
    }
    return s;
}

// Replaces what the chunks of a segment leave behind by the state before each.
template <class R>
S4_FAST_INLINE void carry_within(const Scan &scan, const Recurrence<R> &run, int64_t row, int64_t segment,
                                 int64_t segments, int64_t state, Node<double> node, Wide start) {
    const Wide end =
        carry(scan, run, row, segment, state, node, start, [](Complex<R> &target, Wide s) { target = convert<R>(s); });
    if (run.final && segment == segments - 1)
        run.final[row * scan.n + state] = convert<R>(run.adjoint ? conj(end) : end);
}

template <class R>
struct LocalTables {
    Complex<R> powers[CHUNK<R>][TILE_STATES];
    Samples<R, TILE_CHUNKS, CHUNK<R>> samples;
    Chunk chunks[TILE_CHUNKS];
    Node<R> nodes[TILE_STATES];
};

// states[batch, h, chunk, state] = what the chunk's samples alone leave behind, for TILE_STATES states and a share of
// the tiles. Where a block has all chunks of its rows, in one segment, it carries them too (`whole`), which saves a
// launch.
template <class R>
__global__ void __launch_bounds__(THREADS, 4)
    scan_local_kernel(Scan scan, Shares shares, int64_t tiles, int64_t blocks, bool whole, const Node<R> *nodes,
                      const Node<double> *wide, const __grid_constant__ Recurrences<R> runs) {
    constexpr int THREAD_STATES = TILE_STATES / THREAD_COLUMNS;
    auto &tables = shared_memory<LocalTables<R>>();
    const Recurrence<R> &run = runs.each[blockIdx.x % runs.count];
    const int64_t block = blockIdx.x / runs.count, share = block / (scan.H * blocks), h = block / blocks % scan.H;
    const int64_t first = block % blocks * TILE_STATES, size = scan.H * scan.n;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    load_nodes(tables.nodes, scan, h, first, nodes);
    __syncthreads();
    make_powers(tables.powers, tables.nodes, scan);
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        __syncthreads();
        find_chunks(tables.chunks, scan, h, tile);
        Complex<R> sums[THREAD_CHUNKS][THREAD_STATES] = {};
        for (int64_t channel = 0; channel < run.channels; ++channel) {
            __syncthreads();
            const R *const samples = run.samples ? run.samples + channel * scan.channel() : nullptr;
            load_samples(tables.samples, tables.chunks, !run.backwards, samples, run.of_y);
            __syncthreads();
            Complex<R> moments[THREAD_CHUNKS][THREAD_STATES], unused[THREAD_CHUNKS][THREAD_STATES];
            inner_moments<false, R, THREAD_CHUNKS, THREAD_STATES>(tables.powers, tables.samples, i, j, moments, unused);
#pragma unroll
            for (int b = 0; b < THREAD_STATES; ++b) {
                const int64_t state = first + j + b * THREAD_COLUMNS;
                if (state >= scan.n) continue;
                const Complex<R> factor = run.enter[channel * size + h * scan.n + state];
#pragma unroll
                for (int a = 0; a < THREAD_CHUNKS; ++a) sums[a][b] += factor * moments[a][b];
            }
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
    if (!whole) return;
    __syncthreads();
    const int64_t from = share * shares.each * TILE_CHUNKS / scan.chunks * TILE_STATES;
    const int64_t until = end * TILE_CHUNKS / scan.chunks < scan.batch ? end * TILE_CHUNKS / scan.chunks * TILE_STATES
                                                                       : scan.batch * TILE_STATES;
    for (int64_t entry = from + threadIdx.x; entry < until; entry += THREADS) {
        const int64_t row = entry / TILE_STATES * scan.H + h, state = first + entry % TILE_STATES;
        if (state >= scan.n) continue;
        carry_within(scan, run, row, 0, 1, state, wide[h * scan.n + state], initial_state(run, row * scan.n + state));
    }
}

// A thread's recurrence, row, segment and state, of (count, rows, segments, n); no row is left where `row` is too
// large.
struct Place {
    int64_t run, row, segment, state, index;
};

S4_FAST_INLINE Place find_place(const Scan &scan, int64_t segments, int count) {
    const int64_t id = int64_t(blockIdx.x / count) * THREADS + threadIdx.x;
    return {blockIdx.x % count, id / (scan.n * segments), id / scan.n % segments, id % scan.n, id};
}

// What a segment alone leaves behind, run.segments[row, segment, state].
template <class R>
__global__ void __launch_bounds__(THREADS, 4)
    scan_segments_kernel(Scan scan, int64_t segments, const Node<double> *wide,
                         const __grid_constant__ Recurrences<R> runs) {
    const Place at = find_place(scan, segments, runs.count);
    if (at.row >= scan.batch * scan.H) return;
    const Recurrence<R> &run = runs.each[at.run];
    run.segments[at.index] = carry(scan, run, at.row, at.segment, at.state, wide[at.row % scan.H * scan.n + at.state],
                                   Wide{0, 0}, [](Complex<R> &, Wide) {});
}

// Replaces what the segments leave behind by the state before each.
template <class R>
__global__ void __launch_bounds__(THREADS, 4) scan_across_kernel(Scan scan, int64_t segments, const Node<double> *wide,
                                                                 const __grid_constant__ Recurrences<R> runs) {
    const Place at = find_place(scan, 1, runs.count);
    if (at.row >= scan.batch * scan.H) return;
    const Recurrence<R> &run = runs.each[at.run];
    const Node<double> node = wide[at.row % scan.H * scan.n + at.state];
    const Wide whole = power(node, SEGMENT * scan.T);
    const int64_t at_end = run.backwards ? 0 : segments - 1;  // the segment that has the last chunk
    Wide s = initial_state(run, at.index);
    for (int64_t segment = 0; segment < segments; ++segment) {
        Wide &total = run.segments[(at.row * segments + segment) * scan.n + at.state];
        const Wide left = total;
        total = s;
        const int64_t chunks = segment < segments - 1 ? SEGMENT : scan.chunks - segment * SEGMENT;
        const int64_t missing = segment == at_end ? scan.T - scan.length(scan.chunks - 1) : 0;
        const int64_t samples = chunks * scan.T - missing;
        s = (samples == SEGMENT * scan.T ? whole : power(node, samples)) * s + left;
    }
}

// Replaces what the chunks leave behind by the state before each.
template <class R>
__global__ void __launch_bounds__(THREADS, 4) scan_within_kernel(Scan scan, int64_t segments, const Node<double> *wide,
                                                                 const __grid_constant__ Recurrences<R> runs) {
    const Place at = find_place(scan, segments, runs.count);
    if (at.row >= scan.batch * scan.H) return;
    const Recurrence<R> &run = runs.each[at.run];
    const Wide start = segments > 1 ? run.segments[at.index] : initial_state(run, at.row * scan.n + at.state);
    carry_within(scan, run, at.row, at.segment, segments, at.state, wide[at.row % scan.H * scan.n + at.state], start);
}

// Adds a recurrence, with the workspace of its states.
template <class R>
Recurrence<R> &add(Call &call, const Scan &scan, Recurrences<R> &runs, Recurrence<R> run) {
    const int64_t rows = scan.batch * scan.H, segments = segments_of(scan);
    run.states = call.take<Complex<R>>(rows * scan.chunks * scan.n);
    run.segments = segments > 1 ? call.take<Wide>(rows * segments * scan.n) : nullptr;
    return runs.each[runs.count++] = run;
}

inline bool has_whole_rows(const Scan &scan, const Shares &shares) {
    return shares.count == 1 || shares.each * TILE_CHUNKS % scan.chunks == 0;
}

// Shares of the tiles for each of `others`: of whole rows, if that leaves enough blocks to keep most of a GPU busy.
inline Shares local_shares(const Scan &scan, int64_t others) {
    const Shares even(tiles(scan), ENOUGH_BLOCKS / others);
    const int64_t unit = scan.chunks / std::gcd(scan.chunks, int64_t(TILE_CHUNKS));
    Shares whole = even;
    whole.each = divide_up(even.each, unit) * unit;
    whole.count = divide_up(tiles(scan), whole.each);
    return whole.count == even.count || whole.count * others >= ENOUGH_BLOCKS / 2 ? whole : even;
}

template <class R>
void find_states(Call &call, const Scan &scan, const Tables<R> &tables, const Recurrences<R> &runs) {
    const int64_t rows = scan.batch * scan.H, blocks = divide_up(scan.n, TILE_STATES), segments = segments_of(scan);
    const Shares shares = local_shares(scan, scan.H * blocks * runs.count);
    const bool whole = segments == 1 && has_whole_rows(scan, shares);
    call.launch("scan_local_kernel", scan_local_kernel<R>, runs.count * shares.count * scan.H * blocks, THREADS,
                sizeof(LocalTables<R>), scan, shares, tiles(scan), blocks, whole, tables.nodes, tables.wide, runs);
    if (whole) return;
    const int64_t carries = runs.count * divide_up(rows * segments * scan.n, THREADS);
    if (segments > 1) {
        call.launch("scan_segments_kernel", scan_segments_kernel<R>, carries, THREADS, 0, scan, segments, tables.wide,
                    runs);
        call.launch("scan_across_kernel", scan_across_kernel<R>, runs.count * divide_up(rows * scan.n, THREADS),
                    THREADS, 0, scan, segments, tables.wide, runs);
    }
    call.launch("scan_within_kernel", scan_within_kernel<R>, carries, THREADS, 0, scan, segments, tables.wide, runs);
}

}  // namespace
}  // namespace s4_fast::cuda
