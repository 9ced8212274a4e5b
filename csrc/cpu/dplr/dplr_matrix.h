// The matrix of the T steps of a chunk in double,
//
//     M = A_bar^T = diag(a)^T - sum_r sum_{j < T} g_{r,T-1-j} <v_{r,j}, .>,
//     g_{r,t} = A_bar^t G_r,  v_{r,t} = conj(a)^t W_r,
//
// which is a product as deep as T, and as M commutes with A_bar, off the
// diagonals of M s = E s + F conj(s) also
//
//     E_ik = 1/2 sum_r (G_i conj(p_k) - q_i conj(W_k)) / (a_i - a_k),   q_r = M
//     G_r, F_ik = 1/2 sum_r (G_i p_k - q_i W_k) / (a_i - conj(a_k)), p_r = M^T
//     W_r.
//
// That is several times cheaper, and loses digits where two of the a are close:
// then, and in double, it is the product.
#pragma once

#include "../shared/multiply.h"
#include "../shared/tables.h"
#include "dplr_system.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

constexpr int64_t DENSE = Scan<float>::DENSE_CHUNK, DENSE_BLOCK = Scan<float>::DENSE_BLOCK;

// What tables are made of, one after the other: chains of vectors, as rows, and
// square matrices.
struct Workshop {
    Rows columns;      // for every r g_{r,t}, then A_bar^t B_bar
    Rows rows;         // -v_{r,t} of one r, or the transposes of C A_bar^t
    Rows left, right;  // p_r and q_r
    double *matrix, *square, *room;

    Workshop(Arena &memory, int64_t np, int64_t rank, bool chunks)
        : columns(memory, chunks ? (rank + 1) * DENSE : 0, np),
          rows(memory, chunks ? DENSE + 1 : 0, np),
          left(memory, chunks ? rank : 0, np),
          right(memory, chunks ? rank : 0, np),
          matrix(memory.take<double>(chunks ? 4 * np * np : 0)),
          square(memory.take<double>(chunks ? 4 * np * np : 0)),
          room(memory.take<double>(2 * rank)) {}

    // The columns, and the last of them.
    void make_columns(const Transition &step, Split B_bar) const {
        for (int64_t r = 0; r < step.rank; ++r) copy(step.np, step.G[r], columns[r * DENSE]);
        copy(step.np, B_bar, columns[step.rank * DENSE]);
        chains<false>(step, step.rank + 1, DENSE, columns, room);
    }
    Split input(int64_t rank, int64_t t) const { return columns[rank * DENSE + t]; }
    const double *last_column(int64_t r) const { return columns[r * DENSE + DENSE - 1].re; }
};

// start conj(a)^t for t < count.
inline void powers(const Transition &step, Split start, double scale, int64_t count, Rows to) {
    for (int64_t i = 0; i < step.np; i += LANES<double>) {
        const ComplexVector by = conj(at(step.increment, i));
        ComplexVector power = at(start, i);
        power.re *= scale, power.im *= scale;
        for (int64_t t = 0; t < count; ++t) {
            store_at(to[t], i, power);
            add_times(power, 1, times(by, power));
        }
    }
}

// a^t for t = DENSE - 1 and t = DENSE.
inline void last_powers(const Transition &step, int64_t i, ComplexVector &before, ComplexVector &last) {
    const ComplexVector by = at(step.increment, i);
    last = ComplexVector{DoubleVector{} + 1, DoubleVector{}};
    for (int64_t t = 0; t < DENSE; ++t) before = last, add_times(last, 1, times(by, before));
}

// What state k gives to state j, E and F, in the transpose of M.
inline void put_entry(double *matrix, int64_t np, int64_t j, int64_t k, Complex E, Complex F) {
    double *const of_re = matrix + k * 2 * np + j, *const of_im = of_re + np * 2 * np;
    of_re[0] = E.re + F.re, of_re[np] = E.im + F.im, of_im[0] = F.im - E.im, of_im[np] = E.re - F.re;
}

class ChunkMatrix {
   public:
    ChunkMatrix(const Transition &step, int64_t n, const Workshop &work)
        : step_(step), n_(n), np_(step.np), N_(2 * np_), work_(work) {}

    // The transpose of M in work.matrix, from the columns there.
    template <class T>
    void make() const {
        if (sizeof(T) == sizeof(double) || !make_quotients()) make_product();
    }

   private:
    void make_product() const {
        clear(work_.matrix, N_ * N_);
        for (int64_t i = 0; i < np_; i += LANES<double>) {
            ComplexVector before, power;
            last_powers(step_, i, before, power);
            for (int j = 0; j < LANES<double>; ++j)
                put_entry(work_.matrix, np_, i + j, i + j, {power.re[j], power.im[j]}, {0, 0});
        }
        for (int64_t r = 0; r < step_.rank; ++r) {
            powers(step_, step_.W[r], -1, DENSE, work_.rows);
            multiply<double>(N_, N_, {DENSE, {work_.rows.data, 1, N_}, work_.last_column(r), -N_}, work_.matrix, N_,
                             true);
        }
    }

