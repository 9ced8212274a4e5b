// The recurrence in chunks of T samples. A matrix product takes all chunks of a row at once:
//
//     S_{m+1} = lambda^T S_m + sum_j lambda^{T-1-j} B u_{m,j},
//     y_{m,t} = sum_{j <= t} K[t-j] u_{m,j} + 2 Re sum_n C lambda^{t+1} S_m,
//     K[d] = 2 Re sum_n C B lambda^d, and D more for d = 0.
//
// The states between chunks are carried in double: a rounded lambda would be wrong by its error times L. What is left
// of L after whole chunks is stepped in double.
#pragma once

#include "carry.h"
#include "multiply.h"
#include "scan.h"
#include "tables.h"

namespace s4_fast {
namespace S4_FAST_ISA {
namespace {

constexpr int64_t kChunk = 32;
// Chunks between two passes over the same samples: their local states stay in the first cache.
constexpr int64_t kBlock = 48;

// Asks for the first block of rows that come next: rows of one feature lie far apart, where the processor does not look
// ahead. A quarter at a time, between products: all at once would be waited for.
template <class T>
struct Ahead {
    const T *read, *write;
    int64_t samples;

    static Ahead none() { return {nullptr, nullptr, 0}; }
    static Ahead row(const T *read, const T *write, int64_t length) {
        return {read, write, length < kBlock * kChunk ? length : kBlock * kChunk};
    }

    void quarter(int64_t which) const {
        constexpr int64_t kLine = 64 / int64_t(sizeof(T));
        for (int64_t l = which * samples / 4; l < (which + 1) * samples / 4; l += kLine) {
            __builtin_prefetch(read + l, 0, 1), __builtin_prefetch(write + l, 1, 1);
        }
    }
};

// What each of the features of a piece works with, in a row.
template <class Feature, class Make>
const Feature *each(Arena &memory, int64_t count, Make make) {
    Feature *const features = memory.take<Feature>(count);
    for (int64_t j = 0; j < count; ++j) {
        const Feature feature = make();
        if (features) __builtin_memcpy(static_cast<void *>(features + j), &feature, sizeof feature);
    }
    return features;
}

// A block of samples of every feature of a piece, each feature's one after another: where they are in the array, or
// where the array is time-major, copied.
template <class T>
struct Samples {
    bool time_major;
    int64_t count;
    T *copy;                  // (count, kStep)
    const T *held = nullptr;  // the block that is copied

    Samples(Arena &memory, const Scan<T> &scan, int64_t count)
        : time_major(scan.time_major), count(count), copy(memory.take<T>(time_major ? count * kStep : 0)) {}

    const T *read(const Scan<T> &scan, const T *array, int64_t b, int64_t h, int64_t l, int64_t length) {
        array += scan.at(b, h, l);
        if (!time_major) return array;
        // The samples after whole chunks lie apart, so that a row of one block need not be copied twice.
        T *const to = copy + (length < kChunk ? kBlock * kChunk : 0);
        if (length >= kChunk && array == held) return to;
        if (length >= kChunk) held = array;
        transpose(length, count, array, scan.H, to, kStep);
        return to;
    }

    // Where samples go, and the copy from there.
    T *place(const Scan<T> &scan, T *array, int64_t b, int64_t h, int64_t l) const {
        return time_major ? copy : array + scan.at(b, h, l);
    }
    void write(const Scan<T> &scan, T *array, int64_t b, int64_t h, int64_t l, int64_t length) const {
        if (time_major) transpose(count, length, copy, kStep, array + scan.at(b, h, l), scan.H);
    }

    // Not a number of pages: features would contend for the same places of the first cache.
    static constexpr int64_t kStep = (kBlock + 1) * kChunk + 64 / int64_t(sizeof(T));
};

// The parameters of one feature, and the powers lambda^t, t <= kChunk.
template <class T>
struct Nodes {
    int64_t n, np;
    Split x, lambda, B, C;  // C is twice the parameter
    Carry<T> carry;
    PowerTable powers;

    Nodes(Arena &memory, int64_t n)
        : n(n),
          np(padded(n)),
          x(memory, np),
          lambda(memory, np),
          B(memory, np),
          C(memory, np),
          carry(memory, np),
          powers(memory, np, kChunk + 1) {}

    void set(const Scan<T> &scan, int64_t h) const {
        x.set(scan.x + 2 * h * n, n, np), B.set(scan.B + 2 * h * n, n, np), C.set(scan.C + 2 * h * n, n, np, 2);
        exponentials(np, x, lambda);
        carry.set(n, x, lambda, kChunk, scan.L);
        powers.fill(lambda);
    }
};

// Toeplitz matrices in the rows of `multiply` with a step of -1: K[t - k] for t >= k, or its transpose.
template <class T>
struct Toeplitz {
    T *causal, *anticausal;

    explicit Toeplitz(Arena &memory) : causal(memory.take<T>(2 * kChunk)), anticausal(memory.take<T>(2 * kChunk)) {}

    void set(const double *kernel) const {
        for (int64_t d = 0; d < kChunk; ++d) {
            causal[d] = anticausal[kChunk + d] = 0;
            causal[kChunk + d] = anticausal[kChunk - d] = T(kernel[d]);
        }
    }

