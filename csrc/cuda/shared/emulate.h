// Runs the kernels on the CPU, for tests of their arithmetic, indices and barriers where there is no GPU.
//
// With S4_FAST_EMULATE the sources of this folder are C++. A block's threads are coroutines: each runs up to its next
// barrier, of the block or of its warp, in an order that emulation::order chooses. A missing barrier shows as a result
// that depends on the order, shared memory that was never written as NaN. Blocks run one after the other: it sees no
// race between blocks.
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

namespace s4_fast::cuda::emulation {

enum Order { FORWARDS, BACKWARDS, SHUFFLED };
inline int order = FORWARDS;
inline long launches = 0;

enum Waiting { FOR_NOTHING, FOR_WARP, FOR_BLOCK };

constexpr int WARP = 32;

// What a lane shows the others of its warp in one exchange.
struct Words {
    uint64_t of[6];
};

struct Coroutine {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 << 10);
    bool finished = false;
    Waiting waiting = FOR_NOTHING;
    unsigned exchanges = 0;
    Words words[2];
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

inline void wait(Waiting waiting) {
    current->waiting = waiting;
    swapcontext(&current->context, &scheduler);
}

// Shows `words` to the warp; words of lane i are warp[i]. Each exchange uses the other of two places, so that a lane
// which is one ahead leaves what the others have yet to read.
struct Exchange {
    explicit Exchange(Words words) : lane(threadIdx.x % WARP), place(current->exchanges++ % 2) {
        current->words[place] = words;
        first = threadIdx.x - lane;
        wait(FOR_WARP);
    }
    const uint64_t *operator[](unsigned i) const { return coroutines[first + i].words[place].of; }
    unsigned lane, place, first;
};

// Lets those go on for whom all others have come; whether there were any.
inline bool release(int threads) {
    auto wait_for = [&](int first, int end, Waiting what) {
        for (int i = first; i < end; ++i)
            if (coroutines[i].finished || coroutines[i].waiting != what) return false;
        for (int i = first; i < end; ++i) coroutines[i].waiting = FOR_NOTHING;
        return true;
    };
    bool any = wait_for(0, threads, FOR_BLOCK);
    for (int warp = 0; warp + WARP <= threads; warp += WARP) any |= wait_for(warp, warp + WARP, FOR_WARP);
    return any;
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
        coroutine.waiting = FOR_NOTHING;
        makecontext(&coroutine.context, enter, 0);
    }
    for (int finished = 0; finished < threads;) {
        if (order == SHUFFLED) std::shuffle(turn.begin(), turn.end(), random);
        // One warp may be ahead of another: now and then one rests.
        const int warps = threads / WARP, pick = order == SHUFFLED && warps > 1 ? int(random() % (2 * warps)) : warps;
        const int resting = pick < warps ? pick : -1;
        for (int i : turn) {
            current = &coroutines[i];
            if (current->finished || current->waiting != FOR_NOTHING || i / WARP == resting) continue;
            threadIdx.x = unsigned(i);
            swapcontext(&scheduler, &current->context);
            finished += current->finished;
        }
        if (!release(threads) && finished < threads && resting < 0)
            throw std::logic_error("a barrier that not all threads of a block, or of a warp, reach");
    }
}

template <class... Parameters>
void run(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared, Parameters... arguments) {
    ++launches;
    body = [=] { kernel(arguments...); };
    if (shared > (48 << 10)) throw std::logic_error("more than 48 KiB of shared memory");
    for (int64_t block = 0; block < blocks; ++block) {
        blockIdx.x = unsigned(block);
        // It is as long as asked for, so that the address sanitizer sees an access beyond.
        memory = static_cast<unsigned char *>(std::malloc(shared ? shared : 1));
        std::memset(memory, 0xff, shared);
        run_block(threads);
        std::free(memory);
    }
}

}  // namespace s4_fast::cuda::emulation

inline void __syncthreads() { s4_fast::cuda::emulation::wait(s4_fast::cuda::emulation::FOR_BLOCK); }
inline void __syncwarp() { s4_fast::cuda::emulation::wait(s4_fast::cuda::emulation::FOR_WARP); }

namespace s4_fast::cuda {
template <class Tables>
Tables &shared_memory() {
    return *reinterpret_cast<Tables *>(emulation::memory);
}
}  // namespace s4_fast::cuda

extern "C" __attribute__((visibility("default"), used)) inline void s4_fast_emulate_order(int order) {
    s4_fast::cuda::emulation::order = order;
}

extern "C" __attribute__((visibility("default"), used)) inline long s4_fast_emulate_launches() {
    return s4_fast::cuda::emulation::launches;
}
