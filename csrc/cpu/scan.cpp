#include "scan.h"

#include "../include/s4_fast.h"
#include "arguments.h"
#include "memory.h"
#include "parallel.h"
#include "pieces.h"

namespace s4_fast {
namespace {

template <class T>
int64_t scratch_bytes(const Scan<T> &scan) {
    S4_FAST_RETURN_FROM_ISA(scan_scratch(scan))
}

template <class T>
int64_t scratch_bytes(const ScanBackward<T> &scan) {
    S4_FAST_RETURN_FROM_ISA(scan_backward_scratch(scan))
}

template <class T>
void run(const Scan<T> &s, T *y, T *final, int64_t h, int64_t first, int64_t last, char *scratch) {
    S4_FAST_RETURN_FROM_ISA(scan(s, y, final, h, first, last, scratch))
}

template <class T>
void run(const ScanBackward<T> &s, int64_t h, int64_t first, int64_t last, double *sums, char *scratch) {
    S4_FAST_RETURN_FROM_ISA(scan_backward(s, h, first, last, sums, scratch))
}

template <class T>
int forward(const Scan<T> &scan, T *y, T *final, int64_t threads) {
    const Pieces pieces(scan.batch, scan.H, scan.L);
    const int64_t bytes = scratch_bytes(scan), count = scan.H * pieces.parts;
    threads = at_most(threads, count);
    const auto scratch = aligned_memory(bytes * threads);
    parallel_for(threads, count, [&](int64_t index, int64_t worker) {
        const int64_t h = index / pieces.parts, part = index % pieces.parts;
        run(scan, y, final, h, pieces.first(part), pieces.first(part + 1), scratch.get() + worker * bytes);
    });
    return 0;
}

// out[i] = the sum over the parts of sums[part * stride + i], conjugated where they are pairs.
template <class T>
void add_up(const double *sums, int64_t parts, int64_t stride, int64_t count, bool conjugated, T *out) {
    for (int64_t i = 0; i < count; ++i) {
        double total = 0;
        for (int64_t part = 0; part < parts; ++part) total += sums[part * stride + i];
        out[i] = T(conjugated && i % 2 ? -total : total);
    }
}

template <class T>
int backward(const ScanBackward<T> &scan, T *grad_x, T *grad_B, T *grad_C, T *grad_D, int64_t threads) {
    const int64_t H = scan.forward.H, n = scan.forward.n, stride = scan_sums(n);
    const Pieces pieces(scan.forward.batch, H, scan.forward.L);
    const int64_t bytes = scratch_bytes(scan), parts = pieces.parts, count = H * parts;
    threads = at_most(threads, count);
    const auto scratch = aligned_memory(bytes * threads);
    const auto memory = aligned_memory(scan.parameters ? count * stride * int64_t(sizeof(double)) : 0);
    double *const sums = reinterpret_cast<double *>(memory.get());
    parallel_for(threads, count, [&](int64_t index, int64_t worker) {
        const int64_t part = index % parts;
        run(scan, index / parts, pieces.first(part), pieces.first(part + 1), sums + index * stride,
            scratch.get() + worker * bytes);
    });
    for (int64_t h = 0; h < H && scan.parameters; ++h) {
        const double *of_h = sums + h * parts * stride;
        if (grad_x) add_up(of_h, parts, stride, 2 * n, true, grad_x + 2 * h * n);
        if (grad_B) add_up(of_h + 2 * n, parts, stride, 2 * n, true, grad_B + 2 * h * n);
        if (grad_C) add_up(of_h + 4 * n, parts, stride, 2 * n, true, grad_C + 2 * h * n);
        if (grad_D) add_up(of_h + 6 * n, parts, stride, 1, false, grad_D + h);
    }
    return 0;
}

template <class T>
Scan<T> scan_of(int64_t batch, int64_t H, int64_t n, int64_t L, const void *u, const void *x, const void *B,
                const void *C, const void *D, const void *state) {
    const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
    return {batch, H, n, L, real(u), real(x), real(B), real(C), real(D), real(state)};
}

}  // namespace
}  // namespace s4_fast

using namespace s4_fast;

extern "C" int s4_fast_cpu_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u,
                                const void *x, const void *B, const void *C, const void *D, const void *state, void *y,
                                void *final, int64_t threads) {
    return for_dtype("scan", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}}, {u, x, B, C, y}, [&](auto zero) {
        using T = decltype(zero);
        return forward(scan_of<T>(batch, H, n, L, u, x, B, C, D, state), static_cast<T *>(y), static_cast<T *>(final),
                       threads);
    });
}

extern "C" int s4_fast_cpu_scan_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L,
                                         const void *grad_y, const void *grad_final, const void *u, const void *x,
                                         const void *B, const void *C, const void *D, const void *state, void *grad_u,
                                         void *grad_x, void *grad_B, void *grad_C, void *grad_D, void *grad_state,
                                         int64_t threads) {
    return for_dtype("scan_backward", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}},
                     {grad_y, u, x, B, C, grad_u}, [&](auto zero) {
                         using T = decltype(zero);
                         const auto real = [](void *pointer) { return static_cast<T *>(pointer); };
                         const ScanBackward<T> scan = {scan_of<T>(batch, H, n, L, u, x, B, C, D, state),
                                                       static_cast<const T *>(grad_y),
                                                       static_cast<const T *>(grad_final),
                                                       real(grad_u),
                                                       real(grad_state),
                                                       grad_x || grad_B || grad_C || grad_D};
                         return backward(scan, real(grad_x), real(grad_B), real(grad_C), real(grad_D), threads);
                     });
}
