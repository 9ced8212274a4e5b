// Cauchy sums: a few vectors of nodes in registers, to which one pole after the other adds its terms.
#include "cauchy_terms.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// Poles whose terms are added before they are added to the others: the error of a sum grows with the longest chain.
constexpr int64_t CHAIN = 32;

// Whether A held all quotients.
template <Terms TERMS, int ROWS, class A>
__attribute__((noinline)) bool sum_block(const CauchyWork<A> &f, const A *poles, int64_t n, int64_t padded) {
    constexpr int64_t STRIDE = 2 + 2 * ROWS;
    Vector<A> size = {};
    for (int64_t k = 0; k < padded; k += TILE * LANES<A>) {
        NodeVector<A> t[TILE];
        Part<A> sums[TILE][ROWS];
        for (int j = 0; j < TILE; ++j) {
            t[j] = f.node(k + j * LANES<A>);
            for (int r = 0; r < ROWS; ++r) sums[j][r] = {Vector<A>{}, Vector<A>{}};
        }
        for (int64_t first = 0; first < n; first += CHAIN) {
            const int64_t last = n - first < CHAIN ? n : first + CHAIN;
            Part<A> chain[TILE][ROWS];
            for (int j = 0; j < TILE; ++j)
                for (int r = 0; r < ROWS; ++r) chain[j][r] = {Vector<A>{}, Vector<A>{}};
            const A *pole = poles + first * STRIDE;
            for (int64_t i = first; i < last; ++i, pole += STRIDE)
                for (int j = 0; j < TILE; ++j) {
                    const Quotient<A> q = quotient<TERMS, A>(t[j], pole[0], pole[1], size);
                    for (int r = 0; r < ROWS; ++r)
                        add_product(chain[j][r], numerator<TERMS, A>(t[j], q, pole[2 + 2 * r], pole[3 + 2 * r]), q.E);
                }
            for (int j = 0; j < TILE; ++j)
                for (int r = 0; r < ROWS; ++r) sums[j][r].re += chain[j][r].re, sums[j][r].im += chain[j][r].im;
        }
        for (int j = 0; j < TILE; ++j)
            for (int r = 0; r < ROWS; ++r) {
                Part<A> &sum = sums[j][r];
                if constexpr (TERMS == Terms::at_roots) sum = product<A>(half_turn(t[j]), sum);
                A *to = f.rows + 2 * r * CAUCHY_BLOCK + k + j * LANES<A>;
                store(to, sum.re), store(to + CAUCHY_BLOCK, sum.im);
            }
    }
    return in_range<A>(size);
}

}  // namespace

template <class T>
int64_t cauchy_scratch(const Cauchy<T> &of, bool backward) {
    Arena memory;
    CauchyWorks<T>(memory, of, backward);
    return memory.used();
}

template <class T>
void cauchy_sums(const Cauchy<T> &of, T *out, int64_t h, int64_t first, int64_t last, char *scratch) {
    Arena memory(scratch);
    CauchyWorks<T> works(memory, of, false);
    load_poles(of, h, works.own);
    for (int64_t k = first; k < last; k += CAUCHY_BLOCK) {
        const int64_t count = last - k < CAUCHY_BLOCK ? last - k : CAUCHY_BLOCK;
        each_group(of, works, h, k, count, [&](auto &f, const auto *poles, int64_t rows, int64_t row) {
            using A = std::remove_reference_t<decltype(*f.x)>;
            const int64_t padded = padded_to_tiles(count, LANES<A>);
            const bool held = with_rows(of.terms, rows, [&](auto terms, auto constant) {
                return sum_block<decltype(terms)::value, decltype(constant)::value, A>(f, poles, of.n, padded);
            });
            for (int64_t r = 0; r < rows; ++r) {
                T *to = out + 2 * (((row + r) * of.H + h) * of.nodes + k);
                const A *re = f.rows + 2 * r * CAUCHY_BLOCK, *im = re + CAUCHY_BLOCK;
                for (int64_t i = 0; i < count; ++i) to[2 * i] = T(re[i]), to[2 * i + 1] = T(im[i]);
            }
            return held;
        });
    }
}

#define S4_FAST_INSTANTIATE(T)                                \
    template int64_t cauchy_scratch(const Cauchy<T> &, bool); \
    template void cauchy_sums(const Cauchy<T> &, T *, int64_t, int64_t, int64_t, char *);
S4_FAST_INSTANTIATE(float)
S4_FAST_INSTANTIATE(double)

}  // namespace s4_fast::cpu::S4_FAST_ISA
