// The adjoint of Cauchy sums: sums over nodes in registers for one pole after the other, and over poles in memory.
//
// For the gradient g of a sum, q = g* E, and p = sum over the rows of (the pole's term) q, a pair's gradients are
//
//     alpha: Re sum u q,   beta / b: Re sum c q,   u: sum alpha q - 2 u p,   b: -2 b Re sum c^2 p, and what beta adds,
//
// conjugated where they are complex; c = 1 except at the roots of unity. Hence for each row the moments Re sum c q and
// Re sum u q, and Re sum c^2 p and Re sum c u p. For single terms they are sum q and sum p E, both parts of each.
#include "cauchy_terms.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// Whether A held all quotients. f.rows holds the gradients.
template <Terms TERMS, int ROWS, bool AT_NODES, class A>
__attribute__((noinline)) bool moments_of_block(const CauchyWork<A> &f, const A *poles, int64_t n, int64_t padded) {
    constexpr int64_t STEP = LANES<A>;
    constexpr int MOMENTS = 2 * ROWS + 2;
    Vector<A> size = {}, *to = f.sums;
    if constexpr (AT_NODES)
        for (int64_t k = 0; k < padded; k += STEP)
            store<A>(f.at_nodes + k, Vector<A>{}), store<A>(f.at_nodes + CAUCHY_BLOCK + k, Vector<A>{});
    for (int64_t i = 0; i < n; ++i, poles += 2 + 2 * ROWS, to += MOMENTS) {
        Vector<A> sums[MOMENTS] = {};
        for (int64_t k = 0; k < padded; k += STEP) {
            const NodeVector<A> t = f.node(k);
            const Quotient<A> at = quotient<TERMS, A>(t, poles[0], poles[1], size);
            Part<A> p = {Vector<A>{}, Vector<A>{}}, by_node = p;
            for (int r = 0; r < ROWS; ++r) {
                const A *g = f.rows + 2 * r * CAUCHY_BLOCK + k;
                const A alpha = poles[2 + 2 * r], beta = poles[3 + 2 * r];
                const Part<A> q = conj_product<A>({load(g), load(g + CAUCHY_BLOCK)}, at.E);
                const Part<A> v = numerator<TERMS, A>(t, at, alpha, beta);
                if constexpr (TERMS == Terms::single) {
                    sums[2 * r] += q.re, sums[2 * r + 1] += q.im;
                    add_product(p, v, q);
                } else {
                    sums[2 * r] += TERMS == Terms::at_roots ? t.x * q.re : q.re;
                    sums[2 * r + 1] = sums[2 * r + 1] + at.u.re * q.re - at.u.im * q.im;
                    add_product(p, product(v, at.E), q);
                    if constexpr (AT_NODES) by_node.re += alpha * q.re, by_node.im += alpha * q.im;
                }
            }
            const Part<A> x = product<A>(TERMS == Terms::single ? at.E : at.u, p);
            if constexpr (TERMS == Terms::single) {
                sums[2 * ROWS] += x.re, sums[2 * ROWS + 1] += x.im;
                by_node = {-x.re, -x.im};
            } else {
                sums[2 * ROWS] += TERMS == Terms::at_roots ? t.x * t.x * p.re : p.re;
                sums[2 * ROWS + 1] += TERMS == Terms::at_roots ? t.x * x.re : x.re;
                by_node.re -= x.re + x.re, by_node.im -= x.im + x.im;
            }
            if constexpr (AT_NODES) {
                A *node = f.at_nodes + k;
                store<A>(node, load(node) + by_node.re);
                store<A>(node + CAUCHY_BLOCK, load(node + CAUCHY_BLOCK) + by_node.im);
            }
        }
        for (int m = 0; m < MOMENTS; ++m) to[m] = sums[m];
    }
    return in_range<A>(size);
}

S4_FAST_INLINE DoubleVector in_doubles(FloatVector v) { return lower(v) + upper(v); }
S4_FAST_INLINE DoubleVector in_doubles(DoubleVector v) { return v; }

