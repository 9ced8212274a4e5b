// How the adjoint of a step is cut for threads.
#pragma once

#include "parallel.h"
#include "pieces.h"

namespace s4_fast::cpu {

// Features one after another whose sums over the batch, `sums` complex doubles for each of n states, stay in cache
// while the batch passes by. A feature belongs to one group, so its sums do not depend on the number of threads.
struct FeatureGroups {
    int64_t H, each, count, states;

    FeatureGroups(int64_t batch, int64_t H, int64_t n, int64_t sums) : H(H), states(batch * H * n) {
        const int64_t most = NUMBERS / (2 * n * sums);
        each = most < 1 ? 1 : most < H ? most : H;
        count = (H + each - 1) / each;
    }

    int64_t first(int64_t group) const { return group * each < H ? group * each : H; }

    // The threads to use.
    int64_t worth(int64_t threads) const { return at_most(threads_worth(threads, states, SMALL), count); }

    static constexpr int64_t NUMBERS = 1 << 12, SMALL = 1 << 15;
};

}  // namespace s4_fast::cpu
