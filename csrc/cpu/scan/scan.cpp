#include "scan.h"

#include "../../include/s4_fast.h"
#include "../shared/arguments.h"
#include "scan_call.h"

namespace s4_fast::cpu {
namespace {

template <class T>
Scan<T> scan_of(int64_t batch, int64_t H, int64_t n, int64_t L, const void *u, const void *x, const void *B,
                const void *C, const void *D, const void *state, int64_t time_major) {
    const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
    System<T> system;
    system.x = real(x), system.B = real(B);
    return {batch, H, n, L, 1, time_major != 0, false, Signal::same, system, u, real(C), real(D), real(state), nullptr};
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u,
                                const void *x, const void *B, const void *C, const void *D, const void *state, void *y,
                                void *final, int64_t time_major, int64_t threads) {
    return for_dtype("scan", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}}, {u, x, B, C, y}, [&](auto zero) {
        using T = decltype(zero);
        return run_scan(scan_of<T>(batch, H, n, L, u, x, B, C, D, state, time_major), y, static_cast<T *>(final),
                        threads);
    });
}

extern "C" int s4_fast_cpu_scan_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L,
                                         const void *grad_y, const void *grad_final, const void *u, const void *x,
                                         const void *B, const void *C, const void *D, const void *state, void *grad_u,
                                         void *grad_x, void *grad_B, void *grad_C, void *grad_D, void *grad_state,
                                         int64_t time_major, int64_t threads) {
    return for_dtype("scan_backward", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}},
                     {grad_y, u, x, B, C, grad_u}, [&](auto zero) {
                         using T = decltype(zero);
                         const auto real = [](void *pointer) { return static_cast<T *>(pointer); };
                         ScanGradients<T> gradients;
                         gradients.x = real(grad_x), gradients.B = real(grad_B);
                         gradients.C = real(grad_C), gradients.D = real(grad_D);
                         const ScanBackward<T> scan = {scan_of<T>(batch, H, n, L, u, x, B, C, D, state, time_major),
                                                       grad_y,
                                                       static_cast<const T *>(grad_final),
                                                       grad_u,
                                                       real(grad_state),
                                                       nullptr,
                                                       gradients.any()};
                         return run_scan_backward(scan, gradients, threads);
                     });
}
