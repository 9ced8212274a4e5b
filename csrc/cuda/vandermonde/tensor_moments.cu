// The transposed Vandermonde product on tensor cores, sum_l u_l lambda^l and sum_l l u_l lambda^l.
//
// A tile's rows of samples are multiplied by tables of lambda^t and t lambda^t; each row's sums are then weighted with
// lambda^(start + r T) and, for the first moment, those of lambda^t also with start + r T. Each warp of a block brings
// one of four tiles into shared memory and sums all four over eight states, whose tables are in its registers.
#include "../shared/sum_parts.cuh"
#include "tensor_powers.cuh"

namespace s4_fast::cuda::tensor {
namespace {

constexpr int GROUP = WARPS * TILE, OWN_STATES = STATES / WARPS, BLOCKS = OWN_STATES / 4, STEPS = CHUNK_SAMPLES / 16;

// Groups of tiles in one block, at most: they are summed in float32, one after the other.
constexpr int64_t LONGEST_SHARE = 16;

// What the warps tell each other of a group of tiles.
struct Group {
    alignas(16) uint16_t samples[2][WARPS * ROWS][CHUNK_SAMPLES + 8];  // scaled by a power of two for each row
    float down[WARPS * ROWS];                                          // which this undoes
    Complex<float> starts[WARPS][STATES];  // lambda^start of each tile, less the scale of steps
};

// A state's powers 1, 8 and 16 of lambda, and powers of two that bring the columns of lambda^t and of t lambda^t to one
// size. Where lambda decays within a sample, the largest of the latter is far below that of the former.
struct States {
    Node<float> nodes[STATES];
    Complex<float> powers[3][STATES];
    float up[2][STATES], down[STATES], ratio[STATES];  // of the first, and of the second to the first

    // All threads call it; a lane has a state.
    S4_FAST_INLINE void make(Node<float> node, int64_t L) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        if (warp < WARPS - 1) {
            powers[warp][lane] = bounded_power(node, warp ? 8 * warp : 1, L);
            return;
        }
        const float last = fmaxf(1.0f, last_step(L)), decay = -node.high * 0.6931472f;
        const float peak = decay * last > 1 ? fmaxf(1.0f, 1 / decay) : last;
        const Scale steps = scale_to(growth(node, L)), ramp = scale_to(peak * exp2f(node.high * peak));
        nodes[lane] = node;
        up[0][lane] = steps.up;
        up[1][lane] = ramp.up;
        down[lane] = steps.down;
        ratio[lane] = ramp.down / steps.down;
    }
};
static_assert(WARPS == 4);

struct MomentTables {
    Group groups[2];
    RowPowers rows;
    States states;
};

// Right operands: lambda^t and t lambda^t of a warp's states.
template <int MOMENTS>
struct StateOperands {
    uint32_t of[MOMENTS][BLOCKS][STEPS][2][2];

    S4_FAST_INLINE void make(const States &states, int64_t L) {
        const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
            const int k = threadIdx.x / WARP * OWN_STATES + 4 * j + g / 2;
            const Complex<float> one = states.powers[0][k], eight = states.powers[1][k], more = states.powers[2][k];
            Complex<float> step = bounded_power(states.nodes[k], 2 * q, L);
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                if (s > 0) step = step * more;
                const Complex<float> far = step * eight, powers[4] = {step, step * one, far, far * one};
                float values[MOMENTS][4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int t = 16 * s + 2 * q + i / 2 * 8 + i % 2;
                    const float value = t < L ? g % 2 ? powers[i].im : powers[i].re : 0;
                    values[0][i] = states.up[0][k] * value;
                    if constexpr (MOMENTS > 1) values[1][i] = states.up[1][k] * (float(t) * value);
                }
#pragma unroll
                for (int m = 0; m < MOMENTS; ++m)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        uint32_t words[2];
                        split(values[m][2 * i], values[m][2 * i + 1], words);
                        of[m][j][s][0][i] = words[0];
                        of[m][j][s][1][i] = words[1];
                    }
            }
        }
    }
};

