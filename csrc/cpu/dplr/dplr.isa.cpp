// The DPLR spectrum and its adjoint, all in double.
//
// With d = 2 i s - w c, d' = 2 i s - w* c (s, c = sin, cos(theta/2)) and E = 1/(d d'), a conjugate pair adds to a sum
//
//     v/d + v*/d' = (2 i s alpha + c beta) E,   alpha = 2 Re v,   beta = -2 Re(v w*),
//
// so that all sums at a node are the product of the real matrix of (alpha, beta), in pairs of rows, and the column of
// E: one reciprocal per state and node, and 4 multiply-adds per sum. With e^{i theta/2} and h = c e^{-i theta/2},
//
//     M = shift + (c + i s) (c S_beta + 2 i s S_alpha),   on the lower rows shift + c (c S_beta + 2 i s S_alpha).
//
// Gaussian elimination without pivoting leaves the spectrum in M's upper left: for Q = P the matrix that is eliminated
// is I plus one with a positive semidefinite Hermitian part.
//
// Nodes go through in pairs of registers, with [re, re, im, im] of the pair side by side.
#include "dplr.h"
#include "../shared/arena.h"
#include "../shared/complex.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

constexpr int PAIR = 2 * LANES<double>;    // nodes
constexpr int TILE = REGISTERS / 8;        // rows, or states, whose products with a pair of nodes fit in registers
constexpr int STATES = 4;                  // states are padded to multiples of this
constexpr int64_t BLOCK_BYTES = 24 << 10;  // of E, between its uses in the adjoint

static_assert(NODES % PAIR == 0, "a pair of registers fits into the padding of the tables");

S4_FAST_INLINE int64_t padded_states(int64_t n) { return (n + STATES - 1) / STATES * STATES; }

S4_FAST_INLINE int64_t pairs_per_block(int64_t n) {
    int64_t pairs = BLOCK_BYTES / (padded_states(n) * 4 * int64_t(sizeof(vec)));
    return pairs < 2 ? 2 : pairs > 16 ? 16 : pairs;
}

struct Pole {
    double re, im, im_high, im_low;  // im is |Im w|, and the sum of the last two, which have 26 bits each
    double square;                   // |w|^2
};

// cos, 2 sin and what the latter leaves at a pair of nodes, and products of them.
struct Nodes {
    vec cos[2], sin[2], low[2], cos2[2], sin2[2], cross[2];
};

// What a range of nodes needs in memory. The first part is of one feature and does not depend on the node.
struct Work {
    int64_t n, states, rows, block;  // states = padded_states(n), rows = 2 (c + rank) (b + rank), block in pairs
    Pole *poles;                     // (n,)
    double *matrix;                  // (states, rows): alpha, beta of every sum in turn; 0 beyond n
    double *shift;                   // (rows / 2,)
    vec *E, *S;                      // (block, states, 4), (block, rows, 4)
    Nodes *nodes;                    // (block,)
    vec *by_sum, *by_pole;           // (states, rows), (states, 2), of the adjoint

    Work(Arena &memory, const DplrSizes &sizes, bool backward)
        : n(sizes.n),
          states(padded_states(n)),
          rows(2 * (sizes.c + sizes.rank) * (sizes.b + sizes.rank)),
          block(backward ? pairs_per_block(n) : 1),
          poles(memory.take<Pole>(n)),
          matrix(memory.take<double>(states * rows)),
          shift(memory.take<double>(rows / 2)),
          E(memory.take<vec>(block * states * 4)),
          S(memory.take<vec>(block * rows * 4)),
          nodes(memory.take<Nodes>(block)),
          by_sum(memory.take<vec>(backward ? states * rows : 0)),
          by_pole(memory.take<vec>(backward ? states * 2 : 0)) {}
};

S4_FAST_INLINE void split(double x, double &high, double &low) {
    double t = 134217729.0 * x;
    high = t - (t - x);
    low = x - high;
}

