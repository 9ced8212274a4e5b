// The host's side of every function: argument checks, the workspace, the device, and launches that report failures.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../../common/error.h"
#include "../../include/s4_fast.h"
#ifdef S4_FAST_EMULATE
#include "emulate.h"
#else
#include <cuda_runtime.h>
#endif

namespace s4_fast::cuda {

// Blocks that fill the largest GPU a few times over. A constant, so that sums do not depend on where they run. Few in
// emulation, so that small inputs give a block several pieces of work.
#ifdef S4_FAST_EMULATE
constexpr int64_t ENOUGH_BLOCKS = 4;
#else
constexpr int64_t ENOUGH_BLOCKS = 1024;
#endif

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Size {
    const char *name;
    int64_t value;
};

// What ends every function of the CUDA family.
struct Target {
    void *workspace;
    int64_t *workspace_bytes;
    int64_t device;
    void *stream;
};

// `total` pieces of work in `count` contiguous shares of at most `each`.
struct Shares {
    int64_t each, count;
    Shares(int64_t total, int64_t wanted) {
        each = divide_up(total, wanted < 1 ? 1 : wanted < total ? wanted : total);
        count = divide_up(total, each);
    }
};

#ifndef S4_FAST_EMULATE
// This kernel's dynamic shared memory.
template <class Tables>
__device__ __forceinline__ Tables &shared_memory() {
    extern __shared__ __align__(16) unsigned char s4_fast_shared_memory[];
    return *reinterpret_cast<Tables *>(s4_fast_shared_memory);
}
#endif

class Call {
   public:
    Call(const char *function, const Target &target) : function_(function), target_(target) {}

    Call(const Call &) = delete;

    ~Call() {
        if (previous_ >= 0) cudaSetDevice(previous_);
    }

    // A piece of the workspace for `count` values, NULL while bytes are only counted.
    template <class T>
    T *take(int64_t count) {
        const int64_t start = bytes_;
        bytes_ += divide_up(count * int64_t(sizeof(T)), 256) * 256;
        return target_.workspace ? reinterpret_cast<T *>(static_cast<char *>(target_.workspace) + start) : nullptr;
    }

    // After the last take(): whether to launch. Otherwise the caller has asked for the workspace's size, and has it.
    bool ready() {
        if (!target_.workspace) {
            *target_.workspace_bytes = bytes_;
            return false;
        }
        if (target_.workspace_bytes && *target_.workspace_bytes < bytes_)
            throw std::runtime_error(std::string(function_) + ": the workspace has " +
                                     std::to_string(*target_.workspace_bytes) + " bytes and needs " +
                                     std::to_string(bytes_));
        int current = 0;
        check(cudaGetDevice(&current), "cudaGetDevice");
        if (current != target_.device) {
            check(cudaSetDevice(int(target_.device)), "cudaSetDevice");
            previous_ = current;
        }
        return true;
    }

    // Launches `blocks` blocks of `threads` threads in one dimension, which alone is not limited to 65535.
    template <class... Parameters, class... Arguments>
    void launch(const char *kernel_name, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
                Arguments... arguments) {
        if (blocks > INT32_MAX)
            throw std::runtime_error(std::string(function_) + ": " + kernel_name + " would need " +
                                     std::to_string(blocks) + " blocks; a GPU runs at most 2^31 - 1");
#ifdef S4_FAST_EMULATE
        emulation::run(kernel, blocks, threads, shared, static_cast<Parameters>(arguments)...);
#else
        kernel<<<unsigned(blocks), unsigned(threads), shared, static_cast<cudaStream_t>(target_.stream)>>>(
            static_cast<Parameters>(arguments)...);
#endif
        check(cudaGetLastError(), kernel_name);
    }

   private:
    void check(cudaError_t error, const char *what) const {
        if (error == cudaSuccess) return;
        throw std::runtime_error(std::string(function_) + ": " + what + ": " + cudaGetErrorString(error));
    }

    const char *function_;
    Target target_;
    int64_t bytes_ = 0;
    int previous_ = -1;
};

// Checks the arguments, of which `pointers` must be given, and runs body(real, call), `real` being a float or a double
// as `dtype` says.
template <class Body>
int run_call(const char *function, int64_t dtype, std::initializer_list<Size> sizes,
             std::initializer_list<const void *> pointers, const Target &target, Body &&body) noexcept {
    return guard([&] {
        if (dtype != S4_FAST_FLOAT32 && dtype != S4_FAST_FLOAT64)
            return fail("%s: dtype %lld is neither S4_FAST_FLOAT32 nor S4_FAST_FLOAT64", function, (long long)dtype);
        int64_t product = 1;
        for (const Size &size : sizes) {
            if (size.value < 1)
                return fail("%s: %s = %lld, expected at least 1", function, size.name, (long long)size.value);
            // Offsets and sizes of workspaces are computed in int64_t, with some factors that are not in this list.
            if (__builtin_mul_overflow(product, size.value, &product) || product > int64_t(1) << 54)
                return fail("%s: the product of the sizes is larger than 2^54", function);
        }
        for (const void *pointer : pointers)
            if (!pointer) return fail("%s: an argument that must be given is NULL", function);
        if (!target.workspace && !target.workspace_bytes)
            return fail("%s: neither a workspace nor where to write its size", function);
        Call call(function, target);
        if (dtype == S4_FAST_FLOAT32)
            body(float{}, call);
        else
            body(double{}, call);
        return 0;
    });
}

}  // namespace s4_fast::cuda
