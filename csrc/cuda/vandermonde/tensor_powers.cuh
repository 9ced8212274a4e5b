// What Vandermonde products and their transposes on tensor cores share: how a sequence is cut, and tables of powers.
//
// With l = start + r T + t, a tile of a sequence is ROWS rows of T neighbouring samples, and
//     lambda^l = lambda^start lambda^(r T) lambda^t.
// The lane of a state makes the first of the three, exactly, once per tile; the other two are tables of a block.
//
// A lane has the samples 4 q to 4 q + 3 of 16 neighbouring ones, as its columns 2 q and 2 q + 1 of one block of eight
// columns of a product and of the next. So 16 bytes are read or written at once, whole sectors by four lanes.
#pragma once

#include "../scan/tensor_tables.cuh"
#include "../shared/launch.cuh"
#include "../shared/powers.cuh"

namespace s4_fast::cuda::tensor {
namespace {

constexpr int TILE = ROWS * CHUNK_SAMPLES;

// The row of a table that has the power of t. Eight rows that are read at once are neighbours, and so in different
// banks.
S4_FAST_INLINE int place(int t) { return t / 16 * 16 + t % 4 / 2 * 8 + t % 16 / 4 * 2 + t % 2; }

// Padded, so that the lanes g of half a warp read from different banks.
using RowPowers = Complex<float>[ROWS][STATES + 4];

// visit(t, lambda^t) for a lane's state and the 16 times t of its warp, products of an exact power and others of small
// exponents. 0 from L on.
template <class Visit>
S4_FAST_INLINE void each_step(Node<float> node, int64_t L, Visit visit) {
    const int start = threadIdx.x / WARP * (CHUNK_SAMPLES / WARPS);
    const Complex<float> fourth = bounded_power(node, 4, L);
    Complex<float> powers[4] = {{1, 0}, bounded_power(node, 1, L)}, step = bounded_power(node, start, L);
    powers[2] = powers[1] * powers[1];
    powers[3] = powers[2] * powers[1];
#pragma unroll
    for (int t = 0; t < CHUNK_SAMPLES / WARPS; ++t) {
        if (t > 0 && t % 4 == 0) step = step * fourth;
        visit(start + t, start + t < L ? step * powers[t % 4] : Complex<float>{0, 0});
    }
}

// rows[r][lane] = lambda^(r T) for the rows r of a warp. Of rows that begin beyond L it may be anything but NaN.
S4_FAST_INLINE void make_rows(RowPowers &rows, Node<float> node, int64_t L) {
    constexpr int EACH = ROWS / WARPS;
    const int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * EACH;
#pragma unroll
    for (int r = 0; r < EACH; ++r) rows[first + r][lane] = bounded_power(node, (first + r) * CHUNK_SAMPLES, L);
}

// The columns of the state blocks 2 k and 2 k + 1 by the samples 16 s to 16 s + 15.
S4_FAST_INLINE Operands<2> over_columns(const PowerTable<2> &table, int s, int k) {
    const int lane = threadIdx.x % WARP;
    Operands<2> found;
#pragma unroll
    for (int p = 0; p < 2; ++p)
        found.set(p, load_matrices<false>(table.at(p, lane / 16 * 8 + lane % 8 + 16 * s, lane / 8 % 2 * 8 + 16 * k)));
    return found;
}

}  // namespace
}  // namespace s4_fast::cuda::tensor
