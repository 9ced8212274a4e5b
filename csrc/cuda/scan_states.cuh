// The states before all chunks: what each chunk gives, by a matrix product, then the carry, in double. A rounded lambda
// would be wrong by 2^-24, and the response at lag t by t times as much.
#pragma once

#include "scan_chunks.cuh"

namespace s4_fast {
namespace {

template <class R>
struct LocalTables {
    Complex<R> powers[CHUNK<R>][K];
    Samples<R, M, CHUNK<R>> samples;
    Chunk chunks[M];
    Node<R> nodes[K];
};

// states[batch, h, chunk, state] = what the chunk's samples alone leave behind, for K states and a share of the tiles.
template <class R, bool REVERSED>
__global__ void __launch_bounds__(THREADS, 4)
    scan_local_kernel(Scan scan, Shares shares, int64_t tiles, int64_t blocks, const R *samples, const Complex<R> *x,
                      const Complex<R> *B, const Complex<R> *C, Complex<R> *states) {
    constexpr int RK = K / THREAD_COLUMNS;
    auto &tables = shared_memory<LocalTables<R>>();
    const int64_t share = blockIdx.x / (scan.H * blocks), h = blockIdx.x / blocks % scan.H;
    const int64_t first = blockIdx.x % blocks * K;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    load_nodes(tables.nodes, scan, h, first, x);
    __syncthreads();
    make_powers(tables.powers, tables.nodes, scan);
    Complex<R> factors[RK];
#pragma unroll
    for (int b = 0; b < RK; ++b) {
        const int k = j + b * THREAD_COLUMNS;
        if (first + k < scan.n) factors[b] = coefficient<REVERSED>(B, C, h * scan.n + first + k, tables.nodes[k]);
    }
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        __syncthreads();
        find_chunks(tables.chunks, scan, h, tile);
        __syncthreads();
        load_samples<!REVERSED>(tables.samples, tables.chunks, samples);
        __syncthreads();
        Complex<R> sums[RM][RK], unused[RM][RK];
        inner_moments<false, R, RM, RK>(tables.powers, tables.samples, i, j, sums, unused);
#pragma unroll
        for (int a = 0; a < RM; ++a) {
            const Chunk chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
            for (int b = 0; b < RK; ++b) {
                const int64_t state = first + j + b * THREAD_COLUMNS;
                if (chunk.length && state < scan.n) states[chunk.states + state] = factors[b] * sums[a][b];
            }
        }
    }
}

// Chunks of a segment: those are carried one after the other, segments side by side.
constexpr int64_t SEGMENT = 64;

// The chunk at position p of the carry.
template <bool REVERSED>
S4_FAST_INLINE int64_t in_carry(const Scan &scan, int64_t p) {
    return REVERSED ? scan.chunks - 1 - p : p;
}

// s <- lambda^length s + local over the chunks of a segment; visit(chunk, s) sees s before each.
template <bool REVERSED, class R, class Visit>
S4_FAST_INLINE Complex<double> carry(const Scan &scan, int64_t row, int64_t segment, int64_t state, Node<double> node,
                                     Complex<R> *states, Complex<double> s, Visit visit) {
    constexpr int AT_ONCE = 8;  // loads that do not wait for each other
    const Complex<double> whole = power(node, scan.T), last = power(node, scan.length(scan.chunks - 1));
    const int64_t end = (segment + 1) * SEGMENT < scan.chunks ? (segment + 1) * SEGMENT : scan.chunks;
    Complex<R> *const base = states + row * scan.chunks * scan.n + state;
    for (int64_t p = segment * SEGMENT; p < end; p += AT_ONCE) {
        Complex<R> local[AT_ONCE];
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q)
            if (p + q < end) local[q] = base[in_carry<REVERSED>(scan, p + q) * scan.n];
#pragma unroll
        for (int q = 0; q < AT_ONCE; ++q) {
            if (p + q >= end) break;
            const int64_t chunk = in_carry<REVERSED>(scan, p + q);
            visit(base[chunk * scan.n], s);
            s = (chunk == scan.chunks - 1 ? last : whole) * s + convert<double>(local[q]);
        }
    }
    return s;
}

// What a segment alone leaves behind, totals[row, segment, state].
template <class R, bool REVERSED>
__global__ void __launch_bounds__(THREADS, 4) scan_segments_kernel(Scan scan, int64_t segments, const Complex<R> *x,
                                                                   Complex<R> *states, Complex<double> *totals) {
    const int64_t id = int64_t(blockIdx.x) * THREADS + threadIdx.x, state = id % scan.n;
    const int64_t segment = id / scan.n % segments, row = id / (scan.n * segments);
    if (row >= scan.batch * scan.H) return;
    const Node<double> node = make_node(convert<double>(x[row % scan.H * scan.n + state]));
    totals[id] = carry<REVERSED>(scan, row, segment, state, node, states, Complex<double>{0, 0},
                                 [](Complex<R> &, Complex<double>) {});
}

