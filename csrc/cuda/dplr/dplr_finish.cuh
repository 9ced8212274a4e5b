// The gradients of a DPLR scan's parameters from those of its maps: through the transitions, the chains and the
// discretisation, in double.
#pragma once

#include "dplr_gradients.cuh"

namespace s4_fast::cuda {
namespace {

// What the gradients of a call are written to, each or NULL.
template <class R>
struct DplrGradients {
    R *dt, *A_real, *A_imag, *D;
    Complex<R> *P, *B, *C;
    bool of_shared() const { return A_real || A_imag || P || B; }
    bool states() const { return of_shared() || dt || C; }
};

// The sums over the chunks, with how many shares of each.
template <class R>
struct MapGradients {
    MapSums<R> sums;
    int64_t shares, correlation_shares;
};

// By chain: the gradients of its values, of (chains, H, T, n), which become those of a value and of all that follow
// from it; the overlaps (chains, H, T, 2 rank) of each step; and what the chain gives to the gradients of a, of its
// start, of X and of Y, (chains, H, vectors, n).
struct ChainGradients {
    Wide *values;
    double *overlaps;
    Wide *given;
};

// --------------------------------------------------------------------------------------- through the transitions

struct LowTables {
    double left[CHUNK<float>][SLICE + 1], right[SLICE][2 * TILE_STATES + 1];
};

// With Gamma the gradient of A^length, that of A^i G_r is -Gamma w_{length-1-i} and that of w_j, the (re, im) of
// 2 conj(V_r a^j), is -Gamma^T (A^{length-1-j} G_r): TILE_STATES states of one of these vectors, at all T exponents.
template <class R>
__global__ void __launch_bounds__(THREADS, 3)
    dplr_low_kernel(Scan scan, int rank, const __grid_constant__ Transitions transitions, const Wide *low,
                    const R *parts, int64_t shares, Wide *values) {
    constexpr int T = CHUNK<R>, THREAD_STATES = TILE_STATES / THREAD_COLUMNS;
    auto &tables = shared_memory<LowTables>();
    const int64_t n = scan.n, N = 2 * n, blocks = (n + TILE_STATES - 1) / TILE_STATES, table = scan.H * T * n;
    const int64_t first = blockIdx.x % blocks * TILE_STATES, h = blockIdx.x / blocks % scan.H;
    const int chain = int(blockIdx.x / blocks / scan.H), i = threadIdx.x / THREAD_COLUMNS,
              j = threadIdx.x % THREAD_COLUMNS;
    const bool of_reach = chain < rank;
    const Wide *const other = low + ((of_reach ? chain + rank : chain - rank) * scan.H + h) * T * n;
    Wide sums[LEFT<R>][THREAD_STATES] = {};
    for (int kind = 0; kind < transitions.kinds; ++kind) {
        const int length = kind == 0 ? transitions.lengths[0] : transitions.lengths[1];
        for (int64_t start = 0; start < N; start += SLICE) {
            __syncthreads();
            for (int entry = threadIdx.x; entry < T * SLICE; entry += THREADS) {
                const int t = entry / SLICE, x = entry % SLICE;
                double value = 0;
                if (t < length && start + x < N) {
                    const Wide v = other[(length - 1 - t) * n + (start + x) / 2], w = of_reach ? doubled(v) : v;
                    value = x % 2 ? w.im : w.re;
                }
                tables.left[t][x] = value;
            }
            for (int entry = threadIdx.x; entry < SLICE * 2 * TILE_STATES; entry += THREADS) {
                // Neighbours in memory for neighbouring threads.
                const int x = of_reach ? entry % SLICE : entry / (2 * TILE_STATES),
                          y = of_reach ? entry / SLICE : entry % (2 * TILE_STATES);
                double sum = 0;
                if (start + x < N && 2 * first + y < N) {
                    const int64_t row = of_reach ? 2 * first + y : start + x,
                                  column = of_reach ? start + x : 2 * first + y;
                    for (int64_t share = 0; share < shares; ++share)
                        sum +=
                            double(parts[(((share * transitions.kinds + kind) * scan.H + h) * N + row) * N + column]);
                }
                tables.right[x][y] = sum;
            }
            __syncthreads();
#pragma unroll 1
            for (int x = 0; x < SLICE; ++x) {
                Wide right[THREAD_STATES];
#pragma unroll
                for (int b = 0; b < THREAD_STATES; ++b) {
                    const double *const pair = &tables.right[x][2 * (j + b * THREAD_COLUMNS)];
                    right[b] = {pair[0], pair[1]};
                }
#pragma unroll
                for (int a = 0; a < LEFT<R>; ++a) {
                    const double left = tables.left[i + a * THREAD_ROWS][x];
#pragma unroll
                    for (int b = 0; b < THREAD_STATES; ++b) sums[a][b] += left * right[b];
                }
            }
        }
    }
    Wide *const to = values + chain * table + h * T * n;
#pragma unroll
    for (int a = 0; a < LEFT<R>; ++a)
#pragma unroll
        for (int b = 0; b < THREAD_STATES; ++b) {
            const int64_t k = first + j + b * THREAD_COLUMNS;
            if (k >= n) continue;
            const Wide gradient = -1.0 * sums[a][b];
            to[(i + a * THREAD_ROWS) * n + k] = of_reach ? gradient : doubled(gradient);
        }
}

// --------------------------------------------------------------------------------------------- through the chains

// Loads that do not wait for each other.
constexpr int AT_ONCE = 4;

// Followed by the gradients of the chains' values, (ROWS, n).
struct alignas(16) BackTables {
    double scratch[2 * RANKS][ROWS][LANES], sums[2 * RANKS][ROWS], response[CHUNK<float>];
};

// The values of a chain from its table on: v_t at t - offset. Without branches, so that loads do not wait for each
// other.
template <class R>
struct ChainValues {
    const Complex<R> *narrow;
    const Wide *wide;  // or NULL
    Wide factor;       // of re and of im

