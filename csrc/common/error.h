// How a function of the C interface fails: it writes a message for this thread and returns a code other than 0.
#pragma once

#include <exception>
#include <new>

namespace s4_fast {

// Keeps the message for s4_fast_error() and returns 1.
__attribute__((format(printf, 1, 2))) int fail(const char *format, ...);

// Runs body(), which returns a code, and turns what it throws into a failure.
template <class Body>
int guard(Body &&body) noexcept {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail("out of memory");
    } catch (const std::exception &error) {
        return fail("%s", error.what());
    } catch (...) {
        return fail("an unknown C++ exception");
    }
}

}  // namespace s4_fast
