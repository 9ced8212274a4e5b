// Signals as a scan takes them: a block of samples of every feature of a piece and of every channel, in the order of
// the direction that the scan runs in.
#pragma once

#include <type_traits>

#include "../shared/arena.h"
#include "../shared/tables.h"
#include "scan.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

constexpr int64_t CHUNK = Scan<float>::CHUNK, BLOCK = Scan<float>::BLOCK;

// Asks for the first block of rows that come next: rows of one feature lie far apart, where the processor does not look
// ahead. A quarter at a time, between products: all at once would be waited for.
struct Ahead {
    const char *read, *write;
    int64_t bytes;

    static Ahead none() { return {nullptr, nullptr, 0}; }

    void quarter(int64_t which) const {
        for (int64_t i = which * bytes / 4; i < (which + 1) * bytes / 4; i += 64) {
            __builtin_prefetch(read + i, 0, 1), __builtin_prefetch(write + i, 1, 1);
        }
    }
};

// Samples one after another: those of a feature of the piece, and of a channel, are so many apart.
template <class T>
struct Block {
    T *data;
    int64_t feature, channel;

    T *at(int64_t j, int64_t k) const { return data + j * feature + k * channel; }
};

template <class T, int... I>
inline Vector<T> turned(Vector<T> v, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (LANES<T> - 1 - I)...);
}

// to[i] = from[i step], step = 1 or -1, or plus that if `ADD`.
template <bool ADD = false, class From, class To>
__attribute__((noinline)) void copy_row(int64_t length, const From *from, int64_t step, To *to) {
    using T = decltype(widened(*from));
    int64_t i = 0;
    for (; i + LANES<T> <= length; i += LANES<T>) {
        Vector<T> v = load_wide(step == 1 ? from + i : from - i - (LANES<T> - 1));
        if (step != 1) v = turned<T>(v, std::make_integer_sequence<int, LANES<T>>());
        store_wide(to + i, ADD ? load_wide(to + i) + v : v);
    }
    for (; i < length; ++i) {
        const T value = widened(from[i * step]);
        narrow(ADD ? widened(to[i]) + value : value, to[i]);
    }
}

// The samples of one of the arrays of a scan: where they are, or where they are strided, turned or in half precision,
// copied.
template <class T>
class Samples {
   public:
    Samples(Arena &memory, const Scan<T> &scan, int64_t count, int64_t channels, bool given = true)
        : scan_(scan),
          count_(count),
          channels_(channels),
          block_((scan.chunks() < scan.block() ? scan.chunks() : scan.block()) * scan.chunk()),
          // Not a number of pages: features would contend for the same places of the first cache.
          step_(block_ + (scan.rest() + CHUNK - 1) / CHUNK * CHUNK + 64 / int64_t(sizeof(T))),
          direct_(!scan.time_major && scan.signal == Signal::same && given),
          copy_(memory.take<T>(direct_ && !scan.bidirectional ? 0 : count * channels * step_)) {}

    // Those that follow are of a scan from the beginning or from the end.
    void start(bool from_end) { from_end_ = from_end, held_ = nullptr; }

    // Samples l <= . < l + length of the scan, or zeros if there is no array.
    Block<const T> read(const void *array, int64_t b, int64_t h, int64_t l, int64_t length) {
        if (in_place()) return {static_cast<const T *>(array) + offset(b, h, l), 0, channel_step()};
        // The samples after whole chunks lie apart, so that a row of one block need not be copied twice.
        const bool chunks = l < scan_.chunks() * scan_.chunk();
        T *const to = copy_ + (chunks ? 0 : block_);
        const Block<const T> block = {to, channels_ * step_, step_};
        const char *const from =
            array ? static_cast<const char *>(array) + offset(b, h, l) * scan_.signal_bytes() : nullptr;
        if (chunks && from && from == held_) return block;
        if (chunks) held_ = from;
        if (array == nullptr) {
            for (int64_t i = 0; i < count_ * channels_; ++i) clear(to + i * step_, length);
        } else {
            typed<const void>(array, [&](auto *typed) { copy_in(typed + offset(b, h, l), length, to); });
        }
        return block;
    }

    // place() is where samples go, and write() copies them from there. A scan from the end adds them to those of the
    // scan before it.
    Block<T> place(void *array, int64_t b, int64_t h, int64_t l) const {
        if (in_place()) return {static_cast<T *>(array) + offset(b, h, l), 0, channel_step()};
        return {copy_, channels_ * step_, step_};
    }
    void write(void *array, int64_t b, int64_t h, int64_t l, int64_t length) const {
        if (in_place()) return;
        typed<void>(array, [&](auto *typed) { copy_out(typed + offset(b, h, l), length); });
    }

    // The memory of a row of the first channel that a scan from the beginning comes to, as far as a block.
    const char *row(const void *array, int64_t b, int64_t h) const {
        return static_cast<const char *>(array) + offset(b, h, 0) * scan_.signal_bytes();
    }
    int64_t row_bytes() const { return (block_ > 0 ? block_ : scan_.L) * scan_.signal_bytes(); }
    // Whether looking ahead helps.
    bool scattered() const { return !scan_.time_major && !from_end_; }

   private:
    bool in_place() const { return !from_end_ && direct_; }

    int64_t offset(int64_t b, int64_t h, int64_t l) const {
        const int64_t at = from_end_ ? scan_.L - 1 - l : l;
        return scan_.time_major ? (b * scan_.L + at) * channels_ * scan_.H + h
                                : (b * channels_ * scan_.H + h) * scan_.L + at;
    }
    int64_t channel_step() const { return scan_.time_major ? scan_.H : scan_.H * scan_.L; }
    int64_t sample_step() const { return (from_end_ ? -1 : 1) * (scan_.time_major ? channels_ * scan_.H : 1); }

    // body(array) of the type of its numbers.
    template <class Void, class Body>
    void typed(Void *array, Body body) const {
        if constexpr (sizeof(T) == sizeof(float)) {
            using Brain = std::conditional_t<std::is_const<Void>::value, const BFloat16, BFloat16>;
            using Half = std::conditional_t<std::is_const<Void>::value, const Float16, Float16>;
            if (scan_.signal == Signal::bfloat16) return body(static_cast<Brain *>(array));
            if (scan_.signal == Signal::float16) return body(static_cast<Half *>(array));
        }
        body(static_cast<std::conditional_t<std::is_const<Void>::value, const T, T> *>(array));
    }

    template <class S>
    void copy_in(const S *from, int64_t length, T *to) const {
        for (int64_t k = 0; k < channels_; ++k, from += channel_step(), to += step_) {
            if (scan_.time_major) {
                transpose(length, count_, from, sample_step(), to, channels_ * step_);
            } else {
                copy_row(length, from, sample_step(), to);
            }
        }
    }

    template <class S>
    void copy_out(S *to, int64_t length) const {
        const T *from = copy_;
        for (int64_t k = 0; k < channels_; ++k, to += channel_step(), from += step_) {
            if (scan_.time_major && from_end_) {
                transpose<true>(count_, length, from, channels_ * step_, to, sample_step());
            } else if (scan_.time_major) {
                transpose(count_, length, from, channels_ * step_, to, sample_step());
            } else if (from_end_) {
                copy_row<true>(length, from + length - 1, -1, to - (length - 1));
            } else {
                copy_row(length, from, 1, to);
            }
        }
    }

    const Scan<T> &scan_;
    int64_t count_, channels_, block_, step_;
    bool direct_, from_end_ = false;
    T *copy_;                     // (count, channels, step)
    const char *held_ = nullptr;  // the block that is copied
};

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
