// What is left of the gradients of a feature's parameters once all rows are summed: sums over the powers within a
// chunk.
#pragma once

#include "scan_gradients.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

inline void add_products_of(ComplexVector &sum, ComplexVector a, ComplexVector b) { add_times(sum, 1, times(a, b)); }

// The gradients of a vector of nodes; those of x and B conjugated.
template <class T>
class NodeSums {
   public:
    NodeSums(const Backward<T> &of, int64_t i, int64_t lag) : of_(of), nodes_(of.forward.nodes), i_(i), lag_(lag) {
        x = at(of.by_x, i), B = at(of.by_B, i);
        if (!of.chunks()) return;
        ComplexVector v = {}, v1 = {};
        for (int64_t t = 0; t < CHUNK; ++t) {
            const ComplexVector V = row(of.V, CHUNK - 1 - t), of_v = times(power(t), {V.re, -V.im});
            add_times(v, 1, of_v), add_times(v1, double(t), of_v);
        }
        add_times(B, 1, v);
        add_products_of(x, at(nodes_.B, i), v1);
        add_times(x, double(CHUNK), times(at(nodes_.carry.one.high, i), at(of.GS, i)));
    }

    // The conjugated gradient of C of output k; adds its part to x and B. `correlation` is R_d.
    ComplexVector output(int64_t k, const double *correlation) {
        const OutputProducts<T> &products = of_.products[k];
        ComplexVector c = at(products.by_C, i_);
        if (!of_.chunks()) return c;
        ComplexVector w = {}, w1 = {}, r = {}, r1 = {};
        for (int64_t t = 0; t < CHUNK; ++t) {
            const ComplexVector of_w = times(power(t + 1 - lag_), row(products.W, t));
            add_times(w, 1, of_w), add_times(w1, double(t + 1 - lag_), of_w);
        }
        for (int64_t d = lag_; d < CHUNK; ++d) {
            const ComplexVector of_r = power(d - lag_);
            add_times(r, correlation[d], of_r), add_times(r1, double(d - lag_) * correlation[d], of_r);
        }
        const ComplexVector of_B = at(nodes_.B, i_), of_C = at(of_.forward.outputs[k].C, i_);
        add_times(c, 2, w), add_times(c, 2, times(of_B, r));
        add_products_of(B, of_C, r);
        add_products_of(x, of_C, w1), add_products_of(x, of_C, times(of_B, r1));
        return c;
    }

    ComplexVector x, B;

   private:
    ComplexVector power(int64_t t) const { return at(nodes_.power(t), i_); }
    ComplexVector row(const double *table, int64_t t) const {
        const double *const from = table + t * 2 * nodes_.np + i_;
        return {load(from), load(from + nodes_.np)};
    }

    const Backward<T> &of_;
    const Nodes<T> &nodes_;
    int64_t i_, lag_;
};

// To pairs i <= . < n of `sums`, or added to them.
inline void put_vector(double *sums, int64_t i, int64_t n, ComplexVector value, bool add) {
    for (int64_t j = 0; j < LANES<double> && i + j < n; ++j) {
        const Complex before = add ? get(sums, i + j) : Complex{0, 0};
        put(sums, i + j, before + Complex{value.re[j], value.im[j]});
    }
}

// Writes the sums of a direction; `correlations` is scratch memory for CHUNK numbers per output.
template <class T>
void write_sums(const Backward<T> &of, const Scan<T> &scan, int direction, double *correlations, double *sums) {
    const Sums<T> places(scan);
    const int64_t n = scan.n;
    for (int64_t k = 0; k < scan.c; ++k) {
        const OutputProducts<T> &products = of.products[k];
        if (direction == 0) sums[places.D + k] = products.by_D[0];
        if (!of.chunks()) continue;
        double *const correlation = correlations + k * CHUNK;
        clear(correlation, CHUNK);
        for (int64_t t = 0; t < CHUNK; ++t) {
            for (int64_t j = 0; j <= t; ++j) correlation[t - j] += products.R[t * CHUNK + j];
        }
    }
    for (int64_t i = 0; i < of.np(); i += LANES<double>) {
        NodeSums<T> node(of, i, direction);
        for (int64_t k = 0; k < scan.c; ++k) {
            double *const to = sums + places.C + 2 * (direction * scan.c + k) * n;
            put_vector(to, i, n, node.output(k, correlations + k * CHUNK), false);
        }
        put_vector(sums, i, n, node.x, direction > 0), put_vector(sums + places.B, i, n, node.B, direction > 0);
    }
}

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
