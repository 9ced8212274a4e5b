// The gradients of a diagonal SSM over a sequence on tensor cores, of its nodes or of the continuous system.
#include "scan_finish.cuh"
#include "tensor_gradients.cuh"

namespace s4_fast::cuda {
namespace {

template <class S>
void backward(Call &call, const Scan &scan, const Model<float> &model, bool time_major, const Backward<float, S> &in,
              const Gradients<float> &grad) {
    const bool of_parameters = grad.states(), correlated = of_parameters || grad.D;
    const bool shared = !model.x && model.copies < scan.H && (grad.A_real || grad.A_imag || grad.B);
    const int64_t blocks = of_parameters ? divide_up(scan.n, tensor::STATES) : 1, size = scan.H * scan.n;
    const tensor::Cut cut = tensor::make_cut(scan);
    const Shares shares(cut.tiles(), ENOUGH_BLOCKS / (scan.H * blocks));

    const MadeTables<float> made = take_tables<float>(call, scan);
    const tensor::Room room = tensor::take_room(call, cut, true);
    const tensor::Room of_u = correlated ? tensor::take_room(call, cut, false) : tensor::Room{};
    const tensor::Laid<const S> grad_y = tensor::take_laid(call, scan, time_major, in.grad_y);
    const tensor::Laid<const S> u = tensor::take_laid(call, scan, time_major, correlated ? in.u : nullptr);
    const tensor::Laid<S> grad_u = tensor::take_laid(call, scan, time_major, in.grad_u);
    Complex<float> *const gradients = correlated ? call.take<Complex<float>>(scan.batch * scan.chunks * size) : nullptr;
    Complex<float> *const sums = correlated ? call.take<Complex<float>>(shares.count * 2 * PARAMETERS * size) : nullptr;
    float *const correlation = correlated ? call.take<float>(shares.count * scan.H * tensor::CHUNK_SAMPLES) : nullptr;
    Contribution *const contributions = shared ? call.take<Contribution>(size) : nullptr;
    if (!call.ready()) return;

    const Tables<float> tables = prepare(call, scan, model, made, false, Staged<float, S>{}, Staged<float, S>{});
    tensor::bring(call, scan, grad_y);
    tensor::bring(call, scan, u);
    tensor::Pass<S> pass = tensor::make_pass<S>(tables, tables.leave, tables.enter);
    pass.samples = grad_y.laid;
    pass.initial = in.grad_final;
    pass.final = in.grad_state;
    pass.states = gradients;
    pass.out = grad_u.laid;
    pass.conjugate = true;
    pass.aligned = is_aligned(pass.samples, scan.L) && is_aligned(pass.out, scan.L);
    tensor::run_scan<S, true>(call, cut, pass, room);
    tensor::bring_back(call, scan, grad_u);
    if (!correlated) return;

    tensor::Sources<S> sources{tables.nodes, tables.wide, tables.enter, tables.leave, u.laid,
                               grad_y.laid,  in.state,    gradients,    false};
    sources.aligned = is_aligned(sources.u, scan.L) && is_aligned(sources.grad_y, scan.L);
    if (cut.segments > 1) {
        tensor::Pass<S> forwards = tensor::make_pass<S>(tables, tables.enter, tables.leave);
        forwards.samples = u.laid;
        forwards.aligned = is_aligned(u.laid, scan.L);
        forwards.initial = in.state;
        forwards.segments = of_u.segments;
        tensor::find_segments<S, false>(call, cut, forwards);
        sources.initial = of_u.segments;
    }
    call.launch("tensor_gradients_kernel", tensor::tensor_gradients_kernel<S>, scan.H * blocks * shares.count,
                tensor::WARPS * WARP, sizeof(tensor::GradientTables), cut, shares.count, blocks, sources, sums,
                correlation);
    call.launch("scan_finish_kernel", scan_finish_kernel<float>, scan.H, THREADS, sizeof(FinishTables<float>), scan,
                model, Parts<float>{of_parameters ? sums : nullptr, shares.count * 2, correlation, shares.count},
                tables.nodes, tables.enter, grad, contributions);
    if (shared)
        call.launch("scan_copies_kernel", scan_copies_kernel<float>, model.copies * divide_up(scan.n, COPIED), THREADS,
                    sizeof(CopiesTables), scan, model.copies, contributions, grad);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_tensor_scan_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *grad_y,
                                      const void *grad_final, const void *u, const void *x, const void *B,
                                      const void *C, const void *D, const void *state, void *grad_u, void *grad_x,
                                      void *grad_B, void *grad_C, void *grad_D, void *grad_state, int64_t time_major,
                                      void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    return run_tensor_scan("tensor_scan_backward", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}},
                           {grad_y, u, x, B, C, grad_u}, {workspace, workspace_bytes, device, stream}, [&](Call &call) {
                               using Real = const float *;
                               using Input = const Complex<float> *;
                               using Output = Complex<float> *;
                               backward<float>(call, make_scan<float>(batch, H, n, L, 1, 1),
                                               given_model<float>(H, x, B, C, D), time_major,
                                               {Real(grad_y), Real(u), Input(grad_final), Input(state), nullptr,
                                                static_cast<float *>(grad_u), Output(grad_state), nullptr},
                                               {Output(grad_x), Output(grad_B), Output(grad_C), nullptr, nullptr,
                                                nullptr, static_cast<float *>(grad_D)});
                           });
}

int s4_fast_cuda_tensor_diagonal_backward(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                          int64_t n, int64_t L, int64_t c, int64_t copies, int64_t dt_states,
                                          double rate, const void *grad_y, const void *grad_final, const void *u,
                                          const void *dt, const void *A_real, const void *A_imag, const void *B,
                                          const void *C, const void *D, const void *state, const void *ahead,
                                          void *grad_u, void *grad_dt, void *grad_A_real, void *grad_A_imag,
                                          void *grad_B, void *grad_C, void *grad_D, void *grad_state, void *grad_ahead,
                                          void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    const DiagonalSizes sizes{dtype, signal_dtype, flags, batch, H, n, L, c, copies, dt_states};
    return run_tensor_diagonal("tensor_diagonal_backward", sizes, {u, dt, A_real, A_imag, C},
                               {workspace, workspace_bytes, device, stream}, [&](auto signal, Call &call) {
                                   using S = decltype(signal);
                                   using Real = float *;
                                   using Signal = const S *;
                                   using Input = const Complex<float> *;
                                   using Output = Complex<float> *;
                                   backward<S>(call, make_scan<float>(batch, H, n, L, 1, 1),
                                               continuous_model<float>(sizes, rate, dt, A_real, A_imag, B, C, D),
                                               flags & S4_FAST_TIME_MAJOR,
                                               {Signal(grad_y), Signal(u), Input(grad_final), Input(state), nullptr,
                                                static_cast<S *>(grad_u), Output(grad_state), nullptr},
                                               {nullptr, Output(grad_B), Output(grad_C), Real(grad_dt),
                                                Real(grad_A_real), Real(grad_A_imag), Real(grad_D)});
                               });
}
