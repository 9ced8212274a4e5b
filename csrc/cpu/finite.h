// Samples that are not finite. A product with a matrix or a transform would spread one over outputs that it must not
// reach (0 * NaN is NaN): what works on samples asks here whether there is one, and then does without it.
#pragma once

#include "simd.h"

namespace s4_fast {
namespace S4_FAST_ISA {

// Whether every number of some vectors is finite, at one operation each.
template <class T>
struct Finite {
    Vector<T> sum = {};

    void add(Vector<T> v) { sum += v * T(0); }

    bool all() const {
        T total = 0;
        for (int i = 0; i < kLanes<T>; ++i) total += sum[i];
        return total == 0;
    }
};

// The number of samples before the first that is not finite, or `length`.
template <class T>
int64_t finite_samples(const T *samples, int64_t length) {
    int64_t i = 0;
    while (i < length && samples[i] * T(0) == 0) ++i;
    return i;
}

template <class T>
bool all_finite(const T *samples, int64_t length) {
    Finite<T> finite;
    int64_t i = 0;
    for (; i + kLanes<T> <= length; i += kLanes<T>) finite.add(load(samples + i));
    return finite.all() && finite_samples(samples + i, length - i) == length - i;
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
