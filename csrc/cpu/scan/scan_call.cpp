#include "scan_call.h"

#include "../shared/memory.h"
#include "../shared/parallel.h"
#include "../shared/pieces.h"

namespace s4_fast::cpu {
namespace {

template <class T>
int64_t scratch_bytes(const Scan<T> &scan, int64_t width) {
    if (scan.dense()) S4_FAST_RETURN_FROM_ISA(dplr_scan_scratch(scan, width))
    S4_FAST_RETURN_FROM_ISA(scan_scratch(scan, width))
}

template <class T>
int64_t scratch_bytes(const ScanBackward<T> &scan, int64_t width) {
    if (scan.forward.dense()) S4_FAST_RETURN_FROM_ISA(dplr_scan_backward_scratch(scan, width))
    S4_FAST_RETURN_FROM_ISA(scan_backward_scratch(scan, width))
}

template <class T>
int64_t chain_bytes(const Scan<T> &scan) {
    if (scan.dense()) S4_FAST_RETURN_FROM_ISA(dplr_chain_scratch(scan))
    S4_FAST_RETURN_FROM_ISA(scan_chain_scratch(scan))
}

template <class T>
void run(const Scan<T> &s, void *y, T *final, const ScanPiece &piece, char *scratch) {
    if (s.dense()) S4_FAST_RETURN_FROM_ISA(dplr_scan(s, y, final, piece, scratch))
    S4_FAST_RETURN_FROM_ISA(scan(s, y, final, piece, scratch))
}

template <class T>
void run(const ScanBackward<T> &s, const ScanPiece &piece, double *sums, int64_t stride, char *scratch) {
    if (s.forward.dense()) S4_FAST_RETURN_FROM_ISA(dplr_scan_backward(s, piece, sums, stride, scratch))
    S4_FAST_RETURN_FROM_ISA(scan_backward(s, piece, sums, stride, scratch))
}

template <class T>
void chain(const Scan<T> &s, int64_t h, double *sums, T *grad_dt, char *scratch) {
    if (s.dense()) S4_FAST_RETURN_FROM_ISA(dplr_chain(s, h, sums, grad_dt, scratch))
    S4_FAST_RETURN_FROM_ISA(scan_chain(s, h, sums, grad_dt, scratch))
}

// Threads that are worth waking.
template <class T>
int64_t worth(const Scan<T> &scan, int64_t threads) {
    constexpr int64_t WORK = 1 << 17;
    return threads_worth(threads, scan.batch * scan.L * scan.H * (scan.n + 8) * scan.outputs(), WORK);
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
        while (width > 1 && (width >= 2 * H || (threads > 1 && count() / 2 < threads))) width /= 2;
    }

    int64_t count() const { return (H + width - 1) / width * pieces.parts; }

    ScanPiece piece(int64_t index) const {
        const int64_t h = index / pieces.parts * width, p = part(index);
        return {h, H - h < width ? H - h : width, pieces.first(p), pieces.first(p + 1)};
    }
    int64_t part(int64_t index) const { return index % pieces.parts; }
};

// to[i] = the sum over j < count of from[j stride + i] for i < size, in place too.
void add_up(const double *from, int64_t count, int64_t stride, int64_t size, double *to) {
    for (int64_t i = 0; i < size; ++i) to[i] = from[i];
    for (int64_t j = 1; j < count; ++j) {
        for (int64_t i = 0; i < size; ++i) to[i] += from[j * stride + i];
    }
}

// Every `step`-th of `count` numbers.
template <class T>
void write(const double *from, int64_t step, int64_t count, T *to) {
    for (int64_t i = 0; i < count; ++i) to[i] = T(from[i * step]);
}

template <class T>
void write_conjugated(const double *pairs, int64_t n, T *to) {
    for (int64_t i = 0; i < n; ++i) to[2 * i] = T(pairs[2 * i]), to[2 * i + 1] = T(-pairs[2 * i + 1]);
}

// Writes the rest of the gradients of one feature, or of one copy of A and B.
template <class T>
void write_feature(const Scan<T> &scan, const ScanGradients<T> &to, int64_t h, const double *sums) {
    const int64_t n = scan.n;
    if (to.x) write_conjugated(sums, n, to.x + 2 * h * n);
    if (to.A_real) write(sums, 2, n, to.A_real + h * n);
    if (to.A_imag) write(sums + 1, 2, n, to.A_imag + h * n);
    if (to.B) write_conjugated(sums + Sums<T>(scan).B, n, to.B + 2 * h * n);
    for (int64_t r = 0; r < scan.system.rank && to.P; ++r)
        write_conjugated(sums + Sums<T>(scan).P + 2 * r * n, n, to.P + 2 * (r * scan.system.copies + h) * n);
}

template <class T>
void write_outputs(const Scan<T> &scan, const ScanGradients<T> &to, int64_t h, const double *sums) {
    const Sums<T> places(scan);
    for (int64_t k = 0; k < scan.outputs() && to.C; ++k)
        write_conjugated(sums + places.C + 2 * k * scan.n, scan.n, to.C + 2 * (k * scan.H + h) * scan.n);
    for (int64_t k = 0; k < scan.c && to.D; ++k) to.D[k * scan.H + h] = T(sums[places.D + k]);
}

}  // namespace

