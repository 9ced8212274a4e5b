// The gradients of a DPLR spectrum's coefficients and poles on tensor cores.
//
// A block takes NODES nodes of a feature at a time: their sums, and in place of these the gradients G of the sums. Then
// a warp has a tile of states at a time and all nodes, where it makes E again, in the lanes of other products: E G^T,
// the gradient of the matrix, and matrix^T G, that of E, which the poles' gradients are sums of.
#include "tensor_dplr.cuh"

namespace s4_fast::cuda::tensor {
namespace {

// What the shares of nodes give, of which each has (H, rows, states) and (H, states): to the matrix, and to |w|^2 and
// Re w of the poles through d d'.
struct Parts {
    double *matrix;
    Wide *poles;
};

// The adjoint of entry_of.
S4_FAST_INLINE void set_gradient(Wide half, bool upper, Wide g, Wide &alpha, Wide &beta) {
    const double twice = 2.0 * half.im;
    const Wide x = upper ? conj(half) * g : half.re * g;
    alpha = {twice * x.im, -(twice * x.re)};
    beta = half.re * x;
}

template <int RANK>
S4_FAST_INLINE void gradient_of(Matrix<RANK> &M, Wide grad, Matrix<RANK> &G) {
    eliminate<RANK>(M);
    G[0][0] = grad;
    eliminate_backward<RANK>(M, G);
}

// Turns the sums of a node into their gradients, for one pair (B, C).
template <int RANK, int TILES>
S4_FAST_INLINE void turn_pair(NodeSums<TILES> &nodes, int node, const Sizes &sizes, int64_t h, const double *shift,
                              Wide grad) {
    Matrix<RANK> M, G;
    matrix_at<RANK>(nodes, node, sizes, 0, sizes, 0, shift, h, M);
    gradient_of<RANK>(M, grad, G);
#pragma unroll
    for (int i = 0; i <= RANK; ++i)
#pragma unroll
        for (int j = 0; j <= RANK; ++j) {
            const int row = 2 * (i * (RANK + 1) + j);
            Wide alpha, beta;
            set_gradient(nodes.half[node], i == 0, G[i][j], alpha, beta);
            nodes.set(row, node, alpha);
            nodes.set(row + 1, node, beta);
        }
}

// The same for several, whose gradients add up. On the way a sum's rows hold its entry of M and the gradient of that.
template <int RANK, int TILES>
S4_FAST_INLINE void turn_pairs(NodeSums<TILES> &nodes, int node, const Sizes &sizes, int64_t h, const double *shift,
                               const Complex<float> *grad, int64_t stride) {
    const int columns = int(sizes.b + RANK), sums = columns * int(sizes.c + RANK), upper = columns * int(sizes.c);
    const Wide half = nodes.half[node];
#pragma unroll 1
    for (int e = 0; e < sums; ++e) {
        Wide entry = entry_of(half, e < upper, nodes.get(2 * e, node), nodes.get(2 * e + 1, node));
        entry.re += shift[e * sizes.H + h];
        nodes.set(2 * e, node, entry);
        nodes.set(2 * e + 1, node, {0, 0});
    }
#pragma unroll 1
    for (int64_t pair = 0; pair < sizes.b * sizes.c; ++pair) {
        Matrix<RANK> M, G;
#pragma unroll
        for (int i = 0; i <= RANK; ++i)
#pragma unroll
            for (int j = 0; j <= RANK; ++j) M[i][j] = nodes.get(2 * int(sizes.entry(pair, i, j)), node);
        gradient_of<RANK>(M, convert<double>(grad[pair * stride]), G);
#pragma unroll
        for (int i = 0; i <= RANK; ++i)
#pragma unroll
            for (int j = 0; j <= RANK; ++j) {
                const int row = 2 * int(sizes.entry(pair, i, j)) + 1;
                nodes.set(row, node, nodes.get(row, node) + G[i][j]);
            }
    }
#pragma unroll 1
    for (int e = 0; e < sums; ++e) {
        Wide alpha, beta;
        set_gradient(half, e < upper, nodes.get(2 * e + 1, node), alpha, beta);
        nodes.set(2 * e, node, alpha);
        nodes.set(2 * e + 1, node, beta);
    }
}

// conj(E^2) dE
S4_FAST_INLINE Wide through_inverse(Wide e, Wide grad) {
    const double re = e.re * e.re - e.im * e.im, im = 2.0 * e.re * e.im;
    return {re * grad.re + im * grad.im, re * grad.im - im * grad.re};
}

S4_FAST_INLINE void add_to(double &target, bool first, double value) { target = first ? value : target + value; }

S4_FAST_INLINE double sum_of_row(double value) {
    value += shuffle_xor(value, 1);
    return value + shuffle_xor(value, 2);
}

// What `groups` tiles of nodes give to one tile of states, whose column of the matrix is `matrix`. E G^T sums over the
// even nodes of a tile and then over the odd ones, so that a lane has neighbours of both products.
template <int TILES>
S4_FAST_INLINE void add_nodes(NodeSums<TILES> &nodes, int groups, Wide pole, const double *matrix, int64_t states,
                              bool first, double *to_matrix, Wide *to_pole) {
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    // More would not fit in registers.
    constexpr int STEPS = TILES * TILE / STEP, HELD = STEPS <= 8 ? STEPS : 0;
    double by_sum[TILES][2] = {}, square = 0, real = 0, rows[HELD + 1];
#pragma unroll
    for (int k = 0; k < HELD; ++k) rows[k] = matrix[(k * STEP + q) * states + g];
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
        const int node = group * TILE + 2 * q;
        Wide e[2];
#pragma unroll
        for (int i = 0; i < 2; ++i)
            e[i] = pair_inverse(pole, nodes.cos2[node + i], nodes.sin2[node + i], nodes.cross[node + i]);
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            const Wide re = nodes.pair(nodes.re, t * TILE + g, node), im = nodes.pair(nodes.im, t * TILE + g, node);
            multiply_doubles(by_sum[t], re.re, e[0].re);
            multiply_doubles(by_sum[t], im.re, e[0].im);
            multiply_doubles(by_sum[t], re.im, e[1].re);
            multiply_doubles(by_sum[t], im.im, e[1].im);
        }
        if (!to_pole) continue;
        double of_re[2] = {}, of_im[2] = {};
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
            const Wide grad = nodes.get(k * STEP + q, group * TILE + g);
            const double row = HELD ? rows[k % (HELD + 1)] : matrix[(k * STEP + q) * states + g];
            multiply_doubles(of_re, row, grad.re);
            multiply_doubles(of_im, row, grad.im);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const Wide d = through_inverse(e[i], {of_re[i], of_im[i]});
            square -= nodes.cos2[node + i] * d.re;
            real += nodes.cross[node + i] * d.im;
        }
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int i = 0; i < 2; ++i) add_to(to_matrix[(t * TILE + g) * states + 2 * q + i], first, by_sum[t][i]);
    if (!to_pole) return;
    square = sum_of_row(square), real = sum_of_row(real);
    if (q != 0) return;
    add_to(to_pole[g].re, first, square);
    add_to(to_pole[g].im, first, real);
}

