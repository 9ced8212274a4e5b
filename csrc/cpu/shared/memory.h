// Aligned memory that is left uninitialised.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "arena.h"

#ifdef S4_FAST_CHECKED
#include <atomic>
#include <cstring>
#endif

namespace s4_fast::cpu {

#ifdef S4_FAST_CHECKED
// What the memory holds at first, which must not matter (tests/native/sanitize.cpp).
extern std::atomic<int> scratch_byte;
#endif

struct FreeAligned {
    void operator()(char *memory) const { ::operator delete(memory, std::align_val_t(Arena::ALIGNMENT)); }
};

using AlignedMemory = std::unique_ptr<char, FreeAligned>;

// Throws std::bad_alloc.
inline AlignedMemory aligned_memory(int64_t bytes) {
    const std::size_t size = std::size_t(bytes > 0 ? bytes : 1);
    AlignedMemory memory(static_cast<char *>(::operator new(size, std::align_val_t(Arena::ALIGNMENT))));
#ifdef S4_FAST_CHECKED
    std::memset(memory.get(), scratch_byte, size);
#endif
    return memory;
}

inline AlignedMemory memory_for_doubles(int64_t count) { return aligned_memory(count * int64_t(sizeof(double))); }

inline double *doubles(const AlignedMemory &memory) { return reinterpret_cast<double *>(memory.get()); }

// The memory of one call. A little of it lies on the stack, where it costs nothing.
class Scratch {
   public:
    explicit Scratch(int64_t bytes) : large_(bytes > SMALL ? aligned_memory(bytes) : nullptr) {}

    char *get() { return large_ ? large_.get() : small_; }

   private:
#ifdef S4_FAST_CHECKED
    static constexpr int64_t SMALL = 0;
#else
    static constexpr int64_t SMALL = 1 << 14;
#endif

    AlignedMemory large_;
    alignas(Arena::ALIGNMENT) char small_[SMALL + 1];
};

}  // namespace s4_fast::cpu
