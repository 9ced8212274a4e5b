// The gradients of a diagonal SSM over a sequence, of the recurrence's nodes or of the continuous system.
#include <algorithm>

#include "scan_call.cuh"
#include "scan_finish.cuh"
#include "scan_gradients.cuh"
#include "scan_outputs.cuh"
#include "scan_prepare.cuh"
#include "scan_states.cuh"

namespace s4_fast::cuda {
namespace {

template <class R, class S>
void backward(Call &call, const Scan &scan, const Model<R> &model, bool time_major, const Backward<R, S> &in,
              const Gradients<R> &grad) {
    const bool of_parameters = grad.states(), both = scan.directions > 1;
    const bool correlated = of_parameters || grad.D, adjoint = in.grad_u || in.grad_state || in.grad_ahead;
    const int64_t blocks = divide_up(scan.n, TILE_STATES), rows = scan.directions * scan.c, size = scan.H * scan.n;
    Deal deal{{tiles(scan), ENOUGH_BLOCKS / (scan.H * blocks * rows)},
              output_shares(scan, 1),
              {tiles(scan), ENOUGH_BLOCKS / (scan.H * rows)}};
    if (of_parameters) deal.parameters = deal.of_parameters.count * rows * scan.H * blocks;
    if (in.grad_u) deal.outputs = output_blocks(scan, deal.of_outputs, 1);
    if (correlated) deal.correlation = deal.of_correlation.count * rows * scan.H;
    const bool shared = !model.x && model.copies < scan.H && (grad.A_real || grad.A_imag || grad.B);

    const MadeTables<R> made = take_tables<R>(call, scan);
    Staged<R, S> staged_u{}, staged_y{};
    const R *const grad_y = take_signal<R, S>(call, scan, time_major, in.grad_y, scan.c, staged_y);
    const R *const u = correlated ? take_signal<R, S>(call, scan, time_major, in.u, 1, staged_u) : nullptr;
    Recurrences<R> runs{};
    Paired<R> pairs{u, grad_y, made.enter, made.leave};
    if (adjoint || of_parameters) {
        pairs.gradients[0] =
            add<R>(call, scan, runs, {true, true, true, scan.c, grad_y, made.leave, in.grad_final, in.grad_state})
                .states;
        if (both)
            pairs.gradients[1] =
                add<R>(call, scan, runs,
                       {false, true, true, scan.c, grad_y, made.leave + scan.c * size, nullptr, in.grad_ahead})
                    .states;
    }
    if (of_parameters) {
        pairs.states[0] = add<R>(call, scan, runs, {false, false, false, 1, u, made.enter, in.state}).states;
        if (both) pairs.states[1] = add<R>(call, scan, runs, {true, false, false, 1, u, made.enter, in.ahead}).states;
    }
    R *const partial = in.grad_u ? take_partial<R>(call, scan, 1) : nullptr;
    Sums<R> sums{};
    if (of_parameters) sums.parameters = call.take<Complex<R>>(deal.of_parameters.count * rows * PARAMETERS * size);
    if (correlated) sums.correlation = call.take<R>(deal.of_correlation.count * rows * scan.H * CHUNK<R>);
    Contribution *const contributions = shared ? call.take<Contribution>(size) : nullptr;
    if (!call.ready()) return;

    const Tables<R> tables = prepare(call, scan, model, made, time_major, staged_u, staged_y);
    if (runs.count) find_states(call, scan, tables, runs);
    const Outputs<R, S> outputs{
        grad_y, made.enter, {pairs.gradients[0], pairs.gradients[1]}, partial, in.grad_u, time_major, 1, 0};
    constexpr size_t SHARED =
        std::max({sizeof(OutputTables<R>), sizeof(ParameterTables<R>), sizeof(CorrelationTables<R>)});
    const int64_t launched = deal.parameters + deal.outputs + deal.correlation;
    if (launched)
        call.launch("scan_gradients_kernel", scan_gradients_kernel<R, S>, launched, THREADS, SHARED, scan, deal,
                    tiles(scan), tables, outputs, pairs, sums);
    if (!correlated) return;
    call.launch("scan_finish_kernel", scan_finish_kernel<R>, scan.H, THREADS, sizeof(FinishTables<R>), scan, model,
                Parts<R>{sums.parameters, deal.of_parameters.count, sums.correlation, deal.of_correlation.count},
                tables.nodes, tables.enter, grad, contributions);
    if (shared)
        call.launch("scan_copies_kernel", scan_copies_kernel<R>, model.copies * divide_up(scan.n, COPIED), THREADS,
                    sizeof(CopiesTables), scan, model.copies, contributions, grad);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_scan_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *grad_y,
                               const void *grad_final, const void *u, const void *x, const void *B, const void *C,
                               const void *D, const void *state, void *grad_u, void *grad_x, void *grad_B, void *grad_C,
                               void *grad_D, void *grad_state, int64_t time_major, void *workspace,
                               int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_call(
        "scan_backward", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}}, {grad_y, u, x, B, C, grad_u},
        {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
            using R = decltype(real);
            using Real = const R *;
            using Input = const Complex<R> *;
            using Output = Complex<R> *;
            backward<R, R>(
                call, make_scan<R>(batch, H, n, L, 1, 1), given_model<R>(H, x, B, C, D), time_major,
                {Real(grad_y), Real(u), Input(grad_final), Input(state), nullptr, static_cast<R *>(grad_u),
                 Output(grad_state), nullptr},
                {Output(grad_x), Output(grad_B), Output(grad_C), nullptr, nullptr, nullptr, static_cast<R *>(grad_D)});
        });
}

int s4_fast_cuda_diagonal_backward(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                   int64_t n, int64_t L, int64_t c, int64_t copies, int64_t dt_states, double rate,
                                   const void *grad_y, const void *grad_final, const void *u, const void *dt,
                                   const void *A_real, const void *A_imag, const void *B, const void *C, const void *D,
                                   const void *state, const void *ahead, void *grad_u, void *grad_dt, void *grad_A_real,
                                   void *grad_A_imag, void *grad_B, void *grad_C, void *grad_D, void *grad_state,
                                   void *grad_ahead, void *workspace, int64_t *workspace_bytes, int64_t device,
                                   void *stream) {
    using namespace s4_fast::cuda;
    const DiagonalSizes sizes{dtype, signal_dtype, flags, batch, H, n, L, c, copies, dt_states};
    return run_diagonal("diagonal_backward", sizes, {u, dt, A_real, A_imag, C},
                        {workspace, workspace_bytes, device, stream}, [&](auto real, auto signal, Call &call) {
                            using R = decltype(real);
                            using S = decltype(signal);
                            using Real = R *;
                            using Signal = const S *;
                            using Input = const Complex<R> *;
                            using Output = Complex<R> *;
                            backward<R, S>(call, make_scan<R>(batch, H, n, L, c, flags & S4_FAST_BIDIRECTIONAL ? 2 : 1),
                                           continuous_model<R>(sizes, rate, dt, A_real, A_imag, B, C, D),
                                           flags & S4_FAST_TIME_MAJOR,
                                           {Signal(grad_y), Signal(u), Input(grad_final), Input(state), Input(ahead),
                                            static_cast<S *>(grad_u), Output(grad_state), Output(grad_ahead)},
                                           {nullptr, Output(grad_B), Output(grad_C), Real(grad_dt), Real(grad_A_real),
                                            Real(grad_A_imag), Real(grad_D)});
                        });
}
