// With l = m T + t, lambda^l = lambda^(mT) lambda^t: a sum over the nodes is a matrix product of two tables, and so is
// one over l. The tables hold about sqrt(L) powers each, rounded from powers in double.
#include "vandermonde.h"

#include "../shared/carry.h"
#include "../shared/multiply.h"
#include "../shared/tables.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// Rows of a table that are made and used at a time.
constexpr int64_t BLOCK = 48;

// T: about sqrt(L), in whole vectors, and not so long that the table leaves the first cache.
int64_t fine_length(int64_t L) {
    int64_t T = 32;
    while (T * T < L && T < 256) T *= 2;
    return T;
}

// The nodes of one feature and their powers lambda^t, t < length.
template <class T>
struct Nodes {
    int64_t n, np, length;
    Split x, lambda;
    Carry<T> carry;
    PowerTable powers;

    Nodes(Arena &memory, int64_t n, int64_t L)
        : n(n),
          np(padded(n)),
          length(fine_length(L)),
          x(memory, np),
          lambda(memory, np),
          carry(memory, np),
          powers(memory, np, length) {}

    void set(const T *pairs, int64_t L) const {
        x.set(pairs, n, np);
        exponentials(np, x, lambda);
        carry.set(n, x, lambda, length, L);
        powers.fill(lambda);
    }
};

template <class T>
struct Synthesizer {
    Nodes<T> nodes;
    Split state;  // scale v lambda^(mT)
    T *by_time;   // (length, 2 np): conj(lambda^t)
    T *fine;      // its transpose
    T *coarse;    // (BLOCK, 2 np): scale v lambda^(mT)
    T *rest;      // (length,)

    Synthesizer(Arena &memory, const Synthesis<T> &of)
        : nodes(memory, of.n, of.L),
          state(memory, nodes.np),
          by_time(memory.take<T>(nodes.length * 2 * nodes.np)),
          fine(memory.take<T>(2 * nodes.np * nodes.length)),
          coarse(memory.take<T>(BLOCK * 2 * nodes.np)),
          rest(memory.take<T>(nodes.length)) {}

    void set(const Synthesis<T> &of, int64_t h) const {
        const int64_t np = nodes.np;
        nodes.set(of.x + 2 * h * of.n, of.L);
        for (int64_t t = 0; t < nodes.length; ++t) {
            for (int64_t i = 0; i < np; i += LANES<double>) {
                store_double(by_time + t * 2 * np + i, load(nodes.powers.re + t * np + i));
                store_double(by_time + t * 2 * np + np + i, -load(nodes.powers.im + t * np + i));
            }
        }
        transpose(nodes.length, 2 * np, by_time, 2 * np, fine, nodes.length);
    }

    void row(const Synthesis<T> &of, int64_t row, int64_t h) const {
        const int64_t np = nodes.np, length = nodes.length, rows = (of.L + length - 1) / length, whole = of.L / length;
        T *out = of.out + (row * of.H + h) * of.L;
        state.set(of.v + 2 * (row * of.H + h) * of.n, of.n, np, of.scale);
        for (int64_t m = 0; m < rows; m += BLOCK) {
            const int64_t count = rows - m < BLOCK ? rows - m : BLOCK;
            const int64_t full = whole - m < count ? whole - m : count;
            clear(coarse, count * 2 * np);
            nodes.carry.over(state, false, count, coarse);
            multiply<T>(full, length, {2 * np, {coarse, 2 * np, 1}, fine, length}, out + m * length, length, false);
            if (full == count) continue;
            multiply<T>(1, length, {2 * np, {coarse + full * 2 * np, 2 * np, 1}, fine, length}, rest, length, false);
            for (int64_t t = 0; whole * length + t < of.L; ++t) out[whole * length + t] = rest[t];
        }
    }
};

template <class T>
struct MomentTaker {
    Nodes<T> nodes;
    int64_t columns;
    Split zeroth, first;
    T *fine;   // (length, columns): lambda^t as (re, im), then t lambda^t where the first moments are wanted
    T *local;  // (BLOCK, columns)

    MomentTaker(Arena &memory, const Moments<T> &of)
        : nodes(memory, of.n, of.L),
          columns((of.first ? 4 : 2) * nodes.np),
          zeroth(memory, nodes.np),
          first(memory, nodes.np),
          fine(memory.take<T>(nodes.length * columns)),
          local(memory.take<T>(BLOCK * columns)) {}

