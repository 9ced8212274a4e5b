// The gradients of a DPLR spectrum's coefficients and poles.
//
// A block takes NODES nodes of a feature at a time. First a thread has one node: it makes the sums again and leaves
// their gradients in shared memory. Then it has one state and every LANES-th node, and adds up what they give to v and
// w. Only this thread adds to its part in the workspace, so the order of the sums is fixed.
#include <iterator>

#include "../shared/launch.cuh"
#include "../shared/sum_parts.cuh"
#include "dplr_sums.cuh"

namespace s4_fast::cuda {
namespace {

constexpr int NODES = 64, STATES = 16, LANES = NODES / STATES;

// Sums whose gradients a thread has at once, for each rank. One pair needs one to three groups.
constexpr int GROUPS[] = {4, 9, 8, 9};
static_assert(std::size(GROUPS) == S4_FAST_CUDA_DPLR_RANK);

template <int RANK>
struct Tables {
    StateTables<RANK> states;
    Wide half[NODES];
    Wide grad[1][NODES];  // as many rows as there are sums
};

// What `nodes` nodes give to GROUP sums of one state, added to the sums and to the pole.
template <int GROUP>
S4_FAST_INLINE void add_nodes(const Wide *half, const Wide (*grad)[NODES], int nodes, int lane, int count,
                              const Wide (&v)[GROUP], Wide w, Wide (&sums)[GROUP], Wide &sum_w) {
#pragma unroll 1
    for (int l = lane; l < nodes; l += LANES) {
        const Resonance r = resonance(half[l], w);
        Wide own = {0, 0}, paired = {0, 0};
#pragma unroll
        for (int e = 0; e < GROUP; ++e) {
            const Wide g = e < count ? grad[e][l] : Wide{0, 0};
            sums[e] += g * conj(r.own) + conj(g) * r.paired;
            own += conj(v[e]) * g;
            paired += conj(v[e] * g);
        }
        sum_w += half[l].re * (own * conj(r.own * r.own) + paired * (r.paired * r.paired));
    }
}

template <int RANK, int GROUP, class R>
__global__ void __launch_bounds__(NODES, 4)
    dplr_backward_kernel(Sizes sizes, Shares shares, const Complex<R> *grad_spectrum, const Wide *v,
                         const Complex<R> *w, const double *shift, Wide *grad_v, Wide *grad_w) {
    auto &tables = shared_memory<Tables<RANK>>();
    const int64_t h = blockIdx.x % sizes.H, share = blockIdx.x / sizes.H, nodes = sizes.L / 2 + 1;
    const int count = int((sizes.b + sizes.rank) * (sizes.c + sizes.rank)), lane = threadIdx.x / STATES;
    Wide(*grad)[NODES] = tables.grad;
    const int64_t end = (share + 1) * shares.each < nodes ? (share + 1) * shares.each : nodes;
    for (int64_t first = share * shares.each; first < end; first += NODES) {
        const int64_t k = first + threadIdx.x < end ? first + threadIdx.x : end - 1;
        const Wide half = half_angle(k, sizes.L);
        __syncthreads();
        tables.half[threadIdx.x] = half;
        for (int e = 0; e < count; ++e) grad[e][threadIdx.x] = {0, 0};
        for (int64_t pair = 0; pair < sizes.b * sizes.c; ++pair) {
            Matrix<RANK> M, G;
            node_matrix<RANK>(tables.states, NODES, sizes, h, pair, half, v, w, shift, M);
            eliminate<RANK>(M);
            G[0][0] = convert<double>(grad_spectrum[(pair * sizes.H + h) * nodes + k]);
            eliminate_backward<RANK>(M, G);
#pragma unroll
            for (int i = 0; i <= RANK; ++i)
#pragma unroll
                for (int j = 0; j <= RANK; ++j)
                    grad[sizes.entry(pair, i, j)][threadIdx.x] += i == 0 ? conj(half) * G[i][j] : half.re * G[i][j];
        }
        __syncthreads();
        const int here = int(end - first < NODES ? end - first : NODES);
        for (int64_t state = threadIdx.x % STATES; state < sizes.n; state += STATES) {
            const Wide pole = convert<double>(w[h * sizes.n + state]);
            const int64_t part = share * LANES + lane;
            Wide sum_w = {0, 0};
            for (int group = 0; group < count; group += GROUP) {
                Wide coefficients[GROUP], sums[GROUP] = {};
#pragma unroll
                for (int e = 0; e < GROUP; ++e)
                    coefficients[e] = group + e < count ? v[((group + e) * sizes.H + h) * sizes.n + state] : Wide{0, 0};
                add_nodes<GROUP>(tables.half, grad + group, here, lane, count - group, coefficients, pole, sums, sum_w);
#pragma unroll
                for (int e = 0; e < GROUP; ++e) {
                    if (group + e >= count) continue;
                    Wide &target = grad_v[((part * count + group + e) * sizes.H + h) * sizes.n + state];
                    target = first == share * shares.each ? sums[e] : target + sums[e];
                }
            }
            Wide &target = grad_w[(part * sizes.H + h) * sizes.n + state];
            target = first == share * shares.each ? sum_w : target + sum_w;
        }
    }
}

template <int RANK, int GROUP, class R>
void launch(Call &call, const Sizes &sizes, const Shares &shares, const Complex<R> *grad_spectrum, const Wide *v,
            const Complex<R> *w, const double *shift, Wide *grad_v, Wide *grad_w) {
    const int64_t sums = (sizes.b + sizes.rank) * (sizes.c + sizes.rank);
    const size_t shared = sizeof(Tables<RANK>) + size_t(sums - 1) * NODES * sizeof(Wide);
    call.launch("dplr_backward_kernel", dplr_backward_kernel<RANK, GROUP, R>, shares.count * sizes.H, NODES, shared,
                sizes, shares, grad_spectrum, v, w, shift, grad_v, grad_w);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_dplr_spectrum_backward(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n,
                                        int64_t L, const void *grad_spectrum, const double *v, const void *w,
                                        const double *shift, double *grad_v, double *grad_w, void *workspace,
                                        int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call(
        "dplr_spectrum_backward", dtype, {{"b", b}, {"c", c}, {"rank", rank}, {"H", H}, {"n", n}, {"L", L}},
        {grad_spectrum, v, w, shift, grad_v}, {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
            using R = decltype(real);
            check_rank("dplr_spectrum_backward", rank);
            check_sums("dplr_spectrum_backward", b, c, rank);
            const int64_t sums = (b + rank) * (c + rank);
            // Whole groups of NODES to a share.
            Shares shares(divide_up(L / 2 + 1, NODES), ENOUGH_BLOCKS / H);
            shares.each *= NODES;
            const int64_t parts = shares.count * LANES;
            Wide *v_parts = call.take<Wide>(parts * sums * H * n), *w_parts = call.take<Wide>(parts * H * n);
            if (!call.ready()) return;
            with_rank(rank, [&](auto rank_of) {
                constexpr int RANK = decltype(rank_of)::value;
                launch<RANK, GROUPS[RANK - 1]>(
                    call, Sizes{b, c, rank, H, n, L}, shares, static_cast<const Complex<R> *>(grad_spectrum),
                    reinterpret_cast<const Wide *>(v), static_cast<const Complex<R> *>(w), shift, v_parts, w_parts);
            });
            sum_parts(call, parts, 2 * sums * H * n, &v_parts->re, grad_v);
            if (grad_w) sum_parts(call, parts, 2 * H * n, &w_parts->re, grad_w);
        });
}
