// Scratch memory of one worker, laid out by the same code that measures it.
#pragma once

#include <cstdint>

namespace s4_fast {

class Arena {
   public:
    // Without memory, take() only counts.
    explicit Arena(char *memory = nullptr) : memory_(memory) {}

    template <class T>
    T *take(int64_t count) {
        T *taken = reinterpret_cast<T *>(memory_ + used_);
        used_ += (count * int64_t(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
        return memory_ ? taken : nullptr;
    }

    int64_t used() const { return used_; }

    static constexpr int64_t kAlignment = 64;

   private:
    char *memory_;
    int64_t used_ = 0;
};

}  // namespace s4_fast
