// How a call over features and rows is cut for threads.
#pragma once

#include <cstdint>

namespace s4_fast::cpu {

// Pieces of work: a feature each, or where there are few, a feature and a part of its rows, large enough to be worth
// the tables of the feature. The number of parts does not depend on the number of threads, so that neither do the sums.
struct Pieces {
    int64_t rows, parts;

    Pieces(int64_t rows, int64_t H, int64_t L) : rows(rows) {
        const int64_t wanted = (PIECES + H - 1) / H, worth = rows * L / SAMPLES, most = wanted < worth ? wanted : worth;
        parts = most < 1 ? 1 : most < rows ? most : rows;
    }

    int64_t first(int64_t part) const { return rows * part / parts; }

    static constexpr int64_t PIECES = 64, SAMPLES = 1 << 14;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pieces of work: a feature each, or where there are few, a feature and a range of its nodes, which begins at a
// multiple of `multiple`. How many ranges there are does not depend on the number of threads, so that neither do sums
// over nodes.
struct NodeRanges {
    int64_t nodes, range, parts;

    NodeRanges(int64_t H, int64_t nodes, int64_t multiple) : nodes(nodes) {
        const int64_t wanted = ceil_div(PIECES, H), most = ceil_div(nodes, WORTH);
        range = ceil_div(ceil_div(nodes, wanted < most ? wanted : most), multiple) * multiple;
        parts = ceil_div(nodes, range);
    }

    int64_t first(int64_t part) const { return part * range < nodes ? part * range : nodes; }

    static constexpr int64_t PIECES = 64, WORTH = 1024;
};

inline int64_t at_most(int64_t threads, int64_t pieces) {
    return threads < 1 ? 1 : threads < pieces ? threads : pieces;
}

}  // namespace s4_fast::cpu
