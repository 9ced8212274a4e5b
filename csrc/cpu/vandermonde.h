// Products with the powers lambda^l, l < L, of nodes lambda = exp(x), one feature at a time.
#pragma once

#include <cstdint>

#include "isa.h"

namespace s4_fast {

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

// Bytes of scratch memory, and the work on feature h for the rows begin <= row < end.
S4_FAST_DECLARE_FOR_ISAS(template <class T> int64_t synthesis_scratch(const Synthesis<T> &of); template <class T>
                         void synthesize(const Synthesis<T> &of, int64_t h, int64_t begin, int64_t end, char *scratch);
                         template <class T> int64_t moments_scratch(const Moments<T> &of); template <class T>
                         void take_moments(const Moments<T> &of, int64_t h, int64_t begin, int64_t end, char *scratch);)

}  // namespace s4_fast
