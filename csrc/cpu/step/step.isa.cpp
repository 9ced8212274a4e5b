#include "step.h"

#include "../shared/interleaved.h"
#include "../shared/powers.h"

namespace s4_fast::cpu::S4_FAST_ISA {

// lambda is in double whatever T is: the roundings of a float would add up over steps.
template <class T>
void step(const Step<T> &of, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const int64_t h = row % of.H, n = of.n;
        const T *state = of.state + 2 * row * n, *B = of.B + 2 * h * n, *C = of.C + 2 * h * n;
        const double *lambda = of.lambda + 2 * h * n, u = double(of.u[row]);
        T *next = of.next + 2 * row * n;
        DoubleVector sums = {};
        int64_t i = 0;
        for (; i + PAIRS <= n; i += PAIRS) {
            const DoubleVector s = load_double(state + 2 * i), a = load(lambda + 2 * i);
            const DoubleVector after = product(a, s) + u * load_double(B + 2 * i);
            sums -= signs() * load_double(C + 2 * i) * after;
            store_double(next + 2 * i, after);
        }
        double total = sum(sums);
        for (; i < n; ++i) {
            const Complex after = get(lambda, i) * get(state, i) + u * get(B, i), c = get(C, i);
            total += c.re * after.re - c.im * after.im;
            put(next, i, after);
        }
        of.y[row] = T(2 * total + (of.D ? double(of.D[h]) * u : 0));
    }
}

template <class T>
void exponentials(const T *x, double *lambda, int64_t begin, int64_t end) {
    constexpr int64_t BLOCK = 64;
    double re[BLOCK] = {}, im[BLOCK] = {};
    for (int64_t i = begin; i < end; i += BLOCK) {
        const int64_t count = end - i < BLOCK ? end - i : BLOCK;
        for (int64_t j = 0; j < count; ++j) re[j] = double(x[2 * (i + j)]), im[j] = double(x[2 * (i + j) + 1]);
        exponentials(BLOCK, {re, im}, {re, im});
        for (int64_t j = 0; j < count; ++j) put(lambda, i + j, {re[j], im[j]});
    }
}

template void step(const Step<float> &, int64_t, int64_t);
template void step(const Step<double> &, int64_t, int64_t);
template void exponentials(const float *, double *, int64_t, int64_t);
template void exponentials(const double *, double *, int64_t, int64_t);

}  // namespace s4_fast::cpu::S4_FAST_ISA
