// Samples that are not finite. A product with a matrix or a transform would spread one over outputs that it must not
// reach (0 * NaN is NaN): what works on samples asks here whether there is one, and then does without it.
#pragma once

#include "simd.h"

namespace s4_fast::cpu::S4_FAST_ISA {

// The sum and the largest of the magnitudes of some vectors. The sum may be beyond the numbers though all are finite.
template <class T>
class Magnitudes {
   public:
    void add(Vector<T> v) {
        const Vector<T> size = v < T(0) ? -v : v;
        sum_ += size, largest_ = size > largest_ ? size : largest_;
    }

    T sum() const {
        T total = 0;
        for (int i = 0; i < LANES<T>; ++i) total += sum_[i];
        return total;
    }
    T largest() const {
        T found = 0;
        for (int i = 0; i < LANES<T>; ++i) found = largest_[i] > found ? largest_[i] : found;
        return found;
    }

   private:
    Vector<T> sum_ = {}, largest_ = {};
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
    Vector<T> zeros = {};
    int64_t i = 0;
    for (; i + LANES<T> <= length; i += LANES<T>) zeros += load(samples + i) * T(0);
    T total = 0;
    for (int lane = 0; lane < LANES<T>; ++lane) total += zeros[lane];
    return total == 0 && finite_samples(samples + i, length - i) == length - i;
}

}  // namespace s4_fast::cpu::S4_FAST_ISA
