#include "vandermonde.h"

#include "../shared/arguments.h"
#include "../shared/memory.h"
#include "../shared/parallel.h"
#include "../shared/pieces.h"

namespace s4_fast::cpu {
namespace {

template <class Problem>
int64_t bytes_of(const Problem &of) {
    S4_FAST_RETURN_FROM_ISA(scratch_bytes(of))
}

template <class Problem>
void run(const Problem &of, int64_t h, int64_t begin, int64_t end, char *scratch) {
    S4_FAST_RETURN_FROM_ISA(work(of, h, begin, end, scratch))
}

template <class Problem>
int for_each_feature(const Problem &of, int64_t threads) {
    const Pieces pieces(of.c, of.H, of.L);
    const int64_t bytes = bytes_of(of), count = of.H * pieces.parts;
    threads = at_most(threads, count);
    const auto scratch = aligned_memory(bytes * threads);
    parallel_for(threads, count, [&](int64_t index, int64_t worker) {
        const int64_t part = index % pieces.parts;
        run(of, index / pieces.parts, pieces.first(part), pieces.first(part + 1), scratch.get() + worker * bytes);
    });
    return 0;
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_vandermonde(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *v,
                                       const void *x, double scale, void *out, int64_t threads) {
    return for_dtype("vandermonde", dtype, {{"c", c}, {"H", H}, {"n", n}, {"L", L}}, {v, x, out}, [&](auto zero) {
        using T = decltype(zero);
        return for_each_feature(Synthesis<T>{c, H, n, L, static_cast<const T *>(v), static_cast<const T *>(x), scale,
                                             static_cast<T *>(out)},
                                threads);
    });
}

extern "C" int s4_fast_cpu_moments(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *u,
                                   const void *x, void *zeroth, void *first, int64_t threads) {
    return for_dtype("moments", dtype, {{"c", c}, {"H", H}, {"n", n}, {"L", L}}, {u, x, zeroth}, [&](auto zero) {
        using T = decltype(zero);
        return for_each_feature(Moments<T>{c, H, n, L, static_cast<const T *>(u), static_cast<const T *>(x),
                                           static_cast<T *>(zeroth), static_cast<T *>(first)},
                                threads);
    });
}
