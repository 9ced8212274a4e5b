// The forward pass.
#include "scan_chunks.h"

namespace s4_fast {
namespace S4_FAST_ISA {
namespace {

// What a piece of `count` features works with.
template <class T>
struct ForwardPiece {
    T *local;
    Samples<T> u, y;
    const Forward<T> *features;

    ForwardPiece(Arena &memory, const Scan<T> &scan, int64_t count)
        : local(Forward<T>::make_local(memory, scan.n)),
          u(memory, scan, count),
          y(memory, scan, count),
          features(each<Forward<T>>(memory, count, [&] { return Forward<T>(memory, scan.n, local); })) {}
};

}  // namespace

template <class T>
int64_t scan_scratch(const Scan<T> &scan, int64_t count) {
    Arena memory;
    ForwardPiece<T>(memory, scan, count);
    return memory.used();
}

template <class T>
void scan(const Scan<T> &scan, T *y, T *final, const ScanPiece &piece, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    ForwardPiece<T> work(memory, scan, piece.count);
    constexpr int64_t kStep = Samples<T>::kStep;
    for (int64_t j = 0; j < piece.count; ++j) work.features[j].set(scan, piece.h + j);
    const int64_t chunks = scan.L / kChunk, whole = chunks * kChunk, h = piece.h;
    for (int64_t b = piece.first; b < piece.last; ++b) {
        const auto pairs = [&](int64_t j) { return 2 * (b * scan.H + h + j) * scan.n; };
        for (int64_t j = 0; j < piece.count; ++j) {
            const Forward<T> &feature = work.features[j];
            feature.state.set(scan.state ? scan.state + pairs(j) : nullptr, scan.n, feature.nodes.np);
        }
        for (int64_t m = 0; m < chunks; m += kBlock) {
            const int64_t rows = chunks - m < kBlock ? chunks - m : kBlock, l = m * kChunk;
            const T *from = work.u.read(scan, scan.u, b, h, l, rows * kChunk);
            T *to = work.y.place(scan, y, b, h, l);
            const bool ends = m + rows == chunks && b + 1 < piece.last && !scan.time_major;
            const int64_t next = scan.at(b + 1, h, 0);
            const Ahead<T> ahead = ends ? Ahead<T>::row(scan.u + next, y + next, scan.L) : Ahead<T>::none();
            for (int64_t j = 0; j < piece.count; ++j)
                work.features[j].chunks(rows, from + j * kStep, to + j * kStep, ahead);
            work.y.write(scan, y, b, h, l, rows * kChunk);
        }
        if (whole < scan.L) {
            const T *from = work.u.read(scan, scan.u, b, h, whole, scan.L - whole);
            T *to = work.y.place(scan, y, b, h, whole);
            for (int64_t j = 0; j < piece.count; ++j) {
                work.features[j].steps(scan.L - whole, from + j * kStep, to + j * kStep,
                                       scan.D ? double(scan.D[h + j]) : 0);
            }
            work.y.write(scan, y, b, h, whole, scan.L - whole);
        }
        for (int64_t j = 0; j < piece.count && final; ++j) work.features[j].state.write(final + pairs(j), scan.n);
    }
}

template int64_t scan_scratch(const Scan<float> &, int64_t);
template int64_t scan_scratch(const Scan<double> &, int64_t);
template void scan(const Scan<float> &, float *, float *, const ScanPiece &, char *);
template void scan(const Scan<double> &, double *, double *, const ScanPiece &, char *);

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
