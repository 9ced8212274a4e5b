// The kernels of the DPLR spectrum and of the DPLR step, as every instruction set provides them.
#pragma once

#include <stdint.h>

namespace s4_fast {

// Tables of nodes are padded, and nodes are divided between threads, in multiples of this.
enum { kNodes = 16 };

// The largest rank, and the largest (b + rank) (c + rank).
enum { kMaxRank = 8, kMaxSums = 128 };

// The nodes omega_k = exp(-i theta), k = 0 .. L/2, in half angles: cos and twice_sin + low are cos(theta/2) and
// 2 sin(theta/2) times a common factor of 1 + O(2^-53) that makes cos a double. Only their ratio matters.
struct Roots {
    double *cos, *twice_sin, *low;
};

template <class T>
struct DplrCall {
    int64_t b, c, rank, H, n, L;
    const double *v;
    const T *w;
    const double *shift;
    Roots roots;
};

template <class T>
struct DplrStepCall {
    int64_t batch, c, rank, H, n;
    const T *u, *state, *increment, *G, *V, *B, *C;
    T *y, *next;
};

// Powers of exp(i pi/L) that roots() multiplies: doubles (cos, its low part, sin, its low part).
struct RootPowers {
    int64_t L, fine_count, coarse_count;  // fine_count is a power of two
    double *fine, *coarse;
};

// What every instruction set provides:
//
// root_powers             fills ``powers``, whose arrays hold 4 fine_count and 8 coarse_count doubles
// roots                   writes the nodes that the rows [begin, end) of 2 coarse_count make
// dplr_workspace          the bytes that a thread needs for the two functions below, a multiple of 64
// dplr_spectrum           nodes [begin, end) of feature h, where begin is a multiple of kNodes
// dplr_spectrum_backward  what these nodes add to the gradients of feature h: sums (n, rows, columns, 2) for alpha and
//                         beta, and poles (n, 2), or NULL, for |w|^2 and Re w
// dplr_step               features [begin, end)
#define S4_FAST_DPLR(ISA)                                                                                  \
    namespace ISA {                                                                                        \
    void root_powers(const RootPowers &powers);                                                            \
    void roots(const RootPowers &powers, const Roots &to, int64_t begin, int64_t end);                     \
    int64_t dplr_workspace(int64_t b, int64_t c, int64_t rank, int64_t n, bool backward);                  \
    template <class T>                                                                                     \
    void dplr_spectrum(const DplrCall<T> &call, T *spectrum, int64_t h, int64_t begin, int64_t end,        \
                       void *workspace);                                                                   \
    template <class T>                                                                                     \
    void dplr_spectrum_backward(const DplrCall<T> &call, const T *grad, int64_t h, int64_t begin,          \
                                int64_t end, double *sums, double *poles, void *workspace);                \
    template <class T>                                                                                     \
    void dplr_step(const DplrStepCall<T> &call, int64_t begin, int64_t end);                               \
    }

S4_FAST_DPLR(avx512)
S4_FAST_DPLR(avx2)
S4_FAST_DPLR(portable)

#undef S4_FAST_DPLR

}  // namespace s4_fast