template <class T>
void prepare(const Dplr<T> &dplr, int64_t h, Work &f) {
    const T *w = dplr.w + 2 * h * f.n;
    for (int64_t i = 0; i < f.n; ++i) {
        Pole &pole = f.poles[i];
        pole.re = w[2 * i];
        pole.im = __builtin_fabs(double(w[2 * i + 1]));
        split(pole.im, pole.im_high, pole.im_low);
        pole.square = pole.re * pole.re + pole.im * pole.im;
    }
    for (int64_t j = 0; j < f.rows / 2; ++j) {
        const double *v = dplr.v + 2 * (j * dplr.sizes.H + h) * f.n;
        for (int64_t i = 0; i < f.n; ++i) {
            const double w_re = w[2 * i], w_im = w[2 * i + 1];
            f.matrix[i * f.rows + 2 * j] = 2 * v[2 * i];
            f.matrix[i * f.rows + 2 * j + 1] = -2 * (v[2 * i] * w_re + v[2 * i + 1] * w_im);
        }
        f.shift[j] = dplr.shift[j * dplr.sizes.H + h];
    }
    for (int64_t i = f.n * f.rows; i < f.states * f.rows; ++i) f.matrix[i] = 0;
}

S4_FAST_INLINE Nodes load_nodes(const Roots &roots, int64_t k) {
    Nodes t;
    for (int half = 0; half < 2; ++half, k += LANES<double>) {
        t.cos[half] = load(roots.cos + k), t.sin[half] = load(roots.twice_sin + k), t.low[half] = load(roots.low + k);
        t.cos2[half] = t.cos[half] * t.cos[half];
        t.sin2[half] = t.sin[half] * t.sin[half];
        t.cross[half] = 2.0 * t.cos[half] * t.sin[half];
    }
    return t;
}

// Re d d' and -Im d d'. For poles in single precision by |w|^2 c^2 - 4 s^2, which next to a resonance loses what the
// rounding of s and c to double loses: 1e-10 where Im w is 1e6 times Re w. For poles in double precision by d = p + i q
// and d' = p + i q' with q rounded once, whatever cancels in it.
template <class T>
struct Denominators;

template <>
struct Denominators<float> {
    vec cos2[2], sin2[2], cross[2];
    explicit Denominators(const Nodes &t)
        : cos2{t.cos2[0], t.cos2[1]}, sin2{t.sin2[0], t.sin2[1]}, cross{t.cross[0], t.cross[1]} {}
    S4_FAST_INLINE ComplexVector at(const Denominators &t, int half, const Pole &w) {
        return {w.square * t.cos2[half] - t.sin2[half], w.re * t.cross[half]};
    }
};

template <>
struct Denominators<double> {
    vec cos[2], sin[2], low[2], cross[2];
#if !S4_FAST_HAS_FMA
    vec cos_high[2], cos_low[2];
#endif
    explicit Denominators(const Nodes &t)
        : cos{t.cos[0], t.cos[1]}, sin{t.sin[0], t.sin[1]}, low{t.low[0], t.low[1]}, cross{t.cross[0], t.cross[1]} {
#if !S4_FAST_HAS_FMA
        for (int half = 0; half < 2; ++half) {
            vec shifted = 134217729.0 * cos[half];
            cos_high[half] = shifted - (shifted - cos[half]);
            cos_low[half] = cos[half] - cos_high[half];
        }
#endif
    }
    S4_FAST_INLINE ComplexVector at(const Denominators &t, int half, const Pole &w) {
        vec p = w.re * t.cos[half];
#if S4_FAST_HAS_FMA
        vec q = (t.sin[half] - w.im * t.cos[half]) + t.low[half];
#else
        vec q = t.sin[half] - w.im_high * t.cos_high[half];
        q = (q - w.im_high * t.cos_low[half]) - w.im_low * t.cos_high[half];
        q = (q - w.im_low * t.cos_low[half]) + t.low[half];
#endif
        vec other = t.sin[half] + w.im * t.cos[half];
        return {p * p - q * other, w.re * t.cross[half]};
    }
};

// E (n, 4): all states at a pair of nodes. A division takes as long as many multiplications, so two nodes share one.
template <class T>
void reciprocals(const Work &f, const Nodes &nodes, vec *E) {
    const Denominators<T> t(nodes);
    for (int64_t i = 0; i < f.n; ++i, E += 4) {
        ComplexVector d0 = t.at(t, 0, f.poles[i]), d1 = t.at(t, 1, f.poles[i]);
        vec m0 = d0.re * d0.re + d0.im * d0.im, m1 = d1.re * d1.re + d1.im * d1.im;
        vec r = 1.0 / (m0 * m1), r0 = r * m1, r1 = r * m0;
        E[0] = d0.re * r0, E[1] = d1.re * r1, E[2] = d0.im * r0, E[3] = d1.im * r1;
    }
}

