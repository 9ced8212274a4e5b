// The recurrence in chunks of T samples, as matrix products over the chunks (MR: chunks, columns: samples or states):
//
//     S_{m+1} = lambda^T S_m + sum_j lambda^{T-1-j} B u_{m,j},
//     y_{m,t} = sum_{j <= t} K[t-j] u_{m,j} + 2 Re sum_n C lambda^{t+1} S_m,     K[d] = 2 Re sum_n C B lambda^d + D [d = 0].
//
// The states between chunks are carried in double: a rounded lambda would be wrong by its error times L. What is left of
// L after whole chunks is stepped in double.
#include "scan.h"

#include "carry.h"
#include "multiply.h"
#include "tables.h"

namespace s4_fast {
namespace S4_FAST_ISA {
namespace {

constexpr int64_t kChunk = 32;
// Chunks between two passes over the same samples: their local states stay in the first cache.
constexpr int64_t kBlock = 48;
// Bytes of the states that the backward pass keeps: what fits in the second cache.
constexpr int64_t kSegmentBytes = 1 << 20;
// Blocks whose products are summed in T before they are added up in double.
constexpr int64_t kSummed = 8;

// The parameters of one feature in double, re and im apart, padded with zeros to whole vectors.
template <class T>
struct Nodes {
    int64_t n, np;
    double *lambda_re, *lambda_im, *B_re, *B_im, *C_re, *C_im;
    Carry<T> carry;

    Nodes(Arena &memory, int64_t n)
        : n(n),
          np(padded<T>(n)),
          lambda_re(memory.take<double>(np)),
          lambda_im(memory.take<double>(np)),
          B_re(memory.take<double>(np)),
          B_im(memory.take<double>(np)),
          C_re(memory.take<double>(np)),
          C_im(memory.take<double>(np)),
          carry(memory, np) {}

    void set(const Scan<T> &scan, int64_t h) const {
        for (int64_t i = 0; i < n; ++i) {
            const Complex x = get(scan.x, h * n + i), lambda = exp(x);
            const Complex B = get(scan.B, h * n + i), C = get(scan.C, h * n + i);
            lambda_re[i] = lambda.re, lambda_im[i] = lambda.im;
            B_re[i] = B.re, B_im[i] = B.im, C_re[i] = C.re, C_im[i] = C.im;
            carry.set(i, x, lambda, kChunk);
        }
        for (int64_t i = n; i < np; ++i) {
            lambda_re[i] = lambda_im[i] = B_re[i] = B_im[i] = C_re[i] = C_im[i] = 0;
            carry.clear(i);
        }
    }

    Complex lambda(int64_t i) const { return {lambda_re[i], lambda_im[i]}; }
    Complex B(int64_t i) const { return {B_re[i], B_im[i]}; }
    Complex C(int64_t i) const { return {C_re[i], C_im[i]}; }
};

// Toeplitz matrices in the rows of `multiply` with a step of -1: K[t - k] for t >= k, or its transpose.
template <class T>
struct Toeplitz {
    T *causal, *anticausal;

    explicit Toeplitz(Arena &memory)
        : causal(memory.take<T>(2 * kChunk)), anticausal(memory.take<T>(2 * kChunk)) {}

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

// lambda^t of one state for t <= kChunk, and the local kernel that the states add up to.
struct Powers {
    double *re, *im, *kernel;

    explicit Powers(Arena &memory)
        : re(memory.take<double>(kChunk + 1)), im(memory.take<double>(kChunk + 1)), kernel(memory.take<double>(kChunk)) {}

    void start(double D) const {
        for (int64_t d = 0; d < kChunk; ++d) kernel[d] = 0;
        kernel[0] = D;
    }