    // False where it would lose digits that matter.
    bool make_quotients() const {
        for (int64_t r = 0; r < step_.rank; ++r) {
            copy(np_, step_.W[r], work_.left[r]);
            for (int64_t t = 0; t < DENSE; ++t) step_.apply<true>(work_.left[r], work_.left[r], work_.room);
            step_.apply<false>(work_.columns[r * DENSE + DENSE - 1], work_.right[r], work_.room);
        }
        double size = 0;
        for (int64_t r = 0; r < step_.rank; ++r) {
            size += largest(step_.G[r]) * largest(work_.left[r]) + largest(work_.right[r]) * largest(step_.W[r]);
        }
        // Roundings of 1e-16 of the numerators are then 1e-10 of the matrix, whose
        // largest numbers are about 1.
        const double least = 1e-12 * size * size;
        IndexVector near = {};
        clear(work_.matrix, N_ * N_);
        for (int64_t k = 0; k < n_; ++k) row(k, least, near);
        for (int j = 0; j < LANES<double>; ++j)
            if (near[j]) return false;
        for (int64_t i = 0; i < np_; i += LANES<double>) diagonals(i);
        return true;
    }

    // The largest square of a size, as a size.
    double largest(Split of) const {
        double found = 0;
        for (int64_t i = 0; i < np_; ++i) {
            const double size = of.re[i] * of.re[i] + of.im[i] * of.im[i];
            found = size > found ? size : found;
        }
        return ::sqrt(found);
    }

    static ComplexVector all(Complex value) { return {DoubleVector{} + value.re, DoubleVector{} + value.im}; }

    // What state k gives to all others.
    void row(int64_t k, double least, IndexVector &near) const {
        IndexVector lane = {};
        for (int j = 0; j < LANES<double>; ++j) lane[j] = j;
        const ComplexVector a = all(step_.increment.get(k));
        double *const of_re = work_.matrix + k * N_, *const of_im = of_re + np_ * N_;
        for (int64_t i = 0; i < np_; i += LANES<double>) {
            const IndexVector index = lane + i, other = (index != k) & (index < n_);
            const ComplexVector b = at(step_.increment, i);
            const DoubleVector re = b.re - a.re, im = b.im - a.im, sum = b.im + a.im;
            const DoubleVector E_size = re * re + im * im, F_size = re * re + sum * sum;
            near |= other & ((E_size <= least) | (F_size <= least));
            ComplexVector E = {}, F = {};
            for (int64_t r = 0; r < step_.rank; ++r) {
                const ComplexVector G = at(step_.G[r], i), q = at(work_.right[r], i);
                const ComplexVector p = all(work_.left[r].get(k)), W = all(step_.W[r].get(k));
                add_times(E, 0.5, conj_times(p, G)), add_times(E, -0.5, conj_times(W, q));
                add_times(F, 0.5, times(p, G)), add_times(F, -0.5, times(W, q));
            }
            const DoubleVector E_by = 1.0 / E_size, F_by = 1.0 / F_size;
            E = conj_times({re, im}, E), F = conj_times({re, sum}, F);
            const DoubleVector none = {};
            E.re = other ? E.re * E_by : none, E.im = other ? E.im * E_by : none;
            F.re = other ? F.re * F_by : none, F.im = other ? F.im * F_by : none;
            store(of_re + i, E.re + F.re), store(of_re + np_ + i, E.im + F.im);
            store(of_im + i, F.im - E.im), store(of_im + np_ + i, E.re - F.re);
        }
    }

    // What some states give to themselves: sums over j of powers times the
    // columns.
    void diagonals(int64_t i) const {
        const ComplexVector by = at(step_.increment, i);
        ComplexVector before, E, F = {};
        last_powers(step_, i, before, E);
        for (int64_t r = 0; r < step_.rank; ++r) {
            ComplexVector of_E = {}, of_F = {};
            for (int64_t t = 0; t < DENSE; ++t) {
                const ComplexVector g = at(work_.columns[r * DENSE + t], i);
                add_times(of_E, 1, times(by, of_E)), add_times(of_E, 1, g);
                add_times(of_F, 1, conj_times(by, of_F)), add_times(of_F, 1, g);
            }
            const ComplexVector W = at(step_.W[r], i);
            add_times(E, -0.5, conj_times(W, of_E)), add_times(F, -0.5, times(W, of_F));
        }
        for (int j = 0; j < LANES<double>; ++j)
            put_entry(work_.matrix, np_, i + j, i + j, {E.re[j], E.im[j]}, {F.re[j], F.im[j]});
    }

    const Transition &step_;
    int64_t n_, np_, N_;
    const Workshop &work_;
};

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
