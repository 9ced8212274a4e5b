// The gradients of the parameters from their sums over the chunks, through the discretisation.
#pragma once

#include "discretize.cuh"
#include "scan_gradients.cuh"

namespace s4_fast::cuda {
namespace {

// What the gradients of a call are written to, each or NULL; x, or what the continuous system has in its place.
template <class R>
struct Gradients {
    Complex<R> *x, *B, *C;
    R *dt, *A_real, *A_imag, *D;
    bool states() const { return x || B || C || dt || A_real || A_imag; }
};

// Sums that the parts have in common with their shares: (shares, directions, c, ...).
template <class R>
struct Parts {
    const Complex<R> *sums;  // or NULL where only that of D is wanted
    int64_t shares;
    const R *correlation;
    int64_t correlation_shares;
};

// Lags and shares are dealt to this many threads of a state.
constexpr int GROUPS = THREADS / TILE_STATES;

template <class R>
struct FinishTables {
    R correlation[CHUNK<R>];
    Complex<R> sums[GROUPS][TILE_STATES];
    double dt[TILE_STATES];
};

// The sum over the groups, for those threads of the first one.
template <class R>
S4_FAST_INLINE Complex<R> sum_groups(Complex<R> (&sums)[GROUPS][TILE_STATES], Complex<R> value) {
    __syncthreads();
    sums[threadIdx.x / TILE_STATES][threadIdx.x % TILE_STATES] = value;
    __syncthreads();
    Complex<R> sum = {0, 0};
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) sum += sums[group][threadIdx.x % TILE_STATES];
    return sum;
}

// What a feature's state gives to the parameters that features share.
struct Contribution {
    Wide A, B;
};

// A feature for each block.
template <class R>
__global__ void __launch_bounds__(THREADS, 4)
    scan_finish_kernel(Scan scan, const __grid_constant__ Model<R> model, Parts<R> parts, const Node<R> *nodes,
                       const Complex<R> *enter, Gradients<R> grad, Contribution *contributions) {
    constexpr int T = CHUNK<R>;
    auto &tables = shared_memory<FinishTables<R>>();
    const int64_t h = blockIdx.x, rows = scan.directions * scan.c, size = scan.H * scan.n;
    const int group = threadIdx.x / TILE_STATES;
    double of_dt = 0;
    for (int64_t first = 0; first < (parts.sums ? scan.n : 1); first += TILE_STATES) {
        const int64_t k = first + threadIdx.x % TILE_STATES, index = h * scan.n + k;
        const bool present = parts.sums && k < scan.n, writes = present && group == 0;
        const Node<R> node = present ? nodes[index] : Node<R>{0, 0, 0};
        const Complex<R> b = present ? enter[index] : Complex<R>{0, 0};
        Complex<R> of_B = {0, 0}, of_x = {0, 0};
        for (int64_t row = 0; row < rows; ++row) {
            const bool ahead = row >= scan.c;
            __syncthreads();
            if (threadIdx.x < T) {
                R sum = 0;
                for (int64_t share = 0; share < parts.correlation_shares; ++share)
                    sum += parts.correlation[((share * rows + row) * scan.H + h) * T + threadIdx.x];
                tables.correlation[threadIdx.x] = sum;
                if (grad.D && threadIdx.x == 0 && first == 0 && !ahead) grad.D[row * scan.H + h] = sum;
            }
            __syncthreads();
            if (!parts.sums) continue;
            Complex<R> of_C = {0, 0};
            if (present) {
                Complex<R> zeroth = {0, 0}, weighted = {0, 0};
                for (int d = group; d + ahead < T && d < scan.L; d += GROUPS) {
                    const Complex<R> term = tables.correlation[d + ahead] * power(node, d);
                    zeroth += term;
                    weighted += R(d) * term;
                }
                const Complex<R> c = R(2) * model.C[row * size + index];
                of_C = b * zeroth;
                of_B += c * zeroth;
                of_x += c * (b * weighted);
                for (int64_t share = group; share < parts.shares; share += GROUPS) {
                    const Complex<R> *const sums = parts.sums + (share * rows + row) * PARAMETERS * size + index;
                    of_C += sums[OF_C * size];
                    of_B += sums[OF_B * size];
                    of_x += sums[OF_X * size];
                }
            }
            of_C = sum_groups(tables.sums, of_C);
            if (writes && grad.C) grad.C[row * size + index] = conj(R(2) * of_C);
        }
        if (!parts.sums) break;
        of_B = conj(sum_groups(tables.sums, of_B));
        of_x = conj(sum_groups(tables.sums, of_x));
        if (!writes) continue;
        if (model.x) {
            if (grad.x) grad.x[index] = of_x;
            if (grad.B) grad.B[index] = of_B;
            continue;
        }
        const State state = read_state(model, h, scan.n, k);
        const Chained chained = chain(model, state, convert<double>(of_x), convert<double>(of_B));
        of_dt += chained.dt;
        if (grad.dt && model.dt_states > 1) grad.dt[index] = R(chained.dt);
        if (contributions) {
            contributions[index] = {chained.A, chained.B};
            continue;
        }
        if (grad.A_real) grad.A_real[index] = R(chained.A.re);
        if (grad.A_imag) grad.A_imag[index] = R(chained.A.im);
        if (grad.B) grad.B[index] = convert<R>(chained.B);
    }
    if (!grad.dt || model.dt_states > 1) return;
    if (group == 0) tables.dt[threadIdx.x] = of_dt;
    __syncthreads();
    if (threadIdx.x > 0) return;
    double sum = 0;
    for (int k = 0; k < TILE_STATES; ++k) sum += tables.dt[k];
    grad.dt[h] = R(sum);
}

// States of a copy that a block has, and the threads among which their features are dealt.
constexpr int COPIED = 4, DEALT = THREADS / COPIED;

struct CopiesTables {
    Contribution sums[DEALT][COPIED];
};

// The sums over the features of each copy.
template <class R>
__global__ void __launch_bounds__(THREADS)
    scan_copies_kernel(Scan scan, int64_t copies, const Contribution *contributions, Gradients<R> grad) {
    auto &tables = shared_memory<CopiesTables>();
    const int64_t blocks = (scan.n + COPIED - 1) / COPIED, copy = blockIdx.x / blocks;
    const int64_t k = blockIdx.x % blocks * COPIED + threadIdx.x % COPIED;
    const int turn = threadIdx.x / COPIED;
    Contribution sum = {};
    for (int64_t h = copy + turn * copies; k < scan.n && h < scan.H; h += DEALT * copies) {
        sum.A += contributions[h * scan.n + k].A;
        sum.B += contributions[h * scan.n + k].B;
    }
    tables.sums[turn][threadIdx.x % COPIED] = sum;
    __syncthreads();
    if (turn > 0 || k >= scan.n) return;
    for (int other = 1; other < DEALT; ++other) {
        sum.A += tables.sums[other][threadIdx.x].A;
        sum.B += tables.sums[other][threadIdx.x].B;
    }
    const int64_t index = copy * scan.n + k;
    if (grad.A_real) grad.A_real[index] = R(sum.A.re);
    if (grad.A_imag) grad.A_imag[index] = R(sum.A.im);
    if (grad.B) grad.B[index] = convert<R>(sum.B);
}

}  // namespace
}  // namespace s4_fast::cuda
