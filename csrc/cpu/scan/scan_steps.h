// Samples that are stepped one by one, in double: those after whole chunks, and all where there are few. A vector of
// nodes stays in registers over all samples.
#pragma once

#include "../shared/complex.h"
#include "discretize.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// `rows` states of a feature in double, or its gradients, one row after another.
struct Rows {
    double *data;
    int64_t np;

    Rows(Arena &memory, int64_t rows, int64_t np) : data(memory.take<double>(rows * 2 * np)), np(np) {}

    Split operator[](int64_t t) const { return {data + t * 2 * np, data + t * 2 * np + np}; }
};

inline void add_times(ComplexVector &sum, double factor, ComplexVector of) {
    sum.re += factor * of.re, sum.im += factor * of.im;
}

// rows[0] = state, rows[t + 1] = lambda rows[t] + B u_t, of which the last is the state then.
template <class T>
void step_states(Split lambda, Split B, Split state, int64_t count, const T *u, Rows rows) {
    for (int64_t i = 0; i < rows.np; i += LANES<double>) {
        const ComplexVector a = at(lambda, i), b = at(B, i);
        ComplexVector s = at(state, i);
        store_at(rows[0], i, s);
        for (int64_t t = 0; t < count; ++t) {
            const double input = double(u[t]);
            s = {a.re * s.re - a.im * s.im + b.re * input, a.re * s.im + a.im * s.re + b.im * input};
            store_at(rows[t + 1], i, s);
        }
        store_at(state, i, s);
    }
}

// Re sum_n a b
inline double dot(int64_t np, Split a, Split b) {
    DoubleVector total = {};
    for (int64_t i = 0; i < np; i += LANES<double>)
        total += load(a.re + i) * load(b.re + i) - load(a.im + i) * load(b.im + i);
    return sum(total);
}

// Re sum_n conj(a) b
inline double conj_dot(int64_t np, Split a, Split b) {
    DoubleVector re = {}, im = {};
    for (int64_t i = 0; i < np; i += LANES<double>)
        re += load(a.re + i) * load(b.re + i), im += load(a.im + i) * load(b.im + i);
    return sum(re + im);
}

// y_t = Re sum_n C rows[t + 1 - lag] + D u_t
template <class T>
void step_outputs(Split C, double D, int64_t lag, int64_t count, const T *u, Rows rows, T *y) {
    for (int64_t t = 0; t < count; ++t) y[t] = T(dot(rows.np, C, rows[t + 1 - lag]) + D * double(u[t]));
}

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