    template <class T>
    void set(const Nodes<T> &nodes, int64_t i) const {
        fill_powers(nodes.lambda(i), kChunk, re, im);
        const Complex last = nodes.carry.one.get(i);
        re[kChunk] = last.re, im[kChunk] = last.im;
        const Complex v = 2.0 * (nodes.C(i) * nodes.B(i));
        for (int64_t d = 0; d < kChunk; ++d) kernel[d] += v.re * re[d] - v.im * im[d];
    }
};

// What the forward pass of one feature works with.
template <class T>
struct Forward {
    Nodes<T> nodes;
    State state;
    Toeplitz<T> toeplitz;
    Powers powers;
    T *inputs;   // (kChunk, 2 np): B lambda^{T-1-t}
    T *outputs;  // (2 np, kChunk): what S_m adds to y
    T *local;    // (kBlock, 2 np): inputs of chunks, then the states before them

    Forward(Arena &memory, int64_t n)
        : nodes(memory, n),
          state(memory, n, nodes.np),
          toeplitz(memory),
          powers(memory),
          inputs(memory.take<T>(kChunk * 2 * nodes.np)),
          outputs(memory.take<T>(2 * nodes.np * kChunk)),
          local(memory.take<T>(kBlock * 2 * nodes.np)) {}

    void set(const Scan<T> &scan, int64_t h) const {
        const int64_t n = nodes.n, np = nodes.np;
        nodes.set(scan, h);
        powers.start(scan.D ? double(scan.D[h]) : 0);
        for (int64_t i = 0; i < n; ++i) {
            powers.set(nodes, i);
            const Complex B = nodes.B(i), C = 2.0 * nodes.C(i);
            for (int64_t t = 0; t < kChunk; ++t) {
                const Complex power = {powers.re[kChunk - 1 - t], powers.im[kChunk - 1 - t]};
                const Complex input = B * power;
                inputs[t * 2 * np + i] = T(input.re), inputs[t * 2 * np + np + i] = T(input.im);
            }
            for (int64_t t = 0; t < kChunk; ++t) {
                outputs[i * kChunk + t] = T(C.re * powers.re[t + 1] - C.im * powers.im[t + 1]);
                outputs[(np + i) * kChunk + t] = T(-(C.re * powers.im[t + 1] + C.im * powers.re[t + 1]));
            }
        }
        clear_columns(inputs, n, np, kChunk, 2 * np);
        clear_columns(inputs, np + n, 2 * np, kChunk, 2 * np);
        clear_rows(outputs, n, np, kChunk);
        clear_rows(outputs, np + n, 2 * np, kChunk);
        toeplitz.set(powers.kernel);
    }

    // The states before `rows` chunks, from `state`, which is taken over them.
    void states(int64_t rows, const T *u, T *out) const {
        multiply<T>(rows, 2 * nodes.np, {kChunk, {u, kChunk, 1}, inputs, 2 * nodes.np}, out, 2 * nodes.np, false);
        nodes.carry.over(state, false, rows, out);
    }

    void chunks(int64_t rows, const T *u, T *y) const {
        const int64_t np = nodes.np;
        multiply<T>(rows, 2 * np, {kChunk, {u, kChunk, 1}, inputs, 2 * np}, local, 2 * np, false);
        nodes.carry.over(state, false, rows, local);
        toeplitz.apply(rows, {2 * np, {local, 2 * np, 1}, outputs, kChunk}, u, y);
    }

