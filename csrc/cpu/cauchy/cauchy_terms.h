// The terms of Cauchy sums in vectors of nodes. For *.isa.cpp alone.
//
// With u + i b = z - w*, u - i b = z - w, a conjugate pair is a quotient with real coefficients alpha = 2 Re v and
// beta = -2 b Im v, and one reciprocal:
//
//     v/(z - w) + v*/(z - w*) = (alpha u + beta) E,   E = 1/((u - i b)(u + i b)),   u = z - Re w,   b = Im w.
//
// The factors are differences of the given numbers, exact where they are small, so that E is as accurate as their
// reciprocals, and so is the numerator: |u| and b are at most (|u - i b| + |u + i b|) / 2. At the roots of unity
// u = 2 i s - Re w c, and b c takes the place of b; the common factor e^{i theta/2} is left to the end.
//
// |E|^2 is beyond single precision for numbers that are not. A block of nodes where it is, or might be, is done again
// in double.
#pragma once

#include <type_traits>

#include "../shared/arena.h"
#include "../shared/complex.h"
#include "cauchy.h"

namespace s4_fast::cpu::S4_FAST_ISA {

// Rows of v that share a reciprocal, at most.
constexpr int64_t MOST_ROWS = 4;

// Nodes are padded to whole tiles of this many vectors.
constexpr int TILE = REGISTERS / 16;

// s - b c with the error of one rounding, whatever cancels.
template <class A>
S4_FAST_INLINE Vector<A> difference(Vector<A> s, A b, Vector<A> c) {
#if S4_FAST_HAS_FMA
    return s - b * c;
#else
    const A splitter = std::is_same<A, float>::value ? A(4097) : A(134217729);
    const A shifted_b = splitter * b, b1 = shifted_b - (shifted_b - b), b2 = b - b1;
    const Vector<A> shifted_c = splitter * c, c1 = shifted_c - (shifted_c - c), c2 = c - c1;
    return ((s - b1 * c1) - b1 * c2 - b2 * c1) - b2 * c2;
#endif
}

template <class A>
struct Part {
    Vector<A> re, im;
};

template <class A>
S4_FAST_INLINE Part<A> product(Part<A> a, Part<A> b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// The order of these operations lets the compiler make FMAs of them.
template <class A>
S4_FAST_INLINE void add_product(Part<A> &sum, Part<A> a, Part<A> b) {
    sum.re = sum.re + a.re * b.re - a.im * b.im;
    sum.im = sum.im + a.re * b.im + a.im * b.re;
}

// conj(a) b
template <class A>
S4_FAST_INLINE Part<A> conj_product(Part<A> a, Part<A> b) {
    return {a.re * b.re + a.im * b.im, a.re * b.im - a.im * b.re};
}

// A vector of nodes: z, or at the roots of unity cos, 2 sin and what the latter leaves.
template <class A>
struct NodeVector {
    Vector<A> x, y, low;
};

// e^{i theta/2}
template <class A>
S4_FAST_INLINE Part<A> half_turn(const NodeVector<A> &t) {
    return {t.x, A(0.5) * t.y};
}

// u and E; for single terms z - w and its reciprocal.
template <class A>
struct Quotient {
    Part<A> u, E;
};

// Adds |E|^2 to `size`: too large for A, or no number, it stays so.
template <Terms TERMS, class A>
S4_FAST_INLINE Quotient<A> quotient(const NodeVector<A> &t, A re, A im, Vector<A> &size) {
    Quotient<A> q;
    Part<A> d;  // conj(1/E)
    if constexpr (TERMS == Terms::single) {
        q.u = {t.x - re, t.y - im};
        d = {q.u.re, im - t.y};
    } else {
        Vector<A> less, more;
        if constexpr (TERMS == Terms::at_roots) {
            q.u.re = -re * t.x;
            less = difference<A>(t.y, im, t.x) + t.low, more = t.y + im * t.x;
        } else {
            q.u.re = t.x - re;
            less = t.y - im, more = t.y + im;
        }
        q.u.im = t.y;
        d = {q.u.re * q.u.re - less * more, q.u.re * (A(-2) * t.y)};
    }
    // The division unit works beside the multipliers: an estimate refined by them took 6 % longer on a Zen 4.
    const Vector<A> r = A(1) / (d.re * d.re + d.im * d.im);
    size += r;
    q.E = {d.re * r, d.im * r};
    return q;
}

// What a row with the coefficients alpha and beta, or v, adds to the sum is this times E.
template <Terms TERMS, class A>
S4_FAST_INLINE Part<A> numerator(const NodeVector<A> &t, const Quotient<A> &q, A alpha, A beta) {
    if constexpr (TERMS == Terms::single) return {alpha - Vector<A>{}, beta - Vector<A>{}};
    return {alpha * q.u.re + (TERMS == Terms::at_roots ? beta * t.x : beta - Vector<A>{}), alpha * q.u.im};
}

// A feature's poles and a block of its nodes in the type A that the arithmetic is in.
template <class A>
struct CauchyWork {
    A *x, *y, *low;   // (CAUCHY_BLOCK,)
    A *rows;          // (MOST_ROWS, 2, CAUCHY_BLOCK): real and imaginary parts of sums, or of their gradients
    A *at_nodes;      // (2, CAUCHY_BLOCK), of the adjoint: sums over poles
    A *poles;         // for every group of rows (n, 2 + 2 rows): Re w, |Im w|, and alpha and beta of each row
    Vector<A> *sums;  // (n, 2 MOST_ROWS + 2), of the adjoint: sums over nodes
    bool has_poles = false, small_poles = false, small_nodes = false;

    CauchyWork(Arena &memory, int64_t c, int64_t n, bool backward)
        : x(memory.take<A>(CAUCHY_BLOCK)),
          y(memory.take<A>(CAUCHY_BLOCK)),
          low(memory.take<A>(CAUCHY_BLOCK)),
          rows(memory.take<A>(MOST_ROWS * 2 * CAUCHY_BLOCK)),
          at_nodes(memory.take<A>(backward ? 2 * CAUCHY_BLOCK : 0)),
          poles(memory.take<A>(4 * n * c)),
          sums(memory.take<Vector<A>>(backward ? n * (2 * MOST_ROWS + 2) : 0)) {}

    NodeVector<A> node(int64_t k) const { return {load(x + k), load(y + k), load(low + k)}; }
};

// Rows from `row` on that are done together.
S4_FAST_INLINE int64_t group_of_rows(int64_t left) { return left >= MOST_ROWS ? MOST_ROWS : left >= 2 ? 2 : 1; }

constexpr int64_t padded_to_tiles(int64_t count, int64_t lanes) {
    return (count + TILE * lanes - 1) / (TILE * lanes) * (TILE * lanes);
}

// Whether all are at most 2^28 in size, for numbers whose squares have this sum. Then |z - w|^2 |z - w*|^2 < 2^120.
inline bool are_small(double sum_of_squares) { return sum_of_squares <= 0x1p56; }

// Whether every |E|^2 of this sum is a number below 2^100.
template <class A>
S4_FAST_INLINE bool in_range(Vector<A> size) {
    A total = 0;
    for (int i = 0; i < LANES<A>; ++i) total += size[i];
    return total <= A(0x1p100);
}

template <class A, class T>
void load_poles(const Cauchy<T> &of, int64_t h, CauchyWork<A> &to) {
    double squares = 0;
    const T *w = of.w + 2 * h * of.n;
    for (int64_t i = 0; i < 2 * of.n; ++i) squares += double(w[i]) * double(w[i]);
    A *pole = to.poles;
    for (int64_t row = 0; row < of.c;) {
        const int64_t rows = group_of_rows(of.c - row);
        for (int64_t i = 0; i < of.n; ++i, pole += 2 + 2 * rows) {
            const A im = w[2 * i + 1];
            const bool turned = of.terms != Terms::single && im < 0;
            pole[0] = w[2 * i], pole[1] = turned ? -im : im;
            for (int64_t r = 0; r < rows; ++r) {
                const T *v = of.v + 2 * (((row + r) * of.H + h) * of.n + i);
                pole[2 + 2 * r] = of.terms == Terms::single ? A(v[0]) : 2 * A(v[0]);
                pole[3 + 2 * r] = of.terms == Terms::single ? A(v[1]) : -2 * im * A(v[1]);
            }
        }
        row += rows;
    }
    to.has_poles = true, to.small_poles = are_small(squares);
}

template <class A, class T>
S4_FAST_INLINE HalfAngles<A> angles_in(const Cauchy<T> &of) {
    if constexpr (std::is_same<A, T>::value)
        return of.angles;
    else
        return of.roots;
}

// The nodes first <= k < first + count, padded with the last of them.
template <class A, class T>
void load_nodes(const Cauchy<T> &of, int64_t h, int64_t first, int64_t count, CauchyWork<A> &to) {
    if (of.terms == Terms::at_roots) {
        const HalfAngles<A> from = angles_in<A>(of);
        for (int64_t i = 0; i < count; ++i) {
            to.x[i] = from.cos[first + i], to.y[i] = from.twice_sin[first + i], to.low[i] = from.low[first + i];
        }
    } else {
        const T *z = of.z + 2 * ((of.z_rows > 1 ? h * of.nodes : 0) + first);
        for (int64_t i = 0; i < count; ++i) to.x[i] = z[2 * i], to.y[i] = z[2 * i + 1], to.low[i] = 0;
    }
    const int64_t padded = padded_to_tiles(count, LANES<A>);
    for (int64_t i = count; i < padded; ++i)
        to.x[i] = to.x[count - 1], to.y[i] = to.y[count - 1], to.low[i] = to.low[count - 1];
    Vector<A> squares = {};
    for (int64_t i = 0; i < padded; i += LANES<A>) {
        const Vector<A> x = load(to.x + i), y = load(to.y + i);
        squares += x * x + y * y;
    }
    double total = 0;
    for (int i = 0; i < LANES<A>; ++i) total += double(squares[i]);
    to.small_nodes = are_small(total);
}

// body(terms, rows) with both as constants.
template <class Body>
S4_FAST_INLINE bool with_rows(Terms terms, int64_t rows, Body body) {
    const auto with_terms = [&](auto constant) __attribute__((always_inline)) {
        if (rows == 1) return body(constant, std::integral_constant<int, 1>{});
        if (rows == 2) return body(constant, std::integral_constant<int, 2>{});
        return body(constant, std::integral_constant<int, int(MOST_ROWS)>{});
    };
    if (terms == Terms::single) return with_terms(std::integral_constant<Terms, Terms::single>{});
    if (terms == Terms::pairs) return with_terms(std::integral_constant<Terms, Terms::pairs>{});
    return with_terms(std::integral_constant<Terms, Terms::at_roots>{});
}

// A feature's work in its type T, and in double where T does not hold the quotients.
template <class T>
struct CauchyWorks {
    CauchyWork<T> own;
    CauchyWork<double> wide;
    DoubleVector *moments;  // (n, 2 c + 2), of the adjoint

    CauchyWorks(Arena &memory, const Cauchy<T> &of, bool backward)
        : own(memory, of.c, of.n, backward),
          wide(memory, of.c, of.n, backward),
          moments(memory.take<DoubleVector>(backward ? of.n * cauchy_moments(of) : 0)) {}
};

template <>
struct CauchyWorks<double> {
    CauchyWork<double> own;
    DoubleVector *moments;

    CauchyWorks(Arena &memory, const Cauchy<double> &of, bool backward)
        : own(memory, of.c, of.n, backward),
          moments(memory.take<DoubleVector>(backward ? of.n * cauchy_moments(of) : 0)) {}
};

// try_block(work, poles of the group of rows, rows, first row) for the nodes first <= k < first + count in type T, and
// where it says that T is not enough, in double.
template <class T, class TryBlock>
S4_FAST_INLINE void each_group(const Cauchy<T> &of, CauchyWorks<T> &works, int64_t h, int64_t first, int64_t count,
                               TryBlock try_block) {
    load_nodes(of, h, first, count, works.own);
    const bool small = std::is_same<T, double>::value || (works.own.small_nodes && works.own.small_poles);
    bool has_wide_nodes = false;
    int64_t at = 0;
    for (int64_t row = 0; row < of.c;) {
        const int64_t rows = group_of_rows(of.c - row);
        if (!small || !try_block(works.own, works.own.poles + at, rows, row)) {
            if constexpr (!std::is_same<T, double>::value) {
                if (!works.wide.has_poles) load_poles(of, h, works.wide);
                if (!has_wide_nodes) load_nodes(of, h, first, count, works.wide), has_wide_nodes = true;
                try_block(works.wide, works.wide.poles + at, rows, row);
            }
        }
        row += rows, at += of.n * (2 + 2 * rows);
    }
}

}  // namespace s4_fast::cpu::S4_FAST_ISA
