// The product that moments and scan share: rows of real samples with a table of powers.
#pragma once

#include "powers.cuh"

namespace s4_fast::cuda {

// Columns are padded by one, so that threads which read different rows use different banks.
template <class R, int M, int T>
using Samples = R[M][T + 1];

// A thread's zeroth[a][b] = sum_t samples[m_a][t] powers[t][k_b], and with t samples in place of samples first[a][b],
// for m_a = i + a (M / RM) and k_b = j + b (K / RK).
template <bool WITH_FIRST, class R, int RM, int RK, int M, int WIDTH, int K, int T>
S4_FAST_INLINE void inner_moments(const Complex<R> (&powers)[T][K], const R (&samples)[M][WIDTH], int i, int j,
                                  Complex<R> (&zeroth)[RM][RK], Complex<R> (&first)[RM][RK]) {
    static_assert(WIDTH == T + 1);
#pragma unroll
    for (int a = 0; a < RM; ++a)
#pragma unroll
        for (int b = 0; b < RK; ++b) zeroth[a][b] = first[a][b] = {0, 0};
#pragma unroll 2
    for (int t = 0; t < T; ++t) {
        Complex<R> p[RK];
#pragma unroll
        for (int b = 0; b < RK; ++b) p[b] = powers[t][j + b * (K / RK)];
#pragma unroll
        for (int a = 0; a < RM; ++a) {
            const R u = samples[i + a * (M / RM)][t], tu = R(t) * u;
#pragma unroll
            for (int b = 0; b < RK; ++b) {
                zeroth[a][b] += u * p[b];
                if (WITH_FIRST) first[a][b] += tu * p[b];
            }
        }
    }
}

}  // namespace s4_fast::cuda
