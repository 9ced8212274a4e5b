// The recurrence of a DPLR system in chunks of T samples, the products of
// scan_chunks.h with chains of vectors for powers of nodes, and several rows of
// a feature at a time, so that their states are carried together:
//
//     S_{m+1} = A_bar^T S_m + sum_j A_bar^{T-1-j} B_bar u_{m,j},
//     y_{m,t} = sum_{j <= t} K[t-j] u_{m,j} + <C A_bar^{t+1-lag}, S_m>,
//     K[d] = <C A_bar^{d-lag}, B_bar> from d = lag on, and D more for d = 0.
#pragma once

#include "../scan/scan_chunks.h"
#include "../shared/finite.h"
#include "dplr_carry.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// The samples of rows that are carried together.
template <class T>
class SampleRows {
   public:
    SampleRows(Arena &memory, const Scan<T> &scan, int64_t count, int64_t channels, bool given = true)
        : rows_{make(0, memory, scan, count, channels, given), make(1, memory, scan, count, channels, given),
                make(2, memory, scan, count, channels, given), make(3, memory, scan, count, channels, given)} {}

    void start(bool from_end) {
        for (Samples<T> &row : rows_) row.start(from_end);
    }
    Samples<T> &operator[](int64_t r) { return rows_[r]; }

   private:
    static Samples<T> make(int64_t r, Arena &memory, const Scan<T> &scan, int64_t count, int64_t channels, bool given) {
        return Samples<T>(memory, scan, r < scan.together() ? count : 0, channels, given);
    }

    static_assert(Scan<T>::TOGETHER == 4, "");
    Samples<T> rows_[4];
};

// One of a feature's outputs.
template <class T>
struct DenseOutput {
    Split C;    // the conjugate of twice the parameter: <C, s> is the output
    double *D;  // one number
    Toeplitz<T, DENSE> toeplitz;
    T *by_time;  // (DENSE, 2 np): the transposes of C A_bar^{t+1-lag}
    T *by_node;  // its transpose: what S_m adds to y

    DenseOutput(Arena &memory, int64_t np, bool chunks)
        : C(memory, np),
          D(memory.take<double>(1)),
          toeplitz(memory, chunks),
          by_time(memory.take<T>(chunks ? DENSE * 2 * np : 0)),
          by_node(memory.take<T>(chunks ? DENSE * 2 * np : 0)) {}

    // Output k of feature h in one of the directions.
    void set(const Scan<T> &scan, const DplrSystem &system, const Workshop &work, int64_t h, int64_t k,
             int direction) const {
        const int64_t n = system.n, np = system.np, lag = direction;
        C.set(scan.C + 2 * ((direction * scan.c + k) * scan.H + h) * n, n, np, 2);
        for (int64_t i = 0; i < np; ++i) C.im[i] = -C.im[i];
        D[0] = direction == 0 && scan.D ? double(scan.D[k * scan.H + h]) : 0;
        if (scan.chunks() == 0) return;
        copy(np, C, work.rows[0]);
        chains<true>(system.step, 1, DENSE + 1 - lag, work.rows, work.room);
        convert(DENSE * 2 * np, work.rows[1 - lag].re, by_time);
        transpose(DENSE, 2 * np, by_time, 2 * np, by_node, DENSE);
        double kernel[DENSE];
        for (int64_t t = 0; t < DENSE; ++t) kernel[t] = t < lag ? 0 : conj_dot(np, work.rows[t - lag], system.B_bar);
        kernel[0] += D[0];
        toeplitz.set(kernel);
    }

    void apply(int64_t count, const T *S, int64_t columns, const T *u, T *y) const {
        toeplitz.apply(count, {columns, {S, columns, 1}, by_node, DENSE}, u, y);
    }
};

// What the forward pass of one feature works with.
template <class T>
struct DenseForward {
    DplrSystem system;
    Rows states;  // of the rows of a block
    int64_t c;
    const DenseOutput<T> *outputs;
    T *inputs;  // (DENSE, 2 np): A_bar^{T-1-t} B_bar
    DenseCarry<T> carry;
    const Workshop *work;
    T *local;  // (rows, chunks of a block, 2 np): inputs of chunks, then the
               // states before them; may be shared

