// Threads for independent pieces of work. Not OpenMP: two OpenMP runtimes in one process, PyTorch's and another,
// disturb each other, and ThreadSanitizer does not understand GCC's.
#pragma once

#include <cstdint>

namespace s4_fast::cpu {

using Piece = void (*)(void *context, int64_t index, int64_t worker);

// Calls piece(context, i, worker) for every i < count, on at most `threads` threads, 0 <= worker < threads. A call that
// finds the threads busy, and one for a single thread, runs on the caller's alone.
void run_pieces(int64_t threads, int64_t count, Piece piece, void *context);

// The threads to use for so much work: the caller's alone where waking others takes longer. Checks see threads always.
inline int64_t threads_worth(int64_t threads, int64_t work, int64_t least) {
#ifdef S4_FAST_CHECKED
    return threads;
#else
    return work < least ? 1 : threads;
#endif
}

// body(index, worker) for every index < count. The body must not throw.
template <class Body>
void parallel_for(int64_t threads, int64_t count, Body &&body) {
    run_pieces(
        threads, count,
        [](void *context, int64_t index, int64_t worker) { (*static_cast<Body *>(context))(index, worker); }, &body);
}

}  // namespace s4_fast::cpu