template <int RANK, int TILES>
__global__ void __launch_bounds__(THREADS, RANK == 1 && TILES == 1   ? 4
                                           : RANK <= 2 && TILES <= 4 ? 3
                                                                     : 2)
    tensor_dplr_backward_kernel(Sizes sizes, Shares shares, Rational model, const double *shift,
                                const Complex<float> *grad_spectrum, Parts parts, bool poles_too) {
    constexpr int NODES = Shape<TILES>::NODES, ROWS = Shape<TILES>::ROWS;
    auto &nodes = shared_memory<NodeSums<TILES>>();
    const int64_t h = blockIdx.x % sizes.H, share = blockIdx.x / sizes.H, last = sizes.L / 2 + 1;
    const int64_t begin = share * shares.each, end = begin + shares.each < last ? begin + shares.each : last;
    const Wide *poles = model.poles + h * model.states;
    const double *matrix = model.matrix + h * ROWS * model.states;
    double *to_matrix = parts.matrix + (share * sizes.H + h) * ROWS * model.states;
    Wide *to_poles = parts.poles + (share * sizes.H + h) * model.states;
#pragma unroll 1
    for (int64_t first = begin; first < end; first += NODES) {
        __syncthreads();
        sum_nodes(nodes, first, end, sizes.L, poles, matrix, sizes.n, model.states);
        const int node = threadIdx.x;
        if (node < NODES) {
            const Complex<float> *grad = grad_spectrum + h * last + first + node;
            if (first + node >= end)
                for (int row = 0; row < ROWS; ++row) nodes.set(row, node, {0, 0});
            else if (sizes.b * sizes.c == 1)
                turn_pair<RANK>(nodes, node, sizes, h, shift, convert<double>(*grad));
            else
                turn_pairs<RANK>(nodes, node, sizes, h, shift, grad, sizes.H * last);
        }
        __syncthreads();
        const int groups = int((end - first < NODES ? end - first : NODES) + TILE - 1) / TILE;
#pragma unroll 1
        for (int64_t state = threadIdx.x / WARP * TILE; state < model.states; state += WARPS * TILE)
            add_nodes(nodes, groups, poles[state + threadIdx.x % WARP / 4], matrix + state, model.states,
                      first == begin, to_matrix + state, poles_too ? to_poles + state : nullptr);
    }
}