template <int ROWS>
S4_FAST_INLINE void sum_tile(const Work &f, const vec *E, int64_t row, vec *S) {
    vec sums[ROWS][4];
    for (int r = 0; r < ROWS; ++r)
        for (int k = 0; k < 4; ++k) sums[r][k] = vec{};
    const double *matrix = f.matrix + row;
    for (int64_t i = 0; i < f.n; ++i, E += 4, matrix += f.rows)
        for (int r = 0; r < ROWS; ++r)
            for (int k = 0; k < 4; ++k) sums[r][k] += E[k] * matrix[r];
    for (int r = 0; r < ROWS; ++r)
        for (int k = 0; k < 4; ++k) S[4 * (row + r) + k] = sums[r][k];
}

// S (rows, 4) = matrix E
void sum_states(const Work &f, const vec *E, vec *S) {
    int64_t row = 0;
    for (; row + TILE <= f.rows; row += TILE) sum_tile<TILE>(f, E, row, S);
    if (row < f.rows) sum_tile<2>(f, E, row, S);
}

struct Sizes {
    int b, c, rank;
};

// body(sizes), with constants for the usual ones: the loops over M are then unrolled.
template <class Body>
S4_FAST_INLINE void with_sizes(const DplrSizes &sizes, Body body) {
    const int b = int(sizes.b), c = int(sizes.c), rank = int(sizes.rank);
    if (b == 1 && c == 1 && rank == 1)
        body(Sizes{1, 1, 1});
    else if (b == 1 && c == 2 && rank == 1)
        body(Sizes{1, 2, 1});
    else if (b == 1 && c == 1 && rank == 2)
        body(Sizes{1, 1, 2});
    else
        body(Sizes{b, c, rank});
}

S4_FAST_INLINE void build(const Work &f, Sizes s, const Nodes &t, int half, const vec *S, ComplexVector *M) {
    const int rows = s.c + s.rank, columns = s.b + s.rank;
    const vec cos = t.cos[half], sin = t.sin[half];
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
            const int at = i * columns + j;
            const vec *alpha = S + 8 * at + half, *beta = alpha + 4;
            ComplexVector x = {cos * beta[0] - sin * alpha[2], cos * beta[2] + sin * alpha[0]};
            if (i < s.c)
                M[at] = {cos * x.re - 0.5 * sin * x.im + f.shift[at], cos * x.im + 0.5 * sin * x.re};
            else
                M[at] = {cos * x.re + f.shift[at], cos * x.im};
        }
}

// Every step leaves in its row and column what it read there.
S4_FAST_INLINE void eliminate(Sizes s, ComplexVector *M) {
    const int columns = s.b + s.rank;
    for (int step = s.rank - 1; step >= 0; --step) {
        const int p = s.c + step, q = s.b + step;
        const ComplexVector inverse = reciprocal(M[p * columns + q]);
        for (int i = 0; i < p; ++i) {
            const ComplexVector factor = times(M[i * columns + q], inverse);
            for (int j = 0; j < q; ++j) subtract(M[i * columns + j], times(factor, M[p * columns + j]));
        }
    }
}

// Takes the gradient G of the upper left to that of all of M before the elimination.
S4_FAST_INLINE void eliminate_backward(Sizes s, const ComplexVector *M, ComplexVector *G) {
    const int columns = s.b + s.rank;
    for (int step = 0; step < s.rank; ++step) {
        const int p = s.c + step, q = s.b + step;
        const ComplexVector inverse = reciprocal(M[p * columns + q]);
        for (int j = 0; j < q; ++j) {
            ComplexVector sum = {vec{}, vec{}};
            for (int i = 0; i < p; ++i) subtract(sum, conj_times(M[i * columns + q], G[i * columns + j]));
            G[p * columns + j] = conj_times(inverse, sum);
        }
        for (int i = 0; i <= p; ++i) {
            ComplexVector sum = {vec{}, vec{}};
            for (int j = 0; j < q; ++j) subtract(sum, conj_times(M[p * columns + j], G[i * columns + j]));
            G[i * columns + q] = conj_times(inverse, sum);
        }
    }
}

