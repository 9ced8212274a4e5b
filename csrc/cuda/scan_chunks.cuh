// How a sequence is cut for the scan, and what all kernels of the scan load.
//
// A chunk of T samples is a matrix product away from its states and its outputs; between chunks the state is carried.
// With S_m the state before chunk m, of `length` samples,
//     S_{m+1} = lambda^length S_m + B sum_i lambda^i u[last - i],
//     y[first + t] = sum_{j<=t} K[t - j] u[first + j] + Re sum_n 2 C lambda lambda^t S_m,
//     K[d] = 2 Re sum_n C B lambda^d.
// The gradient of u is the same scan of grad_y backwards in time, with B and 2 C lambda exchanged. What it carries is
// conj(G), G_m being the gradient of S_{m+1}. REVERSED selects that direction. Either way the chunks are cut alike, and
// a short one is the last in time.
#pragma once

#include "launch.cuh"
#include "tile_products.cuh"

namespace s4_fast {

template <class R>
constexpr int CHUNK = sizeof(R) == sizeof(float) ? 64 : 32;

// Chunks and states that a block has at once, and its threads: 8 x 16, of 4 chunks each.
constexpr int M = 32, K = 32, THREADS = 128, THREAD_ROWS = 8, THREAD_COLUMNS = 16, RM = M / THREAD_ROWS;

struct Scan {
    int64_t batch, H, n, L, chunks, T;
    S4_FAST_INLINE int length(int64_t chunk) const { return int(chunk < chunks - 1 ? T : L - chunk * T); }
};

inline int64_t tiles(const Scan &scan) { return divide_up(scan.batch * scan.chunks, M); }

// A chunk of any batch: where its samples and its states begin. Beyond the last one the length is 0.
struct Chunk {
    int64_t samples, states;
    int length;
};

S4_FAST_INLINE void find_chunks(Chunk (&chunks)[M], const Scan &scan, int64_t h, int64_t tile) {
    if (threadIdx.x >= M) return;
    const int64_t column = tile * M + threadIdx.x, row = column / scan.chunks * scan.H + h;
    const int64_t chunk = column % scan.chunks;
    const bool present = column < scan.batch * scan.chunks;
    chunks[threadIdx.x] = {row * scan.L + chunk * scan.T, (row * scan.chunks + chunk) * scan.n,
                           present ? scan.length(chunk) : 0};
}

// The samples of a tile, in time or from the last one of each chunk backwards, and zeros after them.
template <bool FLIPPED, class R, int WIDTH>
S4_FAST_INLINE void load_samples(R (&samples)[M][WIDTH], const Chunk (&chunks)[M], const R *from) {
    constexpr int T = WIDTH - 1;
    for (int entry = threadIdx.x; entry < M * T; entry += THREADS) {
        const Chunk chunk = chunks[entry / T];
        const int t = entry % T;
        samples[entry / T][t] = t < chunk.length ? from[chunk.samples + (FLIPPED ? chunk.length - 1 - t : t)] : R(0);
    }
}

// Nodes of the states from `first` on; those beyond the last are 1.
template <class R>
S4_FAST_INLINE void load_nodes(Node<R> (&nodes)[K], const Scan &scan, int64_t h, int64_t first, const Complex<R> *x) {
    if (threadIdx.x >= K) return;
    const int64_t state = first + threadIdx.x;
    nodes[threadIdx.x] = make_node(state < scan.n ? x[h * scan.n + state] : Complex<R>{0, 0});
}

// lambda^t. Powers beyond L are not needed, and those of a growing node could overflow.
template <class R, int T>
S4_FAST_INLINE void make_powers(Complex<R> (&powers)[T][K], const Node<R> (&nodes)[K], const Scan &scan) {
    for (int entry = threadIdx.x; entry < T * K; entry += THREADS) {
        const int t = entry / K;
        powers[t][entry % K] = power(nodes[entry % K], t < scan.L ? t : scan.L - 1);
    }
}

// B or 2 C lambda: with which a sample enters the state, or with which the state leaves it (the other one).
template <bool WITH_C, class R>
S4_FAST_INLINE Complex<R> coefficient(const Complex<R> *B, const Complex<R> *C, int64_t index, Node<R> node) {
    return WITH_C ? R(2) * C[index] * power(node, 1) : B[index];
}

}  // namespace s4_fast
