// Products of real polynomials by a complex transform of one row, vectors along the row.
//
// 2N numbers a_l are the polynomial sum_l a_l X^l modulo X^2N + 1 or, X^N being i, sum_{l<N} (a_l + i a_{l+N}) X^l
// modulo X^N - i. A level of radix R takes the residues modulo the R factors of
//
//     X^(Rn) - e^(2 pi i t) = prod_{k<R} (X^n - s e^(2 pi i k/R)),   s = e^(2 pi i t/R),
//
// that of a_0 + a_1 X^n + .. being sum_j (s e^(2 pi i k/R))^j a_j, down to the values at the N roots: a discrete
// Fourier transform whose factors are the same for a whole block, in an order that needs no other pass. Real numbers of
// which only N matter need no transform of 2N, and no row shares a transform with another.
#pragma once

#include <cmath>

#include "../shared/arena.h"
#include "../shared/complex.h"
#include "../shared/powers.h"
#include "../shared/tables.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// A vector of complex numbers; in memory, the real parts before the imaginary ones.
template <class T>
struct Pair {
    Vector<T> re, im;
};

template <class T>
constexpr int64_t PAIR = 2 * LANES<T>;

template <class T>
S4_FAST_INLINE Pair<T> load_pair(const T *from) {
    return {load(from), load(from + LANES<T>)};
}

template <class T>
S4_FAST_INLINE void store_pair(T *to, Pair<T> z) {
    store(to, z.re), store(to + LANES<T>, z.im);
}

template <class T, class S>
S4_FAST_INLINE Pair<T> times(Pair<T> z, S re, S im) {
    return {z.re * re - z.im * im, z.im * re + z.re * im};
}

template <class T, class S>
S4_FAST_INLINE Pair<T> conj_times(Pair<T> z, S re, S im) {
    return {z.re * re + z.im * im, z.im * re - z.re * im};
}

template <class T>
S4_FAST_INLINE Pair<T> operator+(Pair<T> a, Pair<T> b) {
    return {a.re + b.re, a.im + b.im};
}
template <class T>
S4_FAST_INLINE Pair<T> operator-(Pair<T> a, Pair<T> b) {
    return {a.re - b.re, a.im - b.im};
}
// a + i b and a - i b.
template <class T>
S4_FAST_INLINE Pair<T> plus_i(Pair<T> a, Pair<T> b) {
    return {a.re - b.im, a.im + b.re};
}
template <class T>
S4_FAST_INLINE Pair<T> minus_i(Pair<T> a, Pair<T> b) {
    return {a.re + b.im, a.im - b.re};
}

template <class T>
constexpr T HALF_ROOT_OF_THREE = T(0.86602540378443864676);

// The residues of one level, s holding s, s^2, .. as pairs.
template <int R, class T, class S>
S4_FAST_INLINE void split(Pair<T> (&a)[R], const S (&s)[2 * R - 2]) {
#pragma GCC unroll 3
    for (int k = 1; k < R; ++k) a[k] = times(a[k], s[2 * k - 2], s[2 * k - 1]);
    if constexpr (R == 2) {
        const Pair<T> b = a[1];
        a[1] = a[0] - b, a[0] = a[0] + b;
    } else if constexpr (R == 3) {
        const Pair<T> sum = a[1] + a[2], difference = a[1] - a[2];
        const Pair<T> middle = {a[0].re - T(0.5) * sum.re, a[0].im - T(0.5) * sum.im};
        const Pair<T> side = {HALF_ROOT_OF_THREE<T> * difference.re, HALF_ROOT_OF_THREE<T> * difference.im};
        a[0] = a[0] + sum, a[1] = plus_i(middle, side), a[2] = minus_i(middle, side);
    } else {
        const Pair<T> even = a[0] + a[2], odd = a[1] + a[3], even_rest = a[0] - a[2], odd_rest = a[1] - a[3];
        a[0] = even + odd, a[2] = even - odd;
        a[1] = plus_i(even_rest, odd_rest), a[3] = minus_i(even_rest, odd_rest);
    }
}