    void steps(int64_t count, const T *u, T *y, double D) const {
        for (int64_t t = 0; t < count; ++t) {
            const double input = double(u[t]);
            DoubleVector output = {};
            for (int64_t i = 0; i < nodes.np; i += kLanes<double>) {
                const DoubleVector re = load(state.re + i), im = load(state.im + i);
                const DoubleVector a = load(nodes.lambda_re + i), b = load(nodes.lambda_im + i);
                const DoubleVector next_re = a * re - b * im + load(nodes.B_re + i) * input;
                const DoubleVector next_im = a * im + b * re + load(nodes.B_im + i) * input;
                output += load(nodes.C_re + i) * next_re - load(nodes.C_im + i) * next_im;
                store(state.re + i, next_re), store(state.im + i, next_im);
            }
            y[t] = T(2 * sum(output) + D * input);
        }
    }
};

// The adjoint. G_m is the gradient of S_{m+1}, and
//
//     G_{m-1} = conj(lambda^T) G_m + sum_t conj(2 C lambda^{t+1}) grad y_{m,t},
//     grad u_{m,t} = sum_{l >= t} K[l-t] grad y_{m,l} + Re sum_n conj(B lambda^{T-1-t}) G_m.
//
// The parameters' gradients are sums over t of three kinds of products, which are summed over the chunks and rows first:
// W_t = sum_m S_m grad y_{m,t}, V_t = sum_m conj(G_m) u_{m,t}, R_d = sum_{m,t} grad y_{m,t} u_{m,t-d} inside the chunks.
//
//     conj(grad C) = 2 sum_t lambda^{t+1} W_t + 2 B sum_d lambda^d R_d
//     conj(grad B) = sum_t lambda^{T-1-t} V_t + 2 C sum_d lambda^d R_d
//     conj(grad x) = 2 C sum_t (t+1) lambda^{t+1} W_t + B sum_t (T-1-t) lambda^{T-1-t} V_t
//                    + 2 C B sum_d d lambda^d R_d + T lambda^T sum_m conj(G_m) S_m
template <class T>
struct Backward {
    int64_t segment;  // chunks whose states are kept at a time
    Forward<T> forward;
    State adjoint;
    T *adjoint_inputs;   // (kChunk, 2 np): conj(2 C lambda^{t+1})
    T *adjoint_outputs;  // (2 np, kChunk): what G_m adds to grad u
    T *states;           // (segment, 2 np): S
    T *adjoints;         // (kBlock, 2 np): G
    T *by_state;         // (2 np, kChunk): W, of the last blocks, then in double
    T *by_adjoint;       // (2 np, kChunk): sum_m G_m u_{m,t}, likewise
    T *by_sample;        // (kChunk, kChunk): sum_m grad y_{m,t} u_{m,j}, likewise
    double *W, *V, *R;
    double *GS_re, *GS_im;  // (np,)
    double *by_x, *by_B, *by_C, *by_D;  // pairs: what the stepped samples add to the conjugated gradients
    double *steps;                      // (kChunk, np) pairs: states before and after stepped samples
    double *starts;                     // (segments, 2 np): the states that segments start from
    int64_t summed = 0;                 // blocks in by_state, by_adjoint and by_sample

    Backward(Arena &memory, const ScanBackward<T> &scan)
        : segment(chunks_of_segment(scan)),
          forward(memory, scan.forward.n),
          adjoint(memory, scan.forward.n, np()),
          adjoint_inputs(memory.take<T>(kChunk * 2 * np())),
          adjoint_outputs(memory.take<T>(2 * np() * kChunk)),
          states(memory.take<T>(segment * 2 * np())),
          adjoints(memory.take<T>(kBlock * 2 * np())),
          by_state(memory.take<T>(2 * np() * kChunk)),
          by_adjoint(memory.take<T>(2 * np() * kChunk)),
          by_sample(memory.take<T>(kChunk * kChunk)),
          W(memory.take<double>(2 * np() * kChunk)),
          V(memory.take<double>(2 * np() * kChunk)),
          R(memory.take<double>(kChunk * kChunk)),
          GS_re(memory.take<double>(np())),
          GS_im(memory.take<double>(np())),
          by_x(memory.take<double>(2 * np())),
          by_B(memory.take<double>(2 * np())),
          by_C(memory.take<double>(2 * np())),
          by_D(memory.take<double>(1)),
          steps(memory.take<double>((kChunk + 1) * 2 * np())),
          starts(memory.take<double>((scan.forward.L / kChunk / segment + 1) * 2 * np())) {}

    int64_t np() const { return forward.nodes.np; }

    static int64_t chunks_of_segment(const ScanBackward<T> &scan) {
        const int64_t chunks = scan.forward.L / kChunk;
        const int64_t fitting = kSegmentBytes / (2 * padded<T>(scan.forward.n) * int64_t(sizeof(T)));
        const int64_t most = fitting < kBlock ? kBlock : fitting / kBlock * kBlock;
        return chunks < 1 ? 1 : chunks < most ? chunks : most;
    }

