// From the continuous system to the recurrence, and the chain rule back, in double. With z = rate dt A,
//     x = log lambda(z),   B_bar = step B weight(z).
#pragma once

#include "../../include/s4_fast.h"
#include "../shared/powers.cuh"

namespace s4_fast::cuda {

S4_FAST_INLINE Wide divide(Wide a, Wide b) {
    const double size = b.re * b.re + b.im * b.im;
    const Wide product = a * conj(b);
    return {product.re / size, product.im / size};
}

// What a model's nodes come from: x where it is given, else the continuous system.
template <class R>
struct Model {
    const Complex<R> *x;
    const R *dt, *A_real, *A_imag;
    const Complex<R> *B, *C;
    const R *D;
    int64_t copies, dt_states, flags;
    double rate;

    S4_FAST_INLINE bool has(int64_t flag) const { return flags & flag; }
};

// One state: what is read, and what follows from it.
struct State {
    double step;
    Wide A, B, z;
    Wide x, weight;
};

// sum_{k >= 0} z^k / (k + 1)!
S4_FAST_INLINE Wide hold_series(Wide z) {
    Wide sum = {1, 0};
#pragma unroll
    for (int k = 6; k > 1; --k) sum = Wide{1, 0} + (1.0 / k) * (z * sum);
    return sum;
}

S4_FAST_INLINE double size_of(Wide z) { return fmax(fabs(z.re), fabs(z.im)); }

// (exp(z) - 1) / z. Twice the square of half the angle's sine is what is missing in its cosine.
S4_FAST_INLINE Wide hold_weight(Wide z) {
    if (size_of(z) < 1e-3) return hold_series(z);
    const double half = turn<double>(phase(0.5 * z.im)).im, grown = expm1(z.re);
    const Wide angle = turn<double>(phase(z.im));
    return divide({grown * angle.re - 2 * half * half, (grown + 1) * angle.im}, z);
}

// The derivative of hold_weight, sum_{k >= 1} k z^{k-1} / (k + 1)!
S4_FAST_INLINE Wide hold_slope(Wide z) {
    if (size_of(z) < 0.125) {
        Wide sum = {0.5, 0};
        double factor = 0.5;  // k / (k + 1)!
        Wide term = {1, 0};
#pragma unroll 1
        for (int k = 2; k < 13; ++k) {
            term = term * z;
            factor *= double(k) / double((k - 1) * (k + 1));
            sum += factor * term;
        }
        return sum;
    }
    const Wide lambda = exp(z.re) * turn<double>(phase(z.im));
    return divide(lambda - hold_weight(z), z);
}

S4_FAST_INLINE Wide bilinear_weight(Wide z) { return divide({1, 0}, {1 - 0.5 * z.re, -0.5 * z.im}); }

// log((2 + z) / (2 - z)), to the relative precision of its small real part.
S4_FAST_INLINE Wide bilinear_node(Wide z) {
    const double size = (2 - z.re) * (2 - z.re) + z.im * z.im;
    return {0.5 * log1p(8 * z.re / size), atan2(z.im, 2 + z.re) + atan2(z.im, 2 - z.re)};
}

// The step, A, B and z alone.
template <class R>
S4_FAST_INLINE State read_continuous(const Model<R> &model, int64_t h, int64_t n, int64_t k) {
    State state{};
    const int64_t index = h % model.copies * n + k;
    state.B = model.B ? convert<double>(model.B[index]) : Wide{1, 0};
    const double dt = double(model.dt[model.dt_states == 1 ? h : h * n + k]);
    state.step = model.rate * (model.has(S4_FAST_LOG_DT) ? exp(dt) : dt);
    const double real = double(model.A_real[index]), imag = double(model.A_imag[index]);
    state.A = {model.has(S4_FAST_LOG_DECAY) ? -exp(real) : real, model.has(S4_FAST_CONJUGATE) ? -imag : imag};
    state.z = state.step * state.A;
    return state;
}

template <class R>
S4_FAST_INLINE State read_state(const Model<R> &model, int64_t h, int64_t n, int64_t k) {
    if (model.x) {
        State state{};
        const int64_t index = h % model.copies * n + k;
        state.B = model.B ? convert<double>(model.B[index]) : Wide{1, 0};
        state.x = convert<double>(model.x[index]);
        return state;
    }
    State state = read_continuous(model, h, n, k);
    const bool bilinear = model.has(S4_FAST_BILINEAR);
    state.x = bilinear ? bilinear_node(state.z) : state.z;
    state.weight = bilinear ? bilinear_weight(state.z) : hold_weight(state.z);
    // So far down every power but the first is 0, and products with infinity would not be.
    if (state.x.re < -1e4) state.x.re = -1e4;
    return state;
}

// The weight with which a sample enters the state.
template <class R>
S4_FAST_INLINE Wide enter_weight(const Model<R> &model, const State &state) {
    return model.x ? state.B : state.step * (state.weight * state.B);
}

// The gradients of a state's parameters, and of its dt.
struct Chained {
    Wide A, B;
    double dt;
};

// The gradients of what is stored in the place of A and of the step, for those of A and of the step.
template <class R>
S4_FAST_INLINE Chained as_stored(const Model<R> &model, const State &state, Chained grad) {
    grad.A.re *= model.has(S4_FAST_LOG_DECAY) ? state.A.re : 1.0;
    grad.A.im *= model.has(S4_FAST_CONJUGATE) ? -1.0 : 1.0;
    grad.dt *= model.has(S4_FAST_LOG_DT) ? state.step : model.rate;
    return grad;
}

template <class R>
S4_FAST_INLINE Chained chain(const Model<R> &model, const State &state, Wide grad_x, Wide grad_enter) {
    const Wide z = state.z, weight = state.weight;
    const bool bilinear = model.has(S4_FAST_BILINEAR);
    const Wide slope = bilinear ? 0.5 * (weight * weight) : hold_slope(z);
    // The derivative of z weight(z), whose two terms cancel where little is left after a step.
    const Wide whole = bilinear ? weight * weight : exp(z.re) * turn<double>(phase(z.im));
    const Wide node_slope = bilinear ? divide({4, 0}, Wide{2 - z.re, -z.im} * Wide{2 + z.re, z.im}) : Wide{1, 0};
    const Wide of_node = grad_x * conj(node_slope);
    const Wide grad_z = of_node + grad_enter * conj(state.step * (slope * state.B));
    const Chained grad{state.step * grad_z, grad_enter * conj(state.step * weight),
                       real_product(of_node, conj(state.A)) + real_product(grad_enter, conj(whole * state.B))};
    return as_stored(model, state, grad);
}

}  // namespace s4_fast::cuda
