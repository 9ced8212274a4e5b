// The C interface of the DPLR kernels: checks, memory, and the division of the work between threads.
#include "dplr.h"

#include <algorithm>
#include <initializer_list>
#include <new>
#include <type_traits>

#include "../include/s4_fast.h"
#include "error.h"
#include "isa.h"
#include "parallel.h"

namespace s4_fast {
namespace {

class Memory {
   public:
    explicit Memory(int64_t bytes) : start_(static_cast<char *>(::operator new(size_t(bytes), alignment))) {}
    ~Memory() { ::operator delete(start_, alignment); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    char *at(int64_t byte) const { return start_ + byte; }
    double *doubles(int64_t index = 0) const { return reinterpret_cast<double *>(start_) + index; }

   private:
    static constexpr std::align_val_t alignment{64};
    char *start_;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int check(const char *name, int64_t dtype, std::initializer_list<int64_t> sizes, int64_t rank, int64_t threads) {
    if (dtype != S4_FAST_FLOAT32 && dtype != S4_FAST_FLOAT64)
        return fail("%s: unknown dtype %lld", name, (long long)dtype);
    for (int64_t size : sizes)
        if (size < 1) return fail("%s: expected sizes >= 1, got %lld", name, (long long)size);
    if (rank > kMaxRank) return fail("%s: expected a rank <= %d, got %lld", name, int(kMaxRank), (long long)rank);
    if (threads < 1) return fail("%s: expected threads >= 1, got %lld", name, (long long)threads);
    return 0;
}

// The half angles of all nodes, padded with values that make no sum infinite.
class RootTables {
   public:
    RootTables(int64_t L, int64_t threads)
        : padded_(ceil_div(L / 2 + 1, kNodes) * kNodes), memory_(3 * padded_ * int64_t(sizeof(double))) {
        Roots roots = tables();
        for (int64_t k = L / 2 + 1; k < padded_; ++k) roots.cos[k] = roots.low[k] = 0, roots.twice_sin[k] = 2;
        int64_t count = L / 4 + 1, fine = 1;
        while (fine * fine < count) fine *= 2;
        const int64_t coarse = ceil_div(count, fine);
        Memory powers_memory(4 * (fine + 2 * coarse) * int64_t(sizeof(double)));
        const RootPowers powers = {L, fine, coarse, powers_memory.doubles(), powers_memory.doubles(4 * fine)};
        S4_FAST_CHOOSE(root_powers)(powers);
        const auto fill = S4_FAST_CHOOSE(roots);
        parallel_for(L < 4096 ? 1 : threads, 2 * coarse,
                     [&](int64_t begin, int64_t end, int) { fill(powers, roots, begin, end); });
    }

    Roots tables() const { return {memory_.doubles(), memory_.doubles(padded_), memory_.doubles(2 * padded_)}; }

   private:
    int64_t padded_;
    Memory memory_;
};

// The nodes of a feature in parts, so that there is work for many threads also with few features. How they are cut
// depends on the sizes alone, and so do the sums.
struct Parts {
    int64_t count, nodes;
    Parts(int64_t H, int64_t L) {
        const int64_t all = L / 2 + 1;
        count = std::clamp<int64_t>(ceil_div(64, H), 1, ceil_div(all, 1024));
        nodes = ceil_div(ceil_div(all, count), kNodes) * kNodes;
        count = ceil_div(all, nodes);
    }
    int64_t begin(int64_t part) const { return part * nodes; }
    int64_t end(int64_t part, int64_t L) const { return std::min(begin(part) + nodes, L / 2 + 1); }
};

template <class T>
void spectrum(DplrCall<T> call, T *out, int64_t threads) {
    const Parts parts(call.H, call.L);
    const int64_t tasks = call.H * parts.count;
    threads = std::min(threads, tasks);
    const RootTables tables(call.L, threads);
    call.roots = tables.tables();
    const int64_t bytes = S4_FAST_CHOOSE(dplr_workspace)(call.b, call.c, call.rank, call.n, false);
    const Memory workspace(threads * bytes);
    const auto run = S4_FAST_CHOOSE(dplr_spectrum<T>);
    parallel_for(threads, tasks, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t h = task / parts.count, part = task % parts.count;
            run(call, out, h, parts.begin(part), parts.end(part, call.L), workspace.at(worker * bytes));
        }
    });
}

// Adds the parts of feature h and carries them through alpha = 2 Re v, beta = -2 Re(v w*) and |w|^2.
template <class T>
void carry(const DplrCall<T> &call, int64_t h, int64_t parts, double *sums, double *poles, double *grad_v,
           double *grad_w) {
    const int64_t n = call.n, rows = (call.c + call.rank) * (call.b + call.rank), size = 2 * n * rows;
    for (int64_t part = 1; part < parts; ++part) {
        for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
        for (int64_t i = 0; poles && i < 2 * n; ++i) poles[i] += poles[part * 2 * n + i];
    }
    for (int64_t i = 0; i < n; ++i) {
        const double w_re = call.w[2 * (h * n + i)], w_im = call.w[2 * (h * n + i) + 1];
        double re = 0, im = 0;
        for (int64_t row = 0; row < rows; ++row) {
            const double alpha = sums[2 * (i * rows + row)], beta = sums[2 * (i * rows + row) + 1];
            const int64_t at = 2 * ((row * call.H + h) * n + i);
            grad_v[at] = 2 * (alpha - w_re * beta);
            grad_v[at + 1] = -2 * w_im * beta;
            re -= 2 * call.v[at] * beta;
            im -= 2 * call.v[at + 1] * beta;
        }
        if (!poles) continue;
        grad_w[2 * (h * n + i)] = re + 2 * w_re * poles[2 * i] + poles[2 * i + 1];
        grad_w[2 * (h * n + i) + 1] = im + 2 * w_im * poles[2 * i];
    }
}

template <class T>
void spectrum_backward(DplrCall<T> call, const T *grad, double *grad_v, double *grad_w, int64_t threads) {
    const Parts parts(call.H, call.L);
    const int64_t tasks = call.H * parts.count;
    threads = std::min(threads, tasks);
    const RootTables tables(call.L, threads);
    call.roots = tables.tables();
    const int64_t bytes = S4_FAST_CHOOSE(dplr_workspace)(call.b, call.c, call.rank, call.n, true);
    const Memory workspace(threads * bytes);
    const int64_t sums_size = 2 * call.n * (call.c + call.rank) * (call.b + call.rank), poles_size = 2 * call.n;
    const Memory sums(tasks * sums_size * int64_t(sizeof(double)));
    const Memory poles((grad_w ? tasks : 0) * poles_size * int64_t(sizeof(double)));
    const auto run = S4_FAST_CHOOSE(dplr_spectrum_backward<T>);
    parallel_for(threads, tasks, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t h = task / parts.count, part = task % parts.count;
            run(call, grad, h, parts.begin(part), parts.end(part, call.L), sums.doubles(task * sums_size),
                grad_w ? poles.doubles(task * poles_size) : nullptr, workspace.at(worker * bytes));
        }
    });
    parallel_for(threads, call.H, [&](int64_t begin, int64_t end, int) {
        for (int64_t h = begin; h < end; ++h)
            carry(call, h, parts.count, sums.doubles(h * parts.count * sums_size),
                  grad_w ? poles.doubles(h * parts.count * poles_size) : nullptr, grad_v, grad_w);
    });
}

