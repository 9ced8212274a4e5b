// The adjoint of one feature of a DPLR system. G_m is the gradient of S_{m+1}, and
//
//     G_{m-1} = (A_bar^T)* G_m + sum_t (C A_bar^{t+1-lag})* grad y_{m,t},
//     grad u_{m,t} = sum_{l >= t} K[l-t] grad y_{m,l} + <A_bar^{T-1-t} B_bar, G_m>.
//
// What a chunk takes are vectors b_t = A_bar^t B_bar and c_t = (C A_bar^t)*, numbers K[d] = <c_{d-lag}, B_bar> and the
// matrix A_bar^T. Their gradients are sums over chunks and rows:
//
//     of c_{t+1-lag}  W_t = sum_m S_m grad y_{m,t},       of K[d]     R_d = sum_{m,t} grad y_{m,t} u_{m,t-d},
//     of b_{T-1-t}    V_t = sum_m G_m u_{m,t},            of A_bar^T  X = sum_m G_m S_m*.
//
// From there they go back through the chains that made the vectors, a pair of vectors at a time: where <l, A_bar r> has
// the gradient 1, a has l conj(r), G_r has -l <W_r, r>, and W_r has -r <G_r, l>.
#pragma once

#include "../scan/scan_gradients.h"
#include "dplr_chunks.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// What gradients go back through chains with.
struct BackWorkshop {
    Workshop work;
    Rows columns, rows;  // gradients of one of the chains of the same name
    double *transposed, *of_chain, *of_gradients;

    BackWorkshop(Arena &memory, int64_t np, int64_t rank, bool chunks)
        : work(memory, np, rank, chunks),
          columns(memory, chunks ? DENSE : 0, np),
          rows(memory, chunks ? DENSE + 1 : 0, np),
          transposed(memory.take<double>(chunks ? 4 * np * np : 0)),
          of_chain(memory.take<double>(chunks ? DENSE * rank : 0)),
          of_gradients(memory.take<double>(chunks ? DENSE * rank : 0)) {}
};

inline void add_vector(int64_t np, Split from, double factor, Split to) {
    for (int64_t i = 0; i < np; i += LANES<double>) {
        ComplexVector sum = at(to, i);
        add_times(sum, factor, at(from, i));
        store_at(to, i, sum);
    }
}

// Gradients of what a Transition holds, of a as of its increment.
struct TransitionSums {
    Split a;
    Rows G, W;

    TransitionSums(Arena &memory, int64_t np, int64_t rank) : a(memory, np), G(memory, rank, np), W(memory, rank, np) {}

    void reset(int64_t np, int64_t rank) const {
        clear(a.re, np), clear(a.im, np), clear(G.data, rank * 2 * np), clear(W.data, rank * 2 * np);
    }

    // Adds those of <left, A_bar right>. `room` is for 2 rank numbers: the overlaps of left with G, and right with W.
    void add_pair(const Transition &of, Split left, Split right, double *room) const {
        double *const of_left = room, *const of_right = room + of.rank;
        of.overlaps(of.G, left, of_left), of.overlaps(of.W, right, of_right);
        for (int64_t i = 0; i < of.np; i += LANES<double>) {
            const ComplexVector l = at(left, i), r = at(right, i);
            ComplexVector of_a = at(a, i);
            add_times(of_a, 1, conj_times(r, l));
            store_at(a, i, of_a);
            for (int64_t k = 0; k < of.rank; ++k) {
                ComplexVector of_G = at(G[k], i), of_W = at(W[k], i);
                add_times(of_G, -of_right[k], l), add_times(of_W, -of_left[k], r);
                store_at(G[k], i, of_G), store_at(W[k], i, of_W);
            }
        }
    }