// The sum of what all shares have, `stride` apart.
template <class T>
S4_FAST_INLINE T sum_shares(const T *from, int64_t stride, int64_t count) {
    T sum = {};
    for (int64_t share = 0; share < count; ++share) sum = sum + from[share * stride];
    return sum;
}

__global__ void __launch_bounds__(256)
    tensor_dplr_gradients_kernel(Sizes sizes, int64_t shares, int64_t rows, int64_t states, Parts parts, const Wide *v,
                                 const Complex<float> *w, Wide *grad_v, Wide *grad_w) {
    const int64_t item = int64_t(blockIdx.x) * 256 + threadIdx.x, h = item / sizes.n, state = item % sizes.n;
    if (h >= sizes.H) return;
    const Wide pole = convert<double>(w[item]);
    const double *from = parts.matrix + h * rows * states + state;
    const int64_t sums = (sizes.b + sizes.rank) * (sizes.c + sizes.rank);
    Wide through_matrix = {0, 0};
    for (int64_t e = 0; e < sums; ++e) {
        const double alpha = sum_shares(from + 2 * e * states, sizes.H * rows * states, shares);
        const double beta = sum_shares(from + (2 * e + 1) * states, sizes.H * rows * states, shares);
        const int64_t at = (e * sizes.H + h) * sizes.n + state;
        grad_v[at] = {2.0 * (alpha - pole.re * beta), -2.0 * pole.im * beta};
        through_matrix += (-2.0 * beta) * v[at];
    }
    if (!grad_w) return;
    const Wide found = sum_shares(parts.poles + h * states + state, sizes.H * states, shares);
    grad_w[item] = through_matrix + (2.0 * found.re) * pole;
    grad_w[item].re += found.im;
}

}  // namespace
}  // namespace s4_fast::cuda::tensor

int s4_fast_cuda_tensor_dplr_spectrum_backward(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n,
                                               int64_t L, const void *grad_spectrum, const double *v, const void *w,
                                               const double *shift, double *grad_v, double *grad_w, void *workspace,
                                               int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    using namespace s4_fast::cuda::tensor;
    const Sizes sizes{b, c, rank, H, n, L};
    return run_tensor_dplr(
        "tensor_dplr_spectrum_backward", dtype, sizes, {grad_spectrum, v, w, shift, grad_v},
        {workspace, workspace_bytes, device, stream}, [&](Call &call) {
            check_sums("tensor_dplr_spectrum_backward", b, c, rank);
            const Wide *coefficients = reinterpret_cast<const Wide *>(v);
            const auto *poles = static_cast<const Complex<float> *>(w);
            const Cut cut(sizes);
            const Rational model = take_rational(call, cut);
            with_constants(cut, [&](auto rank_of, auto tiles_of) {
                constexpr int RANK = decltype(rank_of)::value, TILES = decltype(tiles_of)::value;
                // Whole blocks of nodes to a share.
                Shares shares(divide_up(L / 2 + 1, Shape<TILES>::NODES), ENOUGH_BLOCKS / H);
                shares.each *= Shape<TILES>::NODES;
                const Parts parts{call.take<double>(shares.count * H * cut.rows() * model.states),
                                  call.take<Wide>(shares.count * H * model.states)};
                if (!call.ready()) return;
                prepare(call, cut, model, coefficients, poles);
                call.launch("tensor_dplr_backward_kernel", tensor_dplr_backward_kernel<RANK, TILES>, shares.count * H,
                            THREADS, sizeof(NodeSums<TILES>), sizes, shares, model, shift,
                            static_cast<const Complex<float> *>(grad_spectrum), parts, grad_w != nullptr);
                call.launch("tensor_dplr_gradients_kernel", tensor_dplr_gradients_kernel, divide_up(H * n, 256), 256, 0,
                            sizes, shares.count, cut.rows(), model.states, parts, coefficients, poles,
                            reinterpret_cast<Wide *>(grad_v), reinterpret_cast<Wide *>(grad_w));
            });
        });
}
