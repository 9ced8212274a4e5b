// How a call over features and rows is cut for threads.
#pragma once

#include <cstdint>

namespace s4_fast {

// Pieces of work: a feature each, or where there are few, a feature and a part of its rows, large enough to be worth
// the tables of the feature. The number of parts does not depend on the number of threads, so that neither do the sums.
struct Pieces {
    int64_t rows, parts;

    Pieces(int64_t rows, int64_t H, int64_t L) : rows(rows) {
        const int64_t wanted = (kPieces + H - 1) / H, worth = rows * L / kSamples,
                      most = wanted < worth ? wanted : worth;
        parts = most < 1 ? 1 : most < rows ? most : rows;
    }

    int64_t first(int64_t part) const { return rows * part / parts; }

    static constexpr int64_t kPieces = 64, kSamples = 1 << 14;
};

inline int64_t at_most(int64_t threads, int64_t pieces) {
    return threads < 1 ? 1 : threads < pieces ? threads : pieces;
}

}  // namespace s4_fast
