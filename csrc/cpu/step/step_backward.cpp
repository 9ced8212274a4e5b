#include "../shared/arguments.h"
#include "../shared/memory.h"
#include "../shared/parallel.h"
#include "step.h"

namespace s4_fast::cpu {
namespace {

template <class T>
void run(const StepBackward<T> &of, int64_t first, int64_t last,
         char *scratch){S4_FAST_RETURN_FROM_ISA(step_backward(of, first, last, scratch))}

int64_t scratch_bytes(int64_t n, int64_t features) {
    S4_FAST_RETURN_FROM_ISA(step_backward_scratch(n, features))
}

template <class T>
int step_backward(const StepBackward<T> &of, int64_t threads) {
    const FeatureGroups groups(of.batch, of.H, of.n, 3);
    threads = groups.worth(threads);
    const int64_t bytes = scratch_bytes(of.n, groups.each);
    const auto scratch = aligned_memory(bytes * threads);
    parallel_for(threads, groups.count, [&](int64_t index, int64_t worker) {
        run(of, groups.first(index), groups.first(index + 1), scratch.get() + worker * bytes);
    });
    return 0;
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_step_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, const void *grad_y,
                                         const void *grad_next, const void *u, const void *state, const double *lambda,
                                         const void *B, const void *C, const void *D, void *grad_u, void *grad_state,
                                         void *grad_x, void *grad_B, void *grad_C, void *grad_D, int64_t threads) {
    return for_dtype("step_backward", dtype, {{"batch", batch}, {"H", H}, {"n", n}}, {u, state, lambda, B, C},
                     [&](auto zero) {
                         using T = decltype(zero);
                         const auto given = [](const void *pointer) { return static_cast<const T *>(pointer); };
                         const auto wanted = [](void *pointer) { return static_cast<T *>(pointer); };
                         const StepBackward<T> of = {batch,
                                                     H,
                                                     n,
                                                     given(grad_y),
                                                     given(grad_next),
                                                     given(u),
                                                     given(state),
                                                     lambda,
                                                     given(B),
                                                     given(C),
                                                     given(D),
                                                     wanted(grad_u),
                                                     wanted(grad_state),
                                                     wanted(grad_x),
                                                     wanted(grad_B),
                                                     wanted(grad_C),
                                                     wanted(grad_D)};
                         return step_backward(of, threads);
                     });
}
