// The adjoint. G_m is the gradient of S_{m+1}, and
//
//     G_{m-1} = conj(lambda^T) G_m + sum_t conj(2 C lambda^{t+1}) grad y_{m,t},
//     grad u_{m,t} = sum_{l >= t} K[l-t] grad y_{m,l} + Re sum_n conj(B lambda^{T-1-t}) G_m.
//
// The parameters' gradients are sums over t of three kinds of products, which are first summed over chunks and rows:
// W_t = sum_m S_m grad y_{m,t}, V_t = sum_m conj(G_m) u_{m,t}, R_d = sum_{m,t} grad y_{m,t} u_{m,t-d} inside chunks.
//
//     conj(grad C) = 2 sum_t lambda^{t+1} W_t + 2 B sum_d lambda^d R_d
//     conj(grad B) = sum_t lambda^{T-1-t} V_t + 2 C sum_d lambda^d R_d
//     conj(grad x) = 2 C sum_t (t+1) lambda^{t+1} W_t + B sum_t (T-1-t) lambda^{T-1-t} V_t
//                    + 2 C B sum_d d lambda^d R_d + T lambda^T sum_m conj(G_m) S_m
#include <initializer_list>

#include "scan_chunks.h"

namespace s4_fast {
namespace S4_FAST_ISA {
namespace {

// Bytes of the states that the backward pass keeps: what fits in the second cache.
constexpr int64_t kSegmentBytes = 1 << 20;
// Blocks whose products are summed in T before they are added up in double.
constexpr int64_t kSummed = 8;

template <class T>
struct Backward {
    int64_t segment;  // chunks whose states are kept at a time
    Forward<T> forward;
    Split adjoint;
    T *adjoint_outputs;  // (2 np, kChunk): what G_m adds to grad u
    T *states;           // (segment, 2 np): S
    T *adjoints;         // (kBlock, 2 np): G
    T *by_state;         // (kChunk, 2 np): W of the last blocks, and in double of those before
    T *by_adjoint;       // (kChunk, 2 np): sum_m G_m u_{m,t}, likewise
    T *by_sample;        // (kChunk, kChunk): sum_m grad y_{m,t} u_{m,j}, likewise
    double *W, *V, *R;
    Split GS;                // sum_m conj(G_m) S_m
    Split by_x, by_B, by_C;  // what the stepped samples add to the conjugated gradients
    double *by_D;
    double *steps;       // (kChunk + 1, np) pairs: states before and after stepped samples
    double *starts;      // (segments, np) pairs: the states that segments start from
    int64_t summed = 0;  // blocks in by_state, by_adjoint and by_sample

    Backward(Arena &memory, const ScanBackward<T> &scan)
        : segment(chunks_of_segment(scan)),
          forward(memory, scan.forward.n),
          adjoint(memory, np()),
          adjoint_outputs(memory.take<T>(2 * np() * kChunk)),
          states(memory.take<T>(segment * 2 * np())),
          adjoints(memory.take<T>(kBlock * 2 * np())),
          by_state(memory.take<T>(2 * np() * kChunk)),
          by_adjoint(memory.take<T>(2 * np() * kChunk)),
          by_sample(memory.take<T>(kChunk * kChunk)),
          W(memory.take<double>(2 * np() * kChunk)),
          V(memory.take<double>(2 * np() * kChunk)),
          R(memory.take<double>(kChunk * kChunk)),
          GS(memory, np()),
          by_x(memory, np()),
          by_B(memory, np()),
          by_C(memory, np()),
          by_D(memory.take<double>(1)),
          steps(memory.take<double>((kChunk + 1) * 2 * np())),
          starts(memory.take<double>((scan.forward.L / kChunk / segment + 1) * 2 * np())) {}

    int64_t np() const { return forward.nodes.np; }

    static int64_t chunks_of_segment(const ScanBackward<T> &scan) {
        const int64_t chunks = scan.forward.L / kChunk;
        const int64_t fitting = kSegmentBytes / (2 * padded(scan.forward.n) * int64_t(sizeof(T)));
        const int64_t most = fitting < kBlock ? kBlock : fitting / kBlock * kBlock;
        return chunks < 1 ? 1 : chunks < most ? chunks : most;
    }

