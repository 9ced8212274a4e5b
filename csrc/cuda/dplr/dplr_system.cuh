// From a continuous DPLR system to its recurrence, in double: with h = rate dt/2, d = 1/(1 - h lambda) and Q = conj(P),
//     s' = a s - sum_r G_r 2 Re sum_n V_r s + b u,   a = 2 d - 1,   G_r = h d P_r,   V_i = 2 d sum_j K_ij Q_j,
//     K = (I + M)^-1,   M_ij = 2 Re sum_n Q_i G_j,   b = b0 - sum_i G_i kappa_i,   b0 = 2 h d B,
//     kappa_i = sum_j K_ij eta_j,   eta_j = 2 Re sum_n Q_j b0.
#pragma once

#include "../scan/discretize.cuh"
#include "../scan/scan_call.cuh"
#include "../scan/scan_chunks.cuh"
#include "../shared/row_sum.cuh"

namespace s4_fast::cuda {
namespace {

constexpr int RANKS = S4_FAST_CUDA_DPLR_SCAN_RANK;
static_assert(THREADS == LANES * ROWS);

template <class R>
struct DplrModel {
    Model<R> of_A;
    const Complex<R> *P;
    int rank;

    S4_FAST_INLINE Wide low_rank(int64_t r, int64_t h, int64_t n, int64_t k) const {
        return convert<double>(P[(r * of_A.copies + h % of_A.copies) * n + k]);
    }
};

// A feature's vectors of n, those of G and V one after the other; or their gradients.
struct System {
    Wide *a, *b, *G, *V;
};

__host__ S4_FAST_INLINE int64_t vectors(int rank) { return 2 + 2 * rank; }

S4_FAST_INLINE System system_at(Wide *systems, int rank, int64_t n, int64_t index) {
    Wide *const a = systems + index * vectors(rank) * n;
    return {a, a + n, a + 2 * n, a + (2 + rank) * n};
}

struct WoodburyTables {
    RowScratch<double> scratch;
    double M[RANKS][RANKS], K[RANKS][RANKS], eta[RANKS], kappa[RANKS];
};

// h d, which enters G and b0; `weight` is d.
S4_FAST_INLINE Wide entering(const State &state) { return 0.5 * state.step * state.weight; }

template <class R>
S4_FAST_INLINE State read_pole(const DplrModel<R> &model, int64_t h, int64_t n, int64_t k) {
    State state = read_continuous(model.of_A, h, n, k);
    state.weight = bilinear_weight(state.z);
    return state;
}

// target(i, j) = sum_k of term(i, j, k) for i < rows and j < columns, every thread of the block having a part of it.
template <class Term, class Target>
S4_FAST_INLINE void overlaps(RowScratch<double> &scratch, int rows, int columns, int64_t n, Term term, Target target) {
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    for (int pair = 0; pair < rows * columns; pair += ROWS) {
        const int i = (pair + row) / columns, j = (pair + row) % columns;
        double sum = 0;
        for (int64_t k = lane; k < n && i < rows; k += LANES) sum += term(i, j, k);
        sum = row_sum(scratch, sum);
        if (lane == 0 && i < rows) target(i, j) = sum;
    }
    __syncthreads();
}

// K = (I + M)^-1 by one thread, without pivots: of a stable system M has a positive semidefinite symmetric part.
S4_FAST_INLINE void invert(WoodburyTables &tables, int rank) {
    for (int i = 0; i < rank; ++i)
        for (int j = 0; j < rank; ++j) tables.K[i][j] = tables.M[i][j] + (i == j);
    for (int p = 0; p < rank; ++p) {
        const double inverse = 1 / tables.K[p][p];
        tables.K[p][p] = 1;
        for (int j = 0; j < rank; ++j) tables.K[p][j] *= inverse;
        for (int i = 0; i < rank; ++i) {
            if (i == p) continue;
            const double factor = tables.K[i][p];
            tables.K[i][p] = 0;
            for (int j = 0; j < rank; ++j) tables.K[i][j] -= factor * tables.K[p][j];
        }
    }
    for (int i = 0; i < rank; ++i) {
        tables.kappa[i] = 0;
        for (int j = 0; j < rank; ++j) tables.kappa[i] += tables.K[i][j] * tables.eta[j];
    }
}

// sum_j K_ij Q_j of a state.
template <class R>
S4_FAST_INLINE Wide weighted_row(const WoodburyTables &tables, const DplrModel<R> &model, int i, int64_t h, int64_t n,
                                 int64_t k) {
    Wide sum = {0, 0};
#pragma unroll 1
    for (int j = 0; j < model.rank; ++j) sum += tables.K[i][j] * conj(model.low_rank(j, h, n, k));
    return sum;
}

// Writes the feature's system, for every thread of the block to read.
template <class R>
S4_FAST_INLINE void discretize(WoodburyTables &tables, const DplrModel<R> &model, int64_t h, int64_t n,
                               const System &to) {
    for (int64_t k = threadIdx.x; k < n; k += THREADS) {
        const State state = read_pole(model, h, n, k);
        to.a[k] = 2.0 * state.weight - Wide{1, 0};
        to.b[k] = 2.0 * (entering(state) * state.B);
#pragma unroll 1
        for (int r = 0; r < model.rank; ++r) to.G[r * n + k] = entering(state) * model.low_rank(r, h, n, k);
    }
    __syncthreads();
    overlaps(
        tables.scratch, model.rank, model.rank + 1, n,
        [&](int i, int j, int64_t k) {
            const Wide right = j < model.rank ? to.G[j * n + k] : to.b[k];
            return 2 * real_product(conj(model.low_rank(i, h, n, k)), right);
        },
        [&](int i, int j) -> double & { return j < model.rank ? tables.M[i][j] : tables.eta[i]; });
    if (threadIdx.x == 0) invert(tables, model.rank);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < n; k += THREADS) {
        const State state = read_pole(model, h, n, k);
#pragma unroll 1
        for (int i = 0; i < model.rank; ++i) {
            to.V[i * n + k] = 2.0 * (state.weight * weighted_row(tables, model, i, h, n, k));
            to.b[k] = to.b[k] - tables.kappa[i] * to.G[i * n + k];
        }
    }
    __syncthreads();
}

}  // namespace
}  // namespace s4_fast::cuda