    void set(const Scan<T> &scan, int64_t h) const {
        forward.set(scan, h);
        const Nodes<T> &nodes = forward.nodes;
        const int64_t n = nodes.n, columns = 2 * np();
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t t = 0; t < kChunk; ++t) {
                // As what S_m adds to y, and as what u adds to the state.
                adjoint_inputs[t * columns + i] = forward.outputs[i * kChunk + t];
                adjoint_inputs[t * columns + np() + i] = forward.outputs[(np() + i) * kChunk + t];
                adjoint_outputs[i * kChunk + t] = forward.inputs[t * columns + i];
                adjoint_outputs[(np() + i) * kChunk + t] = forward.inputs[t * columns + np() + i];
            }
        }
        clear_columns(adjoint_inputs, n, np(), kChunk, columns);
        clear_columns(adjoint_inputs, np() + n, columns, kChunk, columns);
        clear_rows(adjoint_outputs, n, np(), kChunk);
        clear_rows(adjoint_outputs, np() + n, columns, kChunk);
        clear(W, columns * kChunk), clear(V, columns * kChunk), clear(R, kChunk * kChunk);
        clear(GS_re, np()), clear(GS_im, np());
        clear(by_x, columns), clear(by_B, columns), clear(by_C, columns), clear(by_D, 1);
    }

    static void clear(double *out, int64_t count) {
        for (int64_t i = 0; i < count; ++i) out[i] = 0;
    }

    static void add(const T *from, double *to, int64_t count) {
        for (int64_t i = 0; i < count; ++i) to[i] += double(from[i]);
    }

    // sum_m conj(G_m) S_m of one block.
    void add_GS(int64_t rows, const T *S) const {
        for (int64_t i = 0; i < np(); i += kLanes<T>) {
            Vector<T> re = {}, im = {};
            for (int64_t at = i; at < rows * 2 * np(); at += 2 * np()) {
                const Vector<T> G_re = load(adjoints + at), G_im = load(adjoints + at + np());
                const Vector<T> S_re = load(S + at), S_im = load(S + at + np());
                re += G_re * S_re + G_im * S_im, im += G_re * S_im - G_im * S_re;
            }
            for (int j = 0; j < kLanes<T>; ++j) GS_re[i + j] += double(re[j]), GS_im[i + j] += double(im[j]);
        }
    }

