// The gradients of a DPLR scan's maps: sums over all chunks of products of what a map takes with the gradient of what
// it gives. With S_m the state before chunk m, G_m the gradient of that after it, dy and u its samples,
//     of enter[i]: sum u[last - i] G_m,   of leave[i]: sum dy[first + i] S_m,   of A^length: sum G_m S_m^T,
// the samples being taken the other way round in the second direction.
#pragma once

#include "../scan/scan_gradients.cuh"
#include "dplr_call.cuh"

namespace s4_fast::cuda {
namespace {

// Left are T samples of a chunk, or reals of a gradient, right TILE_STATES states.
template <class R>
struct ProductTables {
    Samples<R, TILE_CHUNKS, CHUNK<R>> left;
    Complex<R> right[TILE_CHUNKS][TILE_STATES];
    Chunk chunks[TILE_CHUNKS];
};

template <class R>
constexpr int LEFT = CHUNK<R> / THREAD_ROWS;

template <class R>
using ProductSums = Complex<R>[LEFT<R>][TILE_STATES / THREAD_COLUMNS];

template <class R>
S4_FAST_INLINE void load_right(ProductTables<R> &tables, const Scan &scan, int64_t first, const Complex<R> *states) {
    for (int entry = threadIdx.x; entry < TILE_CHUNKS * TILE_STATES; entry += THREADS) {
        const Chunk &chunk = tables.chunks[entry / TILE_STATES];
        const int k = entry % TILE_STATES;
        tables.right[entry / TILE_STATES][k] =
            chunk.length && first + k < scan.n ? states[chunk.states + first + k] : Complex<R>{0, 0};
    }
}

template <class R>
S4_FAST_INLINE void add_products(ProductSums<R> &sums, const ProductTables<R> &tables) {
    constexpr int THREAD_STATES = TILE_STATES / THREAD_COLUMNS;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
#pragma unroll 2
    for (int m = 0; m < TILE_CHUNKS; ++m) {
        R left[LEFT<R>];
        Complex<R> right[THREAD_STATES];
#pragma unroll
        for (int a = 0; a < LEFT<R>; ++a) left[a] = tables.left[m][i + a * THREAD_ROWS];
#pragma unroll
        for (int b = 0; b < THREAD_STATES; ++b) right[b] = tables.right[m][j + b * THREAD_COLUMNS];
#pragma unroll
        for (int a = 0; a < LEFT<R>; ++a)
#pragma unroll
            for (int b = 0; b < THREAD_STATES; ++b) sums[a][b] += left[a] * right[b];
    }
}

// `to` has the rows from the first of left and the columns from the first of right on.
template <class R>
S4_FAST_INLINE void write_products(const ProductSums<R> &sums, int64_t rows, int64_t columns, int64_t width,
                                   Complex<R> *to) {
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
#pragma unroll
    for (int a = 0; a < LEFT<R>; ++a)
#pragma unroll
        for (int b = 0; b < TILE_STATES / THREAD_COLUMNS; ++b) {
            const int row = i + a * THREAD_ROWS, column = j + b * THREAD_COLUMNS;
            if (row < rows && column < columns) to[row * width + column] = sums[a][b];
        }
}

// For TILE_STATES states and a share of the tiles, parts[share, table, h, T, n]: the table of `enter`, then those of
// `leave`.
template <class R>
S4_FAST_INLINE void table_block(int64_t id, const Scan &scan, const Shares &shares, int64_t tiles, const Paired<R> &in,
                                Complex<R> *parts) {
    constexpr int T = CHUNK<R>;
    auto &tables = shared_memory<ProductTables<R>>();
    const int64_t blocks = (scan.n + TILE_STATES - 1) / TILE_STATES, count = 1 + leave_chains(scan),
                  first = id % blocks * TILE_STATES;
    const int64_t h = id / blocks % scan.H, table = id / (blocks * scan.H) % count,
                  share = id / (blocks * scan.H * count);
    const int64_t row = table - 1;  // of leave
    const int begin = table == 0 ? 0 : int(row / scan.c), last = table == 0 ? int(scan.directions) : begin + 1;
    const R *const grad_y = in.grad_y && table > 0 ? in.grad_y + row % scan.c * scan.channel() : nullptr;
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    ProductSums<R> sums = {};
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        __syncthreads();
        find_chunks(tables.chunks, scan, h, tile);
#pragma unroll 1
        for (int direction = begin; direction < last; ++direction) {
            __syncthreads();
            if (table == 0)
                load_samples(tables.left, tables.chunks, direction == 0, in.u, false);
            else
                load_samples(tables.left, tables.chunks, direction == 1, grad_y, true);
            load_right(tables, scan, first, table == 0 ? in.gradients[direction] : in.states[direction]);
            __syncthreads();
            add_products(sums, tables);
        }
    }
    write_products(sums, T, scan.n - first, scan.n,
                   parts + ((share * count + table) * scan.H + h) * T * scan.n + first);
}

// For T rows and TILE_STATES states of the columns, parts[share, kind, h, 2 n, 2 n].
template <class R>
S4_FAST_INLINE void transition_gradient_block(int64_t id, const Scan &scan, const Shares &shares, int64_t tiles,
                                              const Transitions &transitions, const Paired<R> &in, R *parts) {
    constexpr int T = CHUNK<R>;
    auto &tables = shared_memory<ProductTables<R>>();
    const int64_t N = 2 * scan.n, blocks = (scan.n + TILE_STATES - 1) / TILE_STATES, row_blocks = (N + T - 1) / T;
    const int64_t first = id % blocks * TILE_STATES, first_row = id / blocks % row_blocks * T,
                  rest = id / (blocks * row_blocks);
    const int64_t h = rest % scan.H, kind = rest / scan.H % transitions.kinds,
                  share = rest / scan.H / transitions.kinds;
    const int length = kind == 0 ? transitions.lengths[0] : transitions.lengths[1];
    // Each row has one last chunk.
    const int64_t all = kind == 0 ? tiles : (scan.batch + TILE_CHUNKS - 1) / TILE_CHUNKS;
    const int64_t end = (share + 1) * shares.each < all ? (share + 1) * shares.each : all;
    ProductSums<R> sums = {};
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        __syncthreads();
        if (kind == 0)
            find_chunks(tables.chunks, scan, h, tile);
        else if (threadIdx.x < TILE_CHUNKS)
            tables.chunks[threadIdx.x] = find_chunk(scan, h, tile * TILE_CHUNKS + threadIdx.x, scan.chunks - 1);
#pragma unroll 1
        for (int direction = 0; direction < scan.directions; ++direction) {
            __syncthreads();
            const R *const gradients = reinterpret_cast<const R *>(in.gradients[direction]);
            for (int entry = threadIdx.x; entry < TILE_CHUNKS * T; entry += THREADS) {
                const Chunk &chunk = tables.chunks[entry / T];
                const int64_t row = first_row + entry % T;
                tables.left[entry / T][entry % T] =
                    chunk.length == length && row < N ? gradients[2 * chunk.states + row] : R(0);
            }
            load_right(tables, scan, first, in.states[direction]);
            __syncthreads();
            add_products(sums, tables);
        }
    }
    R *const to = parts + (((share * transitions.kinds + kind) * scan.H + h) * N + first_row) * N + 2 * first;
    write_products(sums, N - first_row, scan.n - first, scan.n, reinterpret_cast<Complex<R> *>(to));
}