    void set(const Scan<T> &scan, int64_t h) const {
        forward.set(scan, h);
        transpose(kChunk, 2 * np(), forward.inputs, adjoint_outputs);
        clear(W, kChunk * 2 * np()), clear(V, kChunk * 2 * np()), clear(R, kChunk * kChunk), clear(by_D, 1);
        for (const Split &sums : {GS, by_x, by_B, by_C}) clear(sums.re, np()), clear(sums.im, np());
    }

    static void add(const T *from, double *to, int64_t count) {
        for (int64_t i = 0; i < count; ++i) to[i] += double(from[i]);
    }

    // sum_m conj(G_m) S_m of one block.
    void add_GS(int64_t rows, const T *S) const {
        const int64_t whole = np() / kLanes<T> * kLanes<T>;
        for (int64_t i = 0; i < whole; i += kLanes<T>) {
            Vector<T> re = {}, im = {};
            for (int64_t at = i; at < rows * 2 * np(); at += 2 * np()) {
                const Vector<T> G_re = load(adjoints + at), G_im = load(adjoints + at + np());
                const Vector<T> S_re = load(S + at), S_im = load(S + at + np());
                re += G_re * S_re + G_im * S_im, im += G_re * S_im - G_im * S_re;
            }
            for (int j = 0; j < kLanes<T>; ++j) GS.re[i + j] += double(re[j]), GS.im[i + j] += double(im[j]);
        }
        for (int64_t i = whole; i < np(); i += kLanes<double>) {
            DoubleVector re = load(GS.re + i), im = load(GS.im + i);
            for (int64_t at = i; at < rows * 2 * np(); at += 2 * np()) {
                const DoubleVector G_re = load_double(adjoints + at), G_im = load_double(adjoints + at + np());
                const DoubleVector S_re = load_double(S + at), S_im = load_double(S + at + np());
                re += G_re * S_re + G_im * S_im, im += G_re * S_im - G_im * S_re;
            }
            store(GS.re + i, re), store(GS.im + i, im);
        }
    }

    // The products over one block.
    void add_products(int64_t rows, const T *S, const T *grad_y, const T *u) {
        const int64_t columns = 2 * np();
        const bool more = summed > 0;
        multiply<T>(kChunk, columns, {rows, {grad_y, 1, kChunk}, S, columns}, by_state, columns, more);
        multiply<T>(kChunk, columns, {rows, {u, 1, kChunk}, adjoints, columns}, by_adjoint, columns, more);
        multiply<T>(kChunk, kChunk, {rows, {grad_y, 1, kChunk}, u, kChunk}, by_sample, kChunk, more);
        add_GS(rows, S);
        if (++summed == kSummed) flush_products();
    }

    void flush_products() {
        if (summed == 0) return;
        add(by_state, W, 2 * np() * kChunk);
        add(by_adjoint, V, 2 * np() * kChunk);
        add(by_sample, R, kChunk * kChunk);
        summed = 0;
    }

    // sum_l grad y_l u_l, which may cancel to less than the rounding of R.
    static double product(int64_t count, const T *grad_y, const T *u) {
        DoubleVector total = {};
        int64_t l = 0;
        for (; l + kLanes<double> <= count; l += kLanes<double>) total += load_double(grad_y + l) * load_double(u + l);
        double rest = 0;
        for (; l < count; ++l) rest += double(grad_y[l]) * double(u[l]);
        return sum(total) + rest;
    }

    // The states before and after `count` stepped samples, from the state on.
    void step_states(int64_t count, const T *u) const {
        const Nodes<T> &nodes = forward.nodes;
        for (int64_t i = 0; i < nodes.n; ++i) {
            Complex s = forward.state.get(i);
            put(steps, i, s);
            for (int64_t t = 0; t < count; ++t) {
                s = nodes.lambda.get(i) * s + double(u[t]) * nodes.B.get(i);
                put(steps, (t + 1) * np() + i, s);
            }
        }
    }

