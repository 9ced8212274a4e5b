// The Cauchy sums of a DPLR kernel at a node, and the elimination of the low rank.
//
// A thread has one node and one pair (B, C), whose spectrum is the Schur complement of
//     M = shift + (e^{i theta/2} S in the first row, cos(theta/2) S in the `RANK` rows below),
//     S = sum_n v/d + v*/d',   d = 2 i sin(theta/2) - w cos(theta/2),   d' the same for w*,
// where cos(theta/2) = h e^{i theta/2}. All of it is in double, whatever the type of the spectrum: the Woodbury
// quotient amplifies the rounding of the sums, for the gradient of weakly damped poles (LegT) by up to 10^6.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "../../include/s4_fast.h"
#include "../shared/powers.cuh"

namespace s4_fast::cuda {

inline void check_rank(const char *function, int64_t rank) {
    if (rank > S4_FAST_CUDA_DPLR_RANK)
        throw std::runtime_error(std::string(function) + ": rank = " + std::to_string(rank) + ", expected at most " +
                                 std::to_string(S4_FAST_CUDA_DPLR_RANK));
}

// body(rank) with a rank that check_rank lets pass, as a constant.
template <int RANK = 1, class Body>
void with_rank(int64_t rank, Body &&body) {
    if constexpr (RANK < S4_FAST_CUDA_DPLR_RANK)
        if (rank > RANK) return with_rank<RANK + 1>(rank, body);
    body(std::integral_constant<int, RANK>{});
}

// The adjoint keeps the gradients of all sums at a node: there may not be more than fit.
inline void check_sums(const char *function, int64_t b, int64_t c, int64_t rank) {
    const int64_t most = S4_FAST_CUDA_DPLR_SUMS;
    if (b > most || c > most || (b + rank) * (c + rank) > most)
        throw std::runtime_error(std::string(function) + ": " + std::to_string(b + rank) + " x " +
                                 std::to_string(c + rank) + " sums per node; at most " + std::to_string(most) +
                                 " fit in shared memory");
}

S4_FAST_INLINE Wide inverse(Wide a) { return (1.0 / (a.re * a.re + a.im * a.im)) * conj(a); }

// 1/d and 1/d' at the node of `half` = cos + i sin of theta/2.
struct Resonance {
    Wide own, paired;
};

S4_FAST_INLINE Resonance resonance(Wide half, Wide w) {
    const double re = -w.re * half.re, twice = 2.0 * half.im, shift = w.im * half.re;
    return {inverse(Wide{re, twice - shift}), inverse(Wide{re, twice + shift})};
}

// The sizes of a call, and where the rows and columns of a pair's M lie in those of all pairs.
struct Sizes {
    int64_t b, c, rank, H, n, L;
    S4_FAST_INLINE int64_t entry(int64_t pair, int row, int column) const {
        const int64_t i = row == 0 ? pair % c : c + row - 1, j = column == 0 ? pair / c : b + column - 1;
        return i * (b + rank) + j;
    }
};

template <int RANK>
using Matrix = Wide[RANK + 1][RANK + 1];

template <int RANK>
struct StateTables {
    static constexpr int STATES = 16;
    Wide w[STATES], v[STATES][(RANK + 1) * (RANK + 1)];
};

// M of the thread's node. Every thread of the block calls it, for one h and one pair.
template <int RANK, class R>
S4_FAST_INLINE void node_matrix(StateTables<RANK> &tables, int threads, const Sizes &sizes, int64_t h, int64_t pair,
                                Wide half, const Wide *v, const Complex<R> *w, const double *shift, Matrix<RANK> &M) {
    constexpr int STATES = StateTables<RANK>::STATES, ORDER = RANK + 1;
#pragma unroll
    for (int i = 0; i < ORDER; ++i)
#pragma unroll
        for (int j = 0; j < ORDER; ++j) M[i][j] = {0, 0};
    for (int64_t first = 0; first < sizes.n; first += STATES) {
        const int states = int(sizes.n - first < STATES ? sizes.n - first : STATES);
        __syncthreads();
        for (int item = threadIdx.x; item < states * (1 + ORDER * ORDER); item += threads) {
            const int e = item / states - 1, k = item % states;
            if (e < 0)
                tables.w[k] = convert<double>(w[h * sizes.n + first + k]);
            else
                tables.v[k][e] = v[(sizes.entry(pair, e / ORDER, e % ORDER) * sizes.H + h) * sizes.n + first + k];
        }
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < states; ++k) {
            const Resonance r = resonance(half, tables.w[k]);
            const Wide sum = r.own + r.paired, difference = r.own - r.paired;
#pragma unroll
            for (int i = 0; i < ORDER; ++i)
#pragma unroll
                for (int j = 0; j < ORDER; ++j) {
                    // v/d + v*/d'
                    const Wide a = tables.v[k][i * ORDER + j];
                    M[i][j].re += a.re * sum.re - a.im * difference.im;
                    M[i][j].im += a.re * sum.im + a.im * difference.re;
                }
        }
    }
#pragma unroll
    for (int i = 0; i < ORDER; ++i)
#pragma unroll
        for (int j = 0; j < ORDER; ++j) {
            M[i][j] = i == 0 ? half * M[i][j] : half.re * M[i][j];
            M[i][j].re += shift[sizes.entry(pair, i, j) * sizes.H + h];
        }
}

// Gaussian elimination from the last row and column on, which leaves the Schur complement in M[0][0] and, in the rest,
// what each step has read.
template <int RANK>
S4_FAST_INLINE void eliminate(Matrix<RANK> &M) {
#pragma unroll
    for (int p = RANK; p > 0; --p) {
        const Wide pivot = inverse(M[p][p]);
#pragma unroll
        for (int i = 0; i < p; ++i) {
            const Wide factor = M[i][p] * pivot;
#pragma unroll
            for (int j = 0; j < p; ++j) M[i][j] = M[i][j] - factor * M[p][j];
        }
    }
}

// The gradient of M before the elimination, from G[0][0] = that of the Schur complement: each step backwards, the row
// by -(column / pivot)^H G, then the column and the pivot by -G (row / pivot)^H.
template <int RANK>
S4_FAST_INLINE void eliminate_backward(const Matrix<RANK> &M, Matrix<RANK> &G) {
#pragma unroll
    for (int p = 1; p <= RANK; ++p) {
        const Wide pivot = conj(inverse(M[p][p]));
#pragma unroll
        for (int j = 0; j < p; ++j) {
            Wide sum = {0, 0};
#pragma unroll
            for (int i = 0; i < p; ++i) sum += conj(M[i][p]) * G[i][j];
            G[p][j] = -1.0 * (pivot * sum);
        }
#pragma unroll
        for (int i = 0; i <= p; ++i) {
            Wide sum = {0, 0};
#pragma unroll
            for (int j = 0; j < p; ++j) sum += conj(M[p][j]) * G[i][j];
            G[i][p] = -1.0 * (pivot * sum);
        }
    }
}

}  // namespace s4_fast::cuda
