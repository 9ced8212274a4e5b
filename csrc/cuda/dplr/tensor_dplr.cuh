// The Cauchy sums of a DPLR kernel as products of real matrices of doubles, on tensor cores.
//
// With d = 2 i s - w c, d' = 2 i s - w* c (s, c = sin, cos(theta/2)) and E = 1/(d d'), a conjugate pair adds to a sum
//
//     v/d + v*/d' = (2 i s alpha + c beta) E,   alpha = 2 Re v,   beta = -2 Re(v w*),
//
// so that all sums at a node are the product of the matrix of (alpha, beta), in pairs of rows, and the column of E.
//
// A block has four warps. Each makes E at its own nodes, in the lanes where a product takes it as its right operand,
// and leaves the products in shared memory; then every thread has a node of its own and finishes there.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../shared/launch.cuh"
#include "../shared/warp.cuh"
#include "dplr_sums.cuh"

namespace s4_fast::cuda::tensor {
namespace {

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int TILE = 8;  // rows, nodes or states of a product
constexpr int STEP = 4;  // of what a product sums over
constexpr int SUMS_OF_TILE = TILE / 2;

// How the sums of TILES tiles of rows are cut: a warp has GROUPS tiles of nodes, whose sums fit in its registers.
template <int TILES>
struct Shape {
    static constexpr int ROWS = TILES * TILE, GROUPS = TILES == 1 ? 4 : TILES <= 3 ? 2 : 1;
    static constexpr int OWN = GROUPS * TILE, NODES = WARPS * OWN;
    static_assert(NODES <= THREADS, "a thread finishes one node at most");
};

// What a model is before its nodes: `matrix` (parts, H, rows, states), where a part is all pairs (B, C) or one of them,
// and `poles` (H, states) as |w|^2 and Re w. What pads rows is 0, and so are the rows of states from n on, whose poles
// are on no node.
struct Rational {
    int64_t states;
    double *matrix;
    Wide *poles;
};

template <int TILES>
struct NodeSums {
    using Cut = Shape<TILES>;
    Wide half[Cut::NODES];  // cos + i sin of theta/2
    double cos2[Cut::NODES], sin2[Cut::NODES], cross[Cut::NODES];
    double re[Cut::ROWS][Cut::NODES + TILE], im[Cut::ROWS][Cut::NODES + TILE];

    // The column where a row has a node, in other banks than three of the row's neighbours: products sum over rows.
    static S4_FAST_INLINE int place(int row, int node) { return node ^ (row & 2) << 1; }
    S4_FAST_INLINE Wide get(int row, int node) const { return {re[row][place(row, node)], im[row][place(row, node)]}; }
    S4_FAST_INLINE void set(int row, int node, Wide value) {
        re[row][place(row, node)] = value.re, im[row][place(row, node)] = value.im;
    }
    // The same of an even node and the next one, in turn, of `re` or `im`.
    template <class Rows>
    static S4_FAST_INLINE Wide &pair(Rows &rows, int row, int node) {
        return *reinterpret_cast<Wide *>(&rows[row][place(row, node)]);
    }
    S4_FAST_INLINE void set_node(int node, Wide angle) {
        const double twice = 2.0 * angle.im;
        half[node] = angle;
        cos2[node] = angle.re * angle.re;
        sin2[node] = twice * twice;
        cross[node] = 2.0 * angle.re * twice;
    }
};

// 1/x from the upper halves of x and of the result.
#ifdef S4_FAST_EMULATE
S4_FAST_INLINE double rough_inverse(double x) {
    auto upper = [](double value) { return double_from(double_bits(value) >> 32 << 32); };
    return upper(1.0 / upper(x));
}
#else
S4_FAST_INLINE double rough_inverse(double x) {
    double y;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
    return y;
}
#endif

// 1/x up to an error of 2^-57 and one rounding, for an x > 0 that is not subnormal. NaN for 0.
S4_FAST_INLINE double quick_inverse(double x) {
    const double y = rough_inverse(x), error = fma(-x, y, 1.0);
    return fma(y, fma(error, error, error), y);
}

// E for a pole (|w|^2, Re w). Next to a resonance d d' loses what the rounding of c and s to double loses.
S4_FAST_INLINE Wide pair_inverse(Wide pole, double cos2, double sin2, double cross) {
    const double re = fma(pole.re, cos2, -sin2), im = pole.im * cross;
    const double r = quick_inverse(fma(re, re, im * im));
    return {re * r, im * r};
}

// The sums at the warp's nodes.
template <int TILES>
S4_FAST_INLINE void sum_states(NodeSums<TILES> &nodes, const Wide *poles, const double *matrix, int64_t n,
                               int64_t states) {
    constexpr int GROUPS = Shape<TILES>::GROUPS;
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, own = threadIdx.x / WARP * Shape<TILES>::OWN;
    double cos2[GROUPS], sin2[GROUPS], cross[GROUPS], sums[TILES][GROUPS][2][2] = {};
#pragma unroll
    for (int j = 0; j < GROUPS; ++j) {
        const int node = own + j * TILE + g;
        cos2[j] = nodes.cos2[node], sin2[j] = nodes.sin2[node], cross[j] = nodes.cross[node];
    }
    matrix += g * states;
#pragma unroll 1
    for (int64_t first = 0; first < n; first += STEP) {
        const Wide pole = poles[first + q];
        double rows[TILES];
#pragma unroll
        for (int t = 0; t < TILES; ++t) rows[t] = matrix[t * TILE * states + first + q];
#pragma unroll
        for (int j = 0; j < GROUPS; ++j) {
            const Wide e = pair_inverse(pole, cos2[j], sin2[j], cross[j]);
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                multiply_doubles(sums[t][j][0], rows[t], e.re);
                multiply_doubles(sums[t][j][1], rows[t], e.im);
            }
        }
    }
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int j = 0; j < GROUPS; ++j)
#pragma unroll
            for (int part = 0; part < 2; ++part) {
                const int row = t * TILE + g, node = own + j * TILE + 2 * q;
                nodes.pair(part ? nodes.im : nodes.re, row, node) = {sums[t][j][part][0], sums[t][j][part][1]};
            }
}

