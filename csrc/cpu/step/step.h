// One step of a diagonal SSM, and its adjoint.
#pragma once

#include <cstdint>

#include "../shared/feature_groups.h"
#include "../shared/isa.h"

namespace s4_fast::cpu {

// As in s4_fast.h; D may be null.
template <class T>
struct Step {
    int64_t H, n;
    const T *u, *state;
    const double *lambda;
    const T *B, *C, *D;
    T *y, *next;
};

// As in s4_fast.h; grad_y, grad_next, D and every gradient may be null.
template <class T>
struct StepBackward {
    int64_t batch, H, n;
    const T *grad_y, *grad_next, *u, *state;
    const double *lambda;
    const T *B, *C, *D;
    T *grad_u, *grad_state, *grad_x, *grad_B, *grad_C, *grad_D;
};

// step takes the rows begin <= batch * H + h < end; step_backward the features first <= h < last of every row, and as
// much scratch memory as step_backward_scratch says for them.
// clang-format off
S4_FAST_DECLARE_FOR_ISAS(
    template <class T> void step(const Step<T> &of, int64_t begin, int64_t end);
    template <class T> void exponentials(const T *x, double *lambda, int64_t begin, int64_t end);
    int64_t step_backward_scratch(int64_t n, int64_t features);
    template <class T> void step_backward(const StepBackward<T> &of, int64_t first, int64_t last, char *scratch);)
// clang-format on

}  // namespace s4_fast::cpu