// A tile of samples, of which `left` are there, as halves.
S4_FAST_INLINE void bring(Group &group, const float *u, int64_t left, bool aligned) {
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    const bool at_once = aligned && left >= TILE;
    const float *const from = u + g * CHUNK_SAMPLES + 4 * q;
    const int there = int(left < TILE ? left : TILE) - g * CHUNK_SAMPLES - 4 * q;
    Vector samples[2][STEPS];
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const int at = 8 * r * CHUNK_SAMPLES + 16 * s;
            if (at_once) {
                samples[r][s] = *reinterpret_cast<const Vector *>(from + at);
                continue;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) samples[r][s].word[i] = at + i < there ? bits_of(from[at + i]) : 0;
        }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = threadIdx.x / WARP * ROWS + g + 8 * r;
        float largest = 0;
#pragma unroll
        for (int s = 0; s < STEPS; ++s)
#pragma unroll
            for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(from_bits(samples[r][s].word[i])));
        const Scale scale = scale_to(largest_of_row(largest));
        if (q == 0) group.down[row] = scale.down;
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
            const uint32_t *const word = samples[r][s].word;
            uint32_t low[2], high[2];
            split(from_bits(word[0]) * scale.up, from_bits(word[1]) * scale.up, low);
            split(from_bits(word[2]) * scale.up, from_bits(word[3]) * scale.up, high);
#pragma unroll
            for (int p = 0; p < 2; ++p)
                *reinterpret_cast<uint64_t *>(&group.samples[p][row][16 * s + 4 * q]) =
                    uint64_t(high[p]) << 32 | low[p];
        }
    }
}

// sum += a b, in the four instructions that the complex operators would make six of.
S4_FAST_INLINE void add_product(Complex<float> &sum, Complex<float> a, Complex<float> b) {
    sum.re = (sum.re + a.re * b.re) - a.im * b.im;
    sum.im = (sum.im + a.re * b.im) + a.im * b.re;
}

// The sums of 32 states over a share of the tiles of one row (c, h), into zeroth and first [share, row, state].
template <int MOMENTS>
__global__ void __launch_bounds__(WARPS *WARP, 4)
    tensor_moments_kernel(int64_t rows, int64_t H, int64_t n, int64_t L, Shares shares, int64_t blocks, const float *u,
                          const Complex<float> *x, Complex<float> *zeroth, Complex<float> *first, bool aligned) {
    auto &tables = shared_memory<MomentTables>();
    const int64_t share = blockIdx.x / (rows * blocks), row = blockIdx.x / blocks % rows;
    const int64_t first_state = blockIdx.x % blocks * STATES;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    const int64_t state = first_state + lane;
    const Node<float> node = make_node(state < n ? x[row % H * n + state] : Complex<float>{0, 0});
    tables.states.make(node, L);
    make_rows(tables.rows, node, L);
    __syncthreads();
    StateOperands<MOMENTS> right;
    right.make(tables.states, L);
    const float weight = tables.states.down[lane];
    Complex<float> totals[MOMENTS][BLOCKS] = {};
    float ratio[BLOCKS];
#pragma unroll
    for (int j = 0; j < BLOCKS; ++j) ratio[j] = tables.states.ratio[warp * OWN_STATES + 4 * j + q];
    const int64_t begin = share * shares.each * GROUP, whole = begin + shares.each * GROUP;
    const int64_t end = whole < L ? whole : L;
    int parity = 0;
#pragma unroll 1
    for (int64_t start = begin; start < end; start += GROUP, parity ^= 1) {
        Group &group = tables.groups[parity];
        const int64_t own = start + warp * TILE;
        if (own < L) {
            bring(group, u + row * L + own, L - own, aligned);
            group.starts[warp][lane] = weight * power(node, own);
        }
        // What the last but one iteration has read of this group is past the barrier of the last one.
        __syncthreads();
#pragma unroll 1
        for (int tile = 0; tile < WARPS && start + tile * TILE < end; ++tile) {
            float sums[MOMENTS][BLOCKS][4] = {};
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                uint32_t left[2][4];
#pragma unroll
                for (int p = 0; p < 2; ++p) {
                    const Matrices found =
                        load_matrices<false>(&group.samples[p][tile * ROWS + lane % 16][16 * s + lane / 16 * 8]);
#pragma unroll
                    for (int i = 0; i < 4; ++i) left[p][i] = found.word[i];
                }
#pragma unroll
                for (int m = 0; m < MOMENTS; ++m)
#pragma unroll
                    for (int j = 0; j < BLOCKS; ++j) multiply(sums[m][j], left, right.of[m][j][s]);
            }
            const float tile_start = float(start + tile * TILE);
#pragma unroll
            for (int j = 0; j < BLOCKS; ++j) {
                const int k = warp * OWN_STATES + 4 * j + q;
                Complex<float> found[MOMENTS] = {};
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const Complex<float> at = group.down[tile * ROWS + g + 8 * r] * tables.rows[g + 8 * r][k];
                    const Complex<float> inner = {sums[0][j][2 * r], sums[0][j][2 * r + 1]};
                    add_product(found[0], at, inner);
                    if constexpr (MOMENTS > 1) {
                        const Complex<float> within = {sums[1][j][2 * r], sums[1][j][2 * r + 1]};
                        add_product(found[1], at, ratio[j] * within + float((g + 8 * r) * CHUNK_SAMPLES) * inner);
                    }
                }
                const Complex<float> at_start = group.starts[tile][k];
                add_product(totals[0][j], at_start, found[0]);
                if constexpr (MOMENTS > 1) add_product(totals[1][j], at_start, found[1] + tile_start * found[0]);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < MOMENTS; ++m)
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
            const Complex<float> total = sum_rows(totals[m][j]);
            const int64_t k = first_state + warp * OWN_STATES + 4 * j + q;
            if (g == 0 && k < n) (m ? first : zeroth)[(share * rows + row) * n + k] = total;
        }
}

