// Scans from the continuous parameters of their system, diagonal or diagonal plus low rank.
#include "../../include/s4_fast.h"
#include "../shared/arguments.h"
#include "scan_call.h"

namespace s4_fast::cpu {
namespace {

// All that the calls are told. Where P is null, the rank is 1 and says nothing.
struct Continuous {
    int64_t dtype, signal_dtype, flags, batch, H, n, L, c, rank, copies, dt_states;
    double rate;
    const void *u, *dt, *A_real, *A_imag, *P, *B, *C, *D, *state, *ahead;

    bool has(int64_t flag) const { return (flags & flag) != 0; }

    template <class T>
    Scan<T> scan() const {
        const auto real = [](const void *pointer) { return static_cast<const T *>(pointer); };
        System<T> system;
        system.B = real(B), system.dt = real(dt), system.A_real = real(A_real), system.A_imag = real(A_imag);
        system.P = real(P), system.rank = P ? rank : 0;
        system.copies = copies, system.dt_states = dt_states, system.rate = rate;
        system.bilinear = has(S4_FAST_BILINEAR), system.log_dt = has(S4_FAST_LOG_DT);
        system.log_decay = has(S4_FAST_LOG_DECAY), system.conjugate = has(S4_FAST_CONJUGATE);
        const Signal signal = signal_dtype == S4_FAST_BFLOAT16  ? Signal::bfloat16
                              : signal_dtype == S4_FAST_FLOAT16 ? Signal::float16
                                                                : Signal::same;
        return {batch,
                H,
                n,
                L,
                c,
                has(S4_FAST_TIME_MAJOR),
                has(S4_FAST_BIDIRECTIONAL),
                signal,
                system,
                u,
                real(C),
                real(D),
                real(state),
                real(ahead)};
    }
};

// body(T()) if the arguments are valid.
template <class Body>
int checked(const char *function, const Continuous &of, std::initializer_list<const void *> pointers, Body body) {
    constexpr int64_t FLAGS = 2 * S4_FAST_CONJUGATE - 1;
    return for_dtype(function, of.dtype,
                     {{"batch", of.batch},
                      {"H", of.H},
                      {"copies", of.copies, true},
                      {"n", of.n},
                      {"dt_states", of.dt_states, true},
                      {"L", of.L},
                      {"c", of.c},
                      {"rank", of.rank}},
                     pointers, [&](auto zero) {
                         const bool half = of.signal_dtype == S4_FAST_BFLOAT16 || of.signal_dtype == S4_FAST_FLOAT16;
                         if (of.signal_dtype != of.dtype && !(half && of.dtype == S4_FAST_FLOAT32)) {
                             return fail("%s: signal_dtype %lld does not go with dtype %lld", function,
                                         (long long)of.signal_dtype, (long long)of.dtype);
                         }
                         if ((of.flags & ~FLAGS) != 0)
                             return fail("%s: unknown flags %lld", function, (long long)of.flags);
                         if (of.H % of.copies != 0) {
                             return fail("%s: copies must divide H = %lld, got %lld", function, (long long)of.H,
                                         (long long)of.copies);
                         }
                         if (of.dt_states != 1 && of.dt_states != of.n) {
                             return fail("%s: dt_states must be 1 or n = %lld, got %lld", function, (long long)of.n,
                                         (long long)of.dt_states);
                         }
                         // Where there is P, a feature's chunks have a dense transition.
                         if (of.P) {
                             const int code = check_sizes(function, {{"n", of.n}, {"n", of.n}, {"rank", of.rank}});
                             if (code) return code;
                         }
                         return body(zero);
                     });
}

// What the adjoints are told besides.
struct Wanted {
    const void *grad_y, *grad_final;
    void *u, *dt, *A_real, *A_imag, *P, *B, *C, *D, *state, *ahead;

    template <class T>
    int run(const Scan<T> &scan, int64_t threads) const {
        const auto real = [](void *pointer) { return static_cast<T *>(pointer); };
        ScanGradients<T> to;
        to.dt = real(dt), to.A_real = real(A_real), to.A_imag = real(A_imag), to.P = real(P);
        to.B = real(B), to.C = real(C), to.D = real(D);
        const ScanBackward<T> backward = {scan,        grad_y,  static_cast<const T *>(grad_final), u, real(state),
                                          real(ahead), to.any()};
        return run_scan_backward(backward, to, threads);
    }
};

int forward(const char *function, const Continuous &of, std::initializer_list<const void *> given, void *y, void *final,
            int64_t threads) {
    return checked(function, of, given, [&](auto zero) {
        using T = decltype(zero);
        return run_scan(of.scan<T>(), y, static_cast<T *>(final), threads);
    });
}

int backward(const char *function, const Continuous &of, std::initializer_list<const void *> given, const Wanted &to,
             int64_t threads) {
    return checked(function, of, given, [&](auto zero) { return to.run(of.scan<decltype(zero)>(), threads); });
}

}  // namespace
}  // namespace s4_fast::cpu

