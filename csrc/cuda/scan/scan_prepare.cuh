// The first kernel of every call: what follows from the parameters alone, and signals as the other kernels read them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../shared/half.cuh"
#include "discretize.cuh"
#include "scan_chunks.cuh"

namespace s4_fast::cuda {
namespace {

// A signal of `features` rows per batch to be laid out as (batch, features, L); none where `to` is NULL.
template <class R, class S>
struct Staged {
    const S *from;
    R *to;
    int64_t features, blocks;
};

// Samples and features that a block stages at once.
constexpr int STAGE = 32;

template <class R>
struct PrepareTables {
    static constexpr int T = CHUNK<R>, GROUPS = THREADS / T;
    Node<R> nodes[TILE_STATES];
    Complex<R> products[2][TILE_STATES];
    R sums[2][GROUPS][T];
};

template <class R>
struct StageTables {
    R tile[STAGE][STAGE + 1];
};

template <class R>
struct MadeTables {
    Node<R> *nodes;
    Node<double> *wide;
    Complex<R> *enter, *leave;
    R *response;
};

// A feature's nodes and weights, and the response of one channel.
template <class R>
S4_FAST_INLINE void prepare_feature(const Scan &scan, const Model<R> &model, const MadeTables<R> &made, int64_t h,
                                    int64_t channel) {
    using Prepare = PrepareTables<R>;
    constexpr int T = Prepare::T, GROUPS = Prepare::GROUPS;
    auto &tables = shared_memory<Prepare>();
    const int lag = threadIdx.x % T, group = threadIdx.x / T;
    R sums[2] = {};
    for (int64_t first = 0; first < scan.n; first += TILE_STATES) {
        const int states = int(scan.n - first < TILE_STATES ? scan.n - first : TILE_STATES);
        __syncthreads();
        if (threadIdx.x < states) {
            const int64_t k = first + threadIdx.x, index = h * scan.n + k;
            const State state = read_state(model, h, scan.n, k);
            const Node<R> node = node_of<R>(state.x);
            const Node<double> wide = node_of<double>(state.x);
            const Wide enter = enter_weight(model, state);
            tables.nodes[threadIdx.x] = node;
            if (channel == 0) {
                made.nodes[index] = node;
                made.wide[index] = wide;
                made.enter[index] = convert<R>(enter);
            }
            for (int direction = 0; direction < scan.directions; ++direction) {
                const int64_t of_C = (direction * scan.c + channel) * scan.H * scan.n + index;
                const Wide out = 2.0 * convert<double>(model.C[of_C]);
                made.leave[of_C] = convert<R>(direction == 0 ? power(wide, 1) * out : out);
                tables.products[direction][threadIdx.x] = convert<R>(out * enter);
            }
        }
        __syncthreads();
        for (int k = group; k < states; k += GROUPS) {
            const Complex<R> p = power(tables.nodes[k], lag);
            sums[0] += real_product(tables.products[0][k], p);
            if (scan.directions > 1) sums[1] += real_product(tables.products[1][k], p);
        }
    }
    tables.sums[0][group][lag] = sums[0];
    tables.sums[1][group][lag] = sums[1];
    __syncthreads();
    if (threadIdx.x >= T) return;
    R past = 0, ahead = 0;
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
        past += tables.sums[0][g][lag];
        ahead += tables.sums[1][g][lag];
    }
    const int64_t row = channel * scan.H + h;
    if (lag == 0 && model.D) past += model.D[row];
    // No sample is L away, and a growing node's response there could be infinite.
    R *const response = made.response + row * 2 * T;
    response[T + lag] = lag < scan.L ? past : R(0);
    response[T - 1 - lag] = lag < T - 1 && lag + 1 < scan.L ? ahead : R(0);
}

template <class R, class S>
S4_FAST_INLINE void stage(const Scan &scan, const Staged<R, S> &signal, bool time_major, int64_t block) {
    auto &tile = shared_memory<StageTables<R>>().tile;
    const int64_t along = (scan.L + STAGE - 1) / STAGE, across = (signal.features + STAGE - 1) / STAGE;
    const int64_t l = block % along * STAGE, f = block / along % across * STAGE, row = block / (along * across);
    for (int entry = threadIdx.x; entry < STAGE * STAGE; entry += THREADS) {
        const int inner = entry % STAGE, outer = entry / STAGE;
        const int i = time_major ? inner : outer, j = time_major ? outer : inner;
        if (f + i >= signal.features || l + j >= scan.L) continue;
        const int64_t index = time_major ? (row * scan.L + l + j) * signal.features + f + i
                                         : (row * signal.features + f + i) * scan.L + l + j;
        tile[i][j] = load_value(signal.from[index]);
    }
    __syncthreads();
    for (int entry = threadIdx.x; entry < STAGE * STAGE; entry += THREADS) {
        const int i = entry / STAGE, j = entry % STAGE;
        if (f + i < signal.features && l + j < scan.L)
            signal.to[(row * signal.features + f + i) * scan.L + l + j] = tile[i][j];
    }
}

// Blocks for each channel of each feature, then those that stage one signal, then those of another.
template <class R, class S>
__global__ void __launch_bounds__(THREADS, 4)
    scan_prepare_kernel(Scan scan, Model<R> model, MadeTables<R> made, bool time_major, Staged<R, S> first,
                        Staged<R, S> second) {
    int64_t block = blockIdx.x;
    if (block < scan.H * scan.c) return prepare_feature(scan, model, made, block % scan.H, block / scan.H);
    block -= scan.H * scan.c;
    if (block < first.blocks) return stage(scan, first, time_major, block);
    stage(scan, second, time_major, block - first.blocks);
}

template <class R>
MadeTables<R> take_tables(Call &call, const Scan &scan) {
    const int64_t states = scan.H * scan.n;
    MadeTables<R> made;
    made.nodes = call.take<Node<R>>(states);
    made.wide = call.take<Node<double>>(states);
    made.enter = call.take<Complex<R>>(states);
    made.leave = call.take<Complex<R>>(scan.directions * scan.c * states);
    made.response = call.take<R>(scan.c * scan.H * 2 * CHUNK<R>);
    return made;
}

// A signal of that many channels where the kernels will read it, for NULL nowhere.
template <class R, class S>
const R *take_signal(Call &call, const Scan &scan, bool time_major, const S *from, int64_t channels,
                     Staged<R, S> &staged) {
    staged = {from, nullptr, channels * scan.H, 0};
    if (!from) return nullptr;
    if constexpr (std::is_same_v<R, S>)
        if (!time_major) return from;
    staged.blocks = scan.batch * divide_up(staged.features, STAGE) * divide_up(scan.L, STAGE);
    return staged.to = call.take<R>(scan.batch * staged.features * scan.L);
}

template <class R, class S>
Tables<R> prepare(Call &call, const Scan &scan, const Model<R> &model, const MadeTables<R> &made, bool time_major,
                  const Staged<R, S> &first, const Staged<R, S> &second) {
    constexpr size_t SHARED = std::max(sizeof(PrepareTables<R>), sizeof(StageTables<R>));
    call.launch("scan_prepare_kernel", scan_prepare_kernel<R, S>, scan.H * scan.c + first.blocks + second.blocks,
                THREADS, SHARED, scan, model, made, time_major, first, second);
    return {made.nodes, made.wide, made.enter, made.leave, made.response};
}

}  // namespace
}  // namespace s4_fast::cuda
