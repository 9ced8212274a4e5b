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

// One feature's part of it.
template <class T>
struct Backward {
    Forward<T> forward;
    Split adjoint;
    T *adjoint_outputs;  // (2 np, kChunk): what G_m adds to grad u
    T *states;           // (segment, 2 np): S
    T *adjoints;         // (kBlock, 2 np): G; may be shared
    T *by_state;         // (kChunk, 2 np): W of the last blocks, and in double of those before
    T *by_adjoint;       // (kChunk, 2 np): sum_m G_m u_{m,t}, likewise
    T *by_sample;        // (kChunk, kChunk): sum_m grad y_{m,t} u_{m,j}, likewise
    double *W, *V, *R;
    Split GS;                // sum_m conj(G_m) S_m
    Split by_x, by_B, by_C;  // what the stepped samples add to the conjugated gradients
    double *by_D;
    double *steps;   // (kChunk + 1, np) pairs: states before and after stepped samples
    double *starts;  // (segments, np) pairs: the states that segments start from

    Backward(Arena &memory, const Scan<T> &scan, int64_t segment, T *local, T *adjoints)
        : forward(memory, scan.n, local),
          adjoint(memory, np()),
          adjoint_outputs(memory.take<T>(2 * np() * kChunk)),
          states(memory.take<T>(segment * 2 * np())),
          adjoints(adjoints),
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
          starts(memory.take<double>((scan.L / kChunk / segment + 1) * 2 * np())) {}

    int64_t np() const { return forward.nodes.np; }

