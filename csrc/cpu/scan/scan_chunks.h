// The recurrence in chunks of T samples. A matrix product takes all chunks of a row at once:
//
//     S_{m+1} = lambda^T S_m + sum_j lambda^{T-1-j} B u_{m,j},
//     y_{m,t} = sum_{j <= t} K[t-j] u_{m,j} + 2 Re sum_n C lambda^{t+1-lag} S_m,
//     K[d] = 2 Re sum_n C B lambda^{d-lag} from d = lag on, and D more for d = 0.
//
// From the end, outputs have the state before their own sample: the lag is then 1, and else 0. The states between
// chunks are carried in double: a rounded lambda would be wrong by its error times L.
#pragma once

#include "../shared/carry.h"
#include "../shared/finite.h"
#include "../shared/multiply.h"
#include "samples.h"
#include "scan_steps.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// `count` objects in a row.
template <class Object, class Make>
const Object *each(Arena &memory, int64_t count, Make make) {
    Object *const objects = memory.take<Object>(count);
    for (int64_t j = 0; j < count; ++j) {
        const Object object = make();
        if (objects) __builtin_memcpy(static_cast<void *>(objects + j), &object, sizeof object);
    }
    return objects;
}

// The parameters of one feature, and where there are chunks the powers lambda^t, t <= CHUNK.
template <class T>
struct Nodes {
    int64_t n, np;
    Split x, lambda, B;
    double *step;
    bool chunks;
    Carry<T> carry;
    PowerTable powers;

    Nodes(Arena &memory, const Scan<T> &scan)
        : n(scan.n),
          np(padded(n)),
          x(memory, np),
          lambda(memory, np),
          B(memory, np),
          step(memory.take<double>(np)),
          chunks(scan.chunks() > 0),
          carry(memory, np),
          powers(memory, np, chunks ? CHUNK + 1 : 0) {}

    void set(const Scan<T> &scan, int64_t h) const {
        discretize(scan.system, h, n, np, step, x, lambda, B);
        if (!chunks) return;
        carry.set(n, x, lambda, CHUNK, scan.L);
        powers.fill(lambda);
    }

    Split power(int64_t t) const { return {powers.re + t * np, powers.im + t * np}; }
};

// Toeplitz matrices in the rows of `multiply` with a step of -1: K[t - k] for t >= k, or its transpose.
template <class T, int64_t CHUNK = Scan<T>::CHUNK>
struct Toeplitz {
    T *causal, *anticausal;

    Toeplitz(Arena &memory, bool chunks)
        : causal(memory.take<T>(chunks ? 2 * CHUNK : 0)), anticausal(memory.take<T>(chunks ? 2 * CHUNK : 0)) {}

    void set(const double *kernel) const {
        for (int64_t d = 0; d < CHUNK; ++d) {
            causal[d] = anticausal[CHUNK + d] = 0;
            causal[CHUNK + d] = anticausal[CHUNK - d] = T(kernel[d]);
        }
    }

    // y = product + causal u, and u = [itself, if add, +] product + anticausal y, for rows of CHUNK samples.
    void apply(int64_t rows, Product<T> product, const T *u, T *y) const {
        for (int64_t j = 0; j < CHUNK; j += COLUMNS, product.w += COLUMNS) {
            const Product<T> local = {j + LANES<T>, {u, CHUNK, 1}, causal + CHUNK + j, -1};
            multiply_columns<T, 2, Tail::right>(rows, product, local, y + j, CHUNK, false);
        }
    }
    void apply_transposed(int64_t rows, Product<T> product, const T *y, T *u, bool add) const {
        for (int64_t j = 0; j < CHUNK; j += COLUMNS, product.w += COLUMNS) {
            // The rows are taken from the last to the first.
            const int64_t last = CHUNK - 1, depth = CHUNK - j - LANES<T>;
            const Product<T> local = {depth, {y + last, CHUNK, -1}, anticausal + CHUNK + j - last, 1};
            multiply_columns<T, 2, Tail::left>(rows, product, local, u + j, CHUNK, add);
        }
    }

    static constexpr int64_t COLUMNS = 2 * LANES<T>;
};

// One of a feature's outputs.
template <class T>
struct Output {
    Split C;    // twice the parameter
    double *D;  // one number
    Toeplitz<T> toeplitz;
    T *by_time;  // (CHUNK, 2 np): conj(2 C lambda^{t+1-lag})
    T *by_node;  // its transpose: what S_m adds to y

    Output(Arena &memory, const Nodes<T> &nodes)
        : C(memory, nodes.np),
          D(memory.take<double>(1)),
          toeplitz(memory, nodes.chunks),
          by_time(memory.take<T>(nodes.chunks ? CHUNK * 2 * nodes.np : 0)),
          by_node(memory.take<T>(nodes.chunks ? CHUNK * 2 * nodes.np : 0)) {}

