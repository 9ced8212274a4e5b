// The spectrum of a DPLR kernel, a range of nodes of one feature at a time, and the DPLR step.
#pragma once

#include <cstdint>

#include "../../include/s4_fast.h"
#include "../shared/isa.h"
#include "../shared/roots.h"

namespace s4_fast::cpu {

// As in s4_fast.h.
struct DplrSizes {
    int64_t b, c, rank, H, n, L;
};

template <class T>
struct Dplr {
    DplrSizes sizes;
    const double *v;
    const T *w;
    const double *shift;
    Roots roots;
};

// As in s4_fast.h; D may be null.
template <class T>
struct DplrStep {
    int64_t batch, c, rank, H, n;
    const T *u, *state;
    const double *increment;
    const T *G, *V, *B, *C, *D;
    T *y, *next;
};

// dplr_spectrum and dplr_spectrum_backward take the nodes first <= k < last of feature h. The latter writes what they
// add to the gradients: sums (n, rows, columns, 2) for alpha and beta, poles (n, 2) for |w|^2 and Re w, or null.
// clang-format off
S4_FAST_DECLARE_FOR_ISAS(
    int64_t dplr_scratch(const DplrSizes &sizes, bool backward);
    template <class T>
    void dplr_spectrum(const Dplr<T> &dplr, T *spectrum, int64_t h, int64_t first, int64_t last, char *scratch);
    template <class T>
    void dplr_spectrum_backward(const Dplr<T> &dplr, const T *grad, int64_t h, int64_t first, int64_t last,
                                double *sums, double *poles, char *scratch);
    template <class T> void dplr_step(const DplrStep<T> &step, int64_t first, int64_t last);)
// clang-format on

}  // namespace s4_fast::cpu
