// The spectrum of a DPLR kernel, a range of nodes of one feature at a time, and the DPLR step.
#pragma once

#include <cstdint>

#include "../include/s4_fast.h"
#include "isa.h"

namespace s4_fast {

// The nodes of a feature are divided into ranges that begin at multiples of this, and tables of nodes padded to one.
constexpr int64_t kNodes = 16;

// The nodes omega_k = exp(-i theta), k = 0 .. L/2, in half angles: cos and twice_sin + low are cos(theta/2) and
// 2 sin(theta/2) times a common factor of 1 + O(2^-53) that makes cos a double. Only their ratio matters.
struct Roots {
    double *cos, *twice_sin, *low;
};

// Powers of exp(i pi/L): four arrays of fine_count, and of 2 * coarse_count, for cos, its low part, sin, its low part.
struct RootPowers {
    int64_t L, fine_count, coarse_count;
    double *fine, *coarse;
};

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

// root_powers fills the arrays of `powers`; roots writes the nodes that row `row` of 2 * coarse_count makes.
// dplr_spectrum and dplr_spectrum_backward take the nodes first <= k < last of feature h. The latter writes what they
// add to the gradients: sums (n, rows, columns, 2) for alpha and beta, poles (n, 2) for |w|^2 and Re w, or null.
S4_FAST_DECLARE_FOR_ISAS(
    void root_powers(const RootPowers &powers); void roots(const RootPowers &powers, const Roots &to, int64_t row);
    int64_t dplr_scratch(const DplrSizes &sizes, bool backward); template <class T>
    void dplr_spectrum(const Dplr<T> &dplr, T *spectrum, int64_t h, int64_t first, int64_t last, char *scratch);
    template <class T> void dplr_spectrum_backward(const Dplr<T> &dplr, const T *grad, int64_t h, int64_t first,
                                                   int64_t last, double *sums, double *poles, char *scratch);
    template <class T> void dplr_step(const DplrStep<T> &step, int64_t first, int64_t last);)

}  // namespace s4_fast
