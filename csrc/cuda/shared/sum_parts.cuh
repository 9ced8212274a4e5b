// The second pass of a reduction: parts that blocks have left in the workspace, summed in a fixed order.
#pragma once

#include "launch.cuh"

namespace s4_fast::cuda {
namespace {

// out[i] = sum_p parts[p, i] for i < count.
template <class From, class To>
__global__ void __launch_bounds__(256) sum_parts_kernel(int64_t parts, int64_t count, const From *from, To *to) {
    int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (i >= count) return;
    From sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += from[p * count + i];
    to[i] = To(sum);
}

template <class From, class To>
void sum_parts(Call &call, int64_t parts, int64_t count, const From *from, To *to) {
    call.launch("sum_parts_kernel", sum_parts_kernel<From, To>, divide_up(count, 256), 256, 0, parts, count, from, to);
}

}  // namespace
}  // namespace s4_fast::cuda
