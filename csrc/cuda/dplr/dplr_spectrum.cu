// The spectrum of a DPLR kernel: nodes and all their sums in registers, written once.
#include "../shared/launch.cuh"
#include "dplr_sums.cuh"

namespace s4_fast::cuda {
namespace {

constexpr int NODES = 128;

template <int RANK, class R>
__global__ void __launch_bounds__(NODES)
    dplr_spectrum_kernel(Sizes sizes, int64_t tiles, const Wide *v, const Complex<R> *w, const double *shift,
                         Complex<R> *spectrum) {
    auto &tables = shared_memory<StateTables<RANK>>();
    const int64_t last = sizes.L / 2, k = blockIdx.x % tiles * NODES + threadIdx.x;
    const int64_t h = blockIdx.x / tiles % sizes.H, pair = blockIdx.x / (tiles * sizes.H);
    Matrix<RANK> M;
    node_matrix<RANK>(tables, NODES, sizes, h, pair, half_angle(k < last ? k : last, sizes.L), v, w, shift, M);
    eliminate<RANK>(M);
    if (k <= last) spectrum[(pair * sizes.H + h) * (last + 1) + k] = convert<R>(M[0][0]);
}

template <int RANK, class R>
void launch(Call &call, const Sizes &sizes, const Wide *v, const Complex<R> *w, const double *shift,
            Complex<R> *spectrum) {
    const int64_t tiles = divide_up(sizes.L / 2 + 1, NODES);
    call.launch("dplr_spectrum_kernel", dplr_spectrum_kernel<RANK, R>, sizes.b * sizes.c * sizes.H * tiles, NODES,
                sizeof(StateTables<RANK>), sizes, tiles, v, w, shift, spectrum);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_dplr_spectrum(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n, int64_t L,
                               const double *v, const void *w, const double *shift, void *spectrum, void *workspace,
                               int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call("dplr_spectrum", dtype, {{"b", b}, {"c", c}, {"rank", rank}, {"H", H}, {"n", n}, {"L", L}},
                    {v, w, shift, spectrum}, {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        using R = decltype(real);
                        check_rank("dplr_spectrum", rank);
                        if (!call.ready()) return;
                        with_rank(rank, [&](auto rank_of) {
                            launch<decltype(rank_of)::value>(
                                call, Sizes{b, c, rank, H, n, L}, reinterpret_cast<const Wide *>(v),
                                static_cast<const Complex<R> *>(w), shift, static_cast<Complex<R> *>(spectrum));
                        });
                    });
}
