// Cauchy sums at arbitrary nodes, out[c, h, z] = sum_n v/d + v*/d' with d = z - w and, where symmetric, d' = z - w*.
#include "cauchy.cuh"

#include "../shared/launch.cuh"

namespace s4_fast::cuda {
namespace {

constexpr int NODES = 128, STATES = 32;

template <class R, int ROWS>
struct Tables {
    Complex<R> w[STATES], v[ROWS][STATES];
};

// NODES nodes of ROWS rows of one feature: every reciprocal is made in registers and used for all rows.
template <class R, int ROWS, bool SYMMETRIC>
__global__ void __launch_bounds__(NODES)
    cauchy_kernel(int64_t c, int64_t H, int64_t n, int64_t Lz, int64_t z_rows, int64_t tiles, int64_t chunks,
                  const Complex<R> *v, const Complex<R> *z, const Complex<R> *w, Complex<R> *out) {
    auto &tables = shared_memory<Tables<R, ROWS>>();
    const int64_t h = blockIdx.x / (tiles * chunks), first_row = blockIdx.x / tiles % chunks * ROWS;
    const int64_t l = blockIdx.x % tiles * NODES + threadIdx.x;
    const Complex<R> node = z[h % z_rows * Lz + (l < Lz ? l : Lz - 1)];
    Complex<R> sums[ROWS] = {};
    for (int64_t first = 0; first < n; first += STATES) {
        const int states = int(n - first < STATES ? n - first : STATES);
        __syncthreads();
        for (int entry = threadIdx.x; entry < (1 + ROWS) * states; entry += NODES) {
            const int row = entry / states - 1, k = entry % states;
            const int64_t index = h * n + first + k;
            if (row < 0)
                tables.w[k] = w[index];
            else
                tables.v[row][k] = first_row + row < c ? v[(first_row + row) * H * n + index] : Complex<R>{0, 0};
        }
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < states; ++k) {
            const Reciprocals<R> r = reciprocals<SYMMETRIC>(node, tables.w[k]);
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                sums[row] += tables.v[row][k] * r.own;
                if (SYMMETRIC) sums[row] += conj(tables.v[row][k]) * r.paired;
            }
        }
    }
#pragma unroll
    for (int row = 0; row < ROWS; ++row)
        if (l < Lz && first_row + row < c) out[((first_row + row) * H + h) * Lz + l] = sums[row];
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_cauchy_mult(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t Lz, int64_t z_rows, const void *v,
                             const void *z, const void *w, int64_t symmetric, void *out, void *workspace,
                             int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call(
        "cauchy_mult", dtype, {{"c", c}, {"H", H}, {"n", n}, {"Lz", Lz}, {"z_rows", z_rows}}, {v, z, w, out},
        {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
            using R = decltype(real);
            check_node_rows(z_rows, H);
            if (!call.ready()) return;
            const int64_t tiles = divide_up(Lz, NODES), chunks = c > 1 ? divide_up(c, 4) : 1;
            auto run = [&](auto kernel, size_t shared) {
                call.launch("cauchy_kernel", kernel, H * tiles * chunks, NODES, shared, c, H, n, Lz, z_rows, tiles,
                            chunks, static_cast<const Complex<R> *>(v), static_cast<const Complex<R> *>(z),
                            static_cast<const Complex<R> *>(w), static_cast<Complex<R> *>(out));
            };
            if (c == 1)
                run(symmetric ? cauchy_kernel<R, 1, true> : cauchy_kernel<R, 1, false>, sizeof(Tables<R, 1>));
            else
                run(symmetric ? cauchy_kernel<R, 4, true> : cauchy_kernel<R, 4, false>, sizeof(Tables<R, 4>));
        });
}