    void set(const Scan<T> &scan, int64_t h) const {
        forward.set(scan, h);
        transpose(kChunk, 2 * np(), forward.inputs, 2 * np(), adjoint_outputs, kChunk);
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

    // The products over one block, to those of the blocks before it if there are `more`.
    void add_products(int64_t rows, const T *S, const T *grad_y, const T *u, bool more) const {
        const int64_t columns = 2 * np();
        multiply<T>(kChunk, columns, {rows, {grad_y, 1, kChunk}, S, columns}, by_state, columns, more);
        multiply<T>(kChunk, columns, {rows, {u, 1, kChunk}, adjoints, columns}, by_adjoint, columns, more);
        multiply<T>(kChunk, kChunk, {rows, {grad_y, 1, kChunk}, u, kChunk}, by_sample, kChunk, more);
        add_GS(rows, S);
    }

    void flush_products() const {
        add(by_state, W, 2 * np() * kChunk);
        add(by_adjoint, V, 2 * np() * kChunk);
        add(by_sample, R, kChunk * kChunk);
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

    // The states before and after `count` stepped samples, from the state on. Not inlined, as step_back: in a function
    // as large as their caller the compiler would call what is inside them.
    __attribute__((noinline)) void step_states(int64_t count, const T *u) const {
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
    __attribute__((noinline)) void step_back(int64_t count, const T *grad_y, const T *u, T *grad_u, double D,
                                             bool parameters) const {
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

    void keep_start(int64_t s) const {
        for (int64_t i = 0; i < np(); ++i) put(starts, s * np() + i, forward.state.get(i));
    }
    void go_to_start(int64_t s) const {
        for (int64_t i = 0; i < np(); ++i) forward.state.put(i, get(starts, s * np() + i));
    }

    // Takes the adjoint back over a block.
    void block_back(int64_t rows, const T *grad_y, T *grad_u, const Ahead<T> &ahead) const {
        const int64_t columns = 2 * np();
        multiply<T>(rows, columns, {kChunk, {grad_y, kChunk, 1}, forward.by_time, columns}, adjoints, columns, false);
        ahead.quarter(0);
        forward.nodes.carry.over(adjoint, true, rows, adjoints);
        ahead.quarter(1);
        forward.toeplitz.apply_transposed(rows, {columns, {adjoints, columns, 1}, adjoint_outputs, kChunk}, grad_y,
                                          grad_u);
        ahead.quarter(2), ahead.quarter(3);
    }

    void finish(double *sums) const {
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

// What a piece of `count` features works with.
template <class T>
struct BackwardPiece {
    const ScanBackward<T> &scan;
    int64_t segment;  // chunks whose states are kept at a time
    T *local, *adjoints;
    Samples<T> u, grad_y, grad_u;
    const Backward<T> *features;
    int64_t summed = 0;  // blocks whose products are not added up yet

    BackwardPiece(Arena &memory, const ScanBackward<T> &scan, int64_t count)
        : scan(scan),
          segment(chunks_of_segment(scan.forward, count)),
          local(Forward<T>::make_local(memory, scan.forward.n)),
          adjoints(Forward<T>::make_local(memory, scan.forward.n)),
          u(memory, scan.forward, count),
          grad_y(memory, scan.forward, count),
          grad_u(memory, scan.forward, count),
          features(each<Backward<T>>(memory, count,
                                     [&] { return Backward<T>(memory, scan.forward, segment, local, adjoints); })) {}

    void run(const ScanPiece &piece, double *sums, int64_t stride) {
        for (int64_t j = 0; j < piece.count; ++j) features[j].set(scan.forward, piece.h + j);
        for (int64_t b = piece.first; b < piece.last; ++b) row(piece, b);
        if (!scan.parameters) return;
        flush_products(piece);
        for (int64_t j = 0; j < piece.count; ++j) features[j].finish(sums + j * stride);
    }

   private:
    static constexpr int64_t kStep = Samples<T>::kStep;

    static int64_t chunks_of_segment(const Scan<T> &scan, int64_t count) {
        const int64_t chunks = scan.L / kChunk;
        const int64_t fitting = kSegmentBytes / (count * 2 * padded(scan.n) * int64_t(sizeof(T)));
        const int64_t most = fitting < kBlock ? kBlock : fitting / kBlock * kBlock;
        return chunks < 1 ? 1 : chunks < most ? chunks : most;
    }

    // The first chunk of segment s.
    int64_t start(int64_t s) const {
        const int64_t chunks = scan.forward.L / kChunk;
        return s * segment < chunks ? s * segment : chunks;
    }

    void row(const ScanPiece &piece, int64_t b) {
        const Scan<T> &f = scan.forward;
        const int64_t segments = (f.L / kChunk + segment - 1) / segment;
        const auto pairs = [&](int64_t j) { return 2 * (b * f.H + piece.h + j) * f.n; };
        const auto at = [](const T *from, int64_t offset) { return from ? from + offset : nullptr; };
        for (int64_t j = 0; j < piece.count; ++j) {
            const Backward<T> &feature = features[j];
            feature.adjoint.set(at(scan.grad_final, pairs(j)), f.n, feature.np());
            feature.forward.state.set(at(f.state, pairs(j)), f.n, feature.np());
        }
        for (int64_t s = 0; s < segments && scan.parameters; ++s) {
            for (int64_t j = 0; j < piece.count; ++j) features[j].keep_start(s);
            advance(piece, b, s, s == segments - 1);
        }
        steps(piece, b);
        for (int64_t s = segments - 1; s >= 0; --s) {
            if (scan.parameters && s < segments - 1) {
                for (int64_t j = 0; j < piece.count; ++j) features[j].go_to_start(s);
                advance(piece, b, s, true);
            }
            segment_back(piece, b, s);
        }
        for (int64_t j = 0; j < piece.count && scan.grad_state; ++j) {
            features[j].adjoint.write(scan.grad_state + pairs(j), f.n);
        }
    }

    // The states of the chunks of a segment, kept or only passed through.
    void advance(const ScanPiece &piece, int64_t b, int64_t s, bool keep) {
        const Scan<T> &f = scan.forward;
        const int64_t row = f.at(b, piece.h, 0);
        const Ahead<T> ahead =
            s > 0 || f.time_major ? Ahead<T>::none() : Ahead<T>::row(scan.grad_y + row, scan.grad_u + row, f.L);
        ahead.quarter(0), ahead.quarter(1);
        for (int64_t first = start(s); first < start(s + 1); first += kBlock) {
            const int64_t rows = start(s + 1) - first < kBlock ? start(s + 1) - first : kBlock;
            const T *samples = u.read(f, f.u, b, piece.h, first * kChunk, rows * kChunk);
            for (int64_t j = 0; j < piece.count; ++j) {
                const Backward<T> &feature = features[j];
                T *const kept = feature.states + (first - start(s)) * 2 * feature.np();
                feature.forward.states(rows, samples + j * kStep, keep ? kept : local);
            }
        }
        ahead.quarter(2), ahead.quarter(3);
    }

    // The samples after whole chunks, there and back.
    void steps(const ScanPiece &piece, int64_t b) {
        const Scan<T> &f = scan.forward;
        const int64_t whole = f.L / kChunk * kChunk, count = f.L - whole, h = piece.h;
        if (count == 0) return;
        const T *input = u.read(f, f.u, b, h, whole, count);
        const T *dy = grad_y.read(f, scan.grad_y, b, h, whole, count);
        T *du = grad_u.place(f, scan.grad_u, b, h, whole);
        for (int64_t j = 0; j < piece.count; ++j, input += kStep, dy += kStep, du += kStep) {
            const Backward<T> &feature = features[j];
            if (scan.parameters) {
                feature.step_states(count, input);
                feature.by_D[0] += feature.product(count, dy, input);
            }
            feature.step_back(count, dy, input, du, f.D ? double(f.D[h + j]) : 0, scan.parameters);
        }
        grad_u.write(f, scan.grad_u, b, h, whole, count);
    }

    // Takes the adjoint back over the chunks of a segment whose states are kept.
    void segment_back(const ScanPiece &piece, int64_t b, int64_t s) {
        const Scan<T> &f = scan.forward;
        const int64_t h = piece.h, count = start(s + 1) - start(s);
        for (int64_t first = (count - 1) / kBlock * kBlock; first >= 0; first -= kBlock) {
            const int64_t rows = count - first < kBlock ? count - first : kBlock;
            const int64_t l = (start(s) + first) * kChunk, length = rows * kChunk;
            const T *dy = grad_y.read(f, scan.grad_y, b, h, l, length);
            const T *input = scan.parameters ? u.read(f, f.u, b, h, l, length) : dy;
            T *du = grad_u.place(f, scan.grad_u, b, h, l);
            const T *next = f.u + f.at(b + 1, h, 0);
            const Ahead<T> ahead =
                l > 0 || b + 1 == piece.last || f.time_major ? Ahead<T>::none() : Ahead<T>::row(next, next, f.L);
            for (int64_t j = 0; j < piece.count; ++j, input += kStep, dy += kStep, du += kStep) {
                const Backward<T> &feature = features[j];
                feature.block_back(rows, dy, du, ahead);
                if (!scan.parameters) continue;
                feature.add_products(rows, feature.states + first * 2 * feature.np(), dy, input, summed > 0);
                feature.by_D[0] += feature.product(length, dy, input);
            }
            grad_u.write(f, scan.grad_u, b, h, l, length);
            if (scan.parameters && ++summed == kSummed) flush_products(piece);
        }
    }

    void flush_products(const ScanPiece &piece) {
        for (int64_t j = 0; j < piece.count && summed > 0; ++j) features[j].flush_products();
        summed = 0;
    }
};

}  // namespace

template <class T>
int64_t scan_backward_scratch(const ScanBackward<T> &scan, int64_t count) {
    Arena memory;
    BackwardPiece<T>(memory, scan, count);
    return memory.used();
}

template <class T>
void scan_backward(const ScanBackward<T> &scan, const ScanPiece &piece, double *sums, int64_t stride, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    BackwardPiece<T>(memory, scan, piece.count).run(piece, sums, stride);
}

template int64_t scan_backward_scratch(const ScanBackward<float> &, int64_t);
template int64_t scan_backward_scratch(const ScanBackward<double> &, int64_t);
template void scan_backward(const ScanBackward<float> &, const ScanPiece &, double *, int64_t, char *);
template void scan_backward(const ScanBackward<double> &, const ScanPiece &, double *, int64_t, char *);

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
