// The adjoint of one feature. G_m is the gradient of S_{m+1}, and
//
//     G_{m-1} = conj(lambda^T) G_m + sum_t conj(2 C lambda^{t+1-lag}) grad y_{m,t},
//     grad u_{m,t} = sum_{l >= t} K[l-t] grad y_{m,l} + Re sum_n conj(B lambda^{T-1-t}) G_m.
//
// The parameters' gradients are sums over t of three kinds of products, which are first summed over chunks and rows:
// W_t = sum_m S_m grad y_{m,t}, V_t = sum_m conj(G_m) u_{m,t}, R_d = sum_{m,t} grad y_{m,t} u_{m,t-d} inside chunks.
//
//     conj(grad C) = 2 sum_t lambda^{t+1-lag} W_t + 2 B sum_{d >= lag} lambda^{d-lag} R_d
//     conj(grad B) = sum_t lambda^{T-1-t} V_t + 2 C sum_{d >= lag} lambda^{d-lag} R_d
//     conj(grad x) = 2 C sum_t (t+1-lag) lambda^{t+1-lag} W_t + B sum_t (T-1-t) lambda^{T-1-t} V_t
//                    + 2 C B sum_{d >= lag} (d-lag) lambda^{d-lag} R_d + T lambda^T sum_m conj(G_m) S_m
//
// Where there are several outputs, G, grad u, grad B and grad x are sums over them.
#pragma once

#include <initializer_list>

#include "scan_chunks.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// The products that belong to one output, of the last blocks, and in double of those before.
template <class T, int64_t CHUNK = Scan<T>::CHUNK>
struct OutputProducts {
    T *by_state;   // (CHUNK, 2 np): W
    T *by_sample;  // (CHUNK, CHUNK): sum_m grad y_{m,t} u_{m,j}
    double *W, *R;
    Split by_C;    // what the stepped samples add to the conjugated gradient
    double *by_D;  // one number

    OutputProducts(Arena &memory, int64_t np, bool chunks)
        : by_state(memory.take<T>(chunks ? 2 * np * CHUNK : 0)),
          by_sample(memory.take<T>(chunks ? CHUNK * CHUNK : 0)),
          W(memory.take<double>(chunks ? 2 * np * CHUNK : 0)),
          R(memory.take<double>(chunks ? CHUNK * CHUNK : 0)),
          by_C(memory, np),
          by_D(memory.take<double>(1)) {}

    void reset(int64_t np, bool chunks) const {
        if (chunks) clear(W, CHUNK * 2 * np), clear(R, CHUNK * CHUNK);
        clear(by_C.re, np), clear(by_C.im, np), clear(by_D, 1);
    }
};

template <class T>
struct Backward {
    Forward<T> forward;
    Split adjoint;
    T *by_time;     // (2 np, CHUNK): what G_m adds to grad u
    T *states;      // (segment, 2 np): S
    T *adjoints;    // (BLOCK, 2 np): G; may be shared
    T *by_adjoint;  // (CHUNK, 2 np): sum_m G_m u_{m,t} of the last blocks, and in double of those before
    double *V;
    const OutputProducts<T> *products;
    Split GS;          // sum_m conj(G_m) S_m
    Split by_x, by_B;  // what the stepped samples add to the conjugated gradients
    Rows gradients;    // (rest): of the stepped states; may be shared
    Rows starts;       // (segments): the states that segments start from

    Backward(Arena &memory, const Scan<T> &scan, int64_t segment, const Forward<T> &forward, T *adjoints,
             Rows gradients)
        : forward(forward),
          adjoint(memory, np()),
          by_time(memory.take<T>(chunks() ? 2 * np() * CHUNK : 0)),
          states(memory.take<T>(chunks() ? segment * 2 * np() : 0)),
          adjoints(adjoints),
          by_adjoint(memory.take<T>(chunks() ? 2 * np() * CHUNK : 0)),
          V(memory.take<double>(chunks() ? 2 * np() * CHUNK : 0)),
          products(each<OutputProducts<T>>(memory, scan.c, [&] { return OutputProducts<T>(memory, np(), chunks()); })),
          GS(memory, np()),
          by_x(memory, np()),
          by_B(memory, np()),
          gradients(gradients),
          starts(memory, chunks() ? scan.chunks() / segment + 1 : 0, np()) {}

