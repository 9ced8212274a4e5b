#include "cauchy.h"

#include <cmath>

#include "../../include/s4_fast.h"
#include "../shared/arguments.h"
#include "../shared/memory.h"
#include "../shared/parallel.h"
#include "../shared/pieces.h"
#include "../shared/root_tables.h"

namespace s4_fast::cpu {
namespace {

template <class T>
int64_t scratch_bytes(const Cauchy<T> &of, bool backward) {
    S4_FAST_RETURN_FROM_ISA(cauchy_scratch(of, backward))
}

template <class T>
void run(const Cauchy<T> &of, T *out, int64_t h, int64_t first, int64_t last, char *scratch) {
    S4_FAST_RETURN_FROM_ISA(cauchy_sums(of, out, h, first, last, scratch))
}

template <class T>
void run(const Cauchy<T> &of, const T *grad, int64_t h, int64_t first, int64_t last, double *moments, T *grad_z,
         char *scratch) {
    S4_FAST_RETURN_FROM_ISA(cauchy_sums_backward(of, grad, h, first, last, moments, grad_z, scratch))
}

// Fewer quotients are done before a second thread has woken up.
constexpr int64_t SMALL = 1 << 15;

template <class T>
int64_t threads_for(const Cauchy<T> &of, int64_t threads, int64_t pieces) {
    return at_most(threads_worth(threads, of.H * of.n * of.nodes, SMALL), pieces);
}

// body(h, first, last, piece, scratch) for ranges of nodes of every feature.
template <class T, class Body>
void for_each_range(const Cauchy<T> &of, const NodeRanges &ranges, bool backward, int64_t threads, Body body) {
    const int64_t count = of.H * ranges.parts, bytes = scratch_bytes(of, backward);
    threads = threads_for(of, threads, count);
    const auto scratch = aligned_memory(bytes * threads);
    parallel_for(threads, count, [&](int64_t index, int64_t worker) {
        const int64_t part = index % ranges.parts;
        body(index / ranges.parts, ranges.first(part), ranges.first(part + 1), index, scratch.get() + worker * bytes);
    });
}

template <class T>
int sums(const Cauchy<T> &of, T *out, int64_t threads) {
    for_each_range(
        of, NodeRanges(of.H, of.nodes, CAUCHY_BLOCK), false, threads,
        [&](int64_t h, int64_t first, int64_t last, int64_t, char *scratch) { run(of, out, h, first, last, scratch); });
    return 0;
}

// Makes the gradients of the moments of feature h (parts, n, 2 c + 2), which it adds up.
template <class T>
void finish(const Cauchy<T> &of, int64_t h, int64_t parts, double *moments, T *grad_v, T *grad_w) {
    const int64_t width = cauchy_moments(of), stride = of.n * width;
    for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = 0; i < stride; ++i) moments[i] += moments[part * stride + i];
    const bool single = of.terms == Terms::single;
    for (int64_t i = 0; i < of.n; ++i) {
        const double *of_pole = moments + i * width, *of_w = of_pole + 2 * of.c;
        const int64_t at = h * of.n + i;
        const double w_im = of.w[2 * at + 1];
        double re = single ? of_w[0] : 2 * of_w[1], im = single ? -of_w[1] : -2 * w_im * of_w[0];
        for (int64_t row = 0; row < of.c; ++row) {
            const int64_t at_v = 2 * (row * of.H * of.n + at);
            const double zeroth = of_pole[2 * row], first = of_pole[2 * row + 1];
            if (!single) re -= 2 * of.v[at_v] * zeroth, im -= 2 * of.v[at_v + 1] * zeroth;
            if (grad_v == nullptr) continue;
            grad_v[at_v] = T(single ? zeroth : 2 * first);
            grad_v[at_v + 1] = T(single ? -first : -2 * w_im * zeroth);
        }
        if (grad_w) grad_w[2 * at] = T(re), grad_w[2 * at + 1] = T(im);
    }
}

// Adds up what the features (H, nodes) add to the gradient of nodes that they share.
template <class T>
void add_features(const Cauchy<T> &of, const T *by_feature, T *grad_z, int64_t threads) {
    const int64_t blocks = ceil_div(of.nodes, CAUCHY_BLOCK);
    parallel_for(threads_for(of, threads, blocks), blocks, [&](int64_t block, int64_t) {
        const int64_t first = 2 * block * CAUCHY_BLOCK, rest = 2 * of.nodes - first,
                      count = rest < 2 * CAUCHY_BLOCK ? rest : 2 * CAUCHY_BLOCK;
        double total[2 * CAUCHY_BLOCK] = {};
        for (int64_t h = 0; h < of.H; ++h)
            for (int64_t i = 0; i < count; ++i) total[i] += by_feature[2 * h * of.nodes + first + i];
        for (int64_t i = 0; i < count; ++i) grad_z[first + i] = T(total[i]);
    });
}

template <class T>
int sums_backward(const Cauchy<T> &of, const T *grad, T *grad_v, T *grad_z, T *grad_w, int64_t threads) {
    const NodeRanges ranges(of.H, of.nodes, CAUCHY_BLOCK);
    const int64_t stride = of.n * cauchy_moments(of);
    const bool shared = grad_z && of.z_rows < of.H;
    const auto memory = memory_for_doubles(of.H * ranges.parts * stride);
    const auto memory_z = aligned_memory(shared ? 2 * of.H * of.nodes * int64_t(sizeof(T)) : 0);
    double *const moments = doubles(memory);
    T *const by_feature = shared ? reinterpret_cast<T *>(memory_z.get()) : grad_z;
    for_each_range(of, ranges, true, threads,
                   [&](int64_t h, int64_t first, int64_t last, int64_t piece, char *scratch) {
                       run(of, grad, h, first, last, moments + piece * stride,
                           by_feature ? by_feature + 2 * h * of.nodes : nullptr, scratch);
                       if (ranges.parts == 1) finish(of, h, 1, moments + h * stride, grad_v, grad_w);
                   });
    for (int64_t h = 0; ranges.parts > 1 && h < of.H; ++h)
        finish(of, h, ranges.parts, moments + h * ranges.parts * stride, grad_v, grad_w);
    if (shared) add_features(of, by_feature, grad_z, threads);
    return 0;
}

int check_rows(const char *function, int64_t z_rows, int64_t H) {
    if (z_rows == 1 || z_rows == H) return 0;
    return fail("%s: z_rows must be 1 or H = %lld, got %lld", function, (long long)H, (long long)z_rows);
}

// body(problem) at the roots of unity.
template <class T, class Body>
int at_roots(int64_t c, int64_t H, int64_t n, int64_t L, const void *v, const void *w, int64_t threads, Body body) {
    const int64_t nodes = L / 2 + 1;
    Cauchy<T> of = {Terms::at_roots,           c,       H, n,  nodes, static_cast<const T *>(v),
                    static_cast<const T *>(w), nullptr, 1, {}, {}};
    const RootTables tables(L, threads_for(of, threads, threads));
    of.roots = tables.tables();
    if constexpr (sizeof(T) == sizeof(double)) {
        of.angles = of.roots;
        return body(of);
    } else {
        const auto memory = aligned_memory(3 * nodes * int64_t(sizeof(T)));
        T *const cos = reinterpret_cast<T *>(memory.get());
        of.angles = {cos, cos + nodes, cos + 2 * nodes};
        for (int64_t k = 0; k < nodes; ++k) {
            const double wide = of.roots.cos[k], stretch = wide > 0 ? double(T(wide)) / wide : 1,
                         sin = (of.roots.twice_sin[k] + of.roots.low[k]) * stretch;
            of.angles.cos[k] = T(wide), of.angles.twice_sin[k] = T(sin), of.angles.low[k] = T(sin - double(T(sin)));
        }
        return body(of);
    }
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_cauchy_mult(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t Lz, int64_t z_rows,
                                       const void *v, const void *z, const void *w, int64_t symmetric, void *out,
                                       int64_t threads) {
    const char *const name = "cauchy_mult";
    return for_dtype(
        name, dtype, {{"c", c}, {"H", H}, {"z_rows", z_rows, true}, {"n", n}, {"Lz", Lz}}, {v, z, w, out},
        [&](auto zero) {
            using T = decltype(zero);
            if (const int code = check_rows(name, z_rows, H)) return code;
            const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
            const Cauchy<T> of = {
                symmetric ? Terms::pairs : Terms::single, c, H, n, Lz, real(v), real(w), real(z), z_rows, {}, {}};
            return sums(of, static_cast<T *>(out), threads);
        });
}

extern "C" int s4_fast_cpu_cauchy_mult_backward(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t Lz,
                                                int64_t z_rows, const void *grad, const void *v, const void *z,
                                                const void *w, int64_t symmetric, void *grad_v, void *grad_z,
                                                void *grad_w, int64_t threads) {
    const char *const name = "cauchy_mult_backward";
    return for_dtype(
        name, dtype, {{"c", c}, {"H", H}, {"z_rows", z_rows, true}, {"n", n}, {"Lz", Lz}}, {grad, v, z, w},
        [&](auto zero) {
            using T = decltype(zero);
            if (const int code = check_rows(name, z_rows, H)) return code;
            const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
            const Cauchy<T> of = {
                symmetric ? Terms::pairs : Terms::single, c, H, n, Lz, real(v), real(w), real(z), z_rows, {}, {}};
            return sums_backward(of, real(grad), static_cast<T *>(grad_v), static_cast<T *>(grad_z),
                                 static_cast<T *>(grad_w), threads);
        });
}

extern "C" int s4_fast_cpu_cauchy_bilinear(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L, const void *v,
                                           const void *w, void *out, int64_t threads) {
    return for_dtype("cauchy_bilinear", dtype, {{"c", c}, {"H", H}, {"n", n}, {"L", L}}, {v, w, out}, [&](auto zero) {
        using T = decltype(zero);
        return at_roots<T>(c, H, n, L, v, w, threads,
                           [&](const Cauchy<T> &of) { return sums(of, static_cast<T *>(out), threads); });
    });
}

extern "C" int s4_fast_cpu_cauchy_bilinear_backward(int64_t dtype, int64_t c, int64_t H, int64_t n, int64_t L,
                                                    const void *grad, const void *v, const void *w, void *grad_v,
                                                    void *grad_w, int64_t threads) {
    return for_dtype("cauchy_bilinear_backward", dtype, {{"c", c}, {"H", H}, {"n", n}, {"L", L}}, {grad, v, w},
                     [&](auto zero) {
                         using T = decltype(zero);
                         return at_roots<T>(c, H, n, L, v, w, threads, [&](const Cauchy<T> &of) {
                             return sums_backward<T>(of, static_cast<const T *>(grad), static_cast<T *>(grad_v),
                                                     nullptr, static_cast<T *>(grad_w), threads);
                         });
                     });
}
