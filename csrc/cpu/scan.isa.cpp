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
    int64_t n, bytes;
    char *tables;  // of each feature

    ForwardPiece(Arena &memory, const Scan<T> &scan, int64_t count)
        : local(Forward<T>::make_local(memory, scan.n)),
          u(memory, scan, count),
          y(memory, scan, count),
          n(scan.n),
          bytes(bytes_of(Arena())),
          tables(memory.take<char>(count * bytes)) {}

    // A view of the tables of feature j.
    Forward<T> operator[](int64_t j) const {
        Arena memory(tables + j * bytes);
        return Forward<T>(memory, n, local);
    }

   private:
    int64_t bytes_of(Arena memory) const {
        Forward<T>(memory, n, nullptr);
        return memory.used();
    }
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
    const ForwardPiece<T> work(memory, scan, piece.count);
    constexpr int64_t kStep = Samples<T>::kStep;
    for (int64_t j = 0; j < piece.count; ++j) work[j].set(scan, piece.h + j);
    const int64_t chunks = scan.L / kChunk, whole = chunks * kChunk, h = piece.h;
    for (int64_t b = piece.first; b < piece.last; ++b) {
        const auto pairs = [&](int64_t j) { return 2 * (b * scan.H + h + j) * scan.n; };
        for (int64_t j = 0; j < piece.count; ++j) {
            const Forward<T> feature = work[j];
            feature.state.set(scan.state ? scan.state + pairs(j) : nullptr, scan.n, feature.nodes.np);
        }
        for (int64_t m = 0; m < chunks; m += kBlock) {
            const int64_t rows = chunks - m < kBlock ? chunks - m : kBlock, l = m * kChunk;
            const T *from = work.u.read(scan, scan.u, b, h, l, rows * kChunk);
            T *to = work.y.place(scan, y, b, h, l);
            for (int64_t j = 0; j < piece.count; ++j) {
                work[j].chunks(rows, from + j * kStep, to + j * kStep,
                                        next_block(scan, scan.u, static_cast<const T *>(y), piece, b, l + rows * kChunk, j));
            }
            work.y.write(scan, y, b, h, l, rows * kChunk);
        }
        if (whole < scan.L) {
            const T *from = work.u.read(scan, scan.u, b, h, whole, scan.L - whole);
            T *to = work.y.place(scan, y, b, h, whole);
            for (int64_t j = 0; j < piece.count; ++j) {
                work[j].steps(scan.L - whole, from + j * kStep, to + j * kStep,
                                       scan.D ? double(scan.D[h + j]) : 0);
            }
            work.y.write(scan, y, b, h, whole, scan.L - whole);
        }
        for (int64_t j = 0; j < piece.count && final; ++j) work[j].state.write(final + pairs(j), scan.n);
    }
}

template int64_t scan_scratch(const Scan<float> &, int64_t);
template int64_t scan_scratch(const Scan<double> &, int64_t);
template void scan(const Scan<float> &, float *, float *, const ScanPiece &, char *);
template void scan(const Scan<double> &, double *, double *, const ScanPiece &, char *);

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