// The adjoint of build.
S4_FAST_INLINE void build_backward(Sizes s, const Nodes &t, int half, const ComplexVector *G, vec *S) {
    const int rows = s.c + s.rank, columns = s.b + s.rank;
    const vec cos = t.cos[half], sin = t.sin[half];
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
            const ComplexVector g = G[i * columns + j];
            vec *alpha = S + 8 * (i * columns + j) + half, *beta = alpha + 4;
            ComplexVector x = {cos * g.re, cos * g.im};
            if (i < s.c) x.re += 0.5 * sin * g.im, x.im -= 0.5 * sin * g.re;
            beta[0] = cos * x.re, beta[2] = cos * x.im;
            alpha[0] = sin * x.im, alpha[2] = -sin * x.re;
        }
}

// What part of a spectrum (b, c, H, L/2 + 1) belongs to one feature.
template <class U>
struct Spectrum {
    U *start;
    int64_t stride, nodes;  // of rows (b, c)
    template <class T>
    Spectrum(const Dplr<T> &dplr, U *spectrum, int64_t h)
        : start(spectrum + 2 * h * (dplr.sizes.L / 2 + 1)),
          stride(2 * dplr.sizes.H * (dplr.sizes.L / 2 + 1)),
          nodes(dplr.sizes.L / 2 + 1) {}
    U *at(int64_t row, int64_t k) const { return start + row * stride + 2 * k; }
};

template <class T>
S4_FAST_INLINE void finish(const Work &f, Sizes s, const Nodes &t, const vec *S, const Spectrum<T> &out, int64_t k) {
    const int columns = s.b + s.rank;
    for (int half = 0; half < 2; ++half, k += LANES<double>) {
        if (k >= out.nodes) return;
        ComplexVector M[S4_FAST_CPU_DPLR_SUMS];
        build(f, s, t, half, S, M);
        eliminate(s, M);
        for (int j = 0; j < s.b; ++j)
            for (int i = 0; i < s.c; ++i) store_complex(out.at(j * s.c + i, k), M[i * columns + j], out.nodes - k);
    }
}

// S becomes its gradient.
template <class T>
S4_FAST_INLINE void finish_backward(const Work &f, Sizes s, const Nodes &t, vec *S, const Spectrum<const T> &grad,
                                    int64_t k) {
    const int columns = s.b + s.rank;
    for (int half = 0; half < 2; ++half, k += LANES<double>) {
        ComplexVector M[S4_FAST_CPU_DPLR_SUMS], G[S4_FAST_CPU_DPLR_SUMS];
        build(f, s, t, half, S, M);
        eliminate(s, M);
        for (int j = 0; j < s.b; ++j)
            for (int i = 0; i < s.c; ++i) {
                const int64_t count = grad.nodes - k;
                const bool any = count > 0;
                G[i * columns + j] = any ? load_complex(grad.at(j * s.c + i, k), count) : ComplexVector{vec{}, vec{}};
            }
        eliminate_backward(s, M, G);
        build_backward(s, t, half, G, S);
    }
}

// by_sum += E G^T, lane by lane, over a block of pairs, where S holds the gradient G of the sums.
template <int ROWS>
S4_FAST_INLINE void moment_tile(const Work &f, int64_t pairs, int64_t row) {
    for (int64_t i = 0; i < f.states; i += STATES) {
        vec tile[STATES][ROWS] = {};
        const vec *e = f.E + 4 * i, *g = f.S + 4 * row;
        for (int64_t pair = 0; pair < pairs; ++pair, e += 4 * f.states, g += 4 * f.rows)
            for (int k = 0; k < 4; ++k)
                for (int r = 0; r < ROWS; ++r)
                    for (int state = 0; state < STATES; ++state) tile[state][r] += e[4 * state + k] * g[4 * r + k];
        for (int state = 0; state < STATES; ++state)
            for (int r = 0; r < ROWS; ++r) f.by_sum[(i + state) * f.rows + row + r] += tile[state][r];
    }
}

void moments(const Work &f, int64_t pairs) {
    int64_t row = 0;
    for (; row + TILE <= f.rows; row += TILE) moment_tile<TILE>(f, pairs, row);
    if (row < f.rows) moment_tile<2>(f, pairs, row);
}