    // Takes gradients of the `count` vectors of a chain back to its start, which the first of them then is the whole
    // gradient of.
    template <bool TRANSPOSED>
    void chain_back(const Transition &of, int64_t count, const Rows &chain, int64_t first, const Rows &gradients,
                    const BackWorkshop &back) const {
        const int64_t rank = of.rank;
        for (int64_t t = count - 2; t >= 0; --t) {
            const Split after = gradients[t + 1], to = gradients[t];
            double *const overlaps = back.of_gradients + t * rank;
            of.overlaps(TRANSPOSED ? of.W : of.G, after, overlaps);
            for (int64_t i = 0; i < of.np; i += LANES<double>) {
                ComplexVector sum = at(to, i);
                add_times(sum, 1, of.applied<!TRANSPOSED>(i, at(after, i), overlaps));
                store_at(to, i, sum);
            }
        }
        for (int64_t t = 0; t + 1 < count; ++t)
            of.overlaps(TRANSPOSED ? of.G : of.W, chain[first + t], back.of_chain + t * rank);
        // The gradients of <left, A_bar right>.
        const Rows &left = TRANSPOSED ? chain : gradients, &right = TRANSPOSED ? gradients : chain;
        const int64_t left_first = TRANSPOSED ? first : 1, right_first = TRANSPOSED ? 1 : first;
        const double *const of_left = TRANSPOSED ? back.of_chain : back.of_gradients;
        const double *const of_right = TRANSPOSED ? back.of_gradients : back.of_chain;
        for (int64_t i = 0; i < of.np; i += LANES<double>) {
            ComplexVector of_a = at(a, i);
            for (int64_t t = 0; t + 1 < count; ++t)
                add_times(of_a, 1, conj_times(at(right[right_first + t], i), at(left[left_first + t], i)));
            store_at(a, i, of_a);
            for (int64_t r = 0; r < rank; ++r) {
                ComplexVector of_G = at(G[r], i), of_W = at(W[r], i);
                for (int64_t t = 0; t + 1 < count; ++t) {
                    add_times(of_G, -of_right[t * rank + r], at(left[left_first + t], i));
                    add_times(of_W, -of_left[t * rank + r], at(right[right_first + t], i));
                }
                store_at(G[r], i, of_G), store_at(W[r], i, of_W);
            }
        }
    }

    // Those of A_bar^DENSE, whose gradient is X.
    void matrix_back(const Transition &of, const double *X, const BackWorkshop &back) const {
        const int64_t np = of.np, N = 2 * np;
        for (int64_t i = 0; i < np; i += LANES<double>) {
            ComplexVector before, power, by_power = {}, of_a = at(a, i);
            last_powers(of, i, before, power);
            for (int j = 0; j < LANES<double>; ++j) {
                const double *const re = X + (i + j) * N + i + j, *const im = re + np * N;
                by_power.re[j] = re[0] + im[np], by_power.im[j] = im[0] - re[np];
            }
            add_times(of_a, double(DENSE), conj_times(before, by_power));
            store_at(a, i, of_a);
        }
        transpose(N, N, X, N, back.transposed, N);
        const Rows &rows = back.work.rows;
        for (int64_t r = 0; r < of.rank; ++r) {
            powers(of, of.W[r], -1, DENSE, rows);
            multiply<double>(DENSE, N, {N, {rows.data + (DENSE - 1) * N, -N, 1}, back.transposed, N}, back.columns.data,
                             N, false);
            multiply<double>(DENSE, N, {N, {back.work.last_column(r), -N, 1}, X, N}, back.rows.data, N, false);
            chain_back<false>(of, DENSE, back.work.columns, r * DENSE, back.columns, back);
            add_vector(np, back.columns[0], 1, G[r]);
            powers_back(of, rows, back.rows);
            add_vector(np, back.rows[0], -1, W[r]);
        }
    }

   private:
    // The same as chain_back, for the powers of conj(a).
    void powers_back(const Transition &of, const Rows &powers, const Rows &gradients) const {
        for (int64_t i = 0; i < of.np; i += LANES<double>) {
            const ComplexVector by = at(of.increment, i);
            ComplexVector of_a = at(a, i), after = at(gradients[DENSE - 1], i);
            for (int64_t t = DENSE - 2; t >= 0; --t) {
                add_times(of_a, 1, conj_times(after, at(powers[t], i)));
                add_times(after, 1, times(by, after)), add_times(after, 1, at(gradients[t], i));
            }
            store_at(a, i, of_a), store_at(gradients[0], i, after);
        }
    }
};

template <class T>
struct DenseBackward {
    DenseForward<T> forward;
    Rows adjoints;  // of the rows of a block
    T *by_time;     // (2 np, DENSE): what G_m adds to grad u
    T *states;      // (blocks, rows, chunks of a block, 2 np): S of a segment
    T *local;       // (rows, chunks of a block, 2 np): G; may be shared
    T *by_adjoint;  // (DENSE, 2 np): V, and in double that of the blocks before the last
    T *by_matrix;   // (2 np, 2 np): X
    double *V, *X;
    const OutputProducts<T, DENSE> *products;
    TransitionSums sums;
    Split by_B;
    Rows steps;   // (rest + 1): states before and after stepped samples; may be shared
    Rows starts;  // (segments, rows): the states that segments start from