    // Output k of feature h in one of the directions.
    void set(const Scan<T> &scan, const Nodes<T> &nodes, int64_t h, int64_t k, int direction) const {
        const int64_t n = nodes.n, np = nodes.np, lag = direction;
        C.set(scan.C + 2 * ((direction * scan.c + k) * scan.H + h) * n, n, np, 2);
        D[0] = direction == 0 && scan.D ? double(scan.D[k * scan.H + h]) : 0;
        if (!nodes.chunks) return;
        double kernel[CHUNK];
        for (int64_t t = 0; t < CHUNK; ++t) {
            const Split power = nodes.power(t + 1 - lag);
            write_products(np, power.re, power.im, C, true, by_time + t * 2 * np);
            kernel[t] = t < lag ? 0 : response(nodes, t - lag);
        }
        kernel[0] += D[0];
        transpose(CHUNK, 2 * np, by_time, 2 * np, by_node, CHUNK);
        toeplitz.set(kernel);
    }

   private:
    // Re sum_n C B lambda^t, C being twice the parameter.
    double response(const Nodes<T> &nodes, int64_t t) const {
        const Split power = nodes.power(t);
        DoubleVector total = {};
        for (int64_t i = 0; i < nodes.np; i += LANES<double>) {
            const ComplexVector product = times(at(nodes.B, i), at(C, i)), by = at(power, i);
            total += product.re * by.re - product.im * by.im;
        }
        return sum(total);
    }
};

// What the forward pass of one feature works with.
template <class T>
struct Forward {
    Nodes<T> nodes;
    Split state;
    int64_t c;
    const Output<T> *outputs;
    T *inputs;   // (CHUNK, 2 np): B lambda^{T-1-t}
    T *local;    // (BLOCK, 2 np): inputs of chunks, then the states before them; may be shared
    Rows steps;  // (rest + 1): states before and after stepped samples; may be shared

    Forward(Arena &memory, const Scan<T> &scan, T *local, Rows steps)
        : nodes(memory, scan),
          state(memory, nodes.np),
          c(scan.c),
          outputs(each<Output<T>>(memory, c, [&] { return Output<T>(memory, nodes); })),
          inputs(memory.take<T>(nodes.chunks ? CHUNK * 2 * nodes.np : 0)),
          local(local),
          steps(steps) {}

    static T *make_local(Arena &memory, const Scan<T> &scan) {
        return memory.take<T>(scan.chunks() > 0 ? BLOCK * 2 * padded(scan.n) : 0);
    }
    static Rows make_steps(Arena &memory, const Scan<T> &scan) {
        return {memory, scan.rest() > 0 ? scan.rest() + 1 : 0, padded(scan.n)};
    }

    void set(const Scan<T> &scan, int64_t h) const {
        nodes.set(scan, h);
        for (int64_t t = 0; t < CHUNK && nodes.chunks; ++t) {
            const Split power = nodes.power(t);
            write_products(nodes.np, power.re, power.im, nodes.B, false, inputs + (CHUNK - 1 - t) * 2 * nodes.np);
        }
    }

    void set_outputs(const Scan<T> &scan, int64_t h, int direction) const {
        for (int64_t k = 0; k < c; ++k) outputs[k].set(scan, nodes, h, k, direction);
    }

    // Flat: with the depth and the steps of the product as constants.
    __attribute__((flatten)) void take_in(int64_t rows, const T *u, T *out) const {
        multiply<T>(rows, 2 * nodes.np, {CHUNK, {u, CHUNK, 1}, inputs, 2 * nodes.np}, out, 2 * nodes.np, false);
    }

    // The states before `rows` chunks, from `state`, which is taken over them.
    void states(int64_t rows, const T *u, T *out) const {
        take_in(rows, u, out);
        nodes.carry.over(state, false, rows, out);
    }

    // Output k is `channel` numbers after the one before it.
    void chunks(int64_t rows, const T *u, T *y, int64_t channel, const Ahead &ahead) const {
        ahead.quarter(0);
        take_in(rows, u, local);
        ahead.quarter(1);
        nodes.carry.over(state, false, rows, local);
        ahead.quarter(2);
        for (int64_t k = 0; k < c; ++k) {
            outputs[k].toeplitz.apply(rows, {2 * nodes.np, {local, 2 * nodes.np, 1}, outputs[k].by_node, CHUNK}, u,
                                      y + k * channel);
        }
        if (!all_finite(u, rows * CHUNK)) mend(u, y, channel, finite_samples(u, rows * CHUNK));
        ahead.quarter(3);
    }

    void stepped(int64_t count, int lag, const T *u, T *y, int64_t channel) const {
        step_states(nodes.lambda, nodes.B, state, count, u, steps);
        for (int64_t k = 0; k < c; ++k, y += channel) {
            step_outputs(outputs[k].C, outputs[k].D[0], lag, count, u, steps, y);
        }
    }

   private:
    // The outputs of a chunk before its first sample that is not finite, which has spoilt them: zeros of the Toeplitz
    // matrix times it are not zero. Those of later chunks have it in their states.
    void mend(const T *u, T *y, int64_t channel, int64_t good) const {
        const int64_t row = good / CHUNK, rest = good % CHUNK;
        T samples[CHUNK], again[CHUNK];
        clear(samples, CHUNK);
        for (int64_t t = 0; t < rest; ++t) samples[t] = u[row * CHUNK + t];
        for (int64_t k = 0; k < c; ++k, y += channel) {
            const Coefficients<T> states = {local + row * 2 * nodes.np, 2 * nodes.np, 1};
            outputs[k].toeplitz.apply(1, {2 * nodes.np, states, outputs[k].by_node, CHUNK}, samples, again);
            for (int64_t t = 0; t < rest; ++t) y[row * CHUNK + t] = again[t];
        }
    }
};

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