    // Takes the adjoint back over `count` stepped samples.
    void step_back(int64_t count, const T *grad_y, const T *u, T *grad_u, double D, bool parameters) const {
        const Nodes<T> &nodes = forward.nodes;
        for (int64_t t = count - 1; t >= 0; --t) {
            const double dy = double(grad_y[t]), input = double(u[t]);
            double du = D * dy;
            for (int64_t i = 0; i < nodes.n; ++i) {
                const Complex lambda = nodes.lambda.get(i), g = adjoint.get(i) + dy * conj(nodes.C.get(i));
                du += nodes.B.re[i] * g.re + nodes.B.im[i] * g.im;
                if (parameters) {
                    by_C.put(i, by_C.get(i) + 2 * dy * get(steps, (t + 1) * np() + i));
                    by_B.put(i, by_B.get(i) + input * conj(g));
                    by_x.put(i, by_x.get(i) + conj(g) * (lambda * get(steps, t * np() + i)));
                }
                adjoint.put(i, conj(lambda) * g);
            }
            grad_u[t] = T(du);
        }
    }

    // The states of the chunks of a segment, kept or only passed through.
    void advance(const T *u, int64_t count, bool keep, const Ahead<T> &ahead) const {
        ahead.quarter(0), ahead.quarter(1);
        for (int64_t first = 0; first < count; first += kBlock) {
            const int64_t rows = count - first < kBlock ? count - first : kBlock;
            forward.states(rows, u + first * kChunk, keep ? states + first * 2 * np() : forward.local);
        }
        ahead.quarter(2), ahead.quarter(3);
    }

    // Takes the adjoint back over the chunks of a segment whose states are kept.
    void segment_back(int64_t count, const T *grad_y, const T *u, T *grad_u, bool parameters, const Ahead<T> &ahead) {
        for (int64_t first = (count - 1) / kBlock * kBlock; first >= 0; first -= kBlock) {
            const int64_t rows = count - first < kBlock ? count - first : kBlock, at = first * kChunk;
            const int64_t columns = 2 * np();
            multiply<T>(rows, columns, {kChunk, {grad_y + at, kChunk, 1}, forward.by_time, columns}, adjoints, columns,
                        false);
            if (first == 0) ahead.quarter(0);
            forward.nodes.carry.over(adjoint, true, rows, adjoints);
            if (first == 0) ahead.quarter(1);
            forward.toeplitz.apply_transposed(rows, {columns, {adjoints, columns, 1}, adjoint_outputs, kChunk},
                                              grad_y + at, grad_u + at);
            if (first == 0) ahead.quarter(2), ahead.quarter(3);
            if (!parameters) continue;
            add_products(rows, states + first * columns, grad_y + at, u + at);
        }
    }

    void row(const ScanBackward<T> &scan, int64_t b, int64_t h, bool last) {
        const Scan<T> &f = scan.forward;
        const int64_t row = b * f.H + h, chunks = f.L / kChunk, whole = chunks * kChunk;
        const T *u = f.u + row * f.L, *grad_y = scan.grad_y + row * f.L;
        T *grad_u = scan.grad_u + row * f.L;
        const int64_t segments = (chunks + segment - 1) / segment;
        const T *next_u = u + (last ? 0 : f.H * f.L);
        const Ahead<T> next = last ? Ahead<T>::none() : Ahead<T>::row(next_u, next_u, f.L);
        const auto length = [&](int64_t s) { return chunks - s * segment < segment ? chunks - s * segment : segment; };

        if (scan.parameters) {
            forward.state.set(f.state ? f.state + 2 * row * f.n : nullptr, f.n, np());
            for (int64_t s = 0; s < segments; ++s) {
                for (int64_t i = 0; i < np(); ++i) put(starts, s * np() + i, forward.state.get(i));
                advance(u + s * segment * kChunk, length(s), s == segments - 1,
                        s == 0 ? Ahead<T>::row(grad_y, grad_u, f.L) : Ahead<T>::none());
            }
            step_states(f.L - whole, u + whole);
            by_D[0] += product(f.L, grad_y, u);
        }
        adjoint.set(scan.grad_final ? scan.grad_final + 2 * row * f.n : nullptr, f.n, np());
        step_back(f.L - whole, grad_y + whole, u + whole, grad_u + whole, f.D ? double(f.D[h]) : 0, scan.parameters);
        for (int64_t s = segments - 1; s >= 0; --s) {
            const int64_t at = s * segment * kChunk;
            if (scan.parameters && s < segments - 1) {
                for (int64_t i = 0; i < np(); ++i) forward.state.put(i, get(starts, s * np() + i));
                advance(u + at, length(s), true, Ahead<T>::none());
            }
            segment_back(length(s), grad_y + at, u + at, grad_u + at, scan.parameters,
                         s == 0 ? next : Ahead<T>::none());
        }
        if (scan.grad_state) adjoint.write(scan.grad_state + 2 * row * f.n, f.n);
    }

