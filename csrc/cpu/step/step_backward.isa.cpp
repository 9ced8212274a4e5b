// The adjoint of a step of a diagonal SSM, in double whatever T is. With q = grad_next + 2 C* dy the whole gradient of
// the next state: grad_u = Re sum_n B* q + D dy, grad_state = lambda* q, and summed over the batch
// grad_x = q (lambda state)*, grad_B = q u, grad_C = 2 dy next*, grad_D = dy u.
#include "../shared/arena.h"
#include "../shared/interleaved.h"
#include "step.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// Sums over the batch for the features of one call; C of dy next, without what is the same for every row.
struct Sums {
    int64_t stride;
    double *x, *B, *C, *D;

    Sums(Arena &arena, int64_t n, int64_t features)
        : stride(2 * padded(n)),
          x(arena.take<double>(features * stride)),
          B(arena.take<double>(features * stride)),
          C(arena.take<double>(features * stride)),
          D(arena.take<double>(features)) {}
};

void add(double *to, vec what) { store(to, load(to) + what); }

// What the sample and the state of feature h add, as row `row` of (batch, H); `at` is where the feature's sums are.
template <class T>
void add_row(const StepBackward<T> &of, int64_t row, int64_t h, const Sums &sums, int64_t at) {
    const int64_t n = of.n;
    const T *state = of.state + 2 * row * n, *grad_next = of.grad_next ? of.grad_next + 2 * row * n : nullptr;
    const T *B = of.B + 2 * h * n, *C = of.C + 2 * h * n;
    const double *lambda = of.lambda + 2 * h * n;
    T *grad_state = of.grad_state ? of.grad_state + 2 * row * n : nullptr;
    const double u = double(of.u[row]), dy = of.grad_y ? double(of.grad_y[row]) : 0;
    const vec conjugate = -2 * dy * signs();
    vec total = {};
    over_pairs(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
        const vec input = load_pairs(B + 2 * i, count), decay = load_pairs(lambda + 2 * i, count);
        const vec kept = product(decay, load_pairs(state + 2 * i, count));
        vec q = conjugate * load_pairs(C + 2 * i, count);
        if (grad_next) q += load_pairs(grad_next + 2 * i, count);
        total += input * q;
        if (grad_state) store_pairs(grad_state + 2 * i, conj_product(decay, q), count);
        const int64_t to = at * sums.stride + 2 * i;
        add(sums.x + to, conj_product(kept, q));
        add(sums.B + to, u * q);
        add(sums.C + to, dy * (kept + u * input));
    });
    if (of.grad_u) of.grad_u[row] = T(sum(total) + (of.D ? double(of.D[h]) * dy : 0));
    sums.D[at] += dy * u;
}

}  // namespace

int64_t step_backward_scratch(int64_t n, int64_t features) {
    Arena arena;
    Sums(arena, n, features);
    return arena.used();
}

template <class T>
void step_backward(const StepBackward<T> &of, int64_t first, int64_t last, char *scratch) {
    const FlushDenormals flush;
    Arena arena(scratch);
    const int64_t features = last - first, n = of.n;
    const Sums sums(arena, n, features);
    for (int64_t i = 0; i < features * sums.stride; ++i) sums.x[i] = sums.B[i] = sums.C[i] = 0;
    for (int64_t i = 0; i < features; ++i) sums.D[i] = 0;
    for (int64_t batch = 0; batch < of.batch; ++batch)
        for (int64_t h = first; h < last; ++h) add_row(of, batch * of.H + h, h, sums, h - first);
    for (int64_t h = first; h < last; ++h) {
        const int64_t from = (h - first) * sums.stride, to = 2 * h * n;
        for (int64_t i = 0; i < 2 * n; ++i) {
            if (of.grad_x) of.grad_x[to + i] = T(sums.x[from + i]);
            if (of.grad_B) of.grad_B[to + i] = T(sums.B[from + i]);
            if (of.grad_C) of.grad_C[to + i] = T((i % 2 ? -2 : 2) * sums.C[from + i]);
        }
        if (of.grad_D) of.grad_D[h] = T(sums.D[h - first]);
    }
}

template void step_backward(const StepBackward<float> &, int64_t, int64_t, char *);
template void step_backward(const StepBackward<double> &, int64_t, int64_t, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