// How many blocks of each kind a launch has, in this order, and the shares of each.
struct DplrDeal {
    Shares of_maps, of_outputs, of_correlation;
    int64_t tables, transitions, outputs, correlation;
};

// What the sums over the chunks of a call are left in, by share.
template <class R>
struct MapSums {
    Complex<R> *tables;
    R *transitions, *correlation;
};

// The gradient of u and those of the maps: all that waits for the states alone, in one launch.
template <class R, class S>
__global__ void __launch_bounds__(THREADS, sizeof(R) == sizeof(float) ? 4 : 2)
    dplr_gradients_kernel(Scan scan, DplrDeal deal, int64_t tiles, const __grid_constant__ Tables<R> made,
                          const __grid_constant__ Transitions transitions,
                          const __grid_constant__ Outputs<R, S> outputs, const __grid_constant__ Paired<R> in,
                          MapSums<R> sums) {
    int64_t block = blockIdx.x;
    if (block < deal.tables) return table_block(block, scan, deal.of_maps, tiles, in, sums.tables);
    block -= deal.tables;
    if (block < deal.transitions)
        return transition_gradient_block(block, scan, deal.of_maps, tiles, transitions, in, sums.transitions);
    block -= deal.transitions;
    if (block < deal.outputs)
        return output_block<true, TableColumns>(unsigned(block), scan, deal.of_outputs, tiles, made, outputs);
    correlation_block(unsigned(block - deal.outputs), scan, deal.of_correlation, tiles, in, sums.correlation);
}

}  // namespace
}  // namespace s4_fast::cuda