template <bool REVERSED, class R>
S4_FAST_INLINE Complex<double> initial_state(const Complex<R> *initial, int64_t index) {
    if (!initial) return {0, 0};
    const Complex<double> s = convert<double>(initial[index]);
    return REVERSED ? conj(s) : s;
}

// Replaces what the segments leave behind by the state before each.
template <class R, bool REVERSED>
__global__ void __launch_bounds__(THREADS, 4) scan_across_kernel(Scan scan, int64_t segments, const Complex<R> *x,
                                                                 const Complex<R> *initial, Complex<double> *totals) {
    const int64_t id = int64_t(blockIdx.x) * THREADS + threadIdx.x, state = id % scan.n, row = id / scan.n;
    if (row >= scan.batch * scan.H) return;
    const Node<double> node = make_node(convert<double>(x[row % scan.H * scan.n + state]));
    const Complex<double> whole = power(node, SEGMENT * scan.T);
    const int64_t at_end = REVERSED ? 0 : segments - 1;  // the segment that has the last chunk
    Complex<double> s = initial_state<REVERSED>(initial, id);
    for (int64_t segment = 0; segment < segments; ++segment) {
        Complex<double> &total = totals[(row * segments + segment) * scan.n + state];
        const Complex<double> left = total;
        total = s;
        const int64_t chunks = segment < segments - 1 ? SEGMENT : scan.chunks - segment * SEGMENT;
        const int64_t missing = segment == at_end ? scan.T - scan.length(scan.chunks - 1) : 0;
        const int64_t samples = chunks * scan.T - missing;
        s = (samples == SEGMENT * scan.T ? whole : power(node, samples)) * s + left;
    }
}

// Replaces what the chunks leave behind by the state before each; `starts` has that before each segment, or is NULL
// where there is one segment.
template <class R, bool REVERSED>
__global__ void __launch_bounds__(THREADS, 4)
    scan_within_kernel(Scan scan, int64_t segments, const Complex<R> *x, const Complex<R> *initial,
                       const Complex<double> *starts, Complex<R> *states, Complex<R> *final) {
    const int64_t id = int64_t(blockIdx.x) * THREADS + threadIdx.x, state = id % scan.n;
    const int64_t segment = id / scan.n % segments, row = id / (scan.n * segments);
    if (row >= scan.batch * scan.H) return;
    const Node<double> node = make_node(convert<double>(x[row % scan.H * scan.n + state]));
    const Complex<double> start = starts ? starts[id] : initial_state<REVERSED>(initial, row * scan.n + state);
    const Complex<double> end = carry<REVERSED>(scan, row, segment, state, node, states, start,
                                                [](Complex<R> &target, Complex<double> s) { target = convert<R>(s); });
    if (final && segment == segments - 1) final[row * scan.n + state] = convert<R>(REVERSED ? conj(end) : end);
}

// The workspace of one direction.
template <class R>
struct States {
    Complex<R> *before;
    Complex<double> *segments;
};

inline int64_t segments_of(const Scan &scan) { return divide_up(scan.chunks, SEGMENT); }

template <class R>
States<R> take_states(Call &call, const Scan &scan) {
    const int64_t rows = scan.batch * scan.H, segments = segments_of(scan);
    return {call.take<Complex<R>>(rows * scan.chunks * scan.n),
            segments > 1 ? call.take<Complex<double>>(rows * segments * scan.n) : nullptr};
}

template <bool REVERSED, class R>
void find_states(Call &call, const Scan &scan, const States<R> &states, const R *samples, const Complex<R> *x,
                 const Complex<R> *B, const Complex<R> *C, const Complex<R> *initial, Complex<R> *final) {
    const int64_t rows = scan.batch * scan.H, blocks = divide_up(scan.n, K), segments = segments_of(scan);
    const Shares shares(tiles(scan), ENOUGH_BLOCKS / (scan.H * blocks));
    call.launch("scan_local_kernel", scan_local_kernel<R, REVERSED>, shares.count * scan.H * blocks, THREADS,
                sizeof(LocalTables<R>), scan, shares, tiles(scan), blocks, samples, x, B, C, states.before);
    const int64_t carries = divide_up(rows * segments * scan.n, THREADS);
    if (segments > 1) {
        call.launch("scan_segments_kernel", scan_segments_kernel<R, REVERSED>, carries, THREADS, 0, scan, segments, x,
                    states.before, states.segments);
        call.launch("scan_across_kernel", scan_across_kernel<R, REVERSED>, divide_up(rows * scan.n, THREADS), THREADS,
                    0, scan, segments, x, initial, states.segments);
    }
    call.launch("scan_within_kernel", scan_within_kernel<R, REVERSED>, carries, THREADS, 0, scan, segments, x, initial,
                states.segments, states.before, final);
}

}  // namespace
}  // namespace s4_fast
