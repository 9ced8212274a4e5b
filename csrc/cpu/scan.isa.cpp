// The forward pass.
#include "scan_chunks.h"

namespace s4_fast {
namespace S4_FAST_ISA {

template <class T>
int64_t scan_scratch(const Scan<T> &scan) {
    Arena memory;
    Forward<T>(memory, scan.n);
    return memory.used();
}

template <class T>
void scan(const Scan<T> &scan, T *y, T *final, int64_t h, int64_t first, int64_t last, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    const Forward<T> forward(memory, scan.n);
    forward.set(scan, h);
    const int64_t chunks = scan.L / kChunk, whole = chunks * kChunk;
    for (int64_t b = first; b < last; ++b) {
        const int64_t row = b * scan.H + h;
        const T *u = scan.u + row * scan.L;
        T *out = y + row * scan.L;
        forward.state.set(scan.state ? scan.state + 2 * row * scan.n : nullptr, scan.n, forward.nodes.np);
        for (int64_t m = 0; m < chunks; m += kBlock) {
            const int64_t rows = chunks - m < kBlock ? chunks - m : kBlock;
            const bool ends = m + rows == chunks && b + 1 < last;
            const int64_t next = scan.H * scan.L;
            forward.chunks(rows, u + m * kChunk, out + m * kChunk,
                           ends ? Ahead<T>::row(u + next, out + next, scan.L) : Ahead<T>::none());
        }
        forward.steps(scan.L - whole, u + whole, out + whole, scan.D ? double(scan.D[h]) : 0);
        if (final) forward.state.write(final + 2 * row * scan.n, scan.n);
    }
}

template int64_t scan_scratch(const Scan<float> &);
template int64_t scan_scratch(const Scan<double> &);
template void scan(const Scan<float> &, float *, float *, int64_t, int64_t, int64_t, char *);
template void scan(const Scan<double> &, double *, double *, int64_t, int64_t, int64_t, char *);

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