    // The products over one block.
    void add_products(int64_t rows, const T *S, const T *grad_y, const T *u) {
        const int64_t columns = 2 * np();
        const bool more = summed > 0;
        multiply<T>(columns, kChunk, {rows, {S, 1, columns}, grad_y, kChunk}, by_state, kChunk, more);
        multiply<T>(columns, kChunk, {rows, {adjoints, 1, columns}, u, kChunk}, by_adjoint, kChunk, more);
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

    // sum_t a_t b_t over a chunk.
    static Complex product(const double *a_re, const double *a_im, const double *b_re, const double *b_im) {
        DoubleVector re = {}, im = {};
        for (int64_t t = 0; t < kChunk; t += kLanes<double>) {
            re += load(a_re + t) * load(b_re + t) - load(a_im + t) * load(b_im + t);
            im += load(a_re + t) * load(b_im + t) + load(a_im + t) * load(b_re + t);
        }
        return {sum(re), sum(im)};
    }

    // The states before and after `count` stepped samples, from the state on.
    void step_states(int64_t count, const T *u) const {
        const Nodes<T> &nodes = forward.nodes;
        for (int64_t i = 0; i < nodes.n; ++i) {
            Complex s = {forward.state.re[i], forward.state.im[i]};
            put(steps, i, s);
            for (int64_t t = 0; t < count; ++t) {
                s = nodes.lambda(i) * s + double(u[t]) * nodes.B(i);
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
                const Complex g = Complex{adjoint.re[i], adjoint.im[i]} + 2 * dy * conj(nodes.C(i));
                du += nodes.B_re[i] * g.re + nodes.B_im[i] * g.im;
                if (parameters) {
                    const Complex before = nodes.lambda(i) * get(steps, t * np() + i);
                    put(by_C, i, get(by_C, i) + 2 * dy * get(steps, (t + 1) * np() + i));
                    put(by_B, i, get(by_B, i) + input * conj(g));
                    put(by_x, i, get(by_x, i) + conj(g) * before);
                }
                const Complex back = conj(nodes.lambda(i)) * g;
                adjoint.re[i] = back.re, adjoint.im[i] = back.im;
            }
            grad_u[t] = T(du);
        }
    }

    // The states of the chunks of a segment, kept or only passed through.
    void advance(const T *u, int64_t count, bool keep) const {
        for (int64_t first = 0; first < count; first += kBlock) {
            const int64_t rows = count - first < kBlock ? count - first : kBlock;
            forward.states(rows, u + first * kChunk, keep ? states + first * 2 * np() : forward.local);
        }
    }

    // Takes the adjoint back over the chunks of a segment whose states are kept.
    void segment_back(int64_t count, const T *grad_y, const T *u, T *grad_u, bool parameters) {
        for (int64_t first = (count - 1) / kBlock * kBlock; first >= 0; first -= kBlock) {
            const int64_t rows = count - first < kBlock ? count - first : kBlock, at = first * kChunk;
            const int64_t columns = 2 * np();
            multiply<T>(rows, columns, {kChunk, {grad_y + at, kChunk, 1}, adjoint_inputs, columns}, adjoints, columns,
                        false);
            forward.nodes.carry.over(adjoint, true, rows, adjoints);
            forward.toeplitz.apply_transposed(rows, {columns, {adjoints, columns, 1}, adjoint_outputs, kChunk},
                                              grad_y + at, grad_u + at);
            if (!parameters) continue;
            add_products(rows, states + first * columns, grad_y + at, u + at);
        }
    }

    void row(const ScanBackward<T> &scan, int64_t b, int64_t h) {
        const Scan<T> &f = scan.forward;
        const int64_t row = b * f.H + h, chunks = f.L / kChunk, whole = chunks * kChunk;
        const T *u = f.u + row * f.L, *grad_y = scan.grad_y + row * f.L;
        T *grad_u = scan.grad_u + row * f.L;
        const int64_t segments = (chunks + segment - 1) / segment;
        const auto length = [&](int64_t s) { return chunks - s * segment < segment ? chunks - s * segment : segment; };

        if (scan.parameters) {
            forward.state.set(f.state ? f.state + 2 * row * f.n : nullptr);
            for (int64_t s = 0; s < segments; ++s) {
                forward.state.save(starts + s * 2 * np());
                advance(u + s * segment * kChunk, length(s), s == segments - 1);
            }
            step_states(f.L - whole, u + whole);
            by_D[0] += product(f.L, grad_y, u);
        }
        adjoint.set(scan.grad_final ? scan.grad_final + 2 * row * f.n : nullptr);
        step_back(f.L - whole, grad_y + whole, u + whole, grad_u + whole, f.D ? double(f.D[h]) : 0, scan.parameters);
        for (int64_t s = segments - 1; s >= 0; --s) {
            const int64_t at = s * segment * kChunk;
            if (scan.parameters && s < segments - 1) {
                forward.state.restore(starts + s * 2 * np());
                advance(u + at, length(s), true);
            }
            segment_back(length(s), grad_y + at, u + at, grad_u + at, scan.parameters);
        }
        if (scan.grad_state) adjoint.write(scan.grad_state + 2 * row * f.n);
    }

    void finish(double *sums) {
        flush_products();
        const Nodes<T> &nodes = forward.nodes;
        const Powers &powers = forward.powers;
        const int64_t n = nodes.n;
        // lambda^t and t lambda^t, forwards and backwards.
        double first_re[kChunk + 1], first_im[kChunk + 1], back_re[kChunk], back_im[kChunk], back1_re[kChunk],
            back1_im[kChunk], correlation[kChunk] = {}, zero[kChunk] = {};
        for (int64_t t = 0; t < kChunk; ++t) {
            for (int64_t j = 0; j <= t; ++j) correlation[t - j] += R[t * kChunk + j];
        }
        for (int64_t i = 0; i < n; ++i) {
            powers.set(nodes, i);
            for (int64_t t = 0; t <= kChunk; ++t) first_re[t] = double(t) * powers.re[t], first_im[t] = double(t) * powers.im[t];
            for (int64_t t = 0; t < kChunk; ++t) {
                const int64_t from = kChunk - 1 - t;
                back_re[t] = powers.re[from], back_im[t] = -powers.im[from];
                back1_re[t] = first_re[from], back1_im[t] = -first_im[from];
            }
            const double *W_re = W + i * kChunk, *W_im = W + (np() + i) * kChunk;
            const double *V_re = V + i * kChunk, *V_im = V + (np() + i) * kChunk;
            const Complex w = product(powers.re + 1, powers.im + 1, W_re, W_im);
            const Complex w1 = product(first_re + 1, first_im + 1, W_re, W_im);
            const Complex v = conj(product(back_re, back_im, V_re, V_im));
            const Complex v1 = conj(product(back1_re, back1_im, V_re, V_im));
            const Complex r = product(powers.re, powers.im, correlation, zero);
            const Complex r1 = product(first_re, first_im, correlation, zero);
            const Complex B = nodes.B(i), C = 2.0 * nodes.C(i);
            const Complex carried = double(kChunk) * (nodes.carry.one.get(i) * Complex{GS_re[i], GS_im[i]});
            put(sums, i, get(by_x, i) + C * w1 + B * v1 + C * B * r1 + carried);
            put(sums, n + i, get(by_B, i) + v + C * r);
            put(sums, 2 * n + i, get(by_C, i) + 2.0 * w + 2.0 * B * r);
        }
        sums[6 * n] = by_D[0];
    }
};

}  // namespace

template <class T>
int64_t scan_scratch(const Scan<T> &scan) {
    Arena memory;
    Forward<T>(memory, scan.n);
    return memory.used();
}

template <class T>
void scan(const Scan<T> &scan, T *y, T *final, int64_t h, int64_t first, int64_t last, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    const Forward<T> forward(memory, scan.n);
    forward.set(scan, h);
    const int64_t chunks = scan.L / kChunk, whole = chunks * kChunk;
    for (int64_t b = first; b < last; ++b) {
        const int64_t row = b * scan.H + h;
        const T *u = scan.u + row * scan.L;
        T *out = y + row * scan.L;
        forward.state.set(scan.state ? scan.state + 2 * row * scan.n : nullptr);
        for (int64_t m = 0; m < chunks; m += kBlock) {
            forward.chunks(chunks - m < kBlock ? chunks - m : kBlock, u + m * kChunk, out + m * kChunk);
        }
        forward.steps(scan.L - whole, u + whole, out + whole, scan.D ? double(scan.D[h]) : 0);
        if (final) forward.state.write(final + 2 * row * scan.n);
    }
}

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
    for (int64_t b = first; b < last; ++b) backward.row(scan, b, h);
    if (scan.parameters) backward.finish(sums);
}

template int64_t scan_scratch(const Scan<float> &);
template int64_t scan_scratch(const Scan<double> &);
template void scan(const Scan<float> &, float *, float *, int64_t, int64_t, int64_t, char *);
template void scan(const Scan<double> &, double *, double *, int64_t, int64_t, int64_t, char *);
template int64_t scan_backward_scratch(const ScanBackward<float> &);
template int64_t scan_backward_scratch(const ScanBackward<double> &);
template void scan_backward(const ScanBackward<float> &, int64_t, int64_t, int64_t, double *, char *);
template void scan_backward(const ScanBackward<double> &, int64_t, int64_t, int64_t, double *, char *);

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
