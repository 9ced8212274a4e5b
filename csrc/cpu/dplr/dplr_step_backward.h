// The adjoint of one step of a DPLR recurrence.
#pragma once

#include <cstdint>

#include "../shared/feature_groups.h"
#include "../shared/isa.h"

namespace s4_fast::cpu {

struct DplrStepSizes {
    int64_t batch, c, rank, H, n;
};

// As in s4_fast.h; grad_y, grad_next, D and every gradient may be null.
template <class T>
struct DplrStepBackward {
    DplrStepSizes sizes;
    const T *grad_y, *grad_next, *u, *state;
    const double *increment;
    const T *G, *V, *B, *C, *D;
    T *grad_u, *grad_state;
    double *grad_increment;
    T *grad_G, *grad_V, *grad_B, *grad_C, *grad_D;
};

// Takes the features first <= h < last of every row, and as much scratch memory as dplr_step_backward_scratch says for
// them.
// clang-format off
S4_FAST_DECLARE_FOR_ISAS(
    int64_t dplr_step_backward_scratch(const DplrStepSizes &sizes, int64_t features);
    template <class T>
    void dplr_step_backward(const DplrStepBackward<T> &of, int64_t first, int64_t last, char *scratch);)
// clang-format on

}  // namespace s4_fast::cpu
