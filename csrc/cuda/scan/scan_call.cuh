// What the functions of a scan and of a diagonal model have in common: their checks, and how they read their arguments.
#pragma once

#include "../shared/half.cuh"
#include "../shared/launch.cuh"
#include "discretize.cuh"

namespace s4_fast::cuda {
namespace {

struct DiagonalSizes {
    int64_t dtype, signal_dtype, flags, batch, H, n, L, c, copies, dt_states, rank = 1;
};

// The signals and states of a call, and of its adjoint; those that are not wanted, or not there, are NULL.
template <class R, class S>
struct Forward {
    const S *u;
    const Complex<R> *state, *ahead;
    S *y;
    Complex<R> *final;
};

template <class R, class S>
struct Backward {
    const S *grad_y, *u;
    const Complex<R> *grad_final, *state, *ahead;
    S *grad_u;
    Complex<R> *grad_state, *grad_ahead;
};

inline void check_diagonal(const std::string &function, const DiagonalSizes &sizes) {
    auto refuse = [&](const std::string &what) { throw std::runtime_error(function + ": " + what); };
    const bool half = sizes.signal_dtype == S4_FAST_BFLOAT16 || sizes.signal_dtype == S4_FAST_FLOAT16;
    if (sizes.signal_dtype != sizes.dtype && !(half && sizes.dtype == S4_FAST_FLOAT32))
        refuse("signal_dtype " + std::to_string(sizes.signal_dtype) + " does not go with dtype " +
               std::to_string(sizes.dtype));
    if (sizes.flags < 0 || sizes.flags > 63) refuse("unknown flags " + std::to_string(sizes.flags));
    if (sizes.copies < 1 || sizes.H % sizes.copies)
        refuse("copies = " + std::to_string(sizes.copies) + " do not divide H = " + std::to_string(sizes.H));
    if (sizes.dt_states != 1 && sizes.dt_states != sizes.n)
        refuse("dt_states = " + std::to_string(sizes.dt_states) + ", expected 1 or n = " + std::to_string(sizes.n));
}

// Runs body(real, signal, call), their types being those of the parameters and of the signals.
template <class Body>
int run_diagonal(const char *function, const DiagonalSizes &sizes, std::initializer_list<const void *> pointers,
                 const Target &target, Body &&body) noexcept {
    return run_call(
        function, sizes.dtype,
        {{"batch", sizes.batch}, {"H", sizes.H}, {"n", sizes.n}, {"L", sizes.L}, {"c", sizes.c}, {"rank", sizes.rank}},
        pointers, target, [&](auto real, Call &call) {
            check_diagonal(function, sizes);
            if constexpr (std::is_same_v<decltype(real), float>) {
                if (sizes.signal_dtype == S4_FAST_BFLOAT16) return body(real, BFloat16{}, call);
                if (sizes.signal_dtype == S4_FAST_FLOAT16) return body(real, Half{}, call);
            }
            body(real, real, call);
        });
}

// A model whose x is given is one of a single direction.
template <class R>
Model<R> given_model(int64_t H, const void *x, const void *B, const void *C, const void *D) {
    using Input = const Complex<R> *;
    return {Input(x), nullptr, nullptr, nullptr, Input(B), Input(C), static_cast<const R *>(D), H, 1, 0, 1.0};
}

template <class R>
Model<R> continuous_model(const DiagonalSizes &sizes, double rate, const void *dt, const void *A_real,
                          const void *A_imag, const void *B, const void *C, const void *D) {
    using Real = const R *;
    using Input = const Complex<R> *;
    return {nullptr, Real(dt),     Real(A_real),    Real(A_imag), Input(B), Input(C),
            Real(D), sizes.copies, sizes.dt_states, sizes.flags,  rate};
}

}  // namespace
}  // namespace s4_fast::cuda