    DenseBackward(Arena &memory, const Scan<T> &scan, int64_t segment, const DenseForward<T> &forward, T *local,
                  Rows steps)
        : forward(forward),
          adjoints(memory, scan.together(), np()),
          by_time(memory.take<T>(chunks(scan) ? columns() * DENSE : 0)),
          states(memory.take<T>(chunks(scan) ? segment * scan.together() * columns() : 0)),
          local(local),
          by_adjoint(memory.take<T>(chunks(scan) ? columns() * DENSE : 0)),
          by_matrix(memory.take<T>(chunks(scan) ? columns() * columns() : 0)),
          V(memory.take<double>(chunks(scan) ? columns() * DENSE : 0)),
          X(memory.take<double>(chunks(scan) ? columns() * columns() : 0)),
          products(each<OutputProducts<T, DENSE>>(
              memory, scan.c, [&] { return OutputProducts<T, DENSE>(memory, np(), chunks(scan)); })),
          sums(memory, np(), scan.system.rank),
          by_B(memory, np()),
          steps(steps),
          starts(memory, chunks(scan) ? (scan.chunks() / segment + 1) * scan.together() : 0, np()) {}

    static bool chunks(const Scan<T> &scan) { return scan.chunks() > 0; }
    int64_t np() const { return forward.system.np; }
    int64_t columns() const { return 2 * np(); }
    int64_t outputs() const { return forward.c; }

    void set(const Scan<T> &scan, int64_t h) const {
        forward.set(scan, h, true);
        if (chunks(scan)) transpose(DENSE, columns(), forward.inputs, columns(), by_time, DENSE);
    }

    void set_outputs(const Scan<T> &scan, int64_t h, int direction) const {
        forward.set_outputs(scan, h, direction);
        for (int64_t k = 0; k < outputs(); ++k) products[k].reset(np(), chunks(scan));
        if (chunks(scan)) clear(V, DENSE * columns()), clear(X, columns() * columns());
        sums.reset(np(), scan.system.rank), clear(by_B.re, np()), clear(by_B.im, np());
    }

    // The products over some chunks, to those before them if there are `more`.
    void add_products(int64_t count, const T *S, const T *G, const T *u, bool more) const {
        const int64_t N = columns();
        multiply<T>(DENSE, N, {count, {u, 1, DENSE}, G, N}, by_adjoint, N, more);
        multiply<T>(N, N, {count, {G, 1, N}, S, N}, by_matrix, N, more);
    }
    void add_output_products(int64_t k, int64_t count, const T *S, const T *grad_y, const T *u, bool more) const {
        const OutputProducts<T, DENSE> &of = products[k];
        multiply<T>(DENSE, columns(), {count, {grad_y, 1, DENSE}, S, columns()}, of.by_state, columns(), more);
        // Outputs of a chunk's first half have no earlier samples in its second half.
        constexpr int64_t HALF = DENSE / 2;
        multiply<T>(HALF, HALF, {count, {grad_y, 1, DENSE}, u, DENSE}, of.by_sample, DENSE, more);
        multiply<T>(HALF, DENSE, {count, {grad_y + HALF, 1, DENSE}, u, DENSE}, of.by_sample + HALF * DENSE, DENSE,
                    more);
        of.by_D[0] += Backward<T>::product(count * DENSE, grad_y, u);
    }

    void flush_products() const {
        for (int64_t k = 0; k < outputs(); ++k) {
            Backward<T>::add(products[k].by_state, products[k].W, columns() * DENSE);
            for (int64_t t = 0; t < DENSE; ++t)
                Backward<T>::add(products[k].by_sample + t * DENSE, products[k].R + t * DENSE, t + 1);
        }
        Backward<T>::add(by_adjoint, V, columns() * DENSE), Backward<T>::add(by_matrix, X, columns() * columns());
    }

    // What outputs of one row add to the gradients of states.
    void take_back(int64_t count, const T *grad_y, int64_t channel, T *out) const {
        for (int64_t k = 0; k < outputs(); ++k) {
            const T *const table = forward.outputs[k].by_time;
            multiply<T>(count, columns(), {DENSE, {grad_y + k * channel, DENSE, 1}, table, columns()}, out, columns(),
                        k > 0);
        }
    }

