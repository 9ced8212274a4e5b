// A DPLR system of one feature in double. Its bilinear step is A_bar s = a s - sum_r G_r <W_r, s>, where <x, y> is
// Re sum_n conj(x) y, so that for real vectors of real and imaginary parts A_bar^T s = conj(a) s - sum_r W_r <G_r, s>.
//
//     h = rate dt / 2,  z = h lambda,  d = 1/(1 - z),  a = 1 + 2 z d,  e = h d,  G_r = e P_r,
//     K = (1 + (2 <P_i, G_j>)_ij)^-1,  W_i = 4 conj(d) sum_j K_ij P_j,
//     B_bar = b - sum_ij G_i K_ij 2 <P_j, b>  with  b = 2 e B.
#pragma once

#include "../scan/scan_steps.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

inline ComplexVector conj(ComplexVector a) { return {a.re, -a.im}; }

// <x, y> of vectors of parts.
inline DoubleVector inner(ComplexVector x, ComplexVector y) { return x.re * y.re + x.im * y.im; }

// What a step takes. Vectors of states are np real and np imaginary parts, one after the other.
struct Transition {
    int64_t np, rank;
    Split increment;  // a - 1, whose small parts a would lose
    Rows G, W;

    Transition(Arena &memory, int64_t np, int64_t rank)
        : np(np), rank(rank), increment(memory, np), G(memory, rank, np), W(memory, rank, np) {}

    // overlaps_r = <rows_r, s>
    void overlaps(const Rows &rows, Split s, double *overlaps) const {
        for (int64_t r = 0; r < rank; ++r) overlaps[r] = conj_dot(np, rows[r], s);
    }

    // The vector i of A_bar s, or of A_bar^T s, for overlaps with W, or with G.
    template <bool TRANSPOSED>
    inline ComplexVector applied(int64_t i, ComplexVector s, const double *overlaps) const {
        const ComplexVector by = at(increment, i);
        const ComplexVector change = TRANSPOSED ? conj_times(by, s) : times(by, s);
        ComplexVector next = {s.re + change.re, s.im + change.im};
        for (int64_t r = 0; r < rank; ++r) add_times(next, -overlaps[r], at((TRANSPOSED ? W : G)[r], i));
        return next;
    }

    // to = A_bar s, or A_bar^T s; in place too. `room` is for `rank` numbers.
    template <bool TRANSPOSED>
    void apply(Split s, Split to, double *room) const {
        overlaps(TRANSPOSED ? G : W, s, room);
        for (int64_t i = 0; i < np; i += LANES<double>) store_at(to, i, applied<TRANSPOSED>(i, at(s, i), room));
    }
};

// The inverse of 1 + M (rank, rank), in place; with pivots, of which none is 0: M is that of a contraction.
inline void invert(int64_t rank, double *M, double *room) {
    double *const rest = room;
    for (int64_t i = 0; i < rank; ++i) {
        for (int64_t j = 0; j < rank; ++j) rest[i * rank + j] = M[i * rank + j] + (i == j), M[i * rank + j] = i == j;
    }
    for (int64_t j = 0; j < rank; ++j) {
        int64_t pivot = j;
        for (int64_t i = j + 1; i < rank; ++i)
            if (::fabs(rest[i * rank + j]) > ::fabs(rest[pivot * rank + j])) pivot = i;
        for (int64_t k = 0; k < rank && pivot != j; ++k) {
            for (double *rows : {rest, M}) {
                const double kept = rows[j * rank + k];
                rows[j * rank + k] = rows[pivot * rank + k], rows[pivot * rank + k] = kept;
            }
        }
        const double scale = 1 / rest[j * rank + j];
        for (int64_t k = 0; k < rank; ++k) rest[j * rank + k] *= scale, M[j * rank + k] *= scale;
        for (int64_t i = 0; i < rank; ++i) {
            const double factor = rest[i * rank + j];
            for (int64_t k = 0; k < rank && i != j; ++k) {
                rest[i * rank + k] -= factor * rest[j * rank + k], M[i * rank + k] -= factor * M[j * rank + k];
            }
        }
    }
}

