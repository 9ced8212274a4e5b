// Products with the powers lambda^l, l < L, of nodes lambda = exp(x), one feature at a time.
#pragma once

#include <cstdint>

#include "../shared/isa.h"

namespace s4_fast::cpu {

// As in s4_fast.h.
template <class T>
struct Synthesis {
    int64_t c, H, n, L;
    const T *v, *x;
    double scale;
    T *out;
};

template <class T>
struct Moments {
    int64_t c, H, n, L;
    const T *u, *x;
    T *zeroth, *first;  // first may be null
};

// Bytes of scratch memory, and the work on feature h for the rows begin <= row < end, for either problem.
// clang-format off
S4_FAST_DECLARE_FOR_ISAS(
    template <class Problem> int64_t scratch_bytes(const Problem &of);
    template <class Problem> void work(const Problem &of, int64_t h, int64_t begin, int64_t end, char *scratch);)
// clang-format on

}  // namespace s4_fast::cpu
