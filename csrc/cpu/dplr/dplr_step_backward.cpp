#include "dplr_step_backward.h"

#include "../shared/arguments.h"
#include "../shared/memory.h"
#include "../shared/parallel.h"

namespace s4_fast::cpu {
namespace {

template <class T>
void run(const DplrStepBackward<T> &of, int64_t first, int64_t last,
         char *scratch){S4_FAST_RETURN_FROM_ISA(dplr_step_backward(of, first, last, scratch))}

int64_t scratch_bytes(const DplrStepSizes &sizes, int64_t features) {
    S4_FAST_RETURN_FROM_ISA(dplr_step_backward_scratch(sizes, features))
}

template <class T>
int dplr_step_backward(const DplrStepBackward<T> &of, int64_t threads) {
    const DplrStepSizes &s = of.sizes;
    if (s.rank > S4_FAST_CPU_DPLR_STEP_RANK)
        return fail("dplr_step_backward: rank must be at most %d, got %lld", int(S4_FAST_CPU_DPLR_STEP_RANK),
                    (long long)s.rank);
    const FeatureGroups groups(s.batch, s.H, s.n, 2 + 2 * s.rank + s.c);
    threads = groups.worth(threads);
    const int64_t bytes = scratch_bytes(s, groups.each);
    const auto scratch = aligned_memory(bytes * threads);
    parallel_for(threads, groups.count, [&](int64_t index, int64_t worker) {
        run(of, groups.first(index), groups.first(index + 1), scratch.get() + worker * bytes);
    });
    return 0;
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_dplr_step_backward(int64_t dtype, int64_t batch, int64_t c, int64_t rank, int64_t H,
                                              int64_t n, const void *grad_y, const void *grad_next, const void *u,
                                              const void *state, const double *increment, const void *G, const void *V,
                                              const void *B, const void *C, const void *D, void *grad_u,
                                              void *grad_state, double *grad_increment, void *grad_G, void *grad_V,
                                              void *grad_B, void *grad_C, void *grad_D, int64_t threads) {
    return for_dtype("dplr_step_backward", dtype, {{"batch", batch}, {"c", c}, {"rank", rank}, {"H", H}, {"n", n}},
                     {u, state, increment, G, V, B, C}, [&](auto zero) {
                         using T = decltype(zero);
                         const auto given = [](const void *pointer) { return static_cast<const T *>(pointer); };
                         const auto wanted = [](void *pointer) { return static_cast<T *>(pointer); };
                         const DplrStepBackward<T> of = {{batch, c, rank, H, n},
                                                         given(grad_y),
                                                         given(grad_next),
                                                         given(u),
                                                         given(state),
                                                         increment,
                                                         given(G),
                                                         given(V),
                                                         given(B),
                                                         given(C),
                                                         given(D),
                                                         wanted(grad_u),
                                                         wanted(grad_state),
                                                         grad_increment,
                                                         wanted(grad_G),
                                                         wanted(grad_V),
                                                         wanted(grad_B),
                                                         wanted(grad_C),
                                                         wanted(grad_D)};
                         return dplr_step_backward(of, threads);
                     });
}
