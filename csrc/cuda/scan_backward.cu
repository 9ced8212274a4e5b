// The gradients of the scan. With S_m, conj(G_m) and lambda as in scan_chunks.cuh, and over each chunk
//     P = sum_t lambda^{t+1} dy_t,   U = sum_i lambda^i u[last - i],   P' and U' with factors t + 1 and i,
//     R[d] = sum of dy_t u_{t-d} within all chunks:
//     conj(grad_C) = 2 sum_m S_m P + 2 B sum_d R[d] lambda^d,
//     conj(grad_B) = sum_m conj(G_m) U + 2 C sum_d R[d] lambda^d,
//     conj(grad_x) = sum_m 2 C S_m P' + conj(G_m) (length lambda^length S_m + B U') + 2 C B sum_d d R[d] lambda^d.
#include "scan_outputs.cuh"
#include "scan_states.cuh"
#include "sum_parts.cuh"

namespace s4_fast {
namespace {

enum { OF_C, OF_B, OF_X, PARAMETERS };

template <class R>
struct ParameterTables {
    Complex<R> powers[CHUNK<R>][K];
    Samples<R, M, CHUNK<R>> samples;
    Complex<R> sums[THREAD_ROWS][K];
    Chunk chunks[M];
    Node<R> nodes[K];
};

// The sums over the chunks of a share of the tiles, for K states of a feature: parts[share, parameter, h, state].
template <class R>
__global__ void __launch_bounds__(THREADS, 2)
    scan_parameters_kernel(Scan scan, Shares shares, int64_t tiles, int64_t blocks, const R *grad_y, const R *u,
                           const Complex<R> *x, const Complex<R> *B, const Complex<R> *C, const Complex<R> *S,
                           const Complex<R> *conj_G, Complex<R> *parts) {
    constexpr int RK = K / THREAD_COLUMNS;
    auto &tables = shared_memory<ParameterTables<R>>();
    const int64_t share = blockIdx.x / (scan.H * blocks), h = blockIdx.x / blocks % scan.H;
    const int64_t first = blockIdx.x % blocks * K;
    const int i = threadIdx.x / THREAD_COLUMNS, j = threadIdx.x % THREAD_COLUMNS;
    load_nodes(tables.nodes, scan, h, first, x);
    __syncthreads();
    make_powers(tables.powers, tables.nodes, scan);
    Complex<R> lambda[RK], whole[RK], in[RK], out[RK], sums[PARAMETERS][RK] = {};
#pragma unroll
    for (int b = 0; b < RK; ++b) {
        const int64_t k = j + b * THREAD_COLUMNS, index = h * scan.n + first + k;
        const bool present = first + k < scan.n;
        lambda[b] = power(tables.nodes[k], 1);
        whole[b] = power(tables.nodes[k], scan.T < scan.L ? scan.T : scan.L);
        in[b] = present ? B[index] : Complex<R>{0, 0};
        out[b] = present ? R(2) * C[index] : Complex<R>{0, 0};
    }
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        __syncthreads();
        find_chunks(tables.chunks, scan, h, tile);
        __syncthreads();
        load_samples<true>(tables.samples, tables.chunks, u);
        __syncthreads();
        Complex<R> zeroth[RM][RK], weighted[RM][RK];
        inner_moments<true, R, RM, RK>(tables.powers, tables.samples, i, j, zeroth, weighted);
#pragma unroll
        for (int a = 0; a < RM; ++a) {
            const Chunk chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
            for (int b = 0; b < RK; ++b) {
                const int k = j + b * THREAD_COLUMNS;
                if (!chunk.length || first + k >= scan.n) continue;
                const Complex<R> g = conj_G[chunk.states + first + k], s = S[chunk.states + first + k];
                const Complex<R> decay = chunk.length == scan.T ? whole[b] : power(tables.nodes[k], chunk.length);
                sums[OF_B][b] += g * zeroth[a][b];
                sums[OF_X][b] += g * (R(chunk.length) * (decay * s) + in[b] * weighted[a][b]);
            }
        }
        __syncthreads();
        load_samples<false>(tables.samples, tables.chunks, grad_y);
        __syncthreads();
        inner_moments<true, R, RM, RK>(tables.powers, tables.samples, i, j, zeroth, weighted);
#pragma unroll
        for (int a = 0; a < RM; ++a) {
            const Chunk chunk = tables.chunks[i + a * THREAD_ROWS];
#pragma unroll
            for (int b = 0; b < RK; ++b) {
                const int k = j + b * THREAD_COLUMNS;
                if (!chunk.length || first + k >= scan.n) continue;
                const Complex<R> s = lambda[b] * S[chunk.states + first + k];
                sums[OF_C][b] += s * zeroth[a][b];
                sums[OF_X][b] += out[b] * (s * (zeroth[a][b] + weighted[a][b]));
            }
        }
    }
    for (int parameter = 0; parameter < PARAMETERS; ++parameter) {
        __syncthreads();
#pragma unroll
        for (int b = 0; b < RK; ++b)
            tables.sums[i][j + b * THREAD_COLUMNS] = parameter == OF_C   ? sums[OF_C][b]
                                                     : parameter == OF_B ? sums[OF_B][b]
                                                                         : sums[OF_X][b];
        __syncthreads();
        if (threadIdx.x >= K || first + threadIdx.x >= scan.n) continue;
        Complex<R> sum = {0, 0};
        for (int row = 0; row < THREAD_ROWS; ++row) sum += tables.sums[row][threadIdx.x];
        parts[((share * PARAMETERS + parameter) * scan.H + h) * scan.n + first + threadIdx.x] = sum;
    }
}

template <class R>
struct CorrelationTables {
    static constexpr int T = CHUNK<R>;
    Samples<R, M, T> grad_y, u;
    R sums[THREADS * 4 / T][T];
    Chunk chunks[M];
};

// R[d] over a share of the tiles of a feature, parts[share, h, d]. A thread has four neighbouring d.
template <class R>
__global__ void __launch_bounds__(THREADS)
    scan_correlation_kernel(Scan scan, Shares shares, int64_t tiles, const R *grad_y, const R *u, R *parts) {
    constexpr int T = CHUNK<R>, ROWS = THREADS * 4 / T;
    auto &tables = shared_memory<CorrelationTables<R>>();
    const int64_t share = blockIdx.x / scan.H, h = blockIdx.x % scan.H;
    const int d = threadIdx.x % (T / 4) * 4, row = threadIdx.x / (T / 4);
    R sums[4] = {};
    const int64_t end = (share + 1) * shares.each < tiles ? (share + 1) * shares.each : tiles;
    for (int64_t tile = share * shares.each; tile < end; ++tile) {
        find_chunks(tables.chunks, scan, h, tile);
        __syncthreads();
        load_samples<false>(tables.grad_y, tables.chunks, grad_y);
        load_samples<false>(tables.u, tables.chunks, u);
        __syncthreads();
        for (int m = row; m < M; m += ROWS) {
            R window[4] = {}, products[4] = {};  // u[t - d - e], and their products with grad_y[t]
            for (int t = d; t < T; ++t) {
                const R g = tables.grad_y[m][t];
                window[0] = tables.u[m][t - d];
#pragma unroll
                for (int e = 0; e < 4; ++e) products[e] += g * window[e];
#pragma unroll
                for (int e = 3; e > 0; --e) window[e] = window[e - 1];
            }
            // Chunk by chunk: one long sum would round more.
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[e] += products[e];
        }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) tables.sums[row][d + e] = sums[e];
    __syncthreads();
    if (threadIdx.x >= T) return;
    R sum = 0;
    for (int p = 0; p < ROWS; ++p) sum += tables.sums[p][threadIdx.x];
    parts[(share * scan.H + h) * T + threadIdx.x] = sum;
}

template <class R>
struct Gradients {
    R *u;
    Complex<R> *x, *B, *C;
    R *D;
    Complex<R> *state;
    bool parameters() const { return x || B || C; }
};

// Adds up the parts and what pairs of samples within one chunk give.
template <class R>
__global__ void __launch_bounds__(THREADS)
    scan_finish_kernel(Scan scan, int64_t count, const Complex<R> *parts, const R *correlation, const Complex<R> *x,
                       const Complex<R> *B, const Complex<R> *C, Gradients<R> grad) {
    const int64_t id = int64_t(blockIdx.x) * THREADS + threadIdx.x, h = id / scan.n, size = scan.H * scan.n;
    if (id >= size) return;
    Complex<R> sums[PARAMETERS] = {}, zeroth = {0, 0}, weighted = {0, 0};
    for (int64_t part = 0; part < count; ++part)
#pragma unroll
        for (int p = 0; p < PARAMETERS; ++p) sums[p] += parts[(part * PARAMETERS + p) * size + id];
    const Node<R> node = make_node(x[id]);
    for (int64_t d = 0; d < scan.T && d < scan.L; ++d) {
        const Complex<R> term = correlation[h * scan.T + d] * power(node, d);
        zeroth += term;
        weighted += R(d) * term;
    }
    const Complex<R> b = B[id], c = R(2) * C[id];
    if (grad.C) grad.C[id] = conj(R(2) * (sums[OF_C] + b * zeroth));
    if (grad.B) grad.B[id] = conj(sums[OF_B] + c * zeroth);
    if (grad.x) grad.x[id] = conj(sums[OF_X] + c * (b * weighted));
}

// grad_D[h] = R[0].
template <class R>
__global__ void __launch_bounds__(THREADS) scan_skip_kernel(Scan scan, const R *correlation, R *grad_D) {
    const int64_t h = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (h < scan.H) grad_D[h] = correlation[h * scan.T];
}

template <class R>
struct Inputs {
    const R *grad_y;
    const Complex<R> *grad_final;
    const R *u;
    const Complex<R> *x, *B, *C;
    const R *D;
    const Complex<R> *state;
};

template <class R>
void backward(Call &call, const Scan &scan, const Inputs<R> &in, const Gradients<R> &grad) {
    const bool correlated = grad.parameters() || grad.D, adjoint = grad.u || grad.state || grad.parameters();
    const int64_t blocks = divide_up(scan.n, K), lags = scan.H * CHUNK<R>;
    const Shares shares(tiles(scan), ENOUGH_BLOCKS / (scan.H * blocks));
    const Shares correlation_shares(tiles(scan), ENOUGH_BLOCKS / scan.H);
    States<R> G{}, S{};
    R *response = nullptr, *correlation = nullptr, *correlation_parts = nullptr;
    Complex<R> *parts = nullptr;
    if (adjoint) G = take_states<R>(call, scan);
    if (grad.u) response = take_response<R>(call, scan);
    if (grad.parameters()) {
        S = take_states<R>(call, scan);
        parts = call.take<Complex<R>>(shares.count * PARAMETERS * scan.H * scan.n);
    }
    if (correlated) {
        correlation_parts = call.take<R>(correlation_shares.count * lags);
        correlation = correlation_shares.count > 1 ? call.take<R>(lags) : correlation_parts;
    }
    if (!call.ready()) return;
    if (adjoint) find_states<true>(call, scan, G, in.grad_y, in.x, in.B, in.C, in.grad_final, grad.state);
    if (grad.u) find_outputs<true>(call, scan, response, G.before, in.grad_y, in.x, in.B, in.C, in.D, grad.u);
    if (correlated) {
        call.launch("scan_correlation_kernel", scan_correlation_kernel<R>, correlation_shares.count * scan.H, THREADS,
                    sizeof(CorrelationTables<R>), scan, correlation_shares, tiles(scan), in.grad_y, in.u,
                    correlation_parts);
        if (correlation_shares.count > 1)
            sum_parts(call, correlation_shares.count, lags, correlation_parts, correlation);
    }
    if (grad.D)
        call.launch("scan_skip_kernel", scan_skip_kernel<R>, divide_up(scan.H, THREADS), THREADS, 0, scan, correlation,
                    grad.D);
    if (!grad.parameters()) return;
    find_states<false>(call, scan, S, in.u, in.x, in.B, in.C, in.state, static_cast<Complex<R> *>(nullptr));
    call.launch("scan_parameters_kernel", scan_parameters_kernel<R>, shares.count * scan.H * blocks, THREADS,
                sizeof(ParameterTables<R>), scan, shares, tiles(scan), blocks, in.grad_y, in.u, in.x, in.B, in.C,
                S.before, G.before, parts);
    call.launch("scan_finish_kernel", scan_finish_kernel<R>, divide_up(scan.H * scan.n, THREADS), THREADS, 0, scan,
                shares.count, parts, correlation, in.x, in.B, in.C, grad);
}

}  // namespace
}  // namespace s4_fast

