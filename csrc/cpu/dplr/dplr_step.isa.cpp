// One step of a DPLR recurrence, vectorised over the states. Complex numbers stay interleaved: the real part of a
// product summed over states is the sum of the even entries of an elementwise product less that of the odd ones.
#include "../shared/interleaved.h"
#include "dplr.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// Adds to every lane the one `WIDTH` further on.
template <class T, int WIDTH, int... I>
S4_FAST_INLINE Vector<T> folded(Vector<T> x, std::integer_sequence<int, I...>) {
    return x + shuffle<T>(x, x, std::integer_sequence<int, (I + WIDTH) % int(sizeof...(I))...>{});
}

// The sum of the even lanes less that of the odd ones.
template <class T, int WIDTH = LANES<T> / 2>
S4_FAST_INLINE T alternating_sum(Vector<T> x) {
    if constexpr (WIDTH < 2)
        return x[0] - x[1];
    else
        return alternating_sum<T, WIDTH / 2>(folded<T, WIDTH>(x, std::make_integer_sequence<int, LANES<T>>{}));
}

// 2 Re sum_n a b, for n complex numbers.
template <class T>
S4_FAST_INLINE T overlap(const T *a, const T *b, int64_t n) {
    Vector<T> first = {}, second = {};
    int64_t i = 0;
    for (; i + 2 * LANES<T> <= 2 * n; i += 2 * LANES<T>) {
        first += load(a + i) * load(b + i);
        second += load(a + i + LANES<T>) * load(b + i + LANES<T>);
    }
    T sum = 0;
    for (; i + LANES<T> <= 2 * n; i += LANES<T>) first += load(a + i) * load(b + i);
    first += second;
    for (; i < 2 * n; i += 2) sum += a[i] * b[i] - a[i + 1] * b[i + 1];
    return 2 * (sum + alternating_sum<T>(first));
}

// next = s + increment s - sum_r overlaps_r G_r + B u. In double whatever T is: what a float increment has lost would
// add up over steps. The rows of G are `stride` apart.
template <class T>
S4_FAST_INLINE void advance(const T *s, const double *increment, const T *G, int64_t rank, int64_t stride,
                            const double *overlaps, const T *B, double u, int64_t n, T *next) {
    int64_t i = 0;
    for (; i + LANES<double> <= 2 * n; i += LANES<double>) {
        const DoubleVector x = load_double(s + i);
        DoubleVector change = product(load(increment + i), x);
        change += u * load_double(B + i);
        for (int64_t r = 0; r < rank; ++r) change -= overlaps[r] * load_double(G + r * stride + i);
        store_double(next + i, x + change);
    }
    for (; i < 2 * n; i += 2) {
        const double re = s[i], im = s[i + 1], a = increment[i], b = increment[i + 1];
        double real = a * re - b * im + u * B[i], imaginary = a * im + b * re + u * B[i + 1];
        for (int64_t r = 0; r < rank; ++r) {
            real -= overlaps[r] * G[r * stride + i];
            imaginary -= overlaps[r] * G[r * stride + i + 1];
        }
        next[i] = T(re + real);
        next[i + 1] = T(im + imaginary);
    }
}

}  // namespace

template <class T>
void dplr_step(const DplrStep<T> &step, int64_t first, int64_t last) {
    const FlushDenormals flush;
    const int64_t H = step.H, n = step.n, width = 2 * n;
    for (int64_t h = first; h < last; ++h)
        for (int64_t batch = 0; batch < step.batch; ++batch) {
            const int64_t at = batch * H + h;
            const T *s = step.state + at * width;
            T *next = step.next + at * width;
            double overlaps[S4_FAST_CPU_DPLR_STEP_RANK];  // of s, which next may overwrite
            for (int64_t r = 0; r < step.rank; ++r) overlaps[r] = overlap(step.V + (r * H + h) * width, s, n);
            const T u = step.u[at], skipped = step.D ? step.D[h] * u : 0;
            advance(s, step.increment + h * width, step.G + h * width, step.rank, H * width, overlaps,
                    step.B + h * width, u, n, next);
            for (int64_t c = 0; c < step.c; ++c)
                step.y[(batch * step.c + c) * H + h] = overlap(step.C + (c * H + h) * width, next, n) + skipped;
        }
}

template void dplr_step(const DplrStep<float> &, int64_t, int64_t);
template void dplr_step(const DplrStep<double> &, int64_t, int64_t);

}  // namespace s4_fast::cpu::S4_FAST_ISA
