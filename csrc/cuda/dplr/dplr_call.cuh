// What a DPLR scan and its adjoint have in common: their checks, and how they read their arguments and their maps.
#pragma once

#include <tuple>

#include "../scan/scan_outputs.cuh"
#include "dplr_states.cuh"

namespace s4_fast::cuda {
namespace {

template <class Body>
int run_dplr(const char *function, const DiagonalSizes &sizes, std::initializer_list<const void *> pointers,
             const Target &target, Body &&body) noexcept {
    return run_diagonal(function, sizes, pointers, target, [&](auto real, auto signal, Call &call) {
        for (const auto &[name, value, most] : {std::tuple{"rank", sizes.rank, S4_FAST_CUDA_DPLR_SCAN_RANK},
                                                std::tuple{"n", sizes.n, S4_FAST_CUDA_DPLR_SCAN_N}})
            if (value > most)
                throw std::runtime_error(std::string(function) + ": " + name + " = " + std::to_string(value) +
                                         ", expected at most " + std::to_string(most));
        body(real, signal, call);
    });
}

template <class R>
Scan make_dplr_scan(const DiagonalSizes &sizes) {
    return make_scan<R>(sizes.batch, sizes.H, sizes.n, sizes.L, sizes.c, sizes.flags & S4_FAST_BIDIRECTIONAL ? 2 : 1);
}

// What the states before a chunk are multiplied by to give its outputs, from a table (channels, H, T, n).
struct TableColumns {
    static S4_FAST_INLINE int64_t per_feature(const Scan &scan) { return scan.T * scan.n; }

    template <class R>
    static S4_FAST_INLINE void load(OutputTables<R> &, const Scan &, const Tables<R> &, int64_t, int64_t, int) {}

    template <class R>
    static S4_FAST_INLINE void load_direction(OutputTables<R> &tables, const Scan &scan, const Complex<R> *from,
                                              int here) {
        constexpr int T = CHUNK<R>;
        for (int entry = threadIdx.x; entry < TILE_STATES * T; entry += THREADS)
            if (entry % TILE_STATES < here)
                tables.powers[entry % TILE_STATES][entry / TILE_STATES] =
                    from[entry / TILE_STATES * scan.n + entry % TILE_STATES];
    }

    template <class R>
    static S4_FAST_INLINE Complex<R> enter(const Complex<R> *, int, Complex<R> s) {
        return s;
    }
};

}  // namespace
}  // namespace s4_fast::cuda
