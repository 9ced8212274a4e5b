// The recurrence of a diagonal SSM over a sequence.
#include "scan_outputs.cuh"
#include "scan_states.cuh"

int s4_fast_cuda_scan(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *u, const void *x,
                      const void *B, const void *C, const void *D, const void *state, void *y, void *final,
                      void *workspace, int64_t *workspace_bytes, int64_t device, void *stream) {
    using namespace s4_fast;
    return run_call("scan", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        using R = decltype(real);
                        using Input = const Complex<R> *;
                        const Scan scan{batch, H, n, L, divide_up(L, CHUNK<R>), CHUNK<R>};
                        const States<R> states = take_states<R>(call, scan);
                        R *response = take_response<R>(call, scan);
                        if (!call.ready()) return;
                        const R *samples = static_cast<const R *>(u);
                        find_states<false>(call, scan, states, samples, Input(x), Input(B), Input(C), Input(state),
                                           static_cast<Complex<R> *>(final));
                        find_outputs<false>(call, scan, response, states.before, samples, Input(x), Input(B), Input(C),
                                            static_cast<const R *>(D), static_cast<R *>(y));
                    });
}
