// A small sum for each row of a block: LANES threads share a row, ROWS rows a block.
#pragma once

#include "complex.cuh"

namespace s4_fast {

constexpr int LANES = 32, ROWS = 4;

template <class R>
using RowScratch = R[ROWS][LANES];

// The sum of the row's values, in a fixed order, for all its threads. Every thread of the block calls it.
template <class R>
S4_FAST_INLINE R row_sum(RowScratch<R> &scratch, R value) {
    const int row = threadIdx.x / LANES;
    scratch[row][threadIdx.x % LANES] = value;
    __syncthreads();
    R sum = 0;
#pragma unroll
    for (int lane = 0; lane < LANES; ++lane) sum += scratch[row][lane];
    __syncthreads();
    return sum;
}

}  // namespace s4_fast