void run_moments(Call &call, int64_t rows, int64_t H, int64_t n, int64_t L, const float *u, const Complex<float> *x,
                 Complex<float> *zeroth, Complex<float> *first) {
    const int64_t groups = divide_up(L, GROUP), blocks = divide_up(n, STATES);
    const Shares shares(groups, std::max(ENOUGH_BLOCKS / (rows * blocks), divide_up(groups, LONGEST_SHARE)));
    const int64_t size = rows * n;
    Complex<float> *parts = nullptr;
    if (shares.count > 1) parts = call.take<Complex<float>>((first ? 2 : 1) * shares.count * size);
    if (!call.ready()) return;
    Complex<float> *zeroth_parts = parts ? parts : zeroth, *first_parts = parts ? parts + shares.count * size : first;
    call.launch("tensor_moments_kernel", first ? tensor_moments_kernel<2> : tensor_moments_kernel<1>,
                shares.count * rows * blocks, WARPS * WARP, sizeof(MomentTables), rows, H, n, L, shares, blocks, u, x,
                zeroth_parts, first_parts, is_aligned(u, L));
    if (!parts) return;
    sum_parts(call, shares.count, 2 * size, &zeroth_parts->re, &zeroth->re);
    if (first) sum_parts(call, shares.count, 2 * size, &first_parts->re, &first->re);
}

}  // namespace
}  // namespace s4_fast::cuda::tensor

int s4_fast_cuda_tensor_moments(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *u, const void *x,
                                void *zeroth, void *first, void *workspace, int64_t *workspace_bytes, int64_t device,
                                void *stream) {
    using namespace s4_fast::cuda;
    return run_call("tensor_moments", dtype, {{"c", c}, {"H", H}, {"n", n}, {"L", L}}, {u, x, zeroth},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        if constexpr (std::is_same_v<decltype(real), float>)
                            tensor::run_moments(call, c * H, H, n, L, static_cast<const float *>(u),
                                                static_cast<const Complex<float> *>(x),
                                                static_cast<Complex<float> *>(zeroth),
                                                static_cast<Complex<float> *>(first));
                        else
                            throw std::runtime_error("tensor_moments: tensor cores serve float32 only");
                    });
}
