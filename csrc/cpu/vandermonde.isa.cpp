// With l = m T + t, lambda^l = lambda^(mT) lambda^t: a sum over the nodes is a matrix product of two tables, and so is one
// over l. The tables hold about sqrt(L) powers each, rounded from powers in double.
#include "vandermonde.h"

#include "carry.h"
#include "multiply.h"
#include "tables.h"

namespace s4_fast {
namespace S4_FAST_ISA {
namespace {

// Rows of a table that are made and used at a time.
constexpr int64_t kBlock = 48;

// T: about sqrt(L), in whole vectors, and not so long that the table leaves the first cache.
int64_t fine_length(int64_t L) {
    int64_t T = 32;
    while (T * T < L && T < 256) T *= 2;
    return T;
}

// lambda^t, t < T, of one node.
struct FinePowers {
    int64_t T;
    double *re, *im;

    FinePowers(Arena &memory, int64_t T) : T(T), re(memory.take<double>(T)), im(memory.take<double>(T)) {}
};

template <class T>
struct Synthesizer {
    int64_t length;
    State state;  // scale v lambda^(mT)
    Carry<T> carry;
    FinePowers powers;
    T *fine;    // (2 np, length): Re lambda^t, -Im lambda^t
    T *coarse;  // (kBlock, 2 np)
    T *rest;    // (length,)

    Synthesizer(Arena &memory, const Synthesis<T> &of)
        : length(fine_length(of.L)),
          state(memory, of.n, padded<T>(of.n)),
          carry(memory, state.np),
          powers(memory, length),
          fine(memory.take<T>(2 * state.np * length)),
          coarse(memory.take<T>(kBlock * 2 * state.np)),
          rest(memory.take<T>(length)) {}

    void set(const Synthesis<T> &of, int64_t h) const {
        const int64_t n = state.n, np = state.np;
        for (int64_t i = 0; i < n; ++i) {
            const Complex x = get(of.x, h * n + i), lambda = exp(x);
            carry.set(i, x, lambda, length);
            fill_powers(lambda, length, powers.re, powers.im);
            for (int64_t t = 0; t < length; ++t) {
                fine[i * length + t] = T(powers.re[t]), fine[(np + i) * length + t] = T(-powers.im[t]);
            }
        }
        for (int64_t i = n; i < np; ++i) carry.clear(i);
        clear_rows(fine, n, np, length);
        clear_rows(fine, np + n, 2 * np, length);
    }

    void row(const Synthesis<T> &of, int64_t row, int64_t h) const {
        const int64_t np = state.np, rows = (of.L + length - 1) / length, whole = of.L / length;
        T *out = of.out + (row * of.H + h) * of.L;
        state.set(of.v + 2 * (row * of.H + h) * of.n, of.scale);
        for (int64_t m = 0; m < rows; m += kBlock) {
            const int64_t count = rows - m < kBlock ? rows - m : kBlock;
            const int64_t full = whole - m < count ? whole - m : count;
            clear_rows(coarse, 0, count, 2 * np);
            carry.over(state, false, count, coarse);
            multiply<T>(full, length, {2 * np, {coarse, 2 * np, 1}, fine, length}, out + m * length, length, false);
            if (full == count) continue;
            multiply<T>(1, length, {2 * np, {coarse + full * 2 * np, 2 * np, 1}, fine, length}, rest, length, false);
            for (int64_t t = 0; whole * length + t < of.L; ++t) out[whole * length + t] = rest[t];
        }
    }
};

template <class T>
struct MomentTaker {
    int64_t length, columns;
    Jumps<T> jumps;
    State zeroth, first;
    FinePowers powers;
    T *fine;   // (length, columns): lambda^t as (re, im), then t lambda^t where the first moments are wanted
    T *local;  // (kBlock, columns)

    MomentTaker(Arena &memory, const Moments<T> &of)
        : length(fine_length(of.L)),
          columns((of.first ? 4 : 2) * padded<T>(of.n)),
          jumps(memory, padded<T>(of.n)),
          zeroth(memory, of.n, padded<T>(of.n)),
          first(memory, of.n, padded<T>(of.n)),
          powers(memory, length),
          fine(memory.take<T>(length * columns)),
          local(memory.take<T>(kBlock * columns)) {}

