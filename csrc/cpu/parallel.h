// STAND-IN until the thread pool is merged: new threads for every call.
#pragma once

#include <stdint.h>

#include <thread>
#include <vector>

namespace s4_fast {

template <class Body>
void parallel_for(int64_t threads, int64_t count, Body &&body) {
    if (threads > count) threads = count;
    if (threads <= 1) {
        if (count > 0) body(int64_t(0), count, 0);
        return;
    }
    std::vector<std::thread> others;
    for (int64_t i = 1; i < threads; ++i)
        others.emplace_back([&, i] { body(count * i / threads, count * (i + 1) / threads, int(i)); });
    body(int64_t(0), count / threads, 0);
    for (std::thread &other : others) other.join();
}

}  // namespace s4_fast
