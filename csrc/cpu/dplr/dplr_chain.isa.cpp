// The chain rule from the bilinear step of a DPLR system back to its continuous parameters. In the names of
// dplr_system.h, `by` being the gradient of what follows it and F_i = sum_j K_ij P_j,
//
//     by F_i = 4 d by W_i,                   by d = sum_i 4 F_i conj(by W_i),
//     by w_i = -<G_i, by B_bar>,             by x = K^T by w,
//     by K_ij = <P_j, by F_i> + by w_i x_j,  by M = -K^T by K K^T  for K = (1 + M)^-1,
//     by G_j += -w_j by B_bar + 2 sum_i by M_ij P_i,
//     by P_j = conj(e) by G_j + sum_i (K_ij by F_i + 2 by M_ji G_i) + 2 by x_j b,
//     by b = by B_bar + 2 sum_j by x_j P_j,  by B = conj(2 e) by b,
//     by e = conj(2 B) by b + sum_j conj(P_j) by G_j,
//
// and a, d and e have by lambda and by h the derivatives 2 h d^2, h d^2, e^2 and 2 lambda d^2, lambda d^2, d^2.
#include "dplr_system.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

struct DplrChain {
    DplrSystem system;
    Split by_a, by_B, by_d;
    Rows by_G, by_F, by_P;
    double *by_K, *by_M, *by_x;

    DplrChain(Arena &memory, int64_t n, int64_t rank)
        : system(memory, n, rank),
          by_a(memory, padded(n)),
          by_B(memory, padded(n)),
          by_d(memory, padded(n)),
          by_G(memory, rank, padded(n)),
          by_F(memory, rank, padded(n)),
          by_P(memory, rank, padded(n)),
          by_K(memory.take<double>(rank * rank)),
          by_M(memory.take<double>(rank * rank)),
          by_x(memory.take<double>(rank)) {}

    // by_F and by_d, for by_F that holds the gradients of W.
    void outputs_back() const {
        for (int64_t i = 0; i < system.np; i += LANES<double>) {
            ComplexVector of_d = {};
            for (int64_t r = 0; r < system.rank; ++r) {
                const ComplexVector of_W = at(by_F[r], i), of_F = times(at(system.d, i), of_W);
                add_times(of_d, 4, conj_times(of_W, system.combined(r, i)));
                store_at(by_F[r], i, {4 * of_F.re, 4 * of_F.im});
            }
            store_at(by_d, i, of_d);
        }
    }

    // by_x and by_M.
    void numbers_back() const {
        const int64_t rank = system.rank, np = system.np;
        const double *const K = system.K;
        double *const by_w = system.room;
        for (int64_t i = 0; i < rank; ++i) {
            by_w[i] = -conj_dot(np, system.step.G[i], by_B);
            for (int64_t j = 0; j < rank; ++j)
                by_K[i * rank + j] = conj_dot(np, system.P[j], by_F[i]) + by_w[i] * system.x[j];
        }
        for (int64_t j = 0; j < rank; ++j) {
            by_x[j] = 0;
            for (int64_t i = 0; i < rank; ++i) by_x[j] += K[i * rank + j] * by_w[i];
        }
        double *const product = system.room;
        const auto turned = [&](int64_t i, int64_t j) { return K[j * rank + i]; };
        for (int64_t i = 0; i < rank; ++i) {
            for (int64_t j = 0; j < rank; ++j) {
                double total = 0;
                for (int64_t k = 0; k < rank; ++k) total += turned(i, k) * by_K[k * rank + j];
                product[i * rank + j] = total;
            }
        }
        for (int64_t i = 0; i < rank; ++i) {
            for (int64_t j = 0; j < rank; ++j) {
                double total = 0;
                for (int64_t k = 0; k < rank; ++k) total -= product[i * rank + k] * turned(k, j);
                by_M[i * rank + j] = total;
            }
        }
    }