// R times what split was given.
template <int R, class T, class S>
S4_FAST_INLINE void join(Pair<T> (&a)[R], const S (&s)[2 * R - 2]) {
    if constexpr (R == 2) {
        const Pair<T> b = a[1];
        a[1] = a[0] - b, a[0] = a[0] + b;
    } else if constexpr (R == 3) {
        const Pair<T> sum = a[1] + a[2], difference = a[1] - a[2];
        const Pair<T> middle = {a[0].re - T(0.5) * sum.re, a[0].im - T(0.5) * sum.im};
        const Pair<T> side = {HALF_ROOT_OF_THREE<T> * difference.re, HALF_ROOT_OF_THREE<T> * difference.im};
        a[0] = a[0] + sum, a[1] = minus_i(middle, side), a[2] = plus_i(middle, side);
    } else {
        const Pair<T> even = a[0] + a[2], odd = a[1] + a[3], even_rest = a[0] - a[2], odd_rest = a[1] - a[3];
        a[0] = even + odd, a[2] = even - odd;
        a[1] = minus_i(even_rest, odd_rest), a[3] = plus_i(even_rest, odd_rest);
    }
#pragma GCC unroll 3
    for (int k = 1; k < R; ++k) a[k] = conj_times(a[k], s[2 * k - 2], s[2 * k - 1]);
}

// A level, or its inverse, on `nodes` blocks of R parts of `length` vectors each.
template <int R, bool INVERSE, class T>
void pass(int64_t nodes, int64_t length, const T *factors, T *data) {
    const int64_t step = length * PAIR<T>;
    for (int64_t node = 0; node < nodes; ++node, factors += 2 * R - 2, data += R * step) {
        T s[2 * R - 2];
#pragma GCC unroll 6
        for (int i = 0; i < 2 * R - 2; ++i) s[i] = factors[i];
        for (T *at = data; at < data + step; at += PAIR<T>) {
            Pair<T> a[R];
#pragma GCC unroll 4
            for (int k = 0; k < R; ++k) a[k] = load_pair(at + k * step);
            INVERSE ? join(a, s) : split(a, s);
#pragma GCC unroll 4
            for (int k = 0; k < R; ++k) store_pair(at + k * step, a[k]);
        }
    }
}

// Blocks of one vector, as many as a vector has lanes, turned: a lane is then a block, and has factors of its own.
// `Nodes` blocks of `Length` vectors are left to split; sink(i, z) takes the values of position i.
template <int NODES, int LENGTH, class T, class Sink>
S4_FAST_INLINE void split_square(T *square, const T *factors, Sink sink) {
    constexpr int R = LENGTH < 4 ? LENGTH : 4, PART = LENGTH / R;
#pragma GCC unroll 4
    for (int node = 0; node < NODES; ++node, factors += (2 * R - 2) * LANES<T>) {
        Vector<T> s[2 * R - 2];
#pragma GCC unroll 6
        for (int i = 0; i < 2 * R - 2; ++i) s[i] = load(factors + i * LANES<T>);
#pragma GCC unroll 4
        for (int q = 0; q < PART; ++q) {
            const int64_t first = node * LENGTH + q;
            Pair<T> a[R];
#pragma GCC unroll 4
            for (int k = 0; k < R; ++k) a[k] = load_pair(square + (first + k * PART) * PAIR<T>);
            split(a, s);
#pragma GCC unroll 4
            for (int k = 0; k < R; ++k) {
                if constexpr (PART == 1) {
                    sink((first + k) * PAIR<T>, a[k]);
                } else {
                    store_pair(square + (first + k * PART) * PAIR<T>, a[k]);
                }
            }
        }
    }
    if constexpr (PART > 1) split_square<NODES * R, PART>(square, factors, sink);
}

