// What the library says of itself: its version, its limits, its last error.
#include "error.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "../include/s4_fast.h"

namespace s4_fast {

namespace {
thread_local char message[1024] = "";
}

int fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return 1;
}

}  // namespace s4_fast

const char *s4_fast_version(void) { return S4_FAST_VERSION; }

int64_t s4_fast_limit(const char *name) {
#define S4_FAST_IF_NAMED(limit, value) \
    if (name && std::strcmp(name, #limit) == 0) return value;
    S4_FAST_LIMITS(S4_FAST_IF_NAMED)
#undef S4_FAST_IF_NAMED
    return -1;
}

int s4_fast_cpu_same(int64_t count, const void *const *first, const void *const *second, const int64_t *bytes) {
    for (int64_t i = 0; i < count; ++i) {
        if (std::memcmp(first[i], second[i], size_t(bytes[i])) != 0) return 0;
    }
    return 1;
}

const char *s4_fast_error(void) { return s4_fast::message; }
