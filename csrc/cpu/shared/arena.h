// Scratch memory of one worker, laid out by the same code that measures it.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef S4_FAST_CHECKED
#include <sanitizer/asan_interface.h>
#endif

namespace s4_fast::cpu {

class Arena {
   public:
    // Without memory, take() only counts.
    explicit Arena(char *memory = nullptr) : memory_(memory) {}

    template <class T>
    T *take(int64_t count) {
        const int64_t start = used_, bytes = count * int64_t(sizeof(T));
        used_ += (bytes + GAP + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        if (memory_ == nullptr) return nullptr;
#ifdef S4_FAST_CHECKED
        // An earlier piece may have had a gap here.
        ASAN_UNPOISON_MEMORY_REGION(memory_ + start, std::size_t(bytes));
        ASAN_POISON_MEMORY_REGION(memory_ + start + bytes, std::size_t(used_ - start - bytes));
#endif
        return reinterpret_cast<T *>(memory_ + start);
    }

    int64_t used() const { return used_; }

    static constexpr int64_t ALIGNMENT = 64;

   private:
#ifdef S4_FAST_CHECKED
    // No array may reach into the next.
    static constexpr int64_t GAP = ALIGNMENT;
#else
    static constexpr int64_t GAP = 0;
#endif

    char *memory_;
    int64_t used_ = 0;
};

}  // namespace s4_fast::cpu
