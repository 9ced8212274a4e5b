// How a sequence is cut for the scan, and what all kernels of the scan load.
//
// A chunk of T samples is a matrix product away from its states and its outputs; between chunks the state is carried.
// With S_m the state before chunk m, of `length` samples, and R_m that of the second direction after it,
//     S_{m+1} = lambda^length S_m + B sum_i lambda^i u[last - i],
//     R_{m-1} = lambda^length R_m + B sum_t lambda^t u[first + t],
//     y_j[first + t] = sum_i K_j[t - i] u[first + i]
//                      + Re sum_n (2 C_j lambda lambda^t S_m + 2 C_{c+j} lambda^{length-1-t} R_m),
//     K_j[d] = 2 Re sum_n C_j B lambda^d for d >= 0,   2 Re sum_n C_{c+j} B lambda^{-d-1} for d < 0.
// The gradient of u is the same of grad_y, with each direction's time reversed and what enters the state exchanged with
// what leaves it, the channels being summed. It carries conj(G) and conj(Q), G_m being the gradient of S_{m+1} and Q_m
// that of R_{m-1}. So a recurrence that runs backwards takes a chunk's samples with lambda^t, one that runs forwards
// with lambda^{length-1-t}, and their states enter the outputs with the other one of the two. All cut alike, and a
// short chunk is the last in time.
#pragma once

#include "../shared/launch.cuh"
#include "../shared/tile_products.cuh"

namespace s4_fast::cuda {

template <class R>
constexpr int CHUNK = sizeof(R) == sizeof(float) ? 64 : 32;

// Chunks and states that a block has at once, and its threads, of which each has THREAD_CHUNKS chunks.
constexpr int TILE_CHUNKS = 32, TILE_STATES = 32, THREADS = 128, THREAD_ROWS = 8, THREAD_COLUMNS = 16,
              THREAD_CHUNKS = TILE_CHUNKS / THREAD_ROWS;

struct Scan {
    int64_t batch, H, n, L, c, chunks, T, directions;
    S4_FAST_INLINE int length(int64_t chunk) const { return int(chunk < chunks - 1 ? T : L - chunk * T); }
    S4_FAST_INLINE int64_t channel() const { return H * L; }  // from one channel's samples to the next one's
};

template <class R>
Scan make_scan(int64_t batch, int64_t H, int64_t n, int64_t L, int64_t c, int64_t directions) {
    return {batch, H, n, L, c, divide_up(L, CHUNK<R>), CHUNK<R>, directions};
}

inline int64_t tiles(const Scan &scan) { return divide_up(scan.batch * scan.chunks, TILE_CHUNKS); }

// What the prepare kernel makes of the parameters: (H, n) each, `leave` (directions c, H, n), response (c, H, 2 T).
template <class R>
struct Tables {
    const Node<R> *nodes;
    const Node<double> *wide;
    const Complex<R> *enter, *leave;
    const R *response;
};

// A chunk of any batch: where its samples begin, in u and in channel 0 of y, and its states. Beyond the last one the
// length is 0.
struct Chunk {
    int64_t u, y, states;
    int length;
};

S4_FAST_INLINE Chunk find_chunk(const Scan &scan, int64_t h, int64_t row, int64_t chunk) {
    const int64_t feature = row * scan.H + h, first = chunk * scan.T;
    return {feature * scan.L + first, (row * scan.c * scan.H + h) * scan.L + first,
            (feature * scan.chunks + chunk) * scan.n, row < scan.batch ? scan.length(chunk) : 0};
}

S4_FAST_INLINE void find_chunks(Chunk (&chunks)[TILE_CHUNKS], const Scan &scan, int64_t h, int64_t tile) {
    if (threadIdx.x >= TILE_CHUNKS) return;
    const int64_t column = tile * TILE_CHUNKS + threadIdx.x;
    chunks[threadIdx.x] = find_chunk(scan, h, column / scan.chunks, column % scan.chunks);
}

// The samples of a tile of u, or of the channel of y where `from` points, in time or from the last one of each chunk
// backwards, and zeros after them.
template <class R, int WIDTH>
S4_FAST_INLINE void load_samples(R (&samples)[TILE_CHUNKS][WIDTH], const Chunk (&chunks)[TILE_CHUNKS], bool flipped,
                                 const R *from, bool of_y) {
    constexpr int T = WIDTH - 1;
    for (int entry = threadIdx.x; entry < TILE_CHUNKS * T; entry += THREADS) {
        const Chunk &chunk = chunks[entry / T];
        const int t = entry % T, length = chunk.length;
        const int64_t first = of_y ? chunk.y : chunk.u;
        samples[entry / T][t] = from && t < length ? from[first + (flipped ? length - 1 - t : t)] : R(0);
    }
}

// Nodes of the states from `first` on; those beyond the last are 1.
template <class R>
S4_FAST_INLINE void load_nodes(Node<R> (&nodes)[TILE_STATES], const Scan &scan, int64_t h, int64_t first,
                               const Node<R> *from) {
    if (threadIdx.x >= TILE_STATES) return;
    const int64_t state = first + threadIdx.x;
    nodes[threadIdx.x] = state < scan.n ? from[h * scan.n + state] : Node<R>{0, 0, 0};
}

// lambda^t. Powers from L on are not needed, and those of a growing node could overflow.
template <class R>
S4_FAST_INLINE Complex<R> bounded_power(Node<R> node, int t, int64_t L) {
    return power(node, t < L ? t : L - 1);
}

template <class R, int T>
S4_FAST_INLINE void make_powers(Complex<R> (&powers)[T][TILE_STATES], const Node<R> (&nodes)[TILE_STATES],
                                const Scan &scan) {
    for (int entry = threadIdx.x; entry < T * TILE_STATES; entry += THREADS)
        powers[entry / TILE_STATES][entry % TILE_STATES] =
            bounded_power(nodes[entry % TILE_STATES], entry / TILE_STATES, scan.L);
}

}  // namespace s4_fast::cuda
