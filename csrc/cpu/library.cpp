// The version and the error message of the library.
#include "error.h"

#include <cstdarg>
#include <cstdio>

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

const char *s4_fast_error(void) { return s4_fast::message; }