    void set(const Moments<T> &of, int64_t h) const {
        const int64_t n = zeroth.n, np = zeroth.np;
        for (int64_t i = 0; i < n; ++i) {
            const Complex x = get(of.x, h * n + i), lambda = exp(x);
            jumps.set(i, x, lambda, length);
            fill_powers(lambda, length, powers.re, powers.im);
            for (int64_t t = 0; t < length; ++t) {
                T *at = fine + t * columns + i;
                at[0] = T(powers.re[t]), at[np] = T(powers.im[t]);
                if (of.first) at[2 * np] = T(double(t) * powers.re[t]), at[3 * np] = T(double(t) * powers.im[t]);
            }
        }
        for (int64_t i = n; i < np; ++i) jumps.clear(i);
        for (int64_t part = 0; part * np < columns; ++part) {
            clear_columns(fine, part * np + n, (part + 1) * np, length, columns);
        }
    }

    // Horner's rule over chunks from the last to the first: with lambda^T, Z <- P_m + lambda^T Z and, for the moments with
    // l, F <- P'_m + lambda^T (F + T Z). The first chunk taken starts them: lambda^T may be beyond the numbers there.
    void add(int64_t rows, bool start) const {
        const int64_t np = zeroth.np;
        const bool with_first = columns > 2 * np;
        for (int64_t i = 0; i < np; i += kLanes<double>) {
            Jump<T> jump;
            jump.set(jumps, i, false);
            DoubleVector Z_re = load(zeroth.re + i), Z_im = load(zeroth.im + i);
            DoubleVector F_re = load(first.re + i), F_im = load(first.im + i);
            for (int64_t m = rows - 1; m >= 0; --m) {
                const T *P = local + m * columns + i;
                const DoubleVector P_re = load_double(P), P_im = load_double(P + np);
                if (with_first) {
                    const DoubleVector P1_re = load_double(P + 2 * np), P1_im = load_double(P + 3 * np);
                    F_re += double(length) * Z_re, F_im += double(length) * Z_im;
                    if (start && m == rows - 1) {
                        F_re = P1_re, F_im = P1_im;
                    } else {
                        jump.apply(F_re, F_im, P1_re, P1_im);
                    }
                }
                if (start && m == rows - 1) {
                    Z_re = P_re, Z_im = P_im;
                } else {
                    jump.apply(Z_re, Z_im, P_re, P_im);
                }
            }
            store(zeroth.re + i, Z_re), store(zeroth.im + i, Z_im);
            store(first.re + i, F_re), store(first.im + i, F_im);
        }
    }

    void row(const Moments<T> &of, int64_t row, int64_t h) const {
        const int64_t whole = of.L / length, rest = of.L % length, at = row * of.H + h;
        const T *u = of.u + at * of.L;
        bool start = true;
        if (rest) {
            multiply<T>(1, columns, {rest, {u + whole * length, length, 1}, fine, columns}, local, columns, false);
            add(1, true), start = false;
        }
        for (int64_t m = (whole - 1) / kBlock * kBlock; m >= 0 && whole; m -= kBlock) {
            const int64_t rows = whole - m < kBlock ? whole - m : kBlock;
            multiply<T>(rows, columns, {length, {u + m * length, length, 1}, fine, columns}, local, columns, false);
            add(rows, start), start = false;
        }
        zeroth.write(of.zeroth + 2 * at * of.n);
        if (of.first) first.write(of.first + 2 * at * of.n);
    }
};

}  // namespace

template <class T>
int64_t synthesis_scratch(const Synthesis<T> &of) {
    Arena memory;
    Synthesizer<T>(memory, of);
    return memory.used();
}

template <class T>
void synthesize(const Synthesis<T> &of, int64_t h, int64_t begin, int64_t end, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    const Synthesizer<T> synthesizer(memory, of);
    synthesizer.set(of, h);
    for (int64_t row = begin; row < end; ++row) synthesizer.row(of, row, h);
}

template <class T>
int64_t moments_scratch(const Moments<T> &of) {
    Arena memory;
    MomentTaker<T>(memory, of);
    return memory.used();
}

template <class T>
void take_moments(const Moments<T> &of, int64_t h, int64_t begin, int64_t end, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    const MomentTaker<T> taker(memory, of);
    taker.set(of, h);
    for (int64_t row = begin; row < end; ++row) taker.row(of, row, h);
}

template int64_t synthesis_scratch(const Synthesis<float> &);
template int64_t synthesis_scratch(const Synthesis<double> &);
template void synthesize(const Synthesis<float> &, int64_t, int64_t, int64_t, char *);
template void synthesize(const Synthesis<double> &, int64_t, int64_t, int64_t, char *);
template int64_t moments_scratch(const Moments<float> &);
template int64_t moments_scratch(const Moments<double> &);
template void take_moments(const Moments<float> &, int64_t, int64_t, int64_t, char *);
template void take_moments(const Moments<double> &, int64_t, int64_t, int64_t, char *);

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
