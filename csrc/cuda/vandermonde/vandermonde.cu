// Vandermonde products: tables of powers made in shared memory, and a matrix product over the states in registers.
//
// With l = start_m + t, start_m = m T, a tile of M x T outputs is
//     out[m, t] = sum_n Re(scale v_n lambda_n^start_m) Re(lambda_n^t) - Im(scale v_n lambda_n^start_m) Im(lambda_n^t).
#include "../shared/launch.cuh"
#include "../shared/powers.cuh"

namespace s4_fast::cuda {
namespace {

// M x T outputs of a block, of which a thread has RM x RT; the states of one pass.
template <int ROWS, int SAMPLES, int THREAD_ROWS, int THREAD_SAMPLES>
struct Tile {
    static constexpr int M = ROWS, T = SAMPLES, RM = THREAD_ROWS, RT = THREAD_SAMPLES, STATES = 16;
    static constexpr int THREADS = (M / RM) * (T / RT);
    // A table of M or T powers is made of products of one of RUN powers and one in RUN: a product costs a tenth.
    static constexpr int RUN = 16, STARTS = M / RUN, STEPS = T / RUN, POWERS = STARTS + RUN + STEPS + RUN;
};

template <class R, class Tile>
struct Tables {
    Complex<R> coarse[Tile::STATES][Tile::M];  // (Re, -Im) of scale v lambda^start
    Complex<R> fine[Tile::STATES][Tile::T];
    Complex<R> powers[Tile::STATES][Tile::POWERS];
    Complex<R> v[Tile::STATES];
    Node<R> nodes[Tile::STATES];
};

template <class R, class Tile>
__global__ void __launch_bounds__(Tile::THREADS)
    vandermonde_kernel(int64_t H, int64_t n, int64_t L, int64_t tiles, const Complex<R> *v, const Complex<R> *x,
                       R scale, R *out) {
    constexpr int M = Tile::M, T = Tile::T, RM = Tile::RM, RT = Tile::RT, STATES = Tile::STATES;
    constexpr int RUN = Tile::RUN, STARTS = Tile::STARTS, STEPS = Tile::STEPS, POWERS = Tile::POWERS;
    auto &tables = shared_memory<Tables<R, Tile>>();
    const int64_t row = blockIdx.x / tiles, start = blockIdx.x % tiles * (M * T);
    const int i = threadIdx.x / (T / RT), j = threadIdx.x % (T / RT);
    R sums[RM][RT] = {};
    for (int64_t first = 0; first < n; first += STATES) {
        const int states = int(n - first < STATES ? n - first : STATES);
        if (threadIdx.x < states) {
            tables.v[threadIdx.x] = scale * v[row * n + first + threadIdx.x];
            tables.nodes[threadIdx.x] = make_node(x[row % H * n + first + threadIdx.x]);
        }
        __syncthreads();
        for (int entry = threadIdx.x; entry < states * POWERS; entry += Tile::THREADS) {
            const int k = entry / POWERS, p = entry % POWERS, fine = p - STARTS - RUN;
            const int64_t exponent = p < STARTS         ? start + int64_t(p) * (RUN * T)
                                     : p < STARTS + RUN ? int64_t(p - STARTS) * T
                                     : fine < STEPS     ? fine * RUN
                                                        : fine - STEPS;
            const Complex<R> found = power(tables.nodes[k], exponent);
            tables.powers[k][p] = p < STARTS ? tables.v[k] * found : found;
        }
        __syncthreads();
        for (int entry = threadIdx.x; entry < states * (M + T); entry += Tile::THREADS) {
            const int k = entry / (M + T), p = entry % (M + T), t = p - M;
            const Complex<R> *powers = tables.powers[k], *steps = powers + STARTS + RUN;
            if (p < M)
                tables.coarse[k][p] = conj(powers[p / RUN] * powers[STARTS + p % RUN]);
            else
                tables.fine[k][t] = steps[t / RUN] * steps[STEPS + t % RUN];
        }
        __syncthreads();
#pragma unroll 2
        for (int k = 0; k < states; ++k) {
            Complex<R> left[RM], right[RT];
#pragma unroll
            for (int a = 0; a < RM; ++a) left[a] = tables.coarse[k][i + a * (M / RM)];
#pragma unroll
            for (int b = 0; b < RT; ++b) right[b] = tables.fine[k][j + b * (T / RT)];
#pragma unroll
            for (int a = 0; a < RM; ++a)
#pragma unroll
                for (int b = 0; b < RT; ++b) sums[a][b] += left[a].re * right[b].re + left[a].im * right[b].im;
        }
    }
#pragma unroll
    for (int a = 0; a < RM; ++a)
#pragma unroll
        for (int b = 0; b < RT; ++b) {
            const int64_t l = start + (i + a * (M / RM)) * T + j + b * (T / RT);
            if (l < L) out[row * L + l] = sums[a][b];
        }
}

template <class R, class Tile>
void launch(Call &call, int64_t rows, int64_t H, int64_t n, int64_t L, const Complex<R> *v, const Complex<R> *x,
            double scale, R *out) {
    const int64_t tiles = divide_up(L, Tile::M * Tile::T);
    call.launch("vandermonde_kernel", vandermonde_kernel<R, Tile>, rows * tiles, Tile::THREADS, sizeof(Tables<R, Tile>),
                H, n, L, tiles, v, x, R(scale), out);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_vandermonde(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *v, const void *x,
                             double scale, void *out, void *workspace, int64_t *workspace_bytes, int64_t device,
                             void *stream) {
    using namespace s4_fast::cuda;
    return run_call("vandermonde", dtype, {{"c", c}, {"H", H}, {"n", n}, {"L", L}}, {v, x, out},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        using R = decltype(real);
                        if (!call.ready()) return;
                        // A tile costs (M + T) powers per state for M T outputs.
                        auto run = launch<R, Tile<32, 64, 4, 4>>;
                        if (L <= 256) run = launch<R, Tile<16, 16, 2, 2>>;
                        if constexpr (sizeof(R) == sizeof(float))
                            if (L >= 1 << 14) run = launch<R, Tile<128, 128, 8, 8>>;
                        run(call, c * H, H, n, L, static_cast<const Complex<R> *>(v),
                            static_cast<const Complex<R> *>(x), scale, static_cast<R *>(out));
                    });
}