    DenseForward(Arena &memory, const Scan<T> &scan, bool begins, bool adjoint, const Workshop *work, T *local, T *now,
                 T *next)
        : system(memory, scan.n, scan.system.rank),
          states(memory, scan.together(), system.np),
          c(scan.c),
          outputs(
              each<DenseOutput<T>>(memory, c, [&] { return DenseOutput<T>(memory, system.np, scan.chunks() > 0); })),
          inputs(memory.take<T>(scan.chunks() > 0 ? DENSE * 2 * system.np : 0)),
          carry(memory, scan, begins || scan.state || scan.ahead, adjoint, now, next),
          work(work),
          local(local) {}

    static T *make_local(Arena &memory, const Scan<T> &scan) {
        return memory.take<T>(scan.chunks() > 0 ? DENSE_BLOCK * 2 * padded(scan.n) : 0);
    }

    int64_t columns() const { return 2 * system.np; }

    void set(const Scan<T> &scan, int64_t h, bool adjoint) const {
        system.set(scan.system, h);
        if (scan.chunks() == 0) return;
        work->make_columns(system.step, system.B_bar);
        carry.set(system.step, system.n, *work, adjoint);
        for (int64_t t = 0; t < DENSE; ++t)
            convert(columns(), work->input(system.rank, t).re, inputs + (DENSE - 1 - t) * columns());
    }

    void set_outputs(const Scan<T> &scan, int64_t h, int direction) const {
        for (int64_t k = 0; k < c; ++k) outputs[k].set(scan, system, *work, h, k, direction);
    }

    // What `count` chunks put into states.
    __attribute__((flatten)) void take_in(int64_t count, const T *u, T *out) const {
        multiply<T>(count, columns(), {DENSE, {u, DENSE, 1}, inputs, columns()}, out, columns(), false);
    }

    // Output k is `channel` numbers after the one before it.
    void put_out(int64_t count, const T *S, const T *u, T *y, int64_t channel) const {
        for (int64_t k = 0; k < c; ++k) outputs[k].apply(count, S, columns(), u, y + k * channel);
        if (!all_finite(u, count * DENSE)) mend(S, u, y, channel, finite_samples(u, count * DENSE));
    }

    // The state of row r over samples that are stepped one by one.
    void stepped(int64_t r, int64_t count, int lag, const T *u, T *y, int64_t channel) const {
        const Split s = states[r];
        for (int64_t t = 0; t < count; ++t) {
            if (lag == 1) step_output(s, u[t], y + t, channel);
            advance(s, double(u[t]), s);
            if (lag == 0) step_output(s, u[t], y + t, channel);
        }
    }

    // to = A_bar s + B_bar u; in place too.
    void advance(Split s, double u, Split to) const {
        const Transition &step = system.step;
        step.overlaps(step.W, s, work->room);
        for (int64_t i = 0; i < system.np; i += LANES<double>) {
            ComplexVector next = step.applied<false>(i, at(s, i), work->room);
            add_times(next, u, at(system.B_bar, i));
            store_at(to, i, next);
        }
    }

   private:
    // The outputs of a chunk before its first sample that is not finite, which
    // has spoilt them: zeros of the Toeplitz matrix times it are not zero. Those
    // of later chunks have it in their states.
    void mend(const T *S, const T *u, T *y, int64_t channel, int64_t good) const {
        const int64_t row = good / DENSE, rest = good % DENSE;
        T samples[DENSE], again[DENSE];
        clear(samples, DENSE);
        for (int64_t t = 0; t < rest; ++t) samples[t] = u[row * DENSE + t];
        for (int64_t k = 0; k < c; ++k, y += channel) {
            outputs[k].apply(1, S + row * columns(), columns(), samples, again);
            for (int64_t t = 0; t < rest; ++t) y[row * DENSE + t] = again[t];
        }
    }

    void step_output(Split s, T u, T *y, int64_t channel) const {
        for (int64_t k = 0; k < c; ++k)
            y[k * channel] = T(conj_dot(system.np, outputs[k].C, s) + outputs[k].D[0] * double(u));
    }
};

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
