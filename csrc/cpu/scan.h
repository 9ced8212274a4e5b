// The recurrence of a diagonal SSM, s_l = lambda s_{l-1} + B u_l, y_l = 2 Re sum_n C s_l + D u_l, one feature at a
// time.
#pragma once

#include <cstdint>

#include "isa.h"

namespace s4_fast {

// As in s4_fast.h; what may be absent is null.
template <class T>
struct Scan {
    int64_t batch, H, n, L;
    const T *u, *x, *B, *C, *D, *state;
};

template <class T>
struct ScanBackward {
    Scan<T> forward;
    const T *grad_y, *grad_final;
    T *grad_u, *grad_state;
    bool parameters;  // whether the gradients of x, B, C and D are wanted
};

// The gradients of one feature's x, B and C, conjugated, and of D: 6 n + 1 doubles.
inline int64_t scan_sums(int64_t n) { return 6 * n + 1; }

// Bytes of scratch memory, and the work on feature h for the rows first <= b < last. `final` may be null.
S4_FAST_DECLARE_FOR_ISAS(template <class T> int64_t scan_scratch(const Scan<T> &scan);
                         template <class T> void scan(const Scan<T> &scan, T *y, T *final, int64_t h, int64_t first,
                                                      int64_t last, char *scratch);
                         template <class T> int64_t scan_backward_scratch(const ScanBackward<T> &scan);
                         template <class T> void scan_backward(const ScanBackward<T> &scan, int64_t h, int64_t first,
                                                               int64_t last, double *sums, char *scratch);)

}  // namespace s4_fast
