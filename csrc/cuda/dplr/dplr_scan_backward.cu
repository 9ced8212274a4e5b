// The gradients of a DPLR SSM over a sequence, down to the continuous system.
#include "dplr_finish.cuh"

namespace s4_fast::cuda {
namespace {

template <class R, class S>
void backward(Call &call, const Scan &scan, const DplrModel<R> &model, bool time_major, const Backward<R, S> &in,
              const DplrGradients<R> &grad) {
    const bool of_parameters = grad.states(), both = scan.directions > 1;
    const bool correlated = of_parameters || grad.D, adjoint = in.grad_u || in.grad_state || in.grad_ahead;
    const int rank = model.rank;
    const int64_t rows = leave_chains(scan), blocks = divide_up(scan.n, TILE_STATES), N = 2 * scan.n;
    const int64_t table = scan.H * scan.T * scan.n, chains = chains_of(scan, rank);
    DplrDeal deal{{tiles(scan), ENOUGH_BLOCKS / (scan.H * blocks * (1 + rows))},
                  output_shares(scan, 1),
                  {tiles(scan), ENOUGH_BLOCKS / (scan.H * rows)}};
    const int64_t shares = deal.of_maps.count;

    const Maps<R> maps = take_maps<R>(call, scan, rank);
    const Transitions transitions = take_transitions(call, scan, true);
    if (of_parameters) {
        deal.tables = shares * (1 + rows) * scan.H * blocks;
        deal.transitions = shares * transitions.kinds * scan.H * blocks * divide_up(N, scan.T);
    }
    if (in.grad_u) deal.outputs = output_blocks(scan, deal.of_outputs, 1);
    if (correlated) deal.correlation = deal.of_correlation.count * rows * scan.H;
    Staged<R, S> staged_u{}, staged_y{};
    const R *const grad_y = take_signal<R, S>(call, scan, time_major, in.grad_y, scan.c, staged_y);
    const R *const u = correlated ? take_signal<R, S>(call, scan, time_major, in.u, 1, staged_u) : nullptr;
    Runs<R> runs{};
    Paired<R> pairs{u, grad_y, maps.enter, maps.leave};
    if (adjoint || of_parameters) {
        pairs.gradients[0] =
            add_run<R>(call, scan, runs, {true, true, true, scan.c, grad_y, maps.leave, in.grad_final, in.grad_state});
        if (both)
            pairs.gradients[1] =
                add_run<R>(call, scan, runs,
                           {false, true, true, scan.c, grad_y, maps.leave + scan.c * table, nullptr, in.grad_ahead});
    }
    if (of_parameters) {
        pairs.states[0] = add_run<R>(call, scan, runs, {false, false, false, 1, u, maps.enter, in.state});
        if (both) pairs.states[1] = add_run<R>(call, scan, runs, {true, false, false, 1, u, maps.enter, in.ahead});
    }
    R *const partial = in.grad_u ? take_partial<R>(call, scan, 1) : nullptr;
    MapGradients<R> of_maps{{}, shares, deal.of_correlation.count};
    if (correlated) of_maps.sums.correlation = call.take<R>(deal.of_correlation.count * rows * scan.H * scan.T);
    ChainGradients of_chains{};
    Wide *of_systems = nullptr;
    double *contributions = nullptr;
    const bool shared = model.of_A.copies < scan.H && grad.of_shared();
    if (of_parameters) {
        of_maps.sums.tables = call.take<Complex<R>>(shares * (1 + rows) * table);
        of_maps.sums.transitions = call.take<R>(shares * transitions.kinds * scan.H * N * N);
        of_chains.values = call.take<Wide>(chains * table);
        of_chains.overlaps = call.take<double>(chains * scan.H * scan.T * 2 * rank);
        of_chains.given = call.take<Wide>(chains * scan.H * vectors(rank) * scan.n);
        of_systems = call.take<Wide>(scan.H * vectors(rank) * scan.n);
        if (model.of_A.copies < scan.H) contributions = call.take<double>(scan.H * shared_reals(scan.n, rank));
    }
    if (!call.ready()) return;

    make_maps(call, scan, model, maps, time_major, staged_u, staged_y);
    if (runs.count) find_dplr_states(call, scan, rank, maps, transitions, runs);
    const Tables<R> tables{nullptr, nullptr, maps.enter, maps.leave, maps.response};
    const Outputs<R, S> outputs{
        grad_y, maps.enter, {pairs.gradients[0], pairs.gradients[1]}, partial, in.grad_u, time_major, 1, 0};
    constexpr size_t SHARED =
        std::max({sizeof(OutputTables<R>), sizeof(ProductTables<R>), sizeof(CorrelationTables<R>)});
    const int64_t launched = deal.tables + deal.transitions + deal.outputs + deal.correlation;
    if (launched)
        call.launch("dplr_gradients_kernel", dplr_gradients_kernel<R, S>, launched, THREADS, SHARED, scan, deal,
                    tiles(scan), tables, transitions, outputs, pairs, of_maps.sums);
    if (of_parameters) {
        call.launch("dplr_low_kernel", dplr_low_kernel<R>, 2 * rank * scan.H * blocks, THREADS, sizeof(LowTables), scan,
                    rank, transitions, maps.low, of_maps.sums.transitions, shares,
                    of_chains.values + (1 + rows) * table);
        call.launch("dplr_chains_back_kernel", dplr_chains_back_kernel<R>, scan.H * chain_blocks(scan, rank), THREADS,
                    sizeof(BackTables) + ROWS * scan.n * sizeof(Wide), scan, model, maps, of_maps, of_chains, grad.C);
    }
    if (correlated)
        call.launch("dplr_finish_kernel", dplr_finish_kernel<R>, scan.H, THREADS, sizeof(FinishTables), scan, model,
                    maps, transitions, of_maps, of_parameters, of_chains.given, of_systems, grad, contributions);
    if (shared)
        call.launch("dplr_copies_kernel", dplr_copies_kernel<R>,
                    model.of_A.copies * divide_up(shared_reals(scan.n, rank), COPIED), THREADS,
                    sizeof(DplrCopiesTables), scan, model.of_A.copies, rank, contributions, grad);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_dplr_scan_backward(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                    int64_t n, int64_t L, int64_t c, int64_t rank, int64_t copies, int64_t dt_states,
                                    double rate, const void *grad_y, const void *grad_final, const void *u,
                                    const void *dt, const void *A_real, const void *A_imag, const void *P,
                                    const void *B, const void *C, const void *D, const void *state, const void *ahead,
                                    void *grad_u, void *grad_dt, void *grad_A_real, void *grad_A_imag, void *grad_P,
                                    void *grad_B, void *grad_C, void *grad_D, void *grad_state, void *grad_ahead,
                                    void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    const DiagonalSizes sizes{dtype, signal_dtype, flags, batch, H, n, L, c, copies, dt_states, rank};
    return run_dplr("dplr_scan_backward", sizes, {u, dt, A_real, A_imag, P, C},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, auto signal, Call &call) {
                        using R = decltype(real);
                        using S = decltype(signal);
                        using Real = R *;
                        using Signal = const S *;
                        using Input = const Complex<R> *;
                        using Output = Complex<R> *;
                        const DplrModel<R> model{continuous_model<R>(sizes, rate, dt, A_real, A_imag, B, C, D),
                                                 Input(P), int(rank)};
                        backward<R, S>(call, make_dplr_scan<R>(sizes), model, flags & S4_FAST_TIME_MAJOR,
                                       {Signal(grad_y), Signal(u), Input(grad_final), Input(state), Input(ahead),
                                        static_cast<S *>(grad_u), Output(grad_state), Output(grad_ahead)},
                                       {Real(grad_dt), Real(grad_A_real), Real(grad_A_imag), Real(grad_D),
                                        Output(grad_P), Output(grad_B), Output(grad_C)});
                    });
}