template <int NODES, int LENGTH, class T, class Source>
S4_FAST_INLINE void join_square(T *square, const T *factors, Source source) {
    constexpr int R = LENGTH < 4 ? LENGTH : 4, PART = LENGTH / R;
    if constexpr (PART > 1) join_square<NODES * R, PART>(square, factors + NODES * (2 * R - 2) * LANES<T>, source);
#pragma GCC unroll 4
    for (int node = 0; node < NODES; ++node, factors += (2 * R - 2) * LANES<T>) {
        Vector<T> s[2 * R - 2];
#pragma GCC unroll 6
        for (int i = 0; i < 2 * R - 2; ++i) s[i] = load(factors + i * LANES<T>);
#pragma GCC unroll 4
        for (int q = 0; q < PART; ++q) {
            const int64_t first = node * LENGTH + q;
            Pair<T> a[R];
#pragma GCC unroll 4
            for (int k = 0; k < R; ++k) {
                const int64_t at = (first + k * PART) * PAIR<T>;
                if constexpr (PART == 1) {
                    a[k] = source(at);
                } else {
                    a[k] = load_pair(square + at);
                }
            }
            join(a, s);
#pragma GCC unroll 4
            for (int k = 0; k < R; ++k) store_pair(square + (first + k * PART) * PAIR<T>, a[k]);
        }
    }
}

template <class T>
void turn_square(T *square) {
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part, square += LANES<T>) {
        Vector<T> rows[LANES<T>];
#pragma GCC unroll 16
        for (int i = 0; i < LANES<T>; ++i) rows[i] = load(square + i * PAIR<T>);
        transpose_square<T>(rows);
#pragma GCC unroll 16
        for (int i = 0; i < LANES<T>; ++i) store(square + i * PAIR<T>, rows[i]);
    }
}

// The transform of rows of N complex numbers, which are N / LANES pairs of vectors.
template <class T>
class Transform {
   public:
    // The smallest N there is that is at least `least`.
    static int64_t size(int64_t least) {
        int64_t two = SQUARE, three = 3 * SQUARE;
        while (two < least) two *= 2;
        while (three < least) three *= 2;
        return two < three ? two : three;
    }

    Transform(Arena &memory, int64_t N) : N_(N) {
        int64_t length = N / LANES<T>;
        for (levels_ = 0; length > 1; ++levels_) {
            // The odd factors first: what is left is a power of 4 above a square.
            const int64_t radix = length % 3 == 0 ? 3 : is_power_of_four(length) ? 4 : 2;
            radix_[levels_] = radix, length /= radix, length_[levels_] = length;
            factors_[levels_] = memory.take<T>(N / LANES<T> / (length * radix) * (2 * radix - 2));
        }
        squares_ = memory.take<T>(N / SQUARE * SQUARE_FACTORS);
        roots_ = memory.take<Complex>(N / 2);
    }

    // Fills the tables, for every transform that was made on the same memory.
    void set() const {
        int64_t radices[MOST], nodes = 1;
        for (int l = 0; l < levels_; ++l, nodes *= radices[l - 1]) {
            radices[l] = radix_[l];
            fill_roots(radices, l);
            for (int64_t node = 0; node < nodes; ++node) {
                write_powers(roots_[node], radix_[l], factors_[l] + node * (2 * radix_[l] - 2), 1);
            }
        }
        int64_t of_block = 1, offset = 0, l = levels_;
        for (int64_t length = LANES<T>; length > 1; length = LANES<T> / of_block, ++l) {
            const int64_t radix = length < 4 ? length : 4, size = (2 * radix - 2) * LANES<T>;
            radices[l] = radix;
            fill_roots(radices, l);
            for (int64_t block = 0; block < nodes; ++block) {
                T *const to = squares_ + block / LANES<T> * SQUARE_FACTORS + offset + block % LANES<T>;
                for (int64_t node = 0; node < of_block; ++node) {
                    write_powers(roots_[block * of_block + node], radix, to + node * size, LANES<T>);
                }
            }
            offset += of_block * size, of_block *= radix;
        }
    }

    // sink(at, z) takes the values that belong to `at`, an offset in a row. The row is overwritten.
    template <class Sink>
    void forward(T *row, Sink sink) const {
        split_from(0, 0, row, sink);
    }

    // N times the row whose values are source(at).
    template <class Source>
    void backward(T *row, Source source) const {
        join_to(0, 0, row, source);
    }

   private:
    static constexpr int64_t SQUARE = int64_t(LANES<T>) * LANES<T>, MOST = 64;
    // Every block of a square has one factor per node, and one power of it per part but the first.
    static constexpr int64_t SQUARE_FACTORS = 2 * (LANES<T> - 1) * LANES<T>;
    // Vectors of a block that stays in the first cache, with as much of another row.
    static constexpr int64_t NEAR = (1 << 14) / (2 * VECTOR_BYTES);