    void finish(double *sums) {
        flush_products();
        const Nodes<T> &nodes = forward.nodes;
        double correlation[kChunk] = {};
        for (int64_t t = 0; t < kChunk; ++t) {
            for (int64_t j = 0; j <= t; ++j) correlation[t - j] += R[t * kChunk + j];
        }
        for (int64_t i = 0; i < np(); i += kLanes<double>) {
            const double *re = nodes.powers.re + i, *im = nodes.powers.im + i;
            Sum w, w1, v, v1, r, r1;
            for (int64_t t = 0; t < kChunk; ++t) {
                const Sum now = {load(re + t * np()), load(im + t * np())};
                const Sum next = {load(re + (t + 1) * np()), load(im + (t + 1) * np())};
                const double *W_t = W + t * 2 * np() + i, *V_t = V + (kChunk - 1 - t) * 2 * np() + i;
                const Sum of_w = next * Sum{load(W_t), load(W_t + np())};
                const Sum of_v = now * Sum{load(V_t), -load(V_t + np())};
                w.add(1, of_w), w1.add(double(t + 1), of_w);
                v.add(1, of_v), v1.add(double(t), of_v);
                r.add(correlation[t], now), r1.add(double(t) * correlation[t], now);
            }
            const Sum B = at(nodes.B, i), C = at(nodes.C, i), jump = at(nodes.carry.one.high, i);
            Sum x = at(by_x, i), b = at(by_B, i), c = at(by_C, i);
            x.add(1, C * w1), x.add(1, B * v1), x.add(1, C * (B * r1));
            x.add(double(kChunk), jump * at(GS, i));
            b.add(1, v), b.add(1, C * r);
            c.add(2, w), c.add(2, B * r);
            for (int64_t j = 0; j < kLanes<double> && i + j < nodes.n; ++j) {
                put(sums, i + j, {x.re[j], x.im[j]});
                put(sums, nodes.n + i + j, {b.re[j], b.im[j]});
                put(sums, 2 * nodes.n + i + j, {c.re[j], c.im[j]});
            }
        }
        sums[6 * nodes.n] = by_D[0];
    }

    // A vector of complex numbers.
    struct Sum;
    static Sum at(Split of, int64_t i) { return {load(of.re + i), load(of.im + i)}; }

    struct Sum {
        DoubleVector re = {}, im = {};

        void add(double factor, const Sum &of) { re += factor * of.re, im += factor * of.im; }
        friend Sum operator*(const Sum &a, const Sum &b) {
            return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
        }
    };
};

}  // namespace

template <class T>
int64_t scan_backward_scratch(const ScanBackward<T> &scan) {
    Arena memory;
    Backward<T>(memory, scan);
    return memory.used();
}

template <class T>
void scan_backward(const ScanBackward<T> &scan, int64_t h, int64_t first, int64_t last, double *sums, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    Backward<T> backward(memory, scan);
    backward.set(scan.forward, h);
    for (int64_t b = first; b < last; ++b) backward.row(scan, b, h, b + 1 == last);
    if (scan.parameters) backward.finish(sums);
}

template int64_t scan_backward_scratch(const ScanBackward<float> &);
template int64_t scan_backward_scratch(const ScanBackward<double> &);
template void scan_backward(const ScanBackward<float> &, int64_t, int64_t, int64_t, double *, char *);
template void scan_backward(const ScanBackward<double> &, int64_t, int64_t, int64_t, double *, char *);

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
