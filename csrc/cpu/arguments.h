// The checks that every entry point makes, and the choice of its type.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "../include/s4_fast.h"
#include "error.h"

namespace s4_fast {

struct Size {
    const char *name;
    int64_t value;
};

// body(T()) for the real type T that `dtype` names, if every size is at least 1 and every pointer is given.
template <class Body>
int for_dtype(const char *function, int64_t dtype, std::initializer_list<Size> sizes,
              std::initializer_list<const void *> pointers, Body body) {
    for (const Size &size : sizes) {
        if (size.value < 1)
            return fail("%s: %s must be at least 1, got %lld", function, size.name, (long long)size.value);
    }
    for (const void *pointer : pointers) {
        if (pointer == nullptr) return fail("%s: an argument that must be given is NULL", function);
    }
    if (dtype == S4_FAST_FLOAT32) return guard([&] { return body(float()); });
    if (dtype == S4_FAST_FLOAT64) return guard([&] { return body(double()); });
    return fail("%s: unknown dtype %lld", function, (long long)dtype);
}

}  // namespace s4_fast