    // by_P, by_B of the parameter, and what the gradients of lambda and h are.
    void states_back(int64_t i, ComplexVector &by_lambda, DoubleVector &by_h) const {
        const int64_t rank = system.rank;
        const Transition &step = system.step;
        const ComplexVector of_B_bar = at(by_B, i), d = at(system.d, i), e = at(system.e, i), b = at(system.b, i);
        ComplexVector of_b = of_B_bar, of_e = {};
        for (int64_t j = 0; j < rank; ++j) {
            const ComplexVector P = at(system.P[j], i);
            ComplexVector of_G = at(by_G[j], i);
            add_times(of_G, -system.w[j], of_B_bar), add_times(of_b, 2 * by_x[j], P);
            for (int64_t k = 0; k < rank; ++k) add_times(of_G, 2 * by_M[k * rank + j], at(system.P[k], i));
            ComplexVector of_P = conj_times(e, of_G);
            for (int64_t k = 0; k < rank; ++k) {
                add_times(of_P, system.K[k * rank + j], at(by_F[k], i));
                add_times(of_P, 2 * by_M[j * rank + k], at(step.G[k], i));
            }
            add_times(of_P, 2 * by_x[j], b), add_times(of_e, 1, conj_times(P, of_G));
            store_at(by_P[j], i, of_P);
        }
        const ComplexVector of_weight = conj_times(e, of_b), squared = times(d, d);
        store_at(by_B, i, {2 * of_weight.re, 2 * of_weight.im});
        add_times(of_e, 2, conj_times(at(system.B, i), of_b));
        ComplexVector of_z = at(by_d, i);
        add_times(of_z, 2, at(by_a, i));
        of_z = conj_times(squared, of_z);
        const DoubleVector h = load(system.h + i);
        by_lambda = conj_times(times(e, e), of_e), add_scaled(by_lambda, h, of_z);
        by_h = inner(at(system.lambda, i), of_z) + inner(squared, of_e);
    }

    static void add_scaled(ComplexVector &sum, DoubleVector factor, ComplexVector of) {
        sum.re += factor * of.re, sum.im += factor * of.im;
    }
};

// Rows from pairs of reals, and to pairs of conjugates.
inline void set_rows(const Rows &rows, int64_t rank, const double *pairs, int64_t n) {
    for (int64_t r = 0; r < rank; ++r) rows[r].set(pairs + 2 * r * n, n, rows.np);
}
inline void write_conjugate(Split from, double *pairs, int64_t n) {
    for (int64_t i = 0; i < n; ++i) put(pairs, i, conj(from.get(i)));
}

}  // namespace

template <class T>
int64_t dplr_chain_scratch(const Scan<T> &scan) {
    Arena memory;
    DplrChain(memory, scan.n, scan.system.rank);
    return memory.used();
}

template <class T>
void dplr_chain(const Scan<T> &scan, int64_t h, double *sums, T *grad_dt, char *scratch) {
    const FlushDenormals flush;
    const System<T> &s = scan.system;
    const Sums<T> places(scan);
    const int64_t n = scan.n, np = padded(n), rank = s.rank;
    Arena memory(scratch);
    const DplrChain of(memory, n, rank);
    of.system.set(s, h);
    of.by_a.set(sums, n, np), of.by_B.set(sums + places.B, n, np);
    set_rows(of.by_G, rank, sums + places.P, n), set_rows(of.by_F, rank, sums + places.W, n);
    of.outputs_back(), of.numbers_back();
    double total = 0;
    for (int64_t i = 0; i < np; i += LANES<double>) {
        ComplexVector by_lambda;
        DoubleVector by_h;
        of.states_back(i, by_lambda, by_h);
        const DoubleVector real = by_lambda.re,
                           by_dt = by_h * (s.log_dt ? load(of.system.h + i) : DoubleVector{} + s.rate / 2);
        store_at(
            of.by_a, i,
            {s.log_decay ? real * load(of.system.lambda.re + i) : real, s.conjugate ? -by_lambda.im : by_lambda.im});
        if (grad_dt && s.dt_states == 1) total += sum(by_dt);
        for (int64_t j = 0; grad_dt && s.dt_states != 1 && j < LANES<double> && i + j < n; ++j)
            grad_dt[h * n + i + j] = T(by_dt[j]);
    }
    if (grad_dt && s.dt_states == 1) grad_dt[h] = T(total);
    of.by_a.write(sums, n), write_conjugate(of.by_B, sums + places.B, n);
    for (int64_t r = 0; r < rank; ++r) write_conjugate(of.by_P[r], sums + places.P + 2 * r * n, n);
}

template int64_t dplr_chain_scratch(const Scan<float> &);
template int64_t dplr_chain_scratch(const Scan<double> &);
template void dplr_chain(const Scan<float> &, int64_t, double *, float *, char *);
template void dplr_chain(const Scan<double> &, int64_t, double *, double *, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