// The parameters and what is made of them. Those of a Transition and B_bar are the result.
struct DplrSystem {
    int64_t n, np, rank;
    double *h;
    Split lambda, B, d, e, b;
    Rows P;
    double *K, *room;  // (rank, rank)
    double *x, *w;     // 2 <P_j, b>, and K x
    Transition step;
    Split B_bar;

    DplrSystem(Arena &memory, int64_t n, int64_t rank)
        : n(n),
          np(padded(n)),
          rank(rank),
          h(memory.take<double>(np)),
          lambda(memory, np),
          B(memory, np),
          d(memory, np),
          e(memory, np),
          b(memory, np),
          P(memory, rank, np),
          K(memory.take<double>(rank * rank)),
          room(memory.take<double>(rank * rank)),
          x(memory.take<double>(rank)),
          w(memory.take<double>(rank)),
          step(memory, np, rank),
          B_bar(memory, np) {}

    template <class T>
    void set(const System<T> &s, int64_t of) const {
        read_system(s, of, n, np, h, lambda, B);
        for (int64_t r = 0; r < rank; ++r) P[r].set(s.P + 2 * (r * s.copies + of % s.copies) * n, n, np);
        for (int64_t i = 0; i < np; i += LANES<double>) {
            const DoubleVector half = 0.5 * load(h + i);
            const ComplexVector by = at(lambda, i), z = {half * by.re, half * by.im};
            const ComplexVector inverse = reciprocal({1 - z.re, -z.im}), change = times(z, inverse);
            const ComplexVector factor = {half * inverse.re, half * inverse.im}, input = times(factor, at(B, i));
            store(h + i, half), store_at(d, i, inverse), store_at(e, i, factor);
            store_at(step.increment, i, {2 * change.re, 2 * change.im});
            store_at(b, i, {2 * input.re, 2 * input.im});
            for (int64_t r = 0; r < rank; ++r) store_at(step.G[r], i, times(factor, at(P[r], i)));
        }
        for (int64_t i = 0; i < rank; ++i) {
            for (int64_t j = 0; j < rank; ++j) K[i * rank + j] = 2 * conj_dot(np, P[i], step.G[j]);
        }
        invert(rank, K, room);
        for (int64_t j = 0; j < rank; ++j) x[j] = 2 * conj_dot(np, P[j], b);
        for (int64_t i = 0; i < rank; ++i) {
            w[i] = 0;
            for (int64_t j = 0; j < rank; ++j) w[i] += K[i * rank + j] * x[j];
        }
        for (int64_t i = 0; i < np; i += LANES<double>) {
            ComplexVector input = at(b, i);
            for (int64_t r = 0; r < rank; ++r) {
                add_times(input, -w[r], at(step.G[r], i));
                const ComplexVector row = conj_times(at(d, i), combined(r, i));
                store_at(step.W[r], i, {4 * row.re, 4 * row.im});
            }
            store_at(B_bar, i, input);
        }
    }

    // Vector i of sum_j K_rj P_j.
    ComplexVector combined(int64_t r, int64_t i) const {
        ComplexVector total = {};
        for (int64_t j = 0; j < rank; ++j) add_times(total, K[r * rank + j], at(P[j], i));
        return total;
    }
};

// s_{t+1} = A_bar s_t, or A_bar^T s_t, for t + 1 < count, from the s_0 of some chains, which are `count` rows apart:
// side by side, so that one need not wait for its last step.
template <bool TRANSPOSED>
void chains(const Transition &step, int64_t many, int64_t count, const Rows &of, double *room) {
    for (int64_t t = 0; t + 1 < count; ++t) {
        for (int64_t first = t; first < many * count; first += count)
            step.apply<TRANSPOSED>(of[first], of[first + 1], room);
    }
}

inline void copy(int64_t np, Split from, Split to) {
    for (int64_t i = 0; i < np; i += LANES<double>) store_at(to, i, at(from, i));
}

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
