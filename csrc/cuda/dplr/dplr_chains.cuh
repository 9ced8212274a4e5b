// The first kernel of a DPLR scan: the maps of a chunk that follow from the parameters alone, and signals laid out.
//
// A chunk of T samples is products with real matrices of the states' (re, im): with A the transition of a sample,
//     enter[i] = A^i b,   leave[i] = 2 conj(C A^{i+1}), or 2 conj(C A^i) in the second direction,
//     A^l = diag(a)^l - sum_r sum_{j<l} (A^{l-1-j} G_r) (V_r diag(a)^j),
// so that y = Re sum_n conj(leave) s, and the response is 2 Re sum_n C A^t b. All come from chains
//     v_{t+1} = a v_t - sum_r X_r 2 Re sum_n Y_r v_t
// from b and G with X = G and Y = V, from C with X = V and Y = G, from V without the sum.
#pragma once

#include "../scan/scan_prepare.cuh"
#include "dplr_system.cuh"

namespace s4_fast::cuda {
namespace {

enum ChainKind { ENTER, LEAVE, REACH, FADE };

// A chain of a feature: `which` of its kind, and by how much the index in its table is less than the exponent.
struct Chain {
    ChainKind kind;
    int64_t which;
    int offset;
};

__host__ S4_FAST_INLINE int64_t leave_chains(const Scan &scan) { return scan.directions * scan.c; }
__host__ S4_FAST_INLINE int64_t chains_of(const Scan &scan, int rank) { return 1 + leave_chains(scan) + 2 * rank; }

// The chain of this number. Those beyond the last are of no use.
S4_FAST_INLINE Chain find_chain(const Scan &scan, int rank, int64_t id) {
    if (id == 0) return {ENTER, 0, 0};
    id -= 1;
    if (id < leave_chains(scan)) return {LEAVE, id, id < scan.c ? 1 : 0};
    id -= leave_chains(scan);
    if (id < rank) return {REACH, id, 0};
    return {FADE, id - rank, 0};
}

// The tables in the workspace, and the systems of which each block of chains makes one for itself.
template <class R>
struct Maps {
    Wide *systems;      // (blocks, H, vectors, n)
    Complex<R> *enter;  // (H, T, n)
    Complex<R> *leave;  // (directions c, H, T, n)
    Wide *low;          // (2 rank, H, T, n): A^i G_r, then V_r a^i, of which transitions are made
    R *response;        // (c, H, 2 T)
};

inline int64_t chain_blocks(const Scan &scan, int rank) { return divide_up(chains_of(scan, rank), ROWS); }

template <class R>
Maps<R> take_maps(Call &call, const Scan &scan, int rank) {
    const int64_t table = scan.H * CHUNK<R> * scan.n;
    Maps<R> maps;
    maps.systems = call.take<Wide>(chain_blocks(scan, rank) * scan.H * vectors(rank) * scan.n);
    maps.enter = call.take<Complex<R>>(table);
    maps.leave = call.take<Complex<R>>(leave_chains(scan) * table);
    maps.low = call.take<Wide>(2 * rank * table);
    maps.response = call.take<R>(scan.c * scan.H * 2 * CHUNK<R>);
    return maps;
}

// Followed by the values of the chains, (ROWS, n).
struct alignas(16) ChainTables {
    WoodburyTables woodbury;
    double scratch[RANKS + 1][ROWS][LANES], sums[RANKS + 1][ROWS];
};

// The vectors that a chain's step subtracts, and those that say how much of them.
struct Coupling {
    const Wide *X, *Y;
};

S4_FAST_INLINE Coupling coupling_of(const Chain &chain, const System &system) {
    return chain.kind == LEAVE ? Coupling{system.V, system.G} : Coupling{system.G, system.V};
}

template <class R>
S4_FAST_INLINE Wide chain_start(const Scan &scan, const DplrModel<R> &model, const Chain &chain, const System &system,
                                int64_t h, int64_t k) {
    switch (chain.kind) {
        case ENTER:
            return system.b[k];
        case LEAVE:
            return convert<double>(model.of_A.C[(chain.which * scan.H + h) * scan.n + k]);
        case REACH:
            return system.G[chain.which * scan.n + k];
        default:
            return system.V[chain.which * scan.n + k];
    }
}

// 2 Re sum_n C A^t b of a chain's C: what a sample gives `t` samples later, or before in the second direction.
template <class R>
S4_FAST_INLINE void write_response(const Scan &scan, const DplrModel<R> &model, const Maps<R> &maps, const Chain &chain,
                                   int64_t h, int t, double value) {
    constexpr int T = CHUNK<R>;
    const bool ahead = chain.which >= scan.c;
    const int64_t row = chain.which % scan.c * scan.H + h;
    R *const response = maps.response + row * 2 * T;
    if (ahead) {
        response[T - 1 - t] = t < T - 1 && t + 1 < scan.L ? R(value) : R(0);
        return;
    }
    if (t == 0 && model.of_A.D) value += double(model.of_A.D[row]);
    response[T + t] = t < scan.L ? R(value) : R(0);
    if (scan.directions == 1) response[T - 1 - t] = 0;
}

template <class R>
S4_FAST_INLINE void write_chain(const Scan &scan, int rank, const Maps<R> &maps, const Chain &chain, int64_t h, int t,
                                int64_t k, Wide v) {
    constexpr int T = CHUNK<R>;
    const int i = t - chain.offset;
    if (i < 0 || i >= T) return;
    // None beyond L is needed, and those of a growing state could overflow.
    if (i >= scan.L) v = {0, 0};
    const int64_t index = (h * T + i) * scan.n + k, table = scan.H * T * scan.n;
    switch (chain.kind) {
        case ENTER:
            maps.enter[index] = convert<R>(v);
            return;
        case LEAVE:
            maps.leave[chain.which * table + index] = convert<R>(2.0 * conj(v));
            return;
        case REACH:
            maps.low[chain.which * table + index] = v;
            return;
        default:
            maps.low[(rank + chain.which) * table + index] = v;
    }
}

// ROWS chains of a feature, LANES threads each.
template <class R>
S4_FAST_INLINE void run_chains(const Scan &scan, const DplrModel<R> &model, const Maps<R> &maps, int64_t block,
                               int64_t h) {
    constexpr int T = CHUNK<R>;
    auto &tables = shared_memory<ChainTables>();
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES, rank = model.rank;
    const int64_t n = scan.n, id = block * ROWS + row;
    Wide *const v = reinterpret_cast<Wide *>(&tables + 1) + row * n;
    const System system = system_at(maps.systems, rank, n, block * scan.H + h);
    discretize(tables.woodbury, model, h, n, system);
    const bool present = id < chains_of(scan, rank);
    const Chain chain = find_chain(scan, rank, present ? id : 0);
    const Coupling low = coupling_of(chain, system);
    for (int64_t k = lane; k < n; k += LANES) v[k] = chain_start(scan, model, chain, system, h, k);
    for (int t = 0;; ++t) {
        for (int64_t k = lane; k < n && present; k += LANES) write_chain(scan, rank, maps, chain, h, t, k, v[k]);
        if (t == T) return;
        for (int r = 0; r <= rank; ++r) {
            const Wide *const Y = r < rank ? low.Y + r * n : system.b;
            double sum = 0;
            for (int64_t k = lane; k < n; k += LANES) sum += real_product(Y[k], v[k]);
            tables.scratch[r][row][lane] = sum;
        }
        __syncthreads();
        if (lane <= rank) tables.sums[lane][row] = 2 * lane_sum(tables.scratch[lane][row]);
        __syncthreads();
        if (present && chain.kind == LEAVE && lane == 0)
            write_response(scan, model, maps, chain, h, t, tables.sums[rank][row]);
        for (int64_t k = lane; k < n; k += LANES) {
            Wide following = system.a[k] * v[k];
            for (int r = 0; r < rank && chain.kind != FADE; ++r)
                following = following - tables.sums[r][row] * low.X[r * n + k];
            v[k] = following;
        }
    }
}

// Blocks for the chains of each feature, then those that stage one signal, then those of another.
template <class R, class S>
__global__ void __launch_bounds__(THREADS, 4)
    dplr_chains_kernel(Scan scan, const __grid_constant__ DplrModel<R> model, const __grid_constant__ Maps<R> maps,
                       int64_t chain_blocks, bool time_major, Staged<R, S> first, Staged<R, S> second) {
    int64_t block = blockIdx.x;
    if (block < scan.H * chain_blocks) return run_chains(scan, model, maps, block / scan.H, block % scan.H);
    block -= scan.H * chain_blocks;
    if (block < first.blocks) return stage(scan, first, time_major, block);
    stage(scan, second, time_major, block - first.blocks);
}

template <class R, class S>
void make_maps(Call &call, const Scan &scan, const DplrModel<R> &model, const Maps<R> &maps, bool time_major,
               const Staged<R, S> &first, const Staged<R, S> &second) {
    const int64_t blocks = chain_blocks(scan, model.rank);
    const size_t shared = std::max(sizeof(ChainTables) + ROWS * scan.n * sizeof(Wide), sizeof(StageTables<R>));
    call.launch("dplr_chains_kernel", dplr_chains_kernel<R, S>, scan.H * blocks + first.blocks + second.blocks, THREADS,
                shared, scan, model, maps, blocks, time_major, first, second);
}

}  // namespace
}  // namespace s4_fast::cuda