    int64_t np() const { return forward.nodes.np; }
    bool chunks() const { return forward.nodes.chunks; }
    int64_t outputs() const { return forward.c; }

    void set(const Scan<T> &scan, int64_t h) const {
        forward.set(scan, h);
        if (chunks()) transpose(CHUNK, 2 * np(), forward.inputs, 2 * np(), by_time, CHUNK);
    }

    void set_outputs(const Scan<T> &scan, int64_t h, int direction) const {
        forward.set_outputs(scan, h, direction);
        for (int64_t k = 0; k < outputs(); ++k) products[k].reset(np(), chunks());
        if (chunks()) clear(V, CHUNK * 2 * np());
        for (const Split &sums : {GS, by_x, by_B}) clear(sums.re, np()), clear(sums.im, np());
    }

    static void add(const T *from, double *to, int64_t count) {
        for (int64_t i = 0; i < count; ++i) to[i] += double(from[i]);
    }

    // sum_m conj(G_m) S_m of one block.
    void add_GS(int64_t rows, const T *S) const {
        const int64_t whole = np() / LANES<T> * LANES<T>;
        for (int64_t i = 0; i < whole; i += LANES<T>) {
            Vector<T> re = {}, im = {};
            for (int64_t at = i; at < rows * 2 * np(); at += 2 * np()) {
                const Vector<T> G_re = load(adjoints + at), G_im = load(adjoints + at + np());
                const Vector<T> S_re = load(S + at), S_im = load(S + at + np());
                re += G_re * S_re + G_im * S_im, im += G_re * S_im - G_im * S_re;
            }
            for (int j = 0; j < LANES<T>; ++j) GS.re[i + j] += double(re[j]), GS.im[i + j] += double(im[j]);
        }
        for (int64_t i = whole; i < np(); i += LANES<double>) {
            DoubleVector re = load(GS.re + i), im = load(GS.im + i);
            for (int64_t at = i; at < rows * 2 * np(); at += 2 * np()) {
                const DoubleVector G_re = load_double(adjoints + at), G_im = load_double(adjoints + at + np());
                const DoubleVector S_re = load_double(S + at), S_im = load_double(S + at + np());
                re += G_re * S_re + G_im * S_im, im += G_re * S_im - G_im * S_re;
            }
            store(GS.re + i, re), store(GS.im + i, im);
        }
    }

    // The products over one block, to those of the blocks before it if there are `more`.
    void add_products(int64_t rows, const T *S, const T *grad_y, int64_t channel, const T *u, bool more) const {
        const int64_t columns = 2 * np();
        for (int64_t k = 0; k < outputs(); ++k, grad_y += channel) {
            const OutputProducts<T> &of = products[k];
            multiply<T>(CHUNK, columns, {rows, {grad_y, 1, CHUNK}, S, columns}, of.by_state, columns, more);
            multiply<T>(CHUNK, CHUNK, {rows, {grad_y, 1, CHUNK}, u, CHUNK}, of.by_sample, CHUNK, more);
            of.by_D[0] += product(rows * CHUNK, grad_y, u);
        }
        multiply<T>(CHUNK, columns, {rows, {u, 1, CHUNK}, adjoints, columns}, by_adjoint, columns, more);
        add_GS(rows, S);
    }

    void flush_products() const {
        for (int64_t k = 0; k < outputs(); ++k) {
            add(products[k].by_state, products[k].W, 2 * np() * CHUNK);
            add(products[k].by_sample, products[k].R, CHUNK * CHUNK);
        }
        add(by_adjoint, V, 2 * np() * CHUNK);
    }

    // sum_l grad y_l u_l, which may cancel to less than the rounding of R.
    static double product(int64_t count, const T *grad_y, const T *u) {
        DoubleVector total = {};
        int64_t l = 0;
        for (; l + LANES<double> <= count; l += LANES<double>) total += load_double(grad_y + l) * load_double(u + l);
        double rest = 0;
        for (; l < count; ++l) rest += double(grad_y[l]) * double(u[l]);
        return sum(total) + rest;
    }