// Takes dE = matrix^T G to d(d d') = -(E^2)* dE, and to |w|^2 and Re w: by_pole, lane by lane.
void pole_moments(const Work &f, int64_t pairs) {
    for (int64_t i = 0; i < f.states; i += TILE) {
        vec square[TILE] = {}, real[TILE] = {};
        const vec *e = f.E + 4 * i, *g = f.S;
        for (int64_t pair = 0; pair < pairs; ++pair, e += 4 * f.states, g += 4 * f.rows) {
            vec tile[TILE][4] = {};
            const double *matrix = f.matrix + i * f.rows;
            for (int64_t r = 0; r < f.rows; ++r)
                for (int state = 0; state < TILE; ++state)
                    for (int k = 0; k < 4; ++k) tile[state][k] += g[4 * r + k] * matrix[state * f.rows + r];
            for (int state = 0; state < TILE; ++state)
                for (int half = 0; half < 2; ++half) {
                    const ComplexVector x = {e[4 * state + half], e[4 * state + half + 2]};
                    const ComplexVector of_e = {tile[state][half], tile[state][half + 2]};
                    const ComplexVector d = conj_times(times(x, x), of_e);
                    square[state] -= f.nodes[pair].cos2[half] * d.re;
                    real[state] += f.nodes[pair].cross[half] * d.im;
                }
        }
        for (int state = 0; state < TILE; ++state) {
            f.by_pole[2 * (i + state)] += square[state];
            f.by_pole[2 * (i + state) + 1] += real[state];
        }
    }
}

}  // namespace

int64_t dplr_scratch(const DplrSizes &sizes, bool backward) {
    Arena memory;
    Work(memory, sizes, backward);
    return memory.used();
}

template <class T>
void dplr_spectrum(const Dplr<T> &dplr, T *spectrum, int64_t h, int64_t first, int64_t last, char *scratch) {
    Arena memory(scratch);
    Work f(memory, dplr.sizes, false);
    prepare(dplr, h, f);
    const Spectrum<T> out(dplr, spectrum, h);
    for (int64_t k = first; k < last; k += PAIR) {
        const Nodes t = load_nodes(dplr.roots, k);
        reciprocals<T>(f, t, f.E);
        sum_states(f, f.E, f.S);
        with_sizes(dplr.sizes, [&](Sizes s) __attribute__((always_inline)) { finish(f, s, t, f.S, out, k); });
    }
}

template <class T>
void dplr_spectrum_backward(const Dplr<T> &dplr, const T *grad, int64_t h, int64_t first, int64_t last, double *sums,
                            double *poles, char *scratch) {
    Arena memory(scratch);
    Work f(memory, dplr.sizes, true);
    prepare(dplr, h, f);
    // The states that pad n stay 0.
    for (int64_t i = 0; i < f.block * f.states * 4; ++i) f.E[i] = vec{};
    for (int64_t i = 0; i < f.states * f.rows; ++i) f.by_sum[i] = vec{};
    for (int64_t i = 0; i < f.states * 2; ++i) f.by_pole[i] = vec{};
    const Spectrum<const T> from(dplr, grad, h);
    for (int64_t k = first; k < last;) {
        int64_t pairs = 0;
        for (; pairs < f.block && k < last; ++pairs, k += PAIR) {
            vec *E = f.E + pairs * f.states * 4, *S = f.S + pairs * f.rows * 4;
            Nodes &t = f.nodes[pairs];
            t = load_nodes(dplr.roots, k);
            reciprocals<T>(f, t, E);
            sum_states(f, E, S);
            with_sizes(dplr.sizes,
                       [&](Sizes s) __attribute__((always_inline)) { finish_backward(f, s, t, S, from, k); });
        }
        moments(f, pairs);
        if (poles) pole_moments(f, pairs);
    }
    for (int64_t i = 0; i < f.n * f.rows; ++i) sums[i] = sum(f.by_sum[i]);
    for (int64_t i = 0; poles && i < f.n * 2; ++i) poles[i] = sum(f.by_pole[i]);
}

#define S4_FAST_INSTANTIATE(T)                                                                                      \
    template void dplr_spectrum(const Dplr<T> &, T *, int64_t, int64_t, int64_t, char *);                           \
    template void dplr_spectrum_backward(const Dplr<T> &, const T *, int64_t, int64_t, int64_t, double *, double *, \
                                         char *);
S4_FAST_INSTANTIATE(float)
S4_FAST_INSTANTIATE(double)

}  // namespace s4_fast::cpu::S4_FAST_ISA
