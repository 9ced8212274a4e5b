// Vandermonde products on tensor cores: rows of v lambda^(start + r T), made in registers, by a table of lambda^t.
#include "tensor_powers.cuh"

namespace s4_fast::cuda::tensor {
namespace {

// Half of a tile's columns is summed at a time: all would leave too few registers for a second operand under way.
constexpr int BLOCKS = CHUNK_SAMPLES / 2 / 8;

// What scale_to makes of 1.
constexpr float ONE = 1 << (SCALED_BITS - 1);

struct VandermondeTables {
    PowerTable<2> steps;  // conj(lambda^t), scaled by a power of two for each state
    RowPowers rows;
    Complex<float> starts[WARPS][STATES];  // v lambda^start of each warp's tile
};

// All threads of a block call it. A lane has a state, and gets what its coefficients are multiplied by, but for ONE.
S4_FAST_INLINE float make_tables(VandermondeTables &tables, Node<float> node, int64_t L) {
    const Scale scale = scale_to(growth(node, L));
    const int lane = threadIdx.x % WARP;
    each_step(node, L,
              [&](int t, Complex<float> power) { tables.steps.set_row(place(t), lane, conj(scale.up * power)); });
    make_rows(tables.rows, node, L);
    return scale.down * ONE;
}

// Left operands: rows g and g + 8 of starts lambda^(r T), each scaled by a power of two. Returns what undoes these.
S4_FAST_INLINE void make_left(uint32_t (&left)[STATES / 8][2][4], float (&down)[2], const Complex<float> *starts,
                              const RowPowers &rows) {
    const int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    Complex<float> values[2][STATES / 4];
    float up[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float largest = 0;
#pragma unroll
        for (int j = 0; j < STATES / 4; ++j) {
            const Complex<float> found = starts[4 * j + q] * rows[g + 8 * r][4 * j + q];
            largest = fmaxf(largest, fmaxf(fabsf(found.re), fabsf(found.im)));
            values[r][j] = found;
        }
        const Scale scale = scale_to(largest_of_row(largest));
        up[r] = scale.up;
        down[r] = scale.down / ONE;
    }
#pragma unroll
    for (int k = 0; k < STATES / 8; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Complex<float> found = up[i % 2] * values[i % 2][2 * k + i / 2];
            uint32_t words[2];
            split(found.re, found.im, words);
            left[k][0][i] = words[0];
            left[k][1][i] = words[1];
        }
}

// out[i] = values[i], or more by it, where i < count; at once where all four are known to be there.
S4_FAST_INLINE void store(float *out, const float (&values)[4], int count, bool at_once, bool add) {
    if (at_once) {
        Vector &target = *reinterpret_cast<Vector *>(out);
        Vector packed = {};
        if (add) packed = target;
#pragma unroll
        for (int i = 0; i < 4; ++i) packed.word[i] = bits_of(add ? from_bits(packed.word[i]) + values[i] : values[i]);
        target = packed;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < count) out[i] = add ? out[i] + values[i] : values[i];
}

// The block goes over 32 states at a time, and adds to what the same threads have written of those before.
__global__ void __launch_bounds__(WARPS *WARP, 4)
    tensor_vandermonde_kernel(int64_t c, int64_t H, int64_t n, int64_t L, int64_t shares, const Complex<float> *v,
                              const Complex<float> *x, float scale, float *out, bool aligned) {
    auto &tables = shared_memory<VandermondeTables>();
    const int64_t h = blockIdx.x % H, share = blockIdx.x / H;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    Complex<float> *const starts = tables.starts[warp];
    for (int64_t first = 0; first < n; first += STATES) {
        const int64_t state = first + lane;
        const Node<float> node = make_node(state < n ? x[h * n + state] : Complex<float>{0, 0});
        if (first > 0) __syncthreads();
        const float weight = make_tables(tables, node, L) * scale;
        __syncthreads();
        // The warps of all blocks take turns over the tiles of one channel and then of the next.
        const int64_t whole = (L + TILE - 1) / TILE * TILE;
        int64_t start = (share * WARPS + warp) * TILE;
#pragma unroll 1
        for (int64_t row = h; row < c * H; row += H, start -= whole) {
            const Complex<float> coefficient = state < n ? weight * v[row * n + state] : Complex<float>{0, 0};
#pragma unroll 1
            for (; start < L; start += shares * WARPS * TILE) {
                starts[lane] = coefficient * power(node, start);
                __syncwarp();
                uint32_t left[STATES / 8][2][4];
                float down[2];
                make_left(left, down, starts, tables.rows);
                __syncwarp();
                const bool at_once = aligned && start + TILE <= L;
                float *to = out + row * L + start + g * CHUNK_SAMPLES + 4 * q;
                int there = int(L - start < TILE ? L - start : TILE) - g * CHUNK_SAMPLES - 4 * q;
#pragma unroll 1
                for (int half = 0; half < 2; ++half) {
                    float sums[BLOCKS][4] = {};
#pragma unroll
                    for (int k = 0; k < STATES / 8; ++k)
#pragma unroll
                        for (int j = 0; j < BLOCKS; j += 2) {
                            const auto right = over_columns(tables.steps, (BLOCKS * half + j) / 2, k);
                            multiply(sums[j], left[k], right.first);
                            multiply(sums[j + 1], left[k], right.second);
                        }
#pragma unroll
                    for (int r = 0; r < 2; ++r)
#pragma unroll
                        for (int j = 0; j < BLOCKS; j += 2) {
                            float four[4];
#pragma unroll
                            for (int i = 0; i < 4; ++i) four[i] = sums[j + i / 2][2 * r + i % 2] * down[r];
                            const int at = 8 * r * CHUNK_SAMPLES + 8 * j;
                            store(to + at, four, there - at, at_once, first > 0);
                        }
                    to += 8 * BLOCKS;
                    there -= 8 * BLOCKS;
                }
            }
        }
    }
}

void run_vandermonde(Call &call, int64_t c, int64_t H, int64_t n, int64_t L, const Complex<float> *v,
                     const Complex<float> *x, double scale, float *out) {
    if (!call.ready()) return;
    const Shares shares(divide_up(c * divide_up(L, TILE), WARPS), ENOUGH_BLOCKS / H);
    call.launch("tensor_vandermonde_kernel", tensor_vandermonde_kernel, H * shares.count, WARPS * WARP,
                sizeof(VandermondeTables), c, H, n, L, shares.count, v, x, float(scale), out, is_aligned(out, L));
}

}  // namespace
}  // namespace s4_fast::cuda::tensor

int s4_fast_cuda_tensor_vandermonde(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *v,
                                    const void *x, double scale, void *out, void *workspace, int64_t *workspace_bytes,
                                    int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call("tensor_vandermonde", dtype, {{"c", c}, {"H", H}, {"n", n}, {"L", L}}, {v, x, out},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        if constexpr (std::is_same_v<decltype(real), float>)
                            tensor::run_vandermonde(call, c, H, n, L, static_cast<const Complex<float> *>(v),
                                                    static_cast<const Complex<float> *>(x), scale,
                                                    static_cast<float *>(out));
                        else
                            throw std::runtime_error("tensor_vandermonde: tensor cores serve float32 only");
                    });
}