int s4_fast_cuda_scan_backward(int64_t dtype, int64_t batch, int64_t H, int64_t n, int64_t L, const void *grad_y,
                               const void *grad_final, const void *u, const void *x, const void *B, const void *C,
                               const void *D, const void *state, void *grad_u, void *grad_x, void *grad_B, void *grad_C,
                               void *grad_D, void *grad_state, void *workspace, int64_t *workspace_bytes,
                               int64_t device, void *stream) {
    using namespace s4_fast;
    return run_call("scan_backward", dtype, {{"batch", batch}, {"H", H}, {"n", n}, {"L", L}},
                    {workspace, workspace_bytes, device, stream}, [&](auto real, Call &call) {
                        using R = decltype(real);
                        using Real = const R *;
                        using Input = const Complex<R> *;
                        using Output = Complex<R> *;
                        const Scan scan{batch, H, n, L, divide_up(L, CHUNK<R>), CHUNK<R>};
                        backward(call, scan,
                                 Inputs<R>{Real(grad_y), Input(grad_final), Real(u), Input(x), Input(B), Input(C),
                                           Real(D), Input(state)},
                                 Gradients<R>{static_cast<R *>(grad_u), Output(grad_x), Output(grad_B), Output(grad_C),
                                              static_cast<R *>(grad_D), Output(grad_state)});
                    });
}