// The gradients of rows from `row` on at a block of nodes, 0 where it is padded. At the roots of unity times
// e^{-i theta/2}.
template <class A, class T>
void load_gradients(const Cauchy<T> &of, const T *grad, int64_t h, int64_t row, int64_t rows, int64_t first,
                    int64_t count, const CauchyWork<A> &to) {
    const int64_t padded = padded_to_tiles(count, LANES<A>);
    for (int64_t r = 0; r < rows; ++r) {
        const T *g = grad + 2 * (((row + r) * of.H + h) * of.nodes + first);
        A *re = to.rows + 2 * r * CAUCHY_BLOCK, *im = re + CAUCHY_BLOCK;
        for (int64_t i = 0; i < count; ++i) re[i] = g[2 * i], im[i] = g[2 * i + 1];
        for (int64_t i = count; i < padded; ++i) re[i] = im[i] = 0;
        for (int64_t i = 0; of.terms == Terms::at_roots && i < padded; i += LANES<A>) {
            const Part<A> x = conj_product<A>(half_turn(to.node(i)), {load(re + i), load(im + i)});
            store(re + i, x.re), store(im + i, x.im);
        }
    }
}

}  // namespace

template <class T>
void cauchy_sums_backward(const Cauchy<T> &of, const T *grad, int64_t h, int64_t first, int64_t last, double *moments,
                          T *grad_z, char *scratch) {
    Arena memory(scratch);
    CauchyWorks<T> works(memory, of, true);
    const int64_t width = cauchy_moments(of);
    for (int64_t i = 0; i < of.n * width; ++i) works.moments[i] = DoubleVector{};
    load_poles(of, h, works.own);
    for (int64_t k = first; k < last; k += CAUCHY_BLOCK) {
        const int64_t count = last - k < CAUCHY_BLOCK ? last - k : CAUCHY_BLOCK;
        each_group(of, works, h, k, count, [&](auto &f, const auto *poles, int64_t rows, int64_t row) {
            using A = std::remove_reference_t<decltype(*f.x)>;
            const int64_t padded = padded_to_tiles(count, LANES<A>);
            load_gradients(of, grad, h, row, rows, k, count, f);
            const bool held = with_rows(of.terms, rows, [&](auto terms, auto constant) {
                constexpr Terms TERMS = decltype(terms)::value;
                constexpr int GROUP = decltype(constant)::value;
                if constexpr (TERMS != Terms::at_roots)
                    if (grad_z) return moments_of_block<TERMS, GROUP, true, A>(f, poles, of.n, padded);
                return moments_of_block<TERMS, GROUP, false, A>(f, poles, of.n, padded);
            });
            if (!held && std::is_same<A, float>::value) return false;
            const Vector<A> *from = f.sums;
            for (int64_t i = 0; i < of.n; ++i, from += 2 * rows + 2) {
                DoubleVector *total = works.moments + i * width;
                for (int64_t m = 0; m < 2 * rows; ++m) total[2 * row + m] += in_doubles(from[m]);
                total[2 * of.c] += in_doubles(from[2 * rows]), total[2 * of.c + 1] += in_doubles(from[2 * rows + 1]);
            }
            if (grad_z == nullptr) return true;
            T *to = grad_z + 2 * k;
            for (int64_t i = 0; i < count; ++i) {
                const A re = f.at_nodes[i], im = -f.at_nodes[CAUCHY_BLOCK + i];
                to[2 * i] = T(row ? A(to[2 * i]) + re : re), to[2 * i + 1] = T(row ? A(to[2 * i + 1]) + im : im);
            }
            return true;
        });
    }
    for (int64_t i = 0; i < of.n * width; ++i) moments[i] = sum(works.moments[i]);
}

#define S4_FAST_INSTANTIATE(T) \
    template void cauchy_sums_backward(const Cauchy<T> &, const T *, int64_t, int64_t, int64_t, double *, T *, char *);
S4_FAST_INSTANTIATE(float)
S4_FAST_INSTANTIATE(double)

}  // namespace s4_fast::cpu::S4_FAST_ISA
