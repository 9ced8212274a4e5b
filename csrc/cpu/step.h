// One step of a diagonal SSM.
#pragma once

#include <cstdint>

#include "isa.h"

namespace s4_fast {

// As in s4_fast.h; D may be null.
template <class T>
struct Step {
    int64_t H, n;
    const T *u, *state;
    const double *lambda;
    const T *B, *C, *D;
    T *y, *next;
};

// The rows begin <= batch * H + h < end.
S4_FAST_DECLARE_FOR_ISAS(template <class T> void step(const Step<T> &of, int64_t begin, int64_t end);
                         template <class T> void exponentials(const T *x, double *lambda, int64_t begin, int64_t end);)

}  // namespace s4_fast
