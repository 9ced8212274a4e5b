// A diagonal SSM over a sequence: the recurrence, from its nodes or from the continuous system.
#include "scan_call.cuh"
#include "scan_outputs.cuh"
#include "scan_prepare.cuh"
#include "scan_states.cuh"

namespace s4_fast::cuda {
namespace {

template <class R, class S>
void forward(Call &call, const Scan &scan, const Model<R> &model, bool time_major, const Forward<R, S> &in) {
    const MadeTables<R> made = take_tables<R>(call, scan);
    Staged<R, S> staged{}, none{};
    const R *const u = take_signal<R, S>(call, scan, time_major, in.u, 1, staged);
    Recurrences<R> runs{};
    const auto &past = add<R>(call, scan, runs, {false, false, false, 1, u, made.enter, in.state, in.final});
    Outputs<R, S> outputs{u, made.leave, {past.states}, nullptr, in.y, time_major, scan.c, scan.c * scan.H * scan.n};
    if (scan.directions > 1)
        outputs.states[1] = add<R>(call, scan, runs, {true, false, false, 1, u, made.enter, in.ahead}).states;
    outputs.partial = take_partial<R>(call, scan, scan.c);
    if (!call.ready()) return;
    const Tables<R> tables = prepare(call, scan, model, made, time_major, staged, none);
    find_states(call, scan, tables, runs);
    find_outputs(call, scan, tables, outputs);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u, const void *x,
                      const void *B, const void *C, const void *D, const void *state, void *y, void *final,
                      int64_t time_major, void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call("scan", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}}, {u, x, B, C, y},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        using R = decltype(real);
                        forward<R, R>(call, make_scan<R>(batch, H, n, L, 1, 1), given_model<R>(H, x, B, C, D),
                                      time_major,
                                      {static_cast<const R *>(u), static_cast<const Complex<R> *>(state), nullptr,
                                       static_cast<R *>(y), static_cast<Complex<R> *>(final)});
                    });
}

int s4_fast_cuda_diagonal(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H, int64_t n,
                          int64_t L, int64_t c, int64_t copies, int64_t dt_states, double rate, const void *u,
                          const void *dt, const void *A_real, const void *A_imag, const void *B, const void *C,
                          const void *D, const void *state, const void *ahead, void *y, void *final, void *workspace,
                          int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    const DiagonalSizes sizes{dtype, signal_dtype, flags, batch, H, n, L, c, copies, dt_states};
    return run_diagonal("diagonal", sizes, {u, dt, A_real, A_imag, C, y}, {workspace, workspace_bytes, device, stream},
                        [&](auto real, auto signal, Call &call) {
                            using R = decltype(real);
                            using S = decltype(signal);
                            using Input = const Complex<R> *;
                            forward<R, S>(call, make_scan<R>(batch, H, n, L, c, flags & S4_FAST_BIDIRECTIONAL ? 2 : 1),
                                          continuous_model<R>(sizes, rate, dt, A_real, A_imag, B, C, D),
                                          flags & S4_FAST_TIME_MAJOR,
                                          {static_cast<const S *>(u), Input(state), Input(ahead), static_cast<S *>(y),
                                           static_cast<Complex<R> *>(final)});
                        });
}