    S4_FAST_INLINE Wide at(int64_t index) const {
        const Wide v = wide ? wide[index] : convert<double>(narrow[index]);
        return {factor.re * v.re, factor.im * v.im};
    }
};

template <class R>
S4_FAST_INLINE ChainValues<R> values_of(const Scan &scan, int rank, const Maps<R> &maps, const Chain &chain,
                                        int64_t h) {
    const int64_t feature = h * CHUNK<R> * scan.n, table = scan.H * CHUNK<R> * scan.n;
    switch (chain.kind) {
        case ENTER:
            return {maps.enter + feature, nullptr, {1, 1}};
        case LEAVE:
            return {maps.leave + chain.which * table + feature, nullptr, {0.5, -0.5}};
        default:
            return {nullptr, maps.low + (chain.which + (chain.kind == FADE ? rank : 0)) * table + feature, {1, 1}};
    }
}

// The gradient of the response `t` samples after a sample, or before in the second direction, for all threads.
template <class R>
S4_FAST_INLINE void load_response(BackTables &tables, const Scan &scan, const MapGradients<R> &maps, int64_t row,
                                  int64_t h) {
    constexpr int T = CHUNK<R>;
    const int lag = threadIdx.x + (row >= scan.c ? 1 : 0);
    __syncthreads();
    if (threadIdx.x < T) {
        double sum = 0;
        for (int64_t share = 0; share < maps.correlation_shares && lag < T; ++share)
            sum += double(maps.sums.correlation[((share * leave_chains(scan) + row) * scan.H + h) * T + lag]);
        tables.response[threadIdx.x] = sum;
    }
    __syncthreads();
}

// ROWS chains of a feature, LANES threads each: of v_{t+1} = a v_t - sum_r X_r p_r with p_r = 2 Re sum_n Y_r v_t and a
// gradient g of v_{t+1}, that of v_t gains conj(a) g - sum_r conj(Y_r) q_r with q_r = 2 Re sum_n conj(g) X_r, that of a
// g conj(v_t), that of X_r loses g p_r and that of Y_r conj(v_t) q_r.
template <class R>
__global__ void __launch_bounds__(THREADS, sizeof(R) == sizeof(float) ? 3 : 2)
    dplr_chains_back_kernel(Scan scan, const __grid_constant__ DplrModel<R> model, const __grid_constant__ Maps<R> maps,
                            const __grid_constant__ MapGradients<R> of_maps, ChainGradients to, Complex<R> *grad_C) {
    constexpr int T = CHUNK<R>;
    auto &tables = shared_memory<BackTables>();
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES, rank = model.rank;
    const int64_t n = scan.n, h = blockIdx.x % scan.H, id = blockIdx.x / scan.H * ROWS + row;
    const bool present = id < chains_of(scan, rank);
    const Chain chain = find_chain(scan, rank, present ? id : 0);
    const int64_t first = present ? lane : n, at = (present ? id : 0) * scan.H + h;  // from `first` on: no state
    Wide *const gradient = reinterpret_cast<Wide *>(&tables + 1) + row * n, *const values = to.values + at * T * n;
    double *const steps = to.overlaps + at * T * 2 * rank;
    const System system = system_at(maps.systems, rank, n, h), given = system_at(to.given, rank, n, at);
    const Coupling low = coupling_of(chain, system);
    const ChainValues<R> chain_values = values_of(scan, rank, maps, chain, h);
    const bool coupled = chain.kind != FADE;
    const auto value = [&](int t, int64_t k) {
        return t < chain.offset ? chain_start(scan, model, chain, system, h, k)
                                : chain_values.at((t - chain.offset) * n + k);
    };

    for (int64_t k = first; k < n; k += LANES) {
        given.b[k] = {0, 0};
        if (chain.kind != ENTER && chain.kind != LEAVE) continue;
        const int64_t count = 1 + leave_chains(scan), table = chain.kind == ENTER ? 0 : 1 + chain.which;
#pragma unroll 1
        for (int i = 0; i < T; i += AT_ONCE) {
            Wide sums[AT_ONCE] = {};
            for (int64_t share = 0; share < of_maps.shares; ++share)
#pragma unroll
                for (int q = 0; q < AT_ONCE; ++q)
                    sums[q] += convert<double>(
                        of_maps.sums.tables[(((share * count + table) * scan.H + h) * T + i + q) * n + k]);
#pragma unroll
            for (int q = 0; q < AT_ONCE; ++q)
                values[(i + q) * n + k] = chain.kind == ENTER ? sums[q] : doubled(sums[q]);
        }
    }
    for (int64_t c = 0; c < leave_chains(scan); ++c) {
        load_response(tables, scan, of_maps, c, h);
        for (int64_t k = first; k < n; k += LANES) {
            if (chain.kind == ENTER) {
                const Wide factor = doubled(convert<double>(model.of_A.C[(c * scan.H + h) * n + k]));
#pragma unroll 1
                for (int t = 0; t < T; t += AT_ONCE) {
                    Wide own[AT_ONCE];
#pragma unroll
                    for (int q = 0; q < AT_ONCE; ++q) own[q] = values[(t + q) * n + k];
#pragma unroll
                    for (int q = 0; q < AT_ONCE; ++q)
                        values[(t + q) * n + k] = own[q] + tables.response[t + q] * factor;
                }
            } else if (chain.kind == LEAVE && chain.which == c) {
                Wide sum = {0, 0};
#pragma unroll 4
                for (int t = 0; t < T; ++t)
                    sum += tables.response[t] * doubled(convert<double>(maps.enter[(h * T + t) * n + k]));
                given.b[k] = sum;
            }
        }
    }

    for (int64_t k = first; k < n; k += LANES) gradient[k] = values[(T - 1) * n + k];
#pragma unroll 1
    for (int t = T - 1; t >= 0; --t) {
        const bool steps_here = present && t < T - 1 + chain.offset;
        for (int r = 0; r < rank; ++r) {
            double p = 0, q = 0;
            for (int64_t k = steps_here ? lane : n; k < n; k += LANES) {
                p += real_product(low.Y[r * n + k], value(t, k));
                q += real_product(conj(gradient[k]), low.X[r * n + k]);
            }
            tables.scratch[r][row][lane] = p;
            tables.scratch[rank + r][row][lane] = q;
        }
        __syncthreads();
        if (lane < 2 * rank) {
            const double sum = 2 * lane_sum(tables.scratch[lane][row]);
            tables.sums[lane][row] = sum;
            if (steps_here) steps[t * 2 * rank + lane] = sum;
        }
        __syncthreads();
        for (int64_t k = steps_here ? lane : n; k < n; k += LANES) {
            Wide before = conj(system.a[k]) * gradient[k];
            for (int r = 0; r < rank && coupled; ++r)
                before = before - tables.sums[rank + r][row] * conj(low.Y[r * n + k]);
            if (t >= chain.offset) {
                Wide &own = values[(t - chain.offset) * n + k];
                before += own;
                own = before;
            }
            gradient[k] = before;
        }
    }
    __syncthreads();  // for the steps

    for (int64_t k = first; k < n; k += LANES) {
        const Wide start = given.b[k] + gradient[k];
        given.b[k] = start;
        if (chain.kind == LEAVE && grad_C) grad_C[(chain.which * scan.H + h) * n + k] = convert<R>(start);
        Wide of_a = {0, 0};
        // The start of a chain with an offset is not in its table.
        if (chain.offset) of_a += values[k] * conj(value(0, k));
#pragma unroll 4
        for (int t = chain.offset; t < T - 1 + chain.offset; ++t)
            of_a += values[(t + 1 - chain.offset) * n + k] * conj(chain_values.at((t - chain.offset) * n + k));
        given.a[k] = of_a;
        for (int r = 0; r < rank && coupled; ++r) {
            Wide of_X = {0, 0}, of_Y = {0, 0};
            if (chain.offset) {
                of_X += steps[r] * values[k];
                of_Y += steps[rank + r] * conj(value(0, k));
            }
#pragma unroll 4
            for (int t = chain.offset; t < T - 1 + chain.offset; ++t) {
                of_X += steps[t * 2 * rank + r] * values[(t + 1 - chain.offset) * n + k];
                of_Y += steps[t * 2 * rank + rank + r] * conj(chain_values.at((t - chain.offset) * n + k));
            }
            given.G[r * n + k] = -1.0 * of_X;
            given.V[r * n + k] = -1.0 * of_Y;
        }
    }
}

// ------------------------------------------------------------------------------------- through the discretisation

// The real numbers that a feature gives to the gradients of A_real, A_imag, B and P, as they follow each other.
__host__ S4_FAST_INLINE int64_t shared_reals(int64_t n, int rank) { return (4 + 2 * rank) * n; }

template <class R>
S4_FAST_INLINE void write_shared(const DplrGradients<R> &grad, int64_t copies, int64_t n, int64_t copy, int64_t entry,
                                 double value) {
    if (entry < n) {
        if (grad.A_real) grad.A_real[copy * n + entry] = R(value);
    } else if (entry < 2 * n) {
        if (grad.A_imag) grad.A_imag[copy * n + entry - n] = R(value);
    } else if (entry < 4 * n) {
        if (grad.B) reinterpret_cast<R *>(grad.B)[copy * 2 * n + entry - 2 * n] = R(value);
    } else if (grad.P) {
        const int64_t r = (entry - 4 * n) / (2 * n), real = (entry - 4 * n) % (2 * n);
        reinterpret_cast<R *>(grad.P)[(r * copies + copy) * 2 * n + real] = R(value);
    }
}

struct FinishTables {
    WoodburyTables woodbury;
    double of_kappa[RANKS], of_eta[RANKS], of_K[RANKS][RANKS], of_M[RANKS][RANKS], half[RANKS][RANKS];
    double dt[THREADS];
};

// The sums over a feature's chains, as the gradient of its system.
template <class R>
S4_FAST_INLINE void sum_chains(const Scan &scan, int rank, const Transitions &transitions, const R *parts,
                               int64_t shares, const Wide *given, const System &system, const System &to, int64_t h,
                               int64_t k) {
    const int64_t n = scan.n, N = 2 * n, chains = chains_of(scan, rank);
    Wide of_a = {0, 0};
    for (int64_t id = 0; id < chains; ++id) of_a += system_at(const_cast<Wide *>(given), rank, n, id * scan.H + h).a[k];
    for (int kind = 0; kind < transitions.kinds; ++kind) {
        const int length = kind == 0 ? transitions.lengths[0] : transitions.lengths[1];
        Wide of_power = {0, 0};
        for (int64_t share = 0; share < shares; ++share) {
            const R *const block = parts + (((share * transitions.kinds + kind) * scan.H + h) * N + 2 * k) * N + 2 * k;
            of_power += Wide{double(block[0]) + double(block[N + 1]), double(block[N]) - double(block[1])};
        }
        of_a += of_power * conj(double(length) * integer_power(system.a[k], length - 1));
    }
    to.a[k] = of_a;
    for (int r = 0; r < rank; ++r) to.G[r * n + k] = to.V[r * n + k] = {0, 0};
    for (int64_t id = 0; id < chains; ++id) {
        const Chain chain = find_chain(scan, rank, id);
        const System from = system_at(const_cast<Wide *>(given), rank, n, id * scan.H + h);
        const Wide start = from.b[k];
        if (chain.kind == ENTER) to.b[k] = start;
        if (chain.kind == REACH) to.G[chain.which * n + k] += start;
        if (chain.kind == FADE) to.V[chain.which * n + k] += start;
        for (int r = 0; r < rank && chain.kind != FADE; ++r) {
            to.G[r * n + k] += chain.kind == LEAVE ? from.V[r * n + k] : from.G[r * n + k];
            to.V[r * n + k] += chain.kind == LEAVE ? from.G[r * n + k] : from.V[r * n + k];
        }
    }
}

// Takes the gradients of K and kappa to those of M and eta, in one thread.
S4_FAST_INLINE void invert_back(FinishTables &tables, int rank) {
    const WoodburyTables &woodbury = tables.woodbury;
    for (int i = 0; i < rank; ++i) {
        tables.of_eta[i] = 0;
        for (int j = 0; j < rank; ++j) {
            tables.of_K[i][j] += tables.of_kappa[i] * woodbury.eta[j];
            tables.of_eta[i] += woodbury.K[j][i] * tables.of_kappa[j];
        }
    }
    for (int i = 0; i < rank; ++i)
        for (int j = 0; j < rank; ++j) {
            tables.half[i][j] = 0;
            for (int l = 0; l < rank; ++l) tables.half[i][j] += woodbury.K[l][i] * tables.of_K[l][j];
        }
    for (int i = 0; i < rank; ++i)
        for (int j = 0; j < rank; ++j) {
            tables.of_M[i][j] = 0;
            for (int l = 0; l < rank; ++l) tables.of_M[i][j] -= tables.half[i][l] * woodbury.K[j][l];
        }
}

// A feature for each block. Where features share parameters, what it gives to theirs is left in `contributions`.
template <class R>
__global__ void __launch_bounds__(THREADS, 4)
    dplr_finish_kernel(Scan scan, const __grid_constant__ DplrModel<R> model, const __grid_constant__ Maps<R> maps,
                       const __grid_constant__ Transitions transitions, const __grid_constant__ MapGradients<R> of_maps,
                       bool of_parameters, const Wide *given, Wide *of_systems,
                       const __grid_constant__ DplrGradients<R> grad, double *contributions) {
    auto &tables = shared_memory<FinishTables>();
    const int64_t n = scan.n, h = blockIdx.x;
    const int rank = model.rank;
    if (grad.D)
        for (int64_t channel = threadIdx.x; channel < scan.c; channel += THREADS) {
            R sum = 0;
            for (int64_t share = 0; share < of_maps.correlation_shares; ++share)
                sum += of_maps.sums.correlation[((share * leave_chains(scan) + channel) * scan.H + h) * CHUNK<R>];
            grad.D[channel * scan.H + h] = sum;
        }
    if (!of_parameters) return;
    const System system = system_at(maps.systems, rank, n, h), of = system_at(of_systems, rank, n, h);
    WoodburyTables &woodbury = tables.woodbury;
    discretize(woodbury, model, h, n, system);
    for (int64_t k = threadIdx.x; k < n; k += THREADS)
        sum_chains(scan, rank, transitions, of_maps.sums.transitions, of_maps.shares, given, system, of, h, k);
    __syncthreads();
    // The gradient of a row of K Q.
    const auto of_row = [&](const State &state, int i, int64_t k) {
        return 2.0 * (conj(state.weight) * of.V[i * n + k]);
    };
    overlaps(
        woodbury.scratch, rank, rank + 1, n,
        [&](int i, int j, int64_t k) {
            if (j == rank) return -real_product(conj(of.b[k]), system.G[i * n + k]);
            return real_product(of_row(read_pole(model, h, n, k), i, k), model.low_rank(j, h, n, k));
        },
        [&](int i, int j) -> double & { return j < rank ? tables.of_K[i][j] : tables.of_kappa[i]; });
    if (threadIdx.x == 0) invert_back(tables, rank);
    __syncthreads();
    double of_dt = 0;
    const bool shared = model.of_A.copies < scan.H;
    for (int64_t k = threadIdx.x; k < n; k += THREADS) {
        const State state = read_pole(model, h, n, k);
        const Wide d = state.weight, delta = entering(state), b0 = 2.0 * (delta * state.B);
        const auto write = [&](int64_t entry, double value) {
            if (shared)
                contributions[h * shared_reals(n, rank) + entry] = value;
            else
                write_shared(grad, model.of_A.copies, n, h, entry, value);
        };
        Wide of_b0 = of.b[k], of_d = 2.0 * of.a[k], of_delta = {0, 0};
#pragma unroll 1
        for (int r = 0; r < rank; ++r) {
            const Wide P = model.low_rank(r, h, n, k);
            of_b0 += 2 * tables.of_eta[r] * P;
            of_d += of.V[r * n + k] * conj(2.0 * weighted_row(woodbury, model, r, h, n, k));
            Wide of_G = of.G[r * n + k] - woodbury.kappa[r] * of.b[k], of_Q = 2 * tables.of_eta[r] * conj(b0);
            for (int i = 0; i < rank; ++i) {
                of_G += 2 * tables.of_M[i][r] * model.low_rank(i, h, n, k);
                of_Q += woodbury.K[i][r] * of_row(state, i, k) + 2 * tables.of_M[r][i] * conj(system.G[i * n + k]);
            }
            of_delta += of_G * conj(P);
            const Wide of_P = of_G * conj(delta) + conj(of_Q);
            write((4 + 2 * r) * n + 2 * k, of_P.re);
            write((4 + 2 * r) * n + 2 * k + 1, of_P.im);
        }
        of_delta += of_b0 * conj(2.0 * state.B);
        const Wide of_B = of_b0 * conj(2.0 * delta), of_A = of_d * conj(delta * d) + of_delta * conj(delta * delta);
        const double of_half = real_product(conj(of_d), d * d * state.A) + real_product(conj(of_delta), d * d);
        const Chained stored = as_stored(model.of_A, state, {of_A, of_B, 0.5 * of_half});
        write(k, stored.A.re);
        write(n + k, stored.A.im);
        write(2 * n + 2 * k, stored.B.re);
        write(2 * n + 2 * k + 1, stored.B.im);
        of_dt += stored.dt;
        if (grad.dt && model.of_A.dt_states > 1) grad.dt[h * n + k] = R(stored.dt);
    }
    if (!grad.dt || model.of_A.dt_states > 1) return;
    tables.dt[threadIdx.x] = of_dt;
    __syncthreads();
    if (threadIdx.x > 0) return;
    double sum = 0;
    for (int i = 0; i < THREADS; ++i) sum += tables.dt[i];
    grad.dt[h] = R(sum);
}

// Real numbers of a copy that a block has, and the threads among which their features are dealt.
constexpr int COPIED = 4, DEALT = THREADS / COPIED;

struct DplrCopiesTables {
    double sums[DEALT][COPIED];
};

// The sums over the features of each copy.
template <class R>
__global__ void __launch_bounds__(THREADS)
    dplr_copies_kernel(Scan scan, int64_t copies, int rank, const double *contributions,
                       const __grid_constant__ DplrGradients<R> grad) {
    auto &tables = shared_memory<DplrCopiesTables>();
    const int64_t reals = shared_reals(scan.n, rank), blocks = (reals + COPIED - 1) / COPIED;
    const int64_t copy = blockIdx.x / blocks, entry = blockIdx.x % blocks * COPIED + threadIdx.x % COPIED;
    const int turn = threadIdx.x / COPIED;
    double sum = 0;
    for (int64_t h = copy + turn * copies; entry < reals && h < scan.H; h += DEALT * copies)
        sum += contributions[h * reals + entry];
    tables.sums[turn][threadIdx.x % COPIED] = sum;
    __syncthreads();
    if (turn > 0 || entry >= reals) return;
    for (int other = 1; other < DEALT; ++other) sum += tables.sums[other][threadIdx.x];
    write_shared(grad, copies, scan.n, copy, entry, sum);
}

}  // namespace
}  // namespace s4_fast::cuda
