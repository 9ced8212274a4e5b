// cos and sin of pi k / L to twice the precision of double: products of two tables of about sqrt(L) powers.
#include "complex.h"
#include "dplr.h"

namespace s4_fast {
namespace S4_FAST_ISA {
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

// For |x| <= pi/2, by Taylor's series.
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

S4_FAST_INLINE void write(double *to, Turn t) {
    to[0] = t.cos.high, to[1] = t.cos.low, to[2] = t.sin.high, to[3] = t.sin.low;
}

S4_FAST_INLINE Turn read(const double *from) { return {{from[0], from[1]}, {from[2], from[3]}}; }

}  // namespace

void root_powers(const RootPowers &powers) {
    const Wide pi = {3.141592653589793116, 1.2246467991473532e-16};
    Turn half = turn(divide(pi, 2.0 * double(powers.L))), step = multiply(half, half), t = {{1, 0}, {0, 0}};
    for (int64_t i = 0; i < powers.fine_count; ++i, t = multiply(t, step)) write(powers.fine + 4 * i, t);
    step = t, t = {{1, 0}, {0, 0}};
    for (int64_t i = 0; i < powers.coarse_count; ++i, t = multiply(t, step)) {
        write(powers.coarse + 4 * i, t);
        // The second half of the nodes is counted from theta = pi, where cos is small: from half a step if L is odd.
        write(powers.coarse + 4 * (powers.coarse_count + i), powers.L % 2 ? multiply(t, half) : t);
    }
}

void roots(const RootPowers &powers, const Roots &to, int64_t row) {
    const int64_t last = powers.L / 2, middle = powers.L / 4;
    const bool mirrored = row >= powers.coarse_count;
    const int64_t first = (mirrored ? row - powers.coarse_count : row) * powers.fine_count;
    const int64_t available = mirrored ? last - middle : middle + 1;
    const int64_t end = available < first + powers.fine_count ? available : first + powers.fine_count;
    const Turn coarse = read(powers.coarse + 4 * row);
    for (int64_t i = first; i < end; ++i) {
        Turn t = multiply(coarse, read(powers.fine + 4 * (i - first)));
        if (mirrored) {
            const Wide sin = t.cos;
            t.cos = t.sin, t.sin = sin;
        }
        const int64_t k = mirrored ? last - i : i;
        const double stretch = t.cos.high > 0 ? t.cos.low / t.cos.high : 0;
        to.cos[k] = t.cos.high, to.twice_sin[k] = 2 * t.sin.high;
        to.low[k] = 2 * (t.sin.low - t.sin.high * stretch);
    }
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
