// A DPLR SSM over a sequence, from the continuous system: matrix products within chunks, and a carry between them.
#include "dplr_call.cuh"

namespace s4_fast::cuda {
namespace {

template <class R, class S>
__global__ void __launch_bounds__(THREADS, 4)
    dplr_output_kernel(Scan scan, Shares shares, int64_t tiles, const __grid_constant__ Tables<R> made,
                       const __grid_constant__ Outputs<R, S> outputs) {
    output_block<false, TableColumns>(blockIdx.x, scan, shares, tiles, made, outputs);
}

template <class R, class S>
void forward(Call &call, const Scan &scan, const DplrModel<R> &model, bool time_major, const Forward<R, S> &in) {
    const Maps<R> maps = take_maps<R>(call, scan, model.rank);
    const Transitions transitions = take_transitions(call, scan, false);
    Staged<R, S> staged{}, none{};
    const R *const u = take_signal<R, S>(call, scan, time_major, in.u, 1, staged);
    Runs<R> runs{};
    const Complex<R> *const past =
        add_run<R>(call, scan, runs, {false, false, false, 1, u, maps.enter, in.state, in.final});
    Outputs<R, S> outputs{u, maps.leave, {past}, nullptr, in.y, time_major, scan.c, scan.c * scan.H * scan.T * scan.n};
    if (scan.directions > 1)
        outputs.states[1] = add_run<R>(call, scan, runs, {true, false, false, 1, u, maps.enter, in.ahead});
    outputs.partial = take_partial<R>(call, scan, scan.c);
    if (!call.ready()) return;
    make_maps(call, scan, model, maps, time_major, staged, none);
    find_dplr_states(call, scan, model.rank, maps, transitions, runs);
    const Shares shares = output_shares(scan, scan.c);
    call.launch("dplr_output_kernel", dplr_output_kernel<R, S>, output_blocks(scan, shares, scan.c), THREADS,
                sizeof(OutputTables<R>), scan, shares, tiles(scan),
                Tables<R>{nullptr, nullptr, maps.enter, maps.leave, maps.response}, outputs);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_dplr_scan(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H, int64_t n,
                           int64_t L, int64_t c, int64_t rank, int64_t copies, int64_t dt_states, double rate,
                           const void *u, const void *dt, const void *A_real, const void *A_imag, const void *P,
                           const void *B, const void *C, const void *D, const void *state, const void *ahead, void *y,
                           void *final, void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    const DiagonalSizes sizes{dtype, signal_dtype, flags, batch, H, n, L, c, copies, dt_states, rank};
    return run_dplr("dplr_scan", sizes, {u, dt, A_real, A_imag, P, C, y}, {workspace, workspace_bytes, device, stream},
                    [&](auto real, auto signal, Call &call) {
                        using R = decltype(real);
                        using S = decltype(signal);
                        using Input = const Complex<R> *;
                        const DplrModel<R> model{continuous_model<R>(sizes, rate, dt, A_real, A_imag, B, C, D),
                                                 Input(P), int(rank)};
                        forward<R, S>(call, make_dplr_scan<R>(sizes), model, flags & S4_FAST_TIME_MAJOR,
                                      {static_cast<const S *>(u), Input(state), Input(ahead), static_cast<S *>(y),
                                       static_cast<Complex<R> *>(final)});
                    });
}
