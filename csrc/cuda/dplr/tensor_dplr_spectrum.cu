// The spectrum of a DPLR kernel on tensor cores.
#include "tensor_dplr.cuh"

namespace s4_fast::cuda::tensor {
namespace {

template <int RANK, int TILES>
__global__ void __launch_bounds__(THREADS, RANK == 1 && TILES == 1 ? 5
                                           : RANK <= 2             ? 4
                                                                   : 2)
    tensor_dplr_spectrum_kernel(Sizes sizes, Sizes local, int64_t blocks, Rational model, const double *shift,
                                Complex<float> *spectrum) {
    constexpr int NODES = Shape<TILES>::NODES;
    auto &nodes = shared_memory<NodeSums<TILES>>();
    const unsigned row = blockIdx.x / unsigned(blocks), H = unsigned(sizes.H);
    const int64_t h = row % H, part = row / H, first = int64_t(blockIdx.x % unsigned(blocks)) * NODES,
                  end = sizes.L / 2 + 1;
    sum_nodes(nodes, first, end, sizes.L, model.poles + h * model.states,
              model.matrix + (part * sizes.H + h) * Shape<TILES>::ROWS * model.states, sizes.n, model.states);
    const int node = threadIdx.x % NODES;
    if (first + node >= end) return;
    auto finish = [&](int64_t pair, int64_t global) {
        Matrix<RANK> M;
        matrix_at<RANK>(nodes, node, local, pair, sizes, global, shift, h, M);
        eliminate<RANK>(M);
        spectrum[(global * sizes.H + h) * end + first + node] = convert<float>(M[0][0]);
    };
    const int64_t pairs = local.b * local.c;
    if (sizes.b * sizes.c == 1) {
        if (threadIdx.x < NODES) finish(0, 0);
    } else
        for (int64_t pair = threadIdx.x / NODES; pair < pairs; pair += THREADS / NODES) finish(pair, part + pair);
}

}  // namespace
}  // namespace s4_fast::cuda::tensor

int s4_fast_cuda_tensor_dplr_spectrum(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n,
                                      int64_t L, const double *v, const void *w, const double *shift, void *spectrum,
                                      void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    using namespace s4_fast::cuda::tensor;
    const Sizes sizes{b, c, rank, H, n, L};
    return run_tensor_dplr(
        "tensor_dplr_spectrum", dtype, sizes, {v, w, shift, spectrum}, {workspace, workspace_bytes, device, stream},
        [&](Call &call) {
            const Cut cut(sizes);
            const Rational model = take_rational(call, cut);
            if (!call.ready()) return;
            prepare(call, cut, model, reinterpret_cast<const Wide *>(v), static_cast<const Complex<float> *>(w));
            with_constants(cut, [&](auto rank_of, auto tiles_of) {
                constexpr int RANK = decltype(rank_of)::value, TILES = decltype(tiles_of)::value;
                const int64_t blocks = divide_up(L / 2 + 1, Shape<TILES>::NODES);
                call.launch("tensor_dplr_spectrum_kernel", tensor_dplr_spectrum_kernel<RANK, TILES>,
                            cut.parts * H * blocks, THREADS, sizeof(NodeSums<TILES>), sizes, cut.local, blocks, model,
                            shift, static_cast<Complex<float> *>(spectrum));
            });
        });
}
