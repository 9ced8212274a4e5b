// The recurrence of a diagonal SSM, s_l = lambda s_{l-1} + B u_l, y_l = 2 Re sum_n C s_l + D u_l, one feature at a
// time, or, where samples are time-major, those of a cache line together.
#pragma once

#include <cstdint>

#include "isa.h"

namespace s4_fast {

// As in s4_fast.h; what may be absent is null.
template <class T>
struct Scan {
    int64_t batch, H, n, L;
    bool time_major;  // whether u, y and their gradients are (batch, L, H)
    const T *u, *x, *B, *C, *D, *state;

    // Where the sample l of row b and feature h is.
    int64_t at(int64_t b, int64_t h, int64_t l) const { return time_major ? (b * L + l) * H + h : (b * H + h) * L + l; }
};

template <class T>
struct ScanBackward {
    Scan<T> forward;
    const T *grad_y, *grad_final;
    T *grad_u, *grad_state;
    bool parameters;  // whether the gradients of x, B, C and D are wanted
};

// What one worker does: the rows first <= b < last of features h <= . < h + count, count = 1 unless time-major.
struct ScanPiece {
    int64_t h, count, first, last;
};

// The gradients of one feature's x, B and C, conjugated, and of D: 6 n + 1 doubles.
inline int64_t scan_sums(int64_t n) { return 6 * n + 1; }

// Bytes of scratch memory for pieces of `count` features, and the work on a piece. `final` may be null. The sums of the
// features of a piece are `stride` doubles apart.
S4_FAST_DECLARE_FOR_ISAS(template <class T> int64_t scan_scratch(const Scan<T> &scan, int64_t count); template <class T>
                         void scan(const Scan<T> &scan, T *y, T *final, const ScanPiece &piece, char *scratch);
                         template <class T> int64_t scan_backward_scratch(const ScanBackward<T> &scan, int64_t count);
                         template <class T> void scan_backward(const ScanBackward<T> &scan, const ScanPiece &piece,
                                                               double *sums, int64_t stride, char *scratch);)

}  // namespace s4_fast
