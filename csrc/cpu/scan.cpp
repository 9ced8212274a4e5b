#include "scan.h"

#include "../include/s4_fast.h"
#include "arguments.h"
#include "memory.h"
#include "parallel.h"
#include "pieces.h"

namespace s4_fast {
namespace {

template <class T>
int64_t scratch_bytes(const Scan<T> &scan, int64_t width) {
    S4_FAST_RETURN_FROM_ISA(scan_scratch(scan, width))
}

template <class T>
int64_t scratch_bytes(const ScanBackward<T> &scan, int64_t width) {
    S4_FAST_RETURN_FROM_ISA(scan_backward_scratch(scan, width))
}

template <class T>
void run(const Scan<T> &s, T *y, T *final, const ScanPiece &piece, char *scratch) {
    S4_FAST_RETURN_FROM_ISA(scan(s, y, final, piece, scratch))
}

template <class T>
void run(const ScanBackward<T> &s, const ScanPiece &piece, double *sums, int64_t stride, char *scratch) {
    S4_FAST_RETURN_FROM_ISA(scan_backward(s, piece, sums, stride, scratch))
}

// The features of a piece: where samples are time-major, those of a cache line, or fewer if threads would be idle. Only
// `parts` cuts what is summed, and does not depend on the number of threads.
template <class T>
struct Cut {
    int64_t H, line;
    Pieces pieces;
    int64_t width;

    Cut(const Scan<T> &scan, int64_t threads)
        : H(scan.H),
          line(scan.time_major ? 64 / int64_t(sizeof(T)) : 1),
          pieces(scan.batch, (H + line - 1) / line, scan.L),
          width(line) {
        while (width > 1 && (width >= 2 * H || count() < 2 * threads)) width /= 2;
    }

    int64_t count() const { return (H + width - 1) / width * pieces.parts; }

    ScanPiece piece(int64_t index) const {
        const int64_t h = index / pieces.parts * width, p = part(index);
        return {h, H - h < width ? H - h : width, pieces.first(p), pieces.first(p + 1)};
    }
    int64_t part(int64_t index) const { return index % pieces.parts; }
};

template <class T>
int forward(const Scan<T> &scan, T *y, T *final, int64_t threads) {
    const Cut<T> cut(scan, threads);
    const int64_t bytes = scratch_bytes(scan, cut.width);
    threads = at_most(threads, cut.count());
    const auto scratch = aligned_memory(bytes * threads);
    parallel_for(threads, cut.count(), [&](int64_t index, int64_t worker) {
        run(scan, y, final, cut.piece(index), scratch.get() + worker * bytes);
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
    const Cut<T> cut(scan.forward, threads);
    const int64_t bytes = scratch_bytes(scan, cut.width), parts = cut.pieces.parts;
    threads = at_most(threads, cut.count());
    const auto scratch = aligned_memory(bytes * threads);
    const auto memory = aligned_memory(scan.parameters ? H * parts * stride * int64_t(sizeof(double)) : 0);
    double *const sums = reinterpret_cast<double *>(memory.get());
    parallel_for(threads, cut.count(), [&](int64_t index, int64_t worker) {
        const ScanPiece piece = cut.piece(index);
        run(scan, piece, sums + (piece.h * parts + cut.part(index)) * stride, parts * stride,
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
                const void *C, const void *D, const void *state, int64_t time_major) {
    const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
    return {batch, H, n, L, time_major != 0, real(u), real(x), real(B), real(C), real(D), real(state)};
}

}  // namespace
}  // namespace s4_fast

using namespace s4_fast;

extern "C" int s4_fast_cpu_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u,
                                const void *x, const void *B, const void *C, const void *D, const void *state, void *y,
                                void *final, int64_t time_major, int64_t threads) {
    return for_dtype("scan", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}}, {u, x, B, C, y}, [&](auto zero) {
        using T = decltype(zero);
        return forward(scan_of<T>(batch, H, n, L, u, x, B, C, D, state, time_major), static_cast<T *>(y),
                       static_cast<T *>(final), threads);
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
                         const ScanBackward<T> scan = {scan_of<T>(batch, H, n, L, u, x, B, C, D, state, time_major),
                                                       static_cast<const T *>(grad_y),
                                                       static_cast<const T *>(grad_final),
                                                       real(grad_u),
                                                       real(grad_state),
                                                       grad_x || grad_B || grad_C || grad_D};
                         return backward(scan, real(grad_x), real(grad_B), real(grad_C), real(grad_D), threads);
                     });
}