// Between steps of which each thread finishes its own node: where that is one of its warp's, the others go on.
template <int TILES>
S4_FAST_INLINE void wait_for_nodes() {
    if constexpr (Shape<TILES>::NODES == THREADS)
        __syncwarp();
    else
        __syncthreads();
}

// The sums at NODES nodes from `first` on, those after the last one being that once more. Every thread calls it.
template <int TILES>
S4_FAST_INLINE void sum_nodes(NodeSums<TILES> &nodes, int64_t first, int64_t end, int64_t L, const Wide *poles,
                              const double *matrix, int64_t n, int64_t states) {
    if (threadIdx.x < Shape<TILES>::NODES) {
        const int64_t k = first + threadIdx.x;
        nodes.set_node(threadIdx.x, half_angle(k < end ? k : end - 1, L));
    }
    wait_for_nodes<TILES>();
    if (first + threadIdx.x / WARP * Shape<TILES>::OWN < end) sum_states(nodes, poles, matrix, n, states);
    wait_for_nodes<TILES>();
}

// A sum's entry of M without its shift, from the products of its two rows.
S4_FAST_INLINE Wide entry_of(Wide half, bool upper, Wide alpha, Wide beta) {
    const double twice = 2.0 * half.im;
    const Wide x = {half.re * beta.re - twice * alpha.im, half.re * beta.im + twice * alpha.re};
    return upper ? half * x : half.re * x;
}

// M of a pair (B, C) at a node. `local` has the sizes of the sums that are there, `pair` is among these and `global`
// among all.
template <int RANK, int TILES>
S4_FAST_INLINE void matrix_at(const NodeSums<TILES> &nodes, int node, const Sizes &local, int64_t pair,
                              const Sizes &sizes, int64_t global, const double *shift, int64_t h, Matrix<RANK> &M) {
    const Wide half = nodes.half[node];
#pragma unroll
    for (int i = 0; i <= RANK; ++i)
#pragma unroll
        for (int j = 0; j <= RANK; ++j) {
            const int row = 2 * int(local.entry(pair, i, j));
            M[i][j] = entry_of(half, i == 0, nodes.get(row, node), nodes.get(row + 1, node));
            M[i][j].re += shift[sizes.entry(global, i, j) * sizes.H + h];
        }
}