    void set(const Moments<T> &of, int64_t h) const {
        const int64_t np = nodes.np;
        nodes.set(of.x + 2 * h * of.n, of.L);
        for (int64_t t = 0; t < nodes.length; ++t) {
            for (int64_t i = 0; i < np; i += LANES<double>) {
                const DoubleVector re = load(nodes.powers.re + t * np + i), im = load(nodes.powers.im + t * np + i);
                T *at = fine + t * columns + i;
                store_double(at, re), store_double(at + np, im);
                if (of.first) store_double(at + 2 * np, double(t) * re), store_double(at + 3 * np, double(t) * im);
            }
        }
    }

    // Horner's rule over chunks from the last to the first: with lambda^T, Z <- P_m + lambda^T Z and, for the moments
    // with l, F <- P'_m + lambda^T (F + T Z). The first chunk taken starts them: lambda^T may be beyond the numbers
    // there.
    void add(int64_t rows, bool start) const {
        const int64_t np = nodes.np;
        const bool with_first = columns > 2 * np;
        for (int64_t i = 0; i < np; i += LANES<double>) {
            Jump<T> jump;
            jump.set(nodes.carry.one, i, false);
            DoubleVector Z_re = load(zeroth.re + i), Z_im = load(zeroth.im + i);
            DoubleVector F_re = load(first.re + i), F_im = load(first.im + i);
            int64_t m = rows - 1;
            if (start) {
                const T *P = local + m * columns + i;
                Z_re = load_double(P), Z_im = load_double(P + np);
                if (with_first) F_re = load_double(P + 2 * np), F_im = load_double(P + 3 * np);
                --m;
            }
            for (; m >= 0; --m) {
                const T *P = local + m * columns + i;
                if (with_first) {
                    F_re += double(nodes.length) * Z_re, F_im += double(nodes.length) * Z_im;
                    jump.apply(F_re, F_im, load_double(P + 2 * np), load_double(P + 3 * np));
                }
                jump.apply(Z_re, Z_im, load_double(P), load_double(P + np));
            }
            store(zeroth.re + i, Z_re), store(zeroth.im + i, Z_im);
            if (with_first) store(first.re + i, F_re), store(first.im + i, F_im);
        }
    }

    void row(const Moments<T> &of, int64_t row, int64_t h) const {
        const int64_t length = nodes.length, whole = of.L / length, rest = of.L % length, at = row * of.H + h;
        const T *u = of.u + at * of.L;
        bool start = true;
        if (rest) {
            multiply<T>(1, columns, {rest, {u + whole * length, length, 1}, fine, columns}, local, columns, false);
            add(1, true), start = false;
        }
        for (int64_t m = (whole - 1) / BLOCK * BLOCK; m >= 0 && whole; m -= BLOCK) {
            const int64_t rows = whole - m < BLOCK ? whole - m : BLOCK;
            multiply<T>(rows, columns, {length, {u + m * length, length, 1}, fine, columns}, local, columns, false);
            add(rows, start), start = false;
        }
        zeroth.write(of.zeroth + 2 * at * of.n, of.n);
        if (of.first) first.write(of.first + 2 * at * of.n, of.n);
    }
};

template <class Problem>
struct WorkerOf;
template <class T>
struct WorkerOf<Synthesis<T>> {
    using type = Synthesizer<T>;
};
template <class T>
struct WorkerOf<Moments<T>> {
    using type = MomentTaker<T>;
};

}  // namespace

template <class Problem>
int64_t scratch_bytes(const Problem &of) {
    Arena memory;
    typename WorkerOf<Problem>::type worker(memory, of);
    return memory.used();
}

template <class Problem>
void work(const Problem &of, int64_t h, int64_t begin, int64_t end, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    const typename WorkerOf<Problem>::type worker(memory, of);
    worker.set(of, h);
    for (int64_t row = begin; row < end; ++row) worker.row(of, row, h);
}

template int64_t scratch_bytes(const Synthesis<float> &);
template int64_t scratch_bytes(const Synthesis<double> &);
template int64_t scratch_bytes(const Moments<float> &);
template int64_t scratch_bytes(const Moments<double> &);
template void work(const Synthesis<float> &, int64_t, int64_t, int64_t, char *);
template void work(const Synthesis<double> &, int64_t, int64_t, int64_t, char *);
template void work(const Moments<float> &, int64_t, int64_t, int64_t, char *);
template void work(const Moments<double> &, int64_t, int64_t, int64_t, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
