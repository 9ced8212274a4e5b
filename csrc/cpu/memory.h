// Aligned memory that is left uninitialised.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "arena.h"

namespace s4_fast {

struct FreeAligned {
    void operator()(char *memory) const { ::operator delete(memory, std::align_val_t(Arena::kAlignment)); }
};

// Throws std::bad_alloc.
inline std::unique_ptr<char, FreeAligned> aligned_memory(int64_t bytes) {
    return std::unique_ptr<char, FreeAligned>(
        static_cast<char *>(::operator new(std::size_t(bytes > 0 ? bytes : 1), std::align_val_t(Arena::kAlignment))));
}

}  // namespace s4_fast