    // y = product + causal u, and u = product + anticausal y, for rows of kChunk samples.
    void apply(int64_t rows, Product<T> product, const T *u, T *y) const {
        for (int64_t j = 0; j < kChunk; j += kColumns, product.w += kColumns) {
            const Product<T> local = {j + kLanes<T>, {u, kChunk, 1}, causal + kChunk + j, -1};
            multiply_columns<T, 2, Tail::right>(rows, product, local, y + j, kChunk, false);
        }
    }
    void apply_transposed(int64_t rows, Product<T> product, const T *y, T *u) const {
        for (int64_t j = 0; j < kChunk; j += kColumns, product.w += kColumns) {
            // From the last row to the first.
            const int64_t last = kChunk - 1, depth = kChunk - j - kLanes<T>;
            const Product<T> local = {depth, {y + last, kChunk, -1}, anticausal + kChunk + j - last, 1};
            multiply_columns<T, 2, Tail::left>(rows, product, local, u + j, kChunk, false);
        }
    }

    static constexpr int64_t kColumns = 2 * kLanes<T>;
};

// What the forward pass of one feature works with.
template <class T>
struct Forward {
    Nodes<T> nodes;
    Split state;
    Toeplitz<T> toeplitz;
    T *inputs;   // (kChunk, 2 np): B lambda^{T-1-t}
    T *by_time;  // (kChunk, 2 np): conj(2 C lambda^{t+1})
    T *outputs;  // its transpose: what S_m adds to y
    T *local;    // (kBlock, 2 np): inputs of chunks, then the states before them; may be shared

    Forward(Arena &memory, int64_t n, T *local)
        : nodes(memory, n),
          state(memory, nodes.np),
          toeplitz(memory),
          inputs(memory.take<T>(kChunk * 2 * nodes.np)),
          by_time(memory.take<T>(kChunk * 2 * nodes.np)),
          outputs(memory.take<T>(2 * nodes.np * kChunk)),
          local(local) {}

    static T *make_local(Arena &memory, int64_t n) { return memory.take<T>(kBlock * 2 * padded(n)); }

    void set(const Scan<T> &scan, int64_t h) const {
        const int64_t np = nodes.np;
        nodes.set(scan, h);
        double kernel[kChunk];
        for (int64_t t = 0; t < kChunk; ++t) {
            const double *re = nodes.powers.re + t * np, *im = nodes.powers.im + t * np;
            write_products(np, re, im, nodes.B, false, inputs + (kChunk - 1 - t) * 2 * np);
            write_products(np, re + np, im + np, nodes.C, true, by_time + t * 2 * np);
            DoubleVector total = {};
            for (int64_t i = 0; i < np; i += kLanes<double>) {
                const DoubleVector B_re = load(nodes.B.re + i), B_im = load(nodes.B.im + i);
                const DoubleVector C_re = load(nodes.C.re + i), C_im = load(nodes.C.im + i);
                total += (B_re * C_re - B_im * C_im) * load(re + i) - (B_re * C_im + B_im * C_re) * load(im + i);
            }
            kernel[t] = sum(total);
        }
        if (scan.D) kernel[0] += double(scan.D[h]);
        transpose(kChunk, 2 * np, by_time, 2 * np, outputs, kChunk);
        toeplitz.set(kernel);
    }

    // Flat: with the depth and the steps of the product as constants.
    __attribute__((flatten)) void take_in(int64_t rows, const T *u, T *out) const {
        multiply<T>(rows, 2 * nodes.np, {kChunk, {u, kChunk, 1}, inputs, 2 * nodes.np}, out, 2 * nodes.np, false);
    }

    // The states before `rows` chunks, from `state`, which is taken over them.
    void states(int64_t rows, const T *u, T *out) const {
        take_in(rows, u, out);
        nodes.carry.over(state, false, rows, out);
    }

    void chunks(int64_t rows, const T *u, T *y, const Ahead<T> &ahead) const {
        ahead.quarter(0);
        take_in(rows, u, local);
        ahead.quarter(1);
        nodes.carry.over(state, false, rows, local);
        ahead.quarter(2);
        toeplitz.apply(rows, {2 * nodes.np, {local, 2 * nodes.np, 1}, outputs, kChunk}, u, y);
        ahead.quarter(3);
    }

    void steps(int64_t count, const T *u, T *y, double D) const {
        for (int64_t t = 0; t < count; ++t) {
            const double input = double(u[t]);
            DoubleVector output = {};
            for (int64_t i = 0; i < nodes.np; i += kLanes<double>) {
                const DoubleVector re = load(state.re + i), im = load(state.im + i);
                const DoubleVector a = load(nodes.lambda.re + i), b = load(nodes.lambda.im + i);
                const DoubleVector next_re = a * re - b * im + load(nodes.B.re + i) * input;
                const DoubleVector next_im = a * im + b * re + load(nodes.B.im + i) * input;
                output += load(nodes.C.re + i) * next_re - load(nodes.C.im + i) * next_im;
                store(state.re + i, next_re), store(state.im + i, next_im);
            }
            y[t] = T(sum(output) + D * input);
        }
    }
};

}  // namespace
}  // namespace S4_FAST_ISA
}  // namespace s4_fast
