// A diagonal SSM over a sequence on tensor cores, from its nodes or from the continuous system.
#include "tensor_call.cuh"

namespace s4_fast::cuda {
namespace {

template <class S>
void forward(Call &call, const Scan &scan, const Model<float> &model, bool time_major, const Forward<float, S> &in) {
    const tensor::Cut cut = tensor::make_cut(scan);
    const MadeTables<float> made = take_tables<float>(call, scan);
    const tensor::Room room = tensor::take_room(call, cut, true);
    const tensor::Laid<const S> u = tensor::take_laid(call, scan, time_major, in.u);
    const tensor::Laid<S> y = tensor::take_laid(call, scan, time_major, in.y);
    if (!call.ready()) return;
    const Tables<float> tables = prepare(call, scan, model, made, false, Staged<float, S>{}, Staged<float, S>{});
    tensor::bring(call, scan, u);
    tensor::Pass<S> pass = tensor::make_pass<S>(tables, tables.enter, tables.leave);
    pass.samples = u.laid;
    pass.initial = in.state;
    pass.final = in.final;
    pass.out = y.laid;
    pass.aligned = is_aligned(pass.samples, scan.L) && is_aligned(pass.out, scan.L);
    tensor::run_scan<S, false>(call, cut, pass, room);
    tensor::bring_back(call, scan, y);
}

}  // namespace
}  // namespace s4_fast::cuda

int s4_fast_cuda_tensor_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u,
                             const void *x, const void *B, const void *C, const void *D, const void *state, void *y,
                             void *final, int64_t time_major, void *workspace, int64_t *workspace_bytes, int64_t device,
                             void *stream) {
    using namespace s4_fast::cuda;
    return run_tensor_scan(
        "tensor_scan", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}}, {u, x, B, C, y},
        {workspace, workspace_bytes, device, stream}, [&](Call &call) {
            forward<float>(call, make_scan<float>(batch, H, n, L, 1, 1), given_model<float>(H, x, B, C, D), time_major,
                           {static_cast<const float *>(u), static_cast<const Complex<float> *>(state), nullptr,
                            static_cast<float *>(y), static_cast<Complex<float> *>(final)});
        });
}

int s4_fast_cuda_tensor_diagonal(int64_t dtype, int64_t signal_dtype, int64_t flags, int64_t batch, int64_t H,
                                 int64_t n, int64_t L, int64_t c, int64_t copies, int64_t dt_states, double rate,
                                 const void *u, const void *dt, const void *A_real, const void *A_imag, const void *B,
                                 const void *C, const void *D, const void *state, const void *ahead, void *y,
                                 void *final, void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast::cuda;
    const DiagonalSizes sizes{dtype, signal_dtype, flags, batch, H, n, L, c, copies, dt_states};
    return run_tensor_diagonal("tensor_diagonal", sizes, {u, dt, A_real, A_imag, C, y},
                               {workspace, workspace_bytes, device, stream}, [&](auto signal, Call &call) {
                                   using S = decltype(signal);
                                   forward<S>(call, make_scan<float>(batch, H, n, L, 1, 1),
                                              continuous_model<float>(sizes, rate, dt, A_real, A_imag, B, C, D),
                                              flags & S4_FAST_TIME_MAJOR,
                                              {static_cast<const S *>(u), static_cast<const Complex<float> *>(state),
                                               nullptr, static_cast<S *>(y), static_cast<Complex<float> *>(final)});
                               });
}