    static bool is_power_of_four(int64_t n) {
        while (n % 4 == 0) n /= 4;
        return n == 1;
    }

    // The s of the nodes of level l.
    void fill_roots(const int64_t *radices, int64_t l) const {
        constexpr double TURN = 6.28318530717958647693;
        double span = 1;
        for (int64_t i = 0; i <= l; ++i) span *= double(radices[i]);
        roots_[0] = {::cos(TURN / 4 / span), ::sin(TURN / 4 / span)};
        for (int64_t i = 0, count = 1; i < l; count *= radices[i], ++i) {
            Complex turns[4];
            for (int64_t k = 0; k < radices[i]; ++k)
                turns[k] = {::cos(TURN * double(k) / span), ::sin(TURN * double(k) / span)};
            for (int64_t j = count - 1; j >= 0; --j) {
                const Complex root = roots_[j];
                for (int64_t k = 0; k < radices[i]; ++k) roots_[j * radices[i] + k] = root * turns[k];
            }
            span /= double(radices[i]);
        }
    }

    static void write_powers(Complex root, int64_t radix, T *to, int64_t step) {
        Complex power = root;
        for (int64_t k = 1; k < radix; ++k, power = power * root, to += 2 * step) {
            to[0] = T(power.re), to[step] = T(power.im);
        }
    }

    // The level on blocks from `node` on.
    template <bool INVERSE>
    void level(int l, int64_t node, int64_t nodes, T *data) const {
        const int64_t radix = radix_[l], length = length_[l];
        const T *const factors = factors_[l] + node * (2 * radix - 2);
        if (radix == 4) return pass<4, INVERSE>(nodes, length, factors, data);
        if (radix == 3) return pass<3, INVERSE>(nodes, length, factors, data);
        pass<2, INVERSE>(nodes, length, factors, data);
    }

    // A block of level l is split to the end before its neighbour: its parts are still near.
    template <class Sink>
    void split_from(int l, int64_t node, T *row, Sink &sink) const {
        const int64_t length = block(l), first = node * length;
        T *const data = row + first * PAIR<T>;
        if (length > NEAR) {
            level<false>(l, node, 1, data);
            for (int64_t k = 0; k < radix_[l]; ++k) split_from(l + 1, node * radix_[l] + k, row, sink);
            return;
        }
        for (; l < levels_; ++l) level<false>(l, first / block(l), length / block(l), data);
        for (int64_t i = 0; i < length; i += LANES<T>) {
            T *const square = data + i * PAIR<T>;
            const int64_t offset = square - row;
            turn_square(square);
            split_square<1, LANES<T>>(square, factors_of(first + i),
                                      [&](int64_t at, Pair<T> z) { sink(offset + at, z); });
        }
    }

    template <class Source>
    void join_to(int l, int64_t node, T *row, Source &source) const {
        const int64_t length = block(l), first = node * length;
        T *const data = row + first * PAIR<T>;
        if (length > NEAR) {
            for (int64_t k = 0; k < radix_[l]; ++k) join_to(l + 1, node * radix_[l] + k, row, source);
            level<true>(l, node, 1, data);
            return;
        }
        for (int64_t i = 0; i < length; i += LANES<T>) {
            T *const square = data + i * PAIR<T>;
            const int64_t offset = square - row;
            join_square<1, LANES<T>>(square, factors_of(first + i), [&](int64_t at) { return source(offset + at); });
            turn_square(square);
        }
        for (int up = levels_ - 1; up >= l; --up) level<true>(up, first / block(up), length / block(up), data);
    }

    // Vectors of a block of level l.
    int64_t block(int l) const { return l == 0 ? N_ / LANES<T> : length_[l - 1]; }

    // The factors of the square that begins with a vector of the row.
    const T *factors_of(int64_t vector) const { return squares_ + vector / LANES<T> * SQUARE_FACTORS; }

    int64_t N_;
    int levels_;
    int64_t radix_[MOST], length_[MOST];
    T *factors_[MOST];
    T *squares_;
    Complex *roots_;
};

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
