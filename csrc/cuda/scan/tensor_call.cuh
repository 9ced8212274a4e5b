// What a scan on tensor cores and its adjoint have in common: their checks, and how they read their arguments.
#pragma once

#include "tensor_scan.cuh"

namespace s4_fast::cuda {
namespace tensor {
namespace {

// A signal as the kernels see it, (batch, H, L): as it is, or laid out anew where that is time-major.
template <class S>
struct Laid {
    S *given, *laid;
};

template <class S>
Laid<S> take_laid(Call &call, const Scan &scan, bool time_major, S *given) {
    if (!time_major || !given) return {given, given};
    return {given, call.take<std::remove_const_t<S>>(scan.batch * scan.H * scan.L)};
}

template <class S>
void bring(Call &call, const Scan &scan, const Laid<const S> &signal) {
    if (signal.laid != signal.given)
        turn<S>(call, scan.batch, scan.L, scan.H, signal.given, const_cast<S *>(signal.laid));
}

template <class S>
void bring_back(Call &call, const Scan &scan, const Laid<S> &signal) {
    if (signal.laid != signal.given) turn<S>(call, scan.batch, scan.H, scan.L, signal.laid, signal.given);
}

template <class S>
Pass<S> make_pass(const Tables<float> &tables, const Complex<float> *enter, const Complex<float> *leave) {
    Pass<S> pass{};
    pass.nodes = tables.nodes;
    pass.wide = tables.wide;
    pass.enter = enter;
    pass.leave = leave;
    pass.response = tables.response;
    return pass;
}

inline void refuse(const char *function, const char *what) {
    throw std::runtime_error(std::string(function) + ": " + what);
}

}  // namespace
}  // namespace tensor

namespace {

template <class Body>
int run_tensor_scan(const char *function, int64_t dtype, std::initializer_list<Size> sizes,
                    std::initializer_list<const void *> pointers, const Target &target, Body &&body) noexcept {
    return run_call(function, dtype, sizes, pointers, target, [&](auto real, Call &call) {
        if constexpr (std::is_same_v<decltype(real), float>)
            body(call);
        else
            tensor::refuse(function, "tensor cores serve parameters in float32 only");
    });
}

template <class Body>
int run_tensor_diagonal(const char *function, const DiagonalSizes &sizes, std::initializer_list<const void *> pointers,
                        const Target &target, Body &&body) noexcept {
    return run_diagonal(function, sizes, pointers, target, [&](auto real, auto signal, Call &call) {
        if constexpr (std::is_same_v<decltype(real), float>) {
            if (sizes.c > 1 || sizes.flags & S4_FAST_BIDIRECTIONAL)
                tensor::refuse(function, "tensor cores serve one channel and one direction only");
            body(signal, call);
        } else {
            tensor::refuse(function, "tensor cores serve parameters in float32 only");
        }
    });
}

}  // namespace
}  // namespace s4_fast::cuda
