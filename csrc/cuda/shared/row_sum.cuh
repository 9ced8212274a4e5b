// A small sum for each row of a block: LANES threads share a row, ROWS rows a block.
#pragma once

#include "complex.cuh"

namespace s4_fast::cuda {

constexpr int LANES = 32, ROWS = 4;

template <class R>
using RowScratch = R[ROWS][LANES];

// Four sums that do not wait for each other.
template <class R>
S4_FAST_INLINE R lane_sum(const R (&values)[LANES]) {
    R sums[4] = {};
#pragma unroll
    for (int lane = 0; lane < LANES; lane += 4)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] += values[lane + i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The sum of the row's values, in a fixed order, for all its threads. Every thread of the block calls it.
template <class R>
S4_FAST_INLINE R row_sum(RowScratch<R> &scratch, R value) {
    const int row = threadIdx.x / LANES;
    scratch[row][threadIdx.x % LANES] = value;
    __syncthreads();
    const R sum = lane_sum(scratch[row]);
    __syncthreads();
    return sum;
}

}  // namespace s4_fast::cuda
