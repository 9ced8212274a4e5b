#include "fft_conv.h"

#include "../../include/s4_fast.h"
#include "../shared/arguments.h"
#include "../shared/memory.h"
#include "../shared/parallel.h"
#include "../shared/pieces.h"

namespace s4_fast::cpu {
namespace {

template <class T>
int64_t table_bytes(const Conv<T> &conv) {
    S4_FAST_RETURN_FROM_ISA(conv_table_bytes(conv))
}

template <class T>
void fill_tables(const Conv<T> &conv, char *tables) {
    S4_FAST_RETURN_FROM_ISA(conv_tables(conv, tables))
}

template <class Problem>
int64_t scratch_bytes(const Problem &problem) {
    S4_FAST_RETURN_FROM_ISA(conv_scratch(problem))
}

template <class Problem, class T>
void run(const Problem &problem, const ConvPiece<T> &piece, char *tables, char *scratch) {
    S4_FAST_RETURN_FROM_ISA(conv(problem, piece, tables, scratch))
}

// How a call is cut, and its memory: the tables, and scratch for every worker.
template <class Problem, class T>
class Workers {
   public:
    Workers(const Problem &problem, int64_t threads)
        : problem_(problem),
          conv_(problem.conv),
          pieces(conv_.batch, conv_.H, conv_.L),
          threads_(at_most(worth(threads), conv_.H * pieces.parts)),
          table_bytes_(table_bytes(conv_)),
          bytes_(scratch_bytes(problem)),
          memory_(table_bytes_ + bytes_ * threads_) {
        fill_tables(conv_, memory_.get());
    }

    // Does every part of every feature. to(h, part, piece) says where a part writes its gradients.
    template <class To>
    void each(To to) {
        parallel_for(threads_, conv_.H * pieces.parts, [&](int64_t index, int64_t worker) {
            const int64_t h = index / pieces.parts, part = index % pieces.parts;
            ConvPiece<T> piece = {h, pieces.first(part), pieces.first(part + 1), nullptr, 0, nullptr};
            to(h, part, piece);
            run(problem_, piece, memory_.get(), memory_.get() + table_bytes_ + worker * bytes_);
        });
    }

   private:
    // Threads that are worth waking.
    int64_t worth(int64_t threads) const {
        constexpr int64_t WORK = 1 << 15;
        return threads_worth(threads, conv_.batch * conv_.c * conv_.H * conv_.L, WORK);
    }

    const Problem &problem_;
    const Conv<T> &conv_;

   public:
    const Pieces pieces;

   private:
    int64_t threads_, table_bytes_, bytes_;
    Scratch memory_;
};

template <class T>
int run_forward(const ConvForward<T> &problem, int64_t threads) {
    Workers<ConvForward<T>, T>(problem, threads).each([](int64_t, int64_t, ConvPiece<T> &) {});
    return 0;
}

template <class T>
int run_backward(const ConvBackward<T> &problem, T *grad_k, T *grad_D, int64_t threads) {
    const Conv<T> &conv = problem.conv;
    Workers<ConvBackward<T>, T> workers(problem, threads);
    const int64_t parts = workers.pieces.parts, rows = conv.c * conv.H, taps = conv.taps();
    // What the parts of a feature add to the gradients; a single part writes that of k where it belongs.
    const bool direct = parts == 1;
    const int64_t k_count = problem.kernel && !direct ? parts * rows * taps : 0;
    const auto k_parts = aligned_memory(k_count * int64_t(sizeof(T)));
    const auto D_parts = aligned_memory(problem.skip ? parts * rows * int64_t(sizeof(double)) : 0);
    T *const of_k = direct ? grad_k : reinterpret_cast<T *>(k_parts.get());
    double *const of_D = reinterpret_cast<double *>(D_parts.get());
    const int64_t row = direct ? conv.Lk : taps;
    workers.each([&](int64_t h, int64_t part, ConvPiece<T> &piece) {
        piece.grad_k = problem.kernel ? of_k + (part * rows + h) * row : nullptr;
        piece.step = conv.H * row;
        piece.grad_D = problem.skip ? of_D + part * rows + h : nullptr;
    });
    for (int64_t i = 0; i < rows && problem.kernel; ++i) {
        T *const to = grad_k + i * conv.Lk;
        for (int64_t j = 0; j < taps && !direct; ++j) to[j] = of_k[i * taps + j];
        for (int64_t part = 1; part < parts; ++part) {
            const T *const from = of_k + (part * rows + i) * taps;
            for (int64_t j = 0; j < taps; ++j) to[j] += from[j];
        }
        for (int64_t j = taps; j < conv.Lk; ++j) to[j] = 0;
    }
    for (int64_t i = 0; i < rows && problem.skip; ++i) {
        double total = 0;
        for (int64_t part = 0; part < parts; ++part) total += of_D[part * rows + i];
        grad_D[i] = T(total);
    }
    return 0;
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_fft_conv(int64_t dtype, int64_t batch, int64_t c, int64_t H, int64_t L, int64_t Lk,
                                    const void *u, const void *k, const void *D, void *y, int64_t threads) {
    return for_dtype("fft_conv", dtype, {{"batch", batch}, {"c", c}, {"H", H}, {"L", L}, {"Lk", Lk, true}}, {u, k, y},
                     [&](auto zero) {
                         using T = decltype(zero);
                         const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
                         return run_forward(
                             ConvForward<T>{{batch, c, H, L, Lk, real(u), real(k), real(D)}, static_cast<T *>(y)},
                             threads);
                     });
}

extern "C" int s4_fast_cpu_fft_conv_backward(int64_t dtype, int64_t batch, int64_t c, int64_t H, int64_t L, int64_t Lk,
                                             const void *grad_y, const void *u, const void *k, const void *D,
                                             void *grad_u, void *grad_k, void *grad_D, int64_t threads) {
    return for_dtype("fft_conv_backward", dtype, {{"batch", batch}, {"c", c}, {"H", H}, {"L", L}, {"Lk", Lk, true}},
                     {grad_y, u, k}, [&](auto zero) {
                         using T = decltype(zero);
                         const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
                         const ConvBackward<T> problem = {{batch, c, H, L, Lk, real(u), real(k), real(D)},
                                                          real(grad_y),
                                                          static_cast<T *>(grad_u),
                                                          grad_k != nullptr,
                                                          grad_D != nullptr};
                         return run_backward(problem, static_cast<T *>(grad_k), static_cast<T *>(grad_D), threads);
                     });
}
