// Runs the kernels on the CPU, for tests of their arithmetic, indices and barriers where there is no GPU.
//
// With S4_FAST_EMULATE the sources of this folder are C++. A block's threads are coroutines: each runs up to its next
// barrier, in an order that emulation::order chooses. A missing barrier shows as a result that depends on the order,
// shared memory that was never written as NaN. Blocks run one after the other: it sees no race between blocks.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int *device) { return *device = 0; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return "no error"; }

inline float __fdividef(float a, float b) { return a / b; }

struct Index {
    unsigned x;
};
inline Index threadIdx, blockIdx;

namespace s4_fast::emulation {

enum Order { FORWARDS, BACKWARDS, SHUFFLED };
inline int order = FORWARDS;
inline long launches = 0;

struct Coroutine {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 << 10);
    bool finished = false;
};

inline std::vector<Coroutine> coroutines;
inline ucontext_t scheduler;
inline Coroutine *current;
inline unsigned char *memory;
inline std::function<void()> body;

inline void enter() {
    body();
    current->finished = true;
    swapcontext(&current->context, &scheduler);
}

inline void run_block(int threads) {
    static std::mt19937 random(0);
    std::vector<int> turn(threads);
    std::iota(turn.begin(), turn.end(), 0);
    if (order == BACKWARDS) std::reverse(turn.begin(), turn.end());
    if (coroutines.size() < size_t(threads)) coroutines.resize(threads);
    for (int i = 0; i < threads; ++i) {
        Coroutine &coroutine = coroutines[i];
        getcontext(&coroutine.context);
        coroutine.context.uc_stack.ss_sp = coroutine.stack.data();
        coroutine.context.uc_stack.ss_size = coroutine.stack.size();
        coroutine.context.uc_link = nullptr;
        coroutine.finished = false;
        makecontext(&coroutine.context, enter, 0);
    }
    for (int finished = 0; !finished;) {
        if (order == SHUFFLED) std::shuffle(turn.begin(), turn.end(), random);
        for (int i : turn) {
            threadIdx.x = unsigned(i);
            current = &coroutines[i];
            swapcontext(&scheduler, &current->context);
            finished += current->finished;
        }
        if (finished && finished < threads) throw std::logic_error("a barrier that not all threads of a block reach");
    }
}

template <class... Parameters>
void run(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, Parameters... arguments) {
    ++launches;
    body = [=] { kernel(arguments...); };
    if (shared > (48 << 10)) throw std::logic_error("more than 48 KiB of shared memory");
    for (int64_t block = 0; block < blocks; ++block) {
        blockIdx.x = unsigned(block);
        // As long as asked for, so that the address sanitizer sees an access beyond.
        memory = static_cast<unsigned char *>(std::malloc(shared ? shared : 1));
        std::memset(memory, 0xff, shared);
        run_block(threads);
        std::free(memory);
    }
}

}  // namespace s4_fast::emulation

inline void __syncthreads() {
    namespace emulation = s4_fast::emulation;
    swapcontext(&emulation::current->context, &emulation::scheduler);
}

namespace s4_fast {
template <class Tables>
Tables &shared_memory() {
    return *reinterpret_cast<Tables *>(emulation::memory);
}
}  // namespace s4_fast

extern "C" __attribute__((visibility("default"), used)) inline void s4_fast_emulate_order(int order) {
    s4_fast::emulation::order = order;
}

extern "C" __attribute__((visibility("default"), used)) inline long s4_fast_emulate_launches() {
    return s4_fast::emulation::launches;
}
