// The transposed Vandermonde product, sum_l u_l lambda^l and sum_l l u_l lambda^l.
//
// A tile of M x T samples is first summed over t, which is a product with one table for all tiles, then over m.
#include "../shared/launch.cuh"
#include "../shared/sum_parts.cuh"
#include "../shared/tile_products.cuh"

namespace s4_fast::cuda {
namespace {

// M x T samples and K states of a block, of which a thread has RM rows and RK states.
template <int ROWS, int SAMPLES, int THREAD_ROWS, int THREAD_STATES>
struct Tile {
    static constexpr int M = ROWS, T = SAMPLES, K = 16, RM = THREAD_ROWS, RK = THREAD_STATES, COLUMNS = K / RK;
    static constexpr int THREADS = (M / RM) * COLUMNS;
};

template <class R, class Tile>
struct Tables {
    Complex<R> fine[Tile::T][Tile::K];
    Samples<R, Tile::M, Tile::T> u;
    Complex<R> sums[2][Tile::M / Tile::RM][Tile::K];
    Node<R> nodes[Tile::K];
};

// The sums of K states over a share of the tiles of one row (c, h), into out[share, moment, row, state]; where there is
// one share, into zeroth and first themselves.
template <class R, class Tile, bool WITH_FIRST>
__global__ void __launch_bounds__(Tile::THREADS)
    moments_kernel(int64_t rows, int64_t H, int64_t n, int64_t L, Shares shares, int64_t tiles, int64_t blocks,
                   const R *u, const Complex<R> *x, Complex<R> *zeroth, Complex<R> *first, int64_t stride) {
    constexpr int M = Tile::M, T = Tile::T, K = Tile::K, RM = Tile::RM, RK = Tile::RK, THREADS = Tile::THREADS;
    auto &tables = shared_memory<Tables<R, Tile>>();
    const int64_t share = blockIdx.x / (rows * blocks), row = blockIdx.x / blocks % rows;
    const int64_t first_state = blockIdx.x % blocks * K;
    const int i = threadIdx.x / Tile::COLUMNS, j = threadIdx.x % Tile::COLUMNS;
    if (threadIdx.x < K) {
        const int64_t state = first_state + threadIdx.x;
        tables.nodes[threadIdx.x] = make_node(state < n ? x[row % H * n + state] : Complex<R>{0, 0});
    }
    __syncthreads();
    // Powers beyond L are not needed, and those of a growing node could overflow.
    for (int entry = threadIdx.x; entry < T * K; entry += THREADS) {
        const int t = entry / K, k = entry % K;
        tables.fine[t][k] = power(tables.nodes[k], t < L ? t : L - 1);
    }
    Complex<R> sums[2][RK] = {};
    const int64_t end = (share + 1) * shares.each;
    for (int64_t tile = share * shares.each; tile < (end < tiles ? end : tiles); ++tile) {
        __syncthreads();
        for (int entry = threadIdx.x; entry < M * T; entry += THREADS) {
            const int64_t l = tile * (M * T) + entry;
            tables.u[entry / T][entry % T] = l < L ? u[row * L + l] : R(0);
        }
        __syncthreads();
        Complex<R> inner[RM][RK], inner_first[RM][RK];
        inner_moments<WITH_FIRST, R, RM, RK>(tables.fine, tables.u, i, j, inner, inner_first);
#pragma unroll
        for (int a = 0; a < RM; ++a) {
            const int64_t start = (tile * M + i + a * (M / RM)) * T;
#pragma unroll
            for (int b = 0; b < RK; ++b) {
                const Complex<R> coarse = power(tables.nodes[j + b * Tile::COLUMNS], start < L ? start : L - 1);
                sums[0][b] += coarse * inner[a][b];
                if (WITH_FIRST) sums[1][b] += coarse * (inner_first[a][b] + R(start) * inner[a][b]);
            }
        }
    }
#pragma unroll
    for (int b = 0; b < RK; ++b) {
        tables.sums[0][i][j + b * Tile::COLUMNS] = sums[0][b];
        if (WITH_FIRST) tables.sums[1][i][j + b * Tile::COLUMNS] = sums[1][b];
    }
    __syncthreads();
    for (int entry = threadIdx.x; entry < (1 + WITH_FIRST) * K; entry += THREADS) {
        const int moment = entry / K, k = entry % K;
        Complex<R> sum = {0, 0};
        for (int p = 0; p < M / RM; ++p) sum += tables.sums[moment][p][k];
        if (first_state + k < n) (moment ? first : zeroth)[share * stride + row * n + first_state + k] = sum;
    }
}

template <class R, class Tile>
void run(Call &call, int64_t rows, int64_t H, int64_t n, int64_t L, const R *u, const Complex<R> *x, Complex<R> *zeroth,
         Complex<R> *first) {
    const int64_t tiles = divide_up(L, Tile::M * Tile::T), blocks = divide_up(n, Tile::K);
    const Shares shares(tiles, ENOUGH_BLOCKS / (rows * blocks));
    Complex<R> *parts = nullptr;
    const int64_t size = rows * n;
    if (shares.count > 1) parts = call.take<Complex<R>>((first ? 2 : 1) * shares.count * size);
    if (!call.ready()) return;
    Complex<R> *zeroth_parts = parts ? parts : zeroth, *first_parts = parts ? parts + shares.count * size : first;
    call.launch("moments_kernel", first ? moments_kernel<R, Tile, true> : moments_kernel<R, Tile, false>,
                shares.count * rows * blocks, Tile::THREADS, sizeof(Tables<R, Tile>), rows, H, n, L, shares, tiles,
                blocks, u, x, zeroth_parts, first_parts, size);
    if (!parts) return;
    sum_parts(call, shares.count, 2 * size, &zeroth_parts->re, &zeroth->re);
    if (first) sum_parts(call, shares.count, 2 * size, &first_parts->re, &first->re);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_moments(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *u, const void *x,
                         void *zeroth, void *first, void *workspace, int64_t *workspace_bytes, int64_t device,
                         void *stream) {
    using namespace s4_fast::cuda;
    return run_call("moments", dtype, {{"c", c}, {"H", H}, {"n", n}, {"L", L}}, {u, x, zeroth},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        using R = decltype(real);
                        constexpr bool WIDE = sizeof(R) == sizeof(double);
                        auto choice = L <= 1024 ? run<R, Tile<16, 16, 2, 1>> : run<R, Tile<64, WIDE ? 32 : 64, 4, 2>>;
                        choice(call, c * H, H, n, L, static_cast<const R *>(u), static_cast<const Complex<R> *>(x),
                               static_cast<Complex<R> *>(zeroth), static_cast<Complex<R> *>(first));
                    });
}
