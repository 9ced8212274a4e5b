// cos and sin of pi k / L to twice the precision of double: products of two tables of about sqrt(L) powers.
#include "roots.h"
#include "complex.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// An unevaluated sum of two doubles.
struct Wide {
    double high, low;
};

struct Turn {
    Wide cos, sin;
};

S4_FAST_INLINE Wide sum(double a, double b) {
    double s = a + b, t = s - a;
    return {s, (a - (s - t)) + (b - t)};
}

S4_FAST_INLINE Wide product(double a, double b) {
#if S4_FAST_HAS_FMA
    double p = a * b;
    return {p, __builtin_fma(a, b, -p)};
#else
    double p = a * b, s = 134217729.0 * a, t = 134217729.0 * b;
    double a1 = s - (s - a), a2 = a - a1, b1 = t - (t - b), b2 = b - b1;
    return {p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2};
#endif
}

S4_FAST_INLINE Wide add(Wide a, Wide b) {
    Wide s = sum(a.high, b.high);
    return sum(s.high, s.low + (a.low + b.low));
}

S4_FAST_INLINE Wide multiply(Wide a, Wide b) {
    Wide p = product(a.high, b.high);
    return sum(p.high, p.low + (a.high * b.low + a.low * b.high));
}

S4_FAST_INLINE Wide divide(Wide a, double b) {
    double q = a.high / b;
    Wide p = product(q, b);
    return sum(q, (((a.high - p.high) - p.low) + a.low) / b);
}

S4_FAST_INLINE Wide negate(Wide a) { return {-a.high, -a.low}; }

S4_FAST_INLINE Turn multiply(Turn a, Turn b) {
    return {add(multiply(a.cos, b.cos), negate(multiply(a.sin, b.sin))),
            add(multiply(a.sin, b.cos), multiply(a.cos, b.sin))};
}

// Taylor's series, for |x| <= pi/2.
Turn turn(Wide x) {
    Turn t = {{1, 0}, {0, 0}};
    Wide term = {1, 0};
    for (int i = 1; i <= 32; ++i) {
        term = divide(multiply(term, x), i);
        Wide &part = i % 2 ? t.sin : t.cos;
        part = add(part, i % 4 < 2 ? term : negate(term));
    }
    return t;
}

// The four numbers of a turn lie `stride` apart.
S4_FAST_INLINE void write(double *to, int64_t stride, Turn t) {
    to[0] = t.cos.high, to[stride] = t.cos.low, to[2 * stride] = t.sin.high, to[3 * stride] = t.sin.low;
}

S4_FAST_INLINE Turn read(const double *from, int64_t stride) {
    return {{from[0], from[stride]}, {from[2 * stride], from[3 * stride]}};
}

constexpr int64_t BLOCK = 64;

}  // namespace

void root_powers(const RootPowers &powers) {
    const Wide pi = {3.141592653589793116, 1.2246467991473532e-16};
    Turn half = turn(divide(pi, 2.0 * double(powers.L))), step = multiply(half, half), t = {{1, 0}, {0, 0}};
    for (int64_t i = 0; i < powers.fine_count; ++i, t = multiply(t, step)) write(powers.fine + i, powers.fine_count, t);
    step = t, t = {{1, 0}, {0, 0}};
    const int64_t count = powers.coarse_count;
    for (int64_t i = 0; i < count; ++i, t = multiply(t, step)) {
        write(powers.coarse + i, 2 * count, t);
        // The second half of the nodes is counted from theta = pi, where cos is small: from half a step if L is odd.
        write(powers.coarse + count + i, 2 * count, powers.L % 2 ? multiply(t, half) : t);
    }
}

void roots(const RootPowers &powers, const Roots &to, int64_t row) {
    const int64_t last = powers.L / 2, middle = powers.L / 4, fine_count = powers.fine_count;
    const bool mirrored = row >= powers.coarse_count;
    const int64_t first = (mirrored ? row - powers.coarse_count : row) * fine_count;
    const int64_t available = mirrored ? last - middle : middle + 1;
    const int64_t end = available < first + fine_count ? available : first + fine_count;
    const Turn coarse = read(powers.coarse + row, 2 * powers.coarse_count);
    for (int64_t block = first; block < end; block += BLOCK) {
        const int64_t size = end - block < BLOCK ? end - block : BLOCK;
        // Apart from the scattered stores, the compiler turns this into vectors.
        double cos[BLOCK], sin[BLOCK], low[BLOCK];
        for (int64_t i = 0; i < size; ++i) {
            const Turn t = multiply(coarse, read(powers.fine + block - first + i, fine_count));
            const Wide c = mirrored ? t.sin : t.cos, s = mirrored ? t.cos : t.sin;
            const double stretch = c.low / (c.high > 0 ? c.high : 1.0);
            cos[i] = c.high, sin[i] = 2 * s.high, low[i] = 2 * (s.low - s.high * stretch);
        }
        for (int64_t i = 0; i < size; ++i) {
            const int64_t k = mirrored ? last - block - i : block + i;
            to.cos[k] = cos[i], to.twice_sin[k] = sin[i], to.low[k] = low[i];
        }
    }
}

}  // namespace s4_fast::cpu::S4_FAST_ISA
