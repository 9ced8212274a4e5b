#include "step.h"

#include "../shared/arguments.h"
#include "../shared/parallel.h"

namespace s4_fast::cpu {
namespace {

// States of one piece of work: fewer are done before another thread has woken up.
constexpr int64_t PIECE = 1 << 16;

template <class T>
void run(const Step<T> &of, int64_t begin, int64_t end) {
    S4_FAST_RETURN_FROM_ISA(step(of, begin, end))
}

template <class T>
void run(const T *x, double *lambda, int64_t begin, int64_t end) {
    S4_FAST_RETURN_FROM_ISA(exponentials(x, lambda, begin, end))
}

// body(begin, end) over pieces of `each` of `count`.
template <class Body>
int in_pieces(int64_t threads, int64_t count, int64_t each, Body body) {
    parallel_for(threads, (count + each - 1) / each, [&](int64_t index, int64_t) {
        body(index * each, (index + 1) * each < count ? (index + 1) * each : count);
    });
    return 0;
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_step(int64_t dtype, int64_t batch, int64_t H, int64_t n, const void *u, const void *state,
                                const double *lambda, const void *B, const void *C, const void *D, void *y, void *next,
                                int64_t threads) {
    return for_dtype(
        "step", dtype, {{"batch", batch}, {"H", H}, {"n", n}}, {u, state, lambda, B, C, y, next}, [&](auto zero) {
            using T = decltype(zero);
            const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
            const Step<T> of = {H,       n,       real(u), real(state),         lambda,
                                real(B), real(C), real(D), static_cast<T *>(y), static_cast<T *>(next)};
            const int64_t rows = n < PIECE ? PIECE / n : 1;
            return in_pieces(threads, batch * H, rows, [&](int64_t begin, int64_t end) { run(of, begin, end); });
        });
}

extern "C" int s4_fast_cpu_exp(int64_t dtype, int64_t count, const void *x, double *lambda, int64_t threads) {
    return for_dtype("exp", dtype, {{"count", count}}, {x, lambda}, [&](auto zero) {
        const auto *from = static_cast<const decltype(zero) *>(x);
        return in_pieces(threads, count, PIECE / 2, [&](int64_t begin, int64_t end) { run(from, lambda, begin, end); });
    });
}
