#include "dplr.h"

#include <algorithm>

#include "../../include/s4_fast.h"
#include "../shared/arguments.h"
#include "../shared/memory.h"
#include "../shared/parallel.h"
#include "../shared/pieces.h"
#include "../shared/root_tables.h"

namespace s4_fast::cpu {
namespace {

int64_t scratch_bytes(const DplrSizes &sizes, bool backward) { S4_FAST_RETURN_FROM_ISA(dplr_scratch(sizes, backward)) }

template <class T>
void run(const Dplr<T> &d, T *spectrum, int64_t h, int64_t first, int64_t last, char *scratch) {
    S4_FAST_RETURN_FROM_ISA(dplr_spectrum(d, spectrum, h, first, last, scratch))
}

template <class T>
void run(const Dplr<T> &d, const T *grad, int64_t h, int64_t first, int64_t last, double *sums, double *poles,
         char *scratch) {
    S4_FAST_RETURN_FROM_ISA(dplr_spectrum_backward(d, grad, h, first, last, sums, poles, scratch))
}

template <class T>
void run(const DplrStep<T> &step, int64_t first, int64_t last) {
    S4_FAST_RETURN_FROM_ISA(dplr_step(step, first, last))
}

template <class T>
int spectrum(Dplr<T> dplr, T *out, int64_t threads) {
    const NodeRanges ranges(dplr.sizes.H, dplr.sizes.L / 2 + 1, NODES);
    const int64_t bytes = scratch_bytes(dplr.sizes, false), count = dplr.sizes.H * ranges.parts;
    threads = std::clamp<int64_t>(threads, 1, count);
    const RootTables tables(dplr.sizes.L, threads);
    dplr.roots = tables.tables();
    const auto scratch = aligned_memory(bytes * threads);
    parallel_for(threads, count, [&](int64_t index, int64_t worker) {
        const int64_t part = index % ranges.parts;
        run(dplr, out, index / ranges.parts, ranges.first(part), ranges.first(part + 1),
            scratch.get() + worker * bytes);
    });
    return 0;
}

// Adds up the parts of feature h and carries them through alpha = 2 Re v, beta = -2 Re(v w*) and |w|^2.
template <class T>
void carry(const Dplr<T> &dplr, int64_t h, int64_t parts, double *sums, double *poles, double *grad_v, double *grad_w) {
    const DplrSizes &s = dplr.sizes;
    const int64_t n = s.n, rows = (s.c + s.rank) * (s.b + s.rank), stride = 2 * n * rows;
    for (int64_t part = 1; part < parts; ++part) {
        for (int64_t i = 0; i < stride; ++i) sums[i] += sums[part * stride + i];
        for (int64_t i = 0; grad_w && i < 2 * n; ++i) poles[i] += poles[part * 2 * n + i];
    }
    for (int64_t i = 0; i < n; ++i) {
        const double w_re = dplr.w[2 * (h * n + i)], w_im = dplr.w[2 * (h * n + i) + 1];
        double re = 0, im = 0;
        for (int64_t row = 0; row < rows; ++row) {
            const double alpha = sums[2 * (i * rows + row)], beta = sums[2 * (i * rows + row) + 1];
            const int64_t at = 2 * ((row * s.H + h) * n + i);
            grad_v[at] = 2 * (alpha - w_re * beta);
            grad_v[at + 1] = -2 * w_im * beta;
            re -= 2 * dplr.v[at] * beta;
            im -= 2 * dplr.v[at + 1] * beta;
        }
        if (grad_w == nullptr) continue;
        grad_w[2 * (h * n + i)] = re + 2 * w_re * poles[2 * i] + poles[2 * i + 1];
        grad_w[2 * (h * n + i) + 1] = im + 2 * w_im * poles[2 * i];
    }
}

template <class T>
int spectrum_backward(Dplr<T> dplr, const T *grad, double *grad_v, double *grad_w, int64_t threads) {
    const DplrSizes &s = dplr.sizes;
    const NodeRanges ranges(s.H, s.L / 2 + 1, NODES);
    const int64_t bytes = scratch_bytes(s, true), parts = ranges.parts, count = s.H * parts;
    const int64_t stride = 2 * s.n * (s.c + s.rank) * (s.b + s.rank), poles_stride = grad_w ? 2 * s.n : 0;
    threads = std::clamp<int64_t>(threads, 1, count);
    const RootTables tables(s.L, threads);
    dplr.roots = tables.tables();
    const auto scratch = aligned_memory(bytes * threads);
    const auto sums_memory = memory_for_doubles(count * stride);
    const auto poles_memory = memory_for_doubles(count * poles_stride);
    double *const sums = doubles(sums_memory), *const poles = doubles(poles_memory);
    parallel_for(threads, count, [&](int64_t index, int64_t worker) {
        const int64_t part = index % parts;
        run(dplr, grad, index / parts, ranges.first(part), ranges.first(part + 1), sums + index * stride,
            grad_w ? poles + index * poles_stride : nullptr, scratch.get() + worker * bytes);
    });
    parallel_for(threads, s.H, [&](int64_t h, int64_t) {
        carry(dplr, h, parts, sums + h * parts * stride, poles + h * parts * poles_stride, grad_v, grad_w);
    });
    return 0;
}

int check_rank(const char *function, int64_t rank, int64_t most) {
    if (rank <= most) return 0;
    return fail("%s: rank must be at most %lld, got %lld", function, (long long)most, (long long)rank);
}

int check_sums(const char *function, const DplrSizes &s) {
    if ((s.b + s.rank) * (s.c + s.rank) <= S4_FAST_CPU_DPLR_SUMS)
        return check_rank(function, s.rank, S4_FAST_CPU_DPLR_RANK);
    return fail("%s: (b + rank) (c + rank) must be at most %d, got %lld and %lld", function, int(S4_FAST_CPU_DPLR_SUMS),
                (long long)(s.b + s.rank), (long long)(s.c + s.rank));
}

// A step of fewer states is done before a second thread has woken up.
constexpr int64_t SMALL_STEP = 1 << 16, STEP_PIECES = 64;

template <class T>
int step(const DplrStep<T> &step, int64_t threads) {
    const int64_t pieces = step.batch * step.H * step.n < SMALL_STEP ? 1 : std::min(step.H, STEP_PIECES);
    parallel_for(threads, pieces,
                 [&](int64_t i, int64_t) { run(step, step.H * i / pieces, step.H * (i + 1) / pieces); });
    return 0;
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_dplr_spectrum(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n,
                                         int64_t L, const double *v, const void *w, const double *shift, void *out,
                                         int64_t threads) {
    const DplrSizes sizes = {b, c, rank, H, n, L};
    return for_dtype("dplr_spectrum", dtype, {{"b", b}, {"c", c}, {"rank", rank}, {"H", H}, {"n", n}, {"L", L}},
                     {v, w, shift, out}, [&](auto zero) {
                         using T = decltype(zero);
                         if (const int code = check_sums("dplr_spectrum", sizes)) return code;
                         const Dplr<T> dplr = {sizes, v, static_cast<const T *>(w), shift, {}};
                         return spectrum(dplr, static_cast<T *>(out), threads);
                     });
}

extern "C" int s4_fast_cpu_dplr_spectrum_backward(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H,
                                                  int64_t n, int64_t L, const void *grad_spectrum, const double *v,
                                                  const void *w, const double *shift, double *grad_v, double *grad_w,
                                                  int64_t threads) {
    const DplrSizes sizes = {b, c, rank, H, n, L};
    return for_dtype("dplr_spectrum_backward", dtype,
                     {{"b", b}, {"c", c}, {"rank", rank}, {"H", H}, {"n", n}, {"L", L}},
                     {grad_spectrum, v, w, shift, grad_v}, [&](auto zero) {
                         using T = decltype(zero);
                         if (const int code = check_sums("dplr_spectrum_backward", sizes)) return code;
                         const Dplr<T> dplr = {sizes, v, static_cast<const T *>(w), shift, {}};
                         return spectrum_backward(dplr, static_cast<const T *>(grad_spectrum), grad_v, grad_w, threads);
                     });
}

extern "C" int s4_fast_cpu_dplr_step(int64_t dtype, int64_t batch, int64_t c, int64_t rank, int64_t H, int64_t n,
                                     const void *u, const void *state, const double *increment, const void *G,
                                     const void *V, const void *B, const void *C, const void *D, void *y, void *next,
                                     int64_t threads) {
    return for_dtype("dplr_step", dtype, {{"batch", batch}, {"c", c}, {"rank", rank}, {"H", H}, {"n", n}},
                     {u, state, increment, G, V, B, C, y, next}, [&](auto zero) {
                         using T = decltype(zero);
                         if (const int code = check_rank("dplr_step", rank, S4_FAST_CPU_DPLR_STEP_RANK)) return code;
                         const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
                         const DplrStep<T> call = {batch,
                                                   c,
                                                   rank,
                                                   H,
                                                   n,
                                                   real(u),
                                                   real(state),
                                                   increment,
                                                   real(G),
                                                   real(V),
                                                   real(B),
                                                   real(C),
                                                   real(D),
                                                   static_cast<T *>(y),
                                                   static_cast<T *>(next)};
                         return step(call, threads);
                     });
}
