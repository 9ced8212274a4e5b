// The checks that every entry point makes, and the choice of its type.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "../../common/error.h"
#include "../../include/s4_fast.h"

namespace s4_fast::cpu {

struct Size {
    const char *name;
    int64_t value;
    bool beside = false;  // no array has it together with the size before it
};

// Offsets and sizes of memory are computed in int64_t, with some factors that are not among the sizes.
constexpr int64_t LARGEST_PRODUCT = int64_t(1) << 50;

inline int check_sizes(const char *function, std::initializer_list<Size> sizes) {
    int64_t product = 1, before = 1;
    for (const Size &size : sizes) {
        if (size.value < 1)
            return fail("%s: %s must be at least 1, got %lld", function, size.name, (long long)size.value);
        // A size beside another takes its place in the product if it is the larger one.
        const int64_t rest = size.beside ? product / before : product;
        before = size.beside && before > size.value ? before : size.value;
        if (before > LARGEST_PRODUCT / rest) return fail("%s: the product of the sizes is larger than 2^50", function);
        product = rest * before;
    }
    return 0;
}

// body(T()) for the real type T that `dtype` names, if the sizes can be those of arrays and every pointer is given.
template <class Body>
int for_dtype(const char *function, int64_t dtype, std::initializer_list<Size> sizes,
              std::initializer_list<const void *> pointers, Body body) {
    if (const int code = check_sizes(function, sizes)) return code;
    for (const void *pointer : pointers) {
        if (pointer == nullptr) return fail("%s: an argument that must be given is NULL", function);
    }
    if (dtype == S4_FAST_FLOAT32) return guard([&] { return body(float()); });
    if (dtype == S4_FAST_FLOAT64) return guard([&] { return body(double()); });
    return fail("%s: unknown dtype %lld", function, (long long)dtype);
}

}  // namespace s4_fast::cpu