int check_sums(const char *name, int64_t b, int64_t c, int64_t rank) {
    if ((b + rank) * (c + rank) > kMaxSums)
        return fail("%s: expected at most %d sums (b + rank) (c + rank), got (%lld + %lld) (%lld + %lld)", name,
                    int(kMaxSums), (long long)b, (long long)rank, (long long)c, (long long)rank);
    return 0;
}

// A step smaller than this, in states, is done before a second thread has woken up.
constexpr int64_t kSmallStep = 1 << 16;

template <class T>
void step(const DplrStepCall<T> &call, int64_t threads) {
    const auto run = S4_FAST_CHOOSE(dplr_step<T>);
    if (threads == 1 || call.batch * call.H * call.n < kSmallStep) return run(call, 0, call.H);
    parallel_for(threads, call.H, [&](int64_t begin, int64_t end, int) { run(call, begin, end); });
}

}  // namespace
}  // namespace s4_fast

using namespace s4_fast;

int s4_fast_cpu_dplr_spectrum(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n, int64_t L,
                              const double *v, const void *w, const double *shift, void *out, int64_t threads) {
    if (int code = check("dplr_spectrum", dtype, {b, c, rank, H, n, L}, rank, threads)) return code;
    if (int code = check_sums("dplr_spectrum", b, c, rank)) return code;
    return guard([&] {
        const auto run = [&](auto *typed) {
            using T = std::remove_pointer_t<decltype(typed)>;
            spectrum(DplrCall<T>{b, c, rank, H, n, L, v, static_cast<const T *>(w), shift, {}}, typed, threads);
        };
        dtype == S4_FAST_FLOAT32 ? run(static_cast<float *>(out)) : run(static_cast<double *>(out));
        return 0;
    });
}

int s4_fast_cpu_dplr_spectrum_backward(int64_t dtype, int64_t b, int64_t c, int64_t rank, int64_t H, int64_t n,
                                       int64_t L, const void *grad_spectrum, const double *v, const void *w,
                                       const double *shift, double *grad_v, double *grad_w, int64_t threads) {
    if (int code = check("dplr_spectrum_backward", dtype, {b, c, rank, H, n, L}, rank, threads)) return code;
    if (int code = check_sums("dplr_spectrum_backward", b, c, rank)) return code;
    return guard([&] {
        const auto run = [&](auto *grad) {
            using T = std::remove_const_t<std::remove_pointer_t<decltype(grad)>>;
            const DplrCall<T> call = {b, c, rank, H, n, L, v, static_cast<const T *>(w), shift, {}};
            spectrum_backward(call, grad, grad_v, grad_w, threads);
        };
        dtype == S4_FAST_FLOAT32 ? run(static_cast<const float *>(grad_spectrum))
                                 : run(static_cast<const double *>(grad_spectrum));
        return 0;
    });
}

int s4_fast_cpu_dplr_step(int64_t dtype, int64_t batch, int64_t c, int64_t rank, int64_t H, int64_t n, const void *u,
                          const void *state, const void *increment, const void *G, const void *V, const void *B,
                          const void *C, void *y, void *next, int64_t threads) {
    if (int code = check("dplr_step", dtype, {c, rank, H, n}, rank, threads)) return code;
    if (batch < 0) return fail("dplr_step: expected batch >= 0, got %lld", (long long)batch);
    return guard([&] {
        const auto run = [&](auto *typed) {
            using T = std::remove_pointer_t<decltype(typed)>;
            const auto as = [](const void *from) { return static_cast<const T *>(from); };
            const DplrStepCall<T> call = {batch,  c,     rank,  H,     n,     as(u), as(state), as(increment),
                                          as(G), as(V), as(B), as(C), typed, static_cast<T *>(next)};
            step(call, threads);
        };
        dtype == S4_FAST_FLOAT32 ? run(static_cast<float *>(y)) : run(static_cast<double *>(y));
        return 0;
    });
}