using namespace s4_fast::cpu;

extern "C" int s4_fast_cpu_diagonal(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                    int64_t n, int64_t L, int64_t c, int64_t copies, int64_t dt_states, double rate,
                                    const void *u, const void *dt, const void *A_real, const void *A_imag,
                                    const void *B, const void *C, const void *D, const void *state, const void *ahead,
                                    void *y, void *final, int64_t threads) {
    const Continuous of = {dtype, signal_dtype, flags,  batch,  H,       n, L, c, 1,     copies, dt_states, rate,
                           u,     dt,           A_real, A_imag, nullptr, B, C, D, state, ahead};
    return forward("diagonal", of, {u, dt, A_real, A_imag, C, y}, y, final, threads);
}

extern "C" int s4_fast_cpu_diagonal_backward(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch,
                                             int64_t H, int64_t n, int64_t L, int64_t c, int64_t copies,
                                             int64_t dt_states, double rate, const void *grad_y, const void *grad_final,
                                             const void *u, const void *dt, const void *A_real, const void *A_imag,
                                             const void *B, const void *C, const void *D, const void *state,
                                             const void *ahead, void *grad_u, void *grad_dt, void *grad_A_real,
                                             void *grad_A_imag, void *grad_B, void *grad_C, void *grad_D,
                                             void *grad_state, void *grad_ahead, int64_t threads) {
    const Continuous of = {dtype, signal_dtype, flags,  batch,  H,       n, L, c, 1,     copies, dt_states, rate,
                           u,     dt,           A_real, A_imag, nullptr, B, C, D, state, ahead};
    return backward("diagonal_backward", of, {u, dt, A_real, A_imag, C},
                    {grad_y, grad_final, grad_u, grad_dt, grad_A_real, grad_A_imag, nullptr, grad_B, grad_C, grad_D,
                     grad_state, grad_ahead},
                    threads);
}

extern "C" int s4_fast_cpu_dplr_scan(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                     int64_t n, int64_t L, int64_t c, int64_t rank, int64_t copies, int64_t dt_states,
                                     double rate, const void *u, const void *dt, const void *A_real, const void *A_imag,
                                     const void *P, const void *B, const void *C, const void *D, const void *state,
                                     const void *ahead, void *y, void *final, int64_t threads) {
    const Continuous of = {dtype, signal_dtype, flags,  batch,  H, n, L, c, rank,  copies, dt_states, rate,
                           u,     dt,           A_real, A_imag, P, B, C, D, state, ahead};
    return forward("dplr_scan", of, {u, dt, A_real, A_imag, P, C, y}, y, final, threads);
}

extern "C" int s4_fast_cpu_dplr_scan_backward(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch,
                                              int64_t H, int64_t n, int64_t L, int64_t c, int64_t rank, int64_t copies,
                                              int64_t dt_states, double rate, const void *grad_y,
                                              const void *grad_final, const void *u, const void *dt, const void *A_real,
                                              const void *A_imag, const void *P, const void *B, const void *C,
                                              const void *D, const void *state, const void *ahead, void *grad_u,
                                              void *grad_dt, void *grad_A_real, void *grad_A_imag, void *grad_P,
                                              void *grad_B, void *grad_C, void *grad_D, void *grad_state,
                                              void *grad_ahead, int64_t threads) {
    const Continuous of = {dtype, signal_dtype, flags,  batch,  H, n, L, c, rank,  copies, dt_states, rate,
                           u,     dt,           A_real, A_imag, P, B, C, D, state, ahead};
    return backward("dplr_scan_backward", of, {u, dt, A_real, A_imag, P, C},
                    {grad_y, grad_final, grad_u, grad_dt, grad_A_real, grad_A_imag, grad_P, grad_B, grad_C, grad_D,
                     grad_state, grad_ahead},
                    threads);
}
