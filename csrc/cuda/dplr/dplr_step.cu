// One step of a DPLR SSM: s' = s + increment s - sum_r G_r (2 Re sum_n V_r s) + B u, y_c = 2 Re sum_n C_c s' + D u.
#include "../shared/launch.cuh"
#include "../shared/row_sum.cuh"

namespace s4_fast::cuda {
namespace {

template <class R>
struct Tables {
    RowScratch<R> scratch;
    R overlaps[S4_FAST_CUDA_DPLR_STEP_RANK][ROWS];
};

template <class R>
__global__ void __launch_bounds__(LANES *ROWS)
    dplr_step_kernel(int64_t rows, int64_t c, int64_t rank, int64_t H, int64_t n, const R *u, const Complex<R> *state,
                     const Complex<double> *increment, const Complex<R> *G, const Complex<R> *V, const Complex<R> *B,
                     const Complex<R> *C, const R *D, R *y, Complex<R> *next) {
    auto &tables = shared_memory<Tables<R>>();
    const int slot = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int64_t wanted = int64_t(blockIdx.x) * ROWS + slot;
    const bool present = wanted < rows;
    const int64_t row = present ? wanted : rows - 1, h = row % H, batch = row / H;
    // All overlaps before the first state is overwritten: `next` may be `state`.
    for (int64_t r = 0; r < rank; ++r) {
        R sum = 0;
        for (int64_t k = lane; k < n && present; k += LANES)
            sum += real_product(V[(r * H + h) * n + k], state[row * n + k]);
        sum = row_sum(tables.scratch, sum);
        if (lane == 0) tables.overlaps[r][slot] = 2 * sum;
    }
    __syncthreads();
    const R input = u[row], skipped = D ? D[h] * input : 0;
    // The sum is in double and is rounded once: what rounding the increment costs would grow with every step.
    for (int64_t k = lane; k < n && present; k += LANES) {
        const Complex<double> s = convert<double>(state[row * n + k]);
        Complex<double> change = increment[h * n + k] * s + double(input) * convert<double>(B[h * n + k]);
#pragma unroll 1
        for (int64_t r = 0; r < rank; ++r)
            change = change - double(tables.overlaps[r][slot]) * convert<double>(G[(r * H + h) * n + k]);
        next[row * n + k] = convert<R>(s + change);
    }
    for (int64_t i = 0; i < c; ++i) {
        R sum = 0;
        for (int64_t k = lane; k < n && present; k += LANES)
            sum += real_product(C[(i * H + h) * n + k], next[row * n + k]);
        sum = row_sum(tables.scratch, sum);
        if (present && lane == 0) y[(batch * c + i) * H + h] = 2 * sum + skipped;
    }
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_dplr_step(int64_t dtype, int64_t batch, int64_t c, int64_t rank, int64_t H, int64_t n, const void *u,
                           const void *state, const double *increment, const void *G, const void *V, const void *B,
                           const void *C, const void *D, void *y, void *next, void *workspace, int64_t *workspace_bytes,
                           int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call(
        "dplr_step", dtype, {{"batch", batch}, {"c", c}, {"rank", rank}, {"H", H}, {"n", n}},
        {u, state, increment, G, V, B, C, y, next}, {workspace, workspace_bytes, device, stream},
        [&](auto real, Call &call) {
            using R = decltype(real);
            using Input = const Complex<R> *;
            if (rank > S4_FAST_CUDA_DPLR_STEP_RANK)
                throw std::runtime_error("dplr_step: rank = " + std::to_string(rank) + ", expected at most " +
                                         std::to_string(S4_FAST_CUDA_DPLR_STEP_RANK));
            if (!call.ready()) return;
            call.launch("dplr_step_kernel", dplr_step_kernel<R>, divide_up(batch * H, ROWS), LANES * ROWS,
                        sizeof(Tables<R>), batch * H, c, rank, H, n, static_cast<const R *>(u), Input(state),
                        reinterpret_cast<const Complex<double> *>(increment), Input(G), Input(V), Input(B), Input(C),
                        static_cast<const R *>(D), static_cast<R *>(y), static_cast<Complex<R> *>(next));
        });
}