    // Takes the adjoint back over a block. grad_u may be null.
    void block_back(int64_t rows, const T *grad_y, int64_t channel, T *grad_u, const Ahead &ahead) const {
        const int64_t columns = 2 * np();
        for (int64_t k = 0; k < outputs(); ++k) {
            const Product<T> product = {CHUNK, {grad_y + k * channel, CHUNK, 1}, forward.outputs[k].by_time, columns};
            multiply<T>(rows, columns, product, adjoints, columns, k > 0);
        }
        ahead.quarter(0);
        forward.nodes.carry.over(adjoint, true, rows, adjoints);
        ahead.quarter(1);
        for (int64_t k = 0; k < outputs() && grad_u; ++k) {
            const Product<T> product = {k == 0 ? columns : 0, {adjoints, columns, 1}, by_time, CHUNK};
            forward.outputs[k].toeplitz.apply_transposed(rows, product, grad_y + k * channel, grad_u, k > 0);
        }
        ahead.quarter(2), ahead.quarter(3);
    }

    // Takes the adjoint back over `count` stepped samples, whose states are kept if gradients of `parameters` are
    // wanted.
    __attribute__((noinline)) void step_back(int64_t count, int lag, const T *grad_y, int64_t channel, const T *u,
                                             T *grad_u, bool parameters) const {
        const Nodes<T> &nodes = forward.nodes;
        for (int64_t i = 0; i < np(); i += LANES<double>) {
            const ComplexVector lambda = at(nodes.lambda, i);
            ComplexVector g = at(adjoint, i), of_x = at(by_x, i), of_B = at(by_B, i);
            for (int64_t t = count - 1; t >= 0; --t) {
                if (lag == 0) add_outputs(i, t, grad_y, channel, g);
                store_at(gradients[t], i, g);
                if (parameters) {
                    add_times(of_B, double(u[t]), {g.re, -g.im});
                    const ComplexVector x = conj_times(g, times(lambda, at(forward.steps[t], i)));
                    of_x.re += x.re, of_x.im += x.im;
                }
                g = conj_times(lambda, g);
                if (lag == 1) add_outputs(i, t, grad_y, channel, g);
            }
            store_at(adjoint, i, g), store_at(by_x, i, of_x), store_at(by_B, i, of_B);
        }
        for (int64_t t = 0; t < count && grad_u; ++t) {
            double du = conj_dot(np(), nodes.B, gradients[t]);
            for (int64_t k = 0; k < outputs(); ++k) du += forward.outputs[k].D[0] * double(grad_y[k * channel + t]);
            grad_u[t] = T(du);
        }
        for (int64_t k = 0; k < outputs() && parameters; ++k) {
            const T *const dy = grad_y + k * channel;
            products[k].by_D[0] += product(count, dy, u);
            for (int64_t i = 0; i < np(); i += LANES<double>) {
                ComplexVector of_C = at(products[k].by_C, i);
                for (int64_t t = 0; t < count; ++t) {
                    add_times(of_C, 2 * double(dy[t]), at(forward.steps[t + 1 - lag], i));
                }
                store_at(products[k].by_C, i, of_C);
            }
        }
    }

    // Adds what the outputs have of the state to its gradient.
    void add_outputs(int64_t i, int64_t t, const T *grad_y, int64_t channel, ComplexVector &g) const {
        for (int64_t k = 0; k < outputs(); ++k) {
            const ComplexVector C = at(forward.outputs[k].C, i);
            add_times(g, double(grad_y[k * channel + t]), {C.re, -C.im});
        }
    }

    void keep_start(int64_t s) const { copy(forward.state, starts[s]); }
    void go_to_start(int64_t s) const { copy(starts[s], forward.state); }
    void copy(Split from, Split to) const {
        for (int64_t i = 0; i < np(); i += LANES<double>) store_at(to, i, at(from, i));
    }
};

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