    void put_back(int64_t count, const T *G, const T *grad_y, int64_t channel, T *grad_u) const {
        for (int64_t k = 0; k < outputs(); ++k) {
            const Product<T> product = {k == 0 ? columns() : 0, {G, columns(), 1}, by_time, DENSE};
            forward.outputs[k].toeplitz.apply_transposed(count, product, grad_y + k * channel, grad_u, k > 0);
        }
    }

    // Takes the adjoint of row r back over `count` stepped samples. grad_u may be null.
    void step_back(int64_t r, int64_t count, int lag, const T *grad_y, int64_t channel, const T *u, T *grad_u,
                   bool parameters) const {
        const Transition &step = forward.system.step;
        const Split g = adjoints[r];
        double *const room = forward.work->room;
        if (parameters) {
            copy(forward.states[r].re, steps[0].re);
            for (int64_t t = 0; t < count; ++t) forward.advance(steps[t], double(u[t]), steps[t + 1]);
        }
        for (int64_t t = count - 1; t >= 0; --t) {
            if (lag == 0) add_outputs(t, grad_y, channel, g);
            if (grad_u) {
                double du = conj_dot(np(), forward.system.B_bar, g);
                for (int64_t k = 0; k < outputs(); ++k) du += forward.outputs[k].D[0] * double(grad_y[k * channel + t]);
                grad_u[t] = T(du);
            }
            if (parameters) {
                add_vector(np(), g, double(u[t]), by_B);
                sums.add_pair(step, g, steps[t], room);
            }
            step.apply<true>(g, g, room);
            if (lag == 1) add_outputs(t, grad_y, channel, g);
        }
        for (int64_t k = 0; k < outputs() && parameters; ++k) {
            const T *const dy = grad_y + k * channel;
            products[k].by_D[0] += Backward<T>::product(count, dy, u);
            for (int64_t t = 0; t < count; ++t) add_vector(np(), steps[t + 1 - lag], double(dy[t]), products[k].by_C);
        }
    }

    void copy(const double *from, double *to) const { convert(columns(), from, to); }

    // Takes the sums over chunks back to A_bar, B_bar and C.
    void chains_back(const BackWorkshop &back, int64_t lag) const {
        const Transition &step = forward.system.step;
        const Workshop &work = back.work;
        const int64_t N = columns();
        work.make_columns(step, forward.system.B_bar);
        for (int64_t t = 0; t < DENSE; ++t) copy(V + (DENSE - 1 - t) * N, back.columns[t].re);
        for (int64_t k = 0; k < outputs(); ++k) {
            const OutputProducts<T, DENSE> &of = products[k];
            const Split C = forward.outputs[k].C, by_C = of.by_C;
            s4_fast::cpu::S4_FAST_ISA::copy(np(), C, work.rows[0]);
            chains<true>(step, 1, DENSE + 1 - lag, work.rows, work.room);
            clear(back.rows.data, N);
            convert(DENSE * N, of.W, back.rows[1 - lag].re);
            double correlations[DENSE] = {};
            for (int64_t t = 0; t < DENSE; ++t) {
                for (int64_t j = 0; j <= t; ++j) correlations[t - j] += of.R[t * DENSE + j];
            }
            for (int64_t d = lag; d < DENSE; ++d) {
                const double correlation = correlations[d];
                add_vector(np(), C, correlation, back.columns[d - lag]);
                add_vector(np(), work.input(step.rank, d - lag), correlation, back.rows[0]);
            }
            sums.chain_back<true>(step, DENSE + 1 - lag, work.rows, 0, back.rows, back);
            add_vector(np(), back.rows[0], 1, by_C);
        }
        sums.chain_back<false>(step, DENSE, work.columns, step.rank * DENSE, back.columns, back);
        add_vector(np(), back.columns[0], 1, by_B);
        sums.matrix_back(step, X, back);
    }

   private:
    // Adds what the outputs have of the state to its gradient.
    void add_outputs(int64_t t, const T *grad_y, int64_t channel, Split g) const {
        for (int64_t k = 0; k < outputs(); ++k)
            add_vector(np(), forward.outputs[k].C, double(grad_y[k * channel + t]), g);
    }
};

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