template <class T>
int run_scan(const Scan<T> &scan, void *y, T *final, int64_t threads) {
    threads = worth(scan, threads);
    const Cut<T> cut(scan, threads);
    const int64_t bytes = scratch_bytes(scan, cut.width);
    threads = at_most(threads, cut.count());
    Scratch scratch(bytes * threads);
    parallel_for(threads, cut.count(), [&](int64_t index, int64_t worker) {
        run(scan, y, final, cut.piece(index), scratch.get() + worker * bytes);
    });
    return 0;
}

template <class T>
int run_scan_backward(const ScanBackward<T> &scan, const ScanGradients<T> &gradients, int64_t threads) {
    const Scan<T> &forward = scan.forward;
    const int64_t H = forward.H, size = Sums<T>(forward).size;
    threads = worth(forward, threads);
    const Cut<T> cut(forward, threads);
    const bool discretised = forward.system.x == nullptr;
    const int64_t for_scan = scratch_bytes(scan, cut.width), for_chain = chain_bytes(forward);
    const int64_t bytes = for_scan > for_chain ? for_scan : for_chain, parts = cut.pieces.parts;
    threads = at_most(threads, cut.count());
    const int64_t sums_bytes = scan.parameters ? H * parts * size * int64_t(sizeof(double)) : 0;
    Scratch scratch(bytes * threads + sums_bytes);
    double *const sums = reinterpret_cast<double *>(scratch.get() + bytes * threads);
    parallel_for(threads, cut.count(), [&](int64_t index, int64_t worker) {
        const ScanPiece piece = cut.piece(index);
        run(scan, piece, sums + (piece.h * parts + cut.part(index)) * size, parts * size,
            scratch.get() + worker * bytes);
    });
    if (!scan.parameters) return 0;
    const bool chained = discretised && (gradients.continuous() || gradients.B || gradients.P);
    parallel_for(threads, H, [&](int64_t h, int64_t worker) {
        double *const of_h = sums + h * parts * size;
        add_up(of_h, parts, size, size, of_h);
        write_outputs(forward, gradients, h, of_h);
        if (chained) chain(forward, h, of_h, gradients.dt, scratch.get() + worker * bytes);
        if (!discretised) write_feature(forward, gradients, h, of_h);
    });
    for (int64_t copy = 0; copy < forward.system.copies && chained; ++copy) {
        double *const of_copy = sums + copy * parts * size;
        add_up(of_copy, H / forward.system.copies, forward.system.copies * parts * size, Sums<T>(forward).C, of_copy);
        write_feature(forward, gradients, copy, of_copy);
    }
    return 0;
}

template int run_scan(const Scan<float> &, void *, float *, int64_t);
template int run_scan(const Scan<double> &, void *, double *, int64_t);
template int run_scan_backward(const ScanBackward<float> &, const ScanGradients<float> &, int64_t);
template int run_scan_backward(const ScanBackward<double> &, const ScanGradients<double> &, int64_t);

}  // namespace s4_fast::cpu
