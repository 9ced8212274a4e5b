// The gradients of Cauchy sums. With r = 1/(z - w) and, where symmetric, r' = 1/(z - w*),
//     grad_v = sum_z g r* + g* r',   grad_w = sum_c v* sum_z g r*^2 + g* r'^2,
//     grad_z = -sum_c g (sum_n v r^2 + v* r'^2)*, summed over the features that share z.
#include "../shared/launch.cuh"
#include "../shared/sum_parts.cuh"
#include "cauchy.cuh"

namespace s4_fast::cuda {
namespace {

// Threads of a block, nodes that it holds at once, and its states; each state has LANES threads.
constexpr int THREADS = 128, NODES = 64, STATES = 16, LANES = THREADS / STATES;

template <class R, int ROWS>
struct StateTables {
    Complex<R> z[NODES], g[ROWS][NODES];
};

// The sums over a share of the nodes, for STATES states of one feature and ROWS rows, into
// grad_v[share, lane, row, h, state] and grad_w[share, lane, chunk of rows, h, state].
template <class R, int ROWS, bool SYMMETRIC>
__global__ void __launch_bounds__(THREADS, 4)
    cauchy_states_kernel(int64_t c, int64_t H, int64_t n, int64_t Lz, int64_t z_rows, int64_t blocks, int64_t chunks,
                         Shares shares, const Complex<R> *g, const Complex<R> *v, const Complex<R> *z,
                         const Complex<R> *w, Complex<R> *grad_v, Complex<R> *grad_w) {
    auto &tables = shared_memory<StateTables<R, ROWS>>();
    const int64_t share = blockIdx.x / (blocks * chunks * H), chunk = blockIdx.x / (blocks * H) % chunks;
    const int64_t h = blockIdx.x / blocks % H, first_row = chunk * ROWS;
    const int64_t state = blockIdx.x % blocks * STATES + threadIdx.x % STATES;
    const int lane = threadIdx.x / STATES;
    const bool present = state < n;
    const Complex<R> pole = w[h * n + (present ? state : n - 1)];
    Complex<R> coefficient[ROWS], sums_v[ROWS] = {}, sum_w = {0, 0};
#pragma unroll
    for (int row = 0; row < ROWS; ++row)
        coefficient[row] =
            present && first_row + row < c ? v[((first_row + row) * H + h) * n + state] : Complex<R>{0, 0};
    const int64_t end = (share + 1) * shares.each < Lz ? (share + 1) * shares.each : Lz;
    for (int64_t first = share * shares.each; first < end; first += NODES) {
        const int nodes = int(end - first < NODES ? end - first : NODES);
        __syncthreads();
        for (int entry = threadIdx.x; entry < (1 + ROWS) * nodes; entry += THREADS) {
            const int row = entry / nodes - 1, l = entry % nodes;
            if (row < 0)
                tables.z[l] = z[h % z_rows * Lz + first + l];
            else
                tables.g[row][l] =
                    first_row + row < c ? g[((first_row + row) * H + h) * Lz + first + l] : Complex<R>{0, 0};
        }
        __syncthreads();
#pragma unroll 1
        for (int l = lane; l < nodes; l += LANES) {
            const Reciprocals<R> r = reciprocals<SYMMETRIC>(tables.z[l], pole);
            // Contract the rows first: sum v* g goes with r*^2, sum v* g* with r'^2.
            Complex<R> with_own = {0, 0}, with_paired = {0, 0};
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                const Complex<R> grad = tables.g[row][l];
                sums_v[row] += grad * conj(r.own);
                with_own += conj(coefficient[row]) * grad;
                if (SYMMETRIC) {
                    sums_v[row] += conj(grad) * r.paired;
                    with_paired += conj(coefficient[row] * grad);
                }
            }
            sum_w += with_own * conj(r.own * r.own);
            if (SYMMETRIC) sum_w += with_paired * (r.paired * r.paired);
        }
    }
    if (!present) return;
    const int64_t part = share * LANES + lane;
#pragma unroll
    for (int row = 0; row < ROWS; ++row)
        if (first_row + row < c) grad_v[((part * c + first_row + row) * H + h) * n + state] = sums_v[row];
    grad_w[((part * chunks + chunk) * H + h) * n + state] = sum_w;
}

template <class R>
struct NodeTables {
    Complex<R> w[STATES], v[STATES];
};

// -sum_c g (sum_n v r^2 + v* r'^2)* at the nodes of one feature.
template <class R, bool SYMMETRIC>
__global__ void __launch_bounds__(THREADS, 4)
    cauchy_nodes_kernel(int64_t c, int64_t H, int64_t n, int64_t Lz, int64_t z_rows, int64_t tiles, const Complex<R> *g,
                        const Complex<R> *v, const Complex<R> *z, const Complex<R> *w, Complex<R> *grad_z) {
    auto &tables = shared_memory<NodeTables<R>>();
    const int64_t h = blockIdx.x / tiles, l = blockIdx.x % tiles * THREADS + threadIdx.x;
    const int64_t inside = l < Lz ? l : Lz - 1;
    const Complex<R> node = z[h % z_rows * Lz + inside];
    Complex<R> total = {0, 0};
    for (int64_t row = 0; row < c; ++row) {
        Complex<R> sum = {0, 0};
        for (int64_t first = 0; first < n; first += STATES) {
            const int states = int(n - first < STATES ? n - first : STATES);
            __syncthreads();
            if (threadIdx.x < states) {
                tables.w[threadIdx.x] = w[h * n + first + threadIdx.x];
                tables.v[threadIdx.x] = v[(row * H + h) * n + first + threadIdx.x];
            }
            __syncthreads();
#pragma unroll 1
            for (int k = 0; k < states; ++k) {
                const Reciprocals<R> r = reciprocals<SYMMETRIC>(node, tables.w[k]);
                sum += tables.v[k] * (r.own * r.own);
                if (SYMMETRIC) sum += conj(tables.v[k]) * (r.paired * r.paired);
            }
        }
        total = total - g[(row * H + h) * Lz + inside] * conj(sum);
    }
    if (l < Lz) grad_z[h * Lz + l] = total;
}

template <class R>
struct Arguments {
    int64_t c, H, n, Lz, z_rows;
    const Complex<R> *g, *v, *z, *w;
};

template <class R, int ROWS>
void states(Call &call, const Arguments<R> &a, bool symmetric, const Shares &shares, Complex<R> *grad_v,
            Complex<R> *grad_w) {
    const int64_t blocks = divide_up(a.n, STATES), chunks = divide_up(a.c, ROWS);
    auto kernel = symmetric ? cauchy_states_kernel<R, ROWS, true> : cauchy_states_kernel<R, ROWS, false>;
    call.launch("cauchy_states_kernel", kernel, shares.count * chunks * a.H * blocks, THREADS,
                sizeof(StateTables<R, ROWS>), a.c, a.H, a.n, a.Lz, a.z_rows, blocks, chunks, shares, a.g, a.v, a.z, a.w,
                grad_v, grad_w);
}

template <class R>
void backward(Call &call, const Arguments<R> &a, bool symmetric, Complex<R> *grad_v, Complex<R> *grad_z,
              Complex<R> *grad_w) {
    const int64_t rows = a.c == 1 ? 1 : 4, chunks = divide_up(a.c, rows), size = a.H * a.n;
    // Whole groups of NODES to a share.
    const int64_t work = chunks * size / STATES;
    Shares shares(divide_up(a.Lz, NODES), ENOUGH_BLOCKS / (work < 1 ? 1 : work));
    shares.each *= NODES;
    const int64_t parts = shares.count * LANES;
    Complex<R> *v_parts = nullptr, *w_parts = nullptr, *z_parts = grad_z;
    if (grad_v || grad_w) {
        v_parts = call.take<Complex<R>>(parts * a.c * size);
        w_parts = call.take<Complex<R>>(parts * chunks * size);
    }
    const bool shared_nodes = grad_z && a.z_rows < a.H;
    if (shared_nodes) z_parts = call.take<Complex<R>>(a.H * a.Lz);
    if (!call.ready()) return;
    if (grad_v || grad_w) (rows == 1 ? states<R, 1> : states<R, 4>)(call, a, symmetric, shares, v_parts, w_parts);
    if (grad_v) sum_parts(call, parts, 2 * a.c * size, &v_parts->re, &grad_v->re);
    if (grad_w) sum_parts(call, parts * chunks, 2 * size, &w_parts->re, &grad_w->re);
    if (!grad_z) return;
    const int64_t tiles = divide_up(a.Lz, THREADS);
    call.launch("cauchy_nodes_kernel", symmetric ? cauchy_nodes_kernel<R, true> : cauchy_nodes_kernel<R, false>,
                a.H * tiles, THREADS, sizeof(NodeTables<R>), a.c, a.H, a.n, a.Lz, a.z_rows, tiles, a.g, a.v, a.z, a.w,
                z_parts);
    if (shared_nodes) sum_parts(call, a.H, 2 * a.Lz, &z_parts->re, &grad_z->re);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_cauchy_mult_backward(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t Lz, int64_t z_rows,
                                      const void *grad, const void *v, const void *z, const void *w, int64_t symmetric,
                                      void *grad_v, void *grad_z, void *grad_w, void *workspace,
                                      int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call("cauchy_mult_backward", dtype, {{"c", c}, {"H", H}, {"n", n}, {"Lz", Lz}, {"z_rows", z_rows}},
                    {grad, v, z, w}, {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        using R = decltype(real);
                        using Input = const Complex<R> *;
                        using Output = Complex<R> *;
                        check_node_rows(z_rows, H);
                        backward(call, Arguments<R>{c, H, n, Lz, z_rows, Input(grad), Input(v), Input(z), Input(w)},
                                 symmetric, Output(grad_v), Output(grad_z), Output(grad_w));
                    });
}