__global__ void __launch_bounds__(256)
    tensor_dplr_prepare_kernel(Sizes sizes, Sizes local, int64_t parts, int64_t rows, Rational target, const Wide *v,
                               const Complex<float> *w) {
    int64_t item = int64_t(blockIdx.x) * 256 + threadIdx.x;
    const int64_t state = item % target.states, sum = item / target.states % (rows / 2);
    item /= target.states * (rows / 2);
    const int64_t h = item % sizes.H, part = item / sizes.H;
    if (part >= parts) return;
    const int64_t columns = local.b + local.rank;
    const bool present = state < sizes.n && sum < columns * (local.c + local.rank);
    const Wide pole = state < sizes.n ? convert<double>(w[h * sizes.n + state]) : Wide{1, 0};
    Wide coefficients = {0, 0};
    if (present) {
        const int64_t global = parts == 1 ? sum : sizes.entry(part, int(sum / columns), int(sum % columns));
        const Wide of_v = v[(global * sizes.H + h) * sizes.n + state];
        coefficients = {2.0 * of_v.re, -2.0 * (of_v.re * pole.re + of_v.im * pole.im)};
    }
    double *matrix = target.matrix + ((part * sizes.H + h) * rows + 2 * sum) * target.states + state;
    matrix[0] = coefficients.re, matrix[target.states] = coefficients.im;
    if (part == 0 && sum == 0)
        target.poles[h * target.states + state] = {pole.re * pole.re + pole.im * pole.im, pole.re};
}

// How a call is cut: its sums all at once or, where they are too many, those of one pair (B, C) at a time.
struct Cut {
    Sizes sizes, local;
    int64_t parts, tiles;

    explicit Cut(const Sizes &sizes) : sizes(sizes), local(sizes), parts(1) {
        const int64_t most = S4_FAST_CUDA_DPLR_SUMS;
        if (sizes.b > most || sizes.c > most || sums() > most) {
            parts = sizes.b * sizes.c;
            local.b = local.c = 1;
        }
        tiles = divide_up(sums(), SUMS_OF_TILE);
        tiles = tiles <= 4 ? tiles : tiles <= 7 ? 7 : 9;
    }
    int64_t sums() const { return (local.b + local.rank) * (local.c + local.rank); }
    int64_t rows() const { return tiles * TILE; }
};

static_assert(S4_FAST_CUDA_DPLR_SUMS <= 9 * SUMS_OF_TILE, "all sums that the adjoint takes");

inline Rational take_rational(Call &call, const Cut &cut) {
    const int64_t states = divide_up(cut.sizes.n, TILE) * TILE, H = cut.sizes.H;
    double *matrix = call.take<double>(cut.parts * H * cut.rows() * states);
    return {states, matrix, call.take<Wide>(H * states)};
}

inline void prepare(Call &call, const Cut &cut, const Rational &target, const Wide *v, const Complex<float> *w) {
    const int64_t items = cut.parts * cut.sizes.H * cut.rows() / 2 * target.states;
    call.launch("tensor_dplr_prepare_kernel", tensor_dplr_prepare_kernel, divide_up(items, 256), 256, 0, cut.sizes,
                cut.local, cut.parts, cut.rows(), target, v, w);
}

template <int RANK, class Body>
void with_tiles(int64_t tiles, Body &&body) {
    auto run = [&](auto count) {
        if constexpr (decltype(count)::value * SUMS_OF_TILE >= (RANK + 1) * (RANK + 1))
            body(std::integral_constant<int, RANK>{}, count);
    };
    if (tiles == 1)
        run(std::integral_constant<int, 1>{});
    else if (tiles == 2)
        run(std::integral_constant<int, 2>{});
    else if (tiles == 3)
        run(std::integral_constant<int, 3>{});
    else if (tiles == 4)
        run(std::integral_constant<int, 4>{});
    else if (tiles == 7)
        run(std::integral_constant<int, 7>{});
    else
        run(std::integral_constant<int, 9>{});
}

// body(rank, tiles) with constants.
template <class Body>
void with_constants(const Cut &cut, Body &&body) {
    with_rank(cut.sizes.rank, [&](auto rank) { with_tiles<decltype(rank)::value>(cut.tiles, body); });
}

// body(call) for arrays of float32.
template <class Body>
int run_tensor_dplr(const char *function, int64_t dtype, const Sizes &s, std::initializer_list<const void *> pointers,
                    const Target &target, Body &&body) {
    return run_call(function, dtype, {{"b", s.b}, {"c", s.c}, {"rank", s.rank}, {"H", s.H}, {"n", s.n}, {"L", s.L}},
                    pointers, target, [&](auto real, Call &call) {
                        if (!std::is_same_v<decltype(real), float>)
                            throw std::runtime_error(std::string(function) + ": tensor cores serve float32 only");
                        check_rank(function, s.rank);
                        body(call);
                    });
}

}  // namespace
}  // namespace s4_fast::cuda::tensor
