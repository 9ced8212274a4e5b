// One step of a diagonal SSM, and the exponential that it needs.
#include "../shared/launch.cuh"
#include "../shared/powers.cuh"
#include "../shared/row_sum.cuh"

namespace s4_fast::cuda {
namespace {

template <class R>
__global__ void __launch_bounds__(256) exp_kernel(int64_t count, const Complex<R> *x, Complex<double> *lambda) {
    const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (i < count) lambda[i] = power(make_node(convert<double>(x[i])), 1);
}

template <class R>
struct Tables {
    RowScratch<R> scratch;
};

// next = lambda state + B u in double, since what rounding lambda costs would grow with every step; rounded once.
template <class R>
__global__ void __launch_bounds__(LANES *ROWS)
    step_kernel(int64_t rows, int64_t H, int64_t n, const R *u, const Complex<R> *state, const Complex<double> *lambda,
                const Complex<R> *B, const Complex<R> *C, const R *D, R *y, Complex<R> *next) {
    auto &tables = shared_memory<Tables<R>>();
    const int64_t wanted = int64_t(blockIdx.x) * ROWS + threadIdx.x / LANES;
    const bool present = wanted < rows;
    const int64_t row = present ? wanted : rows - 1, h = row % H;
    const R input = u[row];
    R sum = 0;
    for (int64_t k = threadIdx.x % LANES; k < n && present; k += LANES) {
        const Complex<double> s = lambda[h * n + k] * convert<double>(state[row * n + k]);
        const Complex<R> following = convert<R>(s + double(input) * convert<double>(B[h * n + k]));
        next[row * n + k] = following;
        sum += real_product(C[h * n + k], following);
    }
    sum = 2 * row_sum(tables.scratch, sum);
    if (present && threadIdx.x % LANES == 0) y[row] = D ? sum + D[h] * input : sum;
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_exp(int64_t dtype, int64_t count, const void *x, double *lambda, void *workspace,
                     int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call("exp", dtype, {{"count", count}}, {x, lambda}, {workspace, workspace_bytes, device, stream},
                    [&](auto real, Call &call) {
                        using R = decltype(real);
                        if (!call.ready()) return;
                        call.launch("exp_kernel", exp_kernel<R>, divide_up(count, 256), 256, 0, count,
                                    static_cast<const Complex<R> *>(x), reinterpret_cast<Complex<double> *>(lambda));
                    });
}

int s4_fast_cuda_step(int64_t dtype, int64_t batch, int64_t H, int64_t n, const void *u, const void *state,
                      const double *lambda, const void *B, const void *C, const void *D, void *y, void *next,
                      void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call("step", dtype, {{"batch", batch}, {"H", H}, {"n", n}}, {u, state, lambda, B, C, y, next},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        using R = decltype(real);
                        using Input = const Complex<R> *;
                        if (!call.ready()) return;
                        call.launch("step_kernel", step_kernel<R>, divide_up(batch * H, ROWS), LANES * ROWS,
                                    sizeof(Tables<R>), batch * H, H, n, static_cast<const R *>(u), Input(state),
                                    reinterpret_cast<const Complex<double> *>(lambda), Input(B), Input(C),
                                    static_cast<const R *>(D), static_cast<R *>(y), static_cast<Complex<R> *>(next));
                    });
}
