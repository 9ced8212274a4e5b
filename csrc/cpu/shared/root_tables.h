// Tables of the roots of unity, which belong to one call.
#pragma once

#include "memory.h"
#include "roots.h"

namespace s4_fast::cpu {

// The half angles of all nodes, padded with values that make no sum infinite.
class RootTables {
   public:
    RootTables(int64_t L, int64_t threads);

    Roots tables() const { return {doubles(memory_), doubles(memory_) + padded_, doubles(memory_) + 2 * padded_}; }

   private:
    int64_t nodes_, padded_;
    AlignedMemory memory_;
};

}  // namespace s4_fast::cpu
