#include "root_tables.h"

#include "parallel.h"
#include "pieces.h"

namespace s4_fast::cpu {
namespace {

constexpr int64_t WORTH_THREADS = 1 << 14;

void fill(const RootPowers &powers) { S4_FAST_RETURN_FROM_ISA(root_powers(powers)) }

void fill(const RootPowers &powers, const Roots &to, int64_t row) { S4_FAST_RETURN_FROM_ISA(roots(powers, to, row)) }

}  // namespace

RootTables::RootTables(int64_t L, int64_t threads)
    : nodes_(L / 2 + 1), padded_(ceil_div(nodes_, NODES) * NODES), memory_(memory_for_doubles(3 * padded_)) {
    const Roots roots = tables();
    for (int64_t k = nodes_; k < padded_; ++k) roots.cos[k] = roots.low[k] = 0, roots.twice_sin[k] = 2;
    const int64_t count = L / 4 + 1;
    int64_t fine = 1;
    while (fine * fine < count) fine *= 2;
    const int64_t coarse = ceil_div(count, fine);
    const auto memory = memory_for_doubles(4 * fine + 8 * coarse);
    const RootPowers powers = {L, fine, coarse, doubles(memory), doubles(memory) + 4 * fine};
    fill(powers);
    parallel_for(threads_worth(threads, nodes_, WORTH_THREADS), 2 * coarse,
                 [&](int64_t row, int64_t) { fill(powers, roots, row); });
}

}  // namespace s4_fast::cpu
