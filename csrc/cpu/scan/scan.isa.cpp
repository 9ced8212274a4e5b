// The forward pass.
#include "scan_chunks.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// What a piece of `count` features works with.
template <class T>
class ForwardPiece {
   public:
    ForwardPiece(Arena &memory, const Scan<T> &scan, int64_t count)
        : scan_(scan),
          local_(Forward<T>::make_local(memory, scan)),
          steps_(Forward<T>::make_steps(memory, scan)),
          u_(memory, scan, count, 1),
          y_(memory, scan, count, scan.c),
          features_(each<Forward<T>>(memory, count, [&] { return Forward<T>(memory, scan, local_, steps_); })) {}

    void run(void *y, T *final, const ScanPiece &piece) {
        for (int64_t j = 0; j < piece.count; ++j) features_[j].set(scan_, piece.h + j);
        for (int direction = 0; direction < scan_.directions(); ++direction) {
            u_.start(direction), y_.start(direction);
            for (int64_t j = 0; j < piece.count; ++j) features_[j].set_outputs(scan_, piece.h + j, direction);
            for (int64_t b = piece.first; b < piece.last; ++b) {
                for (int64_t j = 0; j < piece.count; ++j) {
                    const T *const start = scan_.start(direction);
                    features_[j].state.set(start ? start + pairs(piece, b, j) : nullptr, scan_.n, padded(scan_.n));
                }
                row(y, piece, b, direction);
                for (int64_t j = 0; j < piece.count && final && direction == 0; ++j) {
                    features_[j].state.write(final + pairs(piece, b, j), scan_.n);
                }
            }
        }
    }

   private:
    int64_t pairs(const ScanPiece &piece, int64_t b, int64_t j) const {
        return 2 * (b * scan_.H + piece.h + j) * scan_.n;
    }

    void row(void *y, const ScanPiece &piece, int64_t b, int direction) {
        const int64_t chunks = scan_.chunks(), whole = chunks * CHUNK, rest = scan_.rest(), h = piece.h;
        for (int64_t m = 0; m < chunks; m += BLOCK) {
            const int64_t rows = chunks - m < BLOCK ? chunks - m : BLOCK, l = m * CHUNK;
            const Block<const T> from = u_.read(scan_.u, b, h, l, rows * CHUNK);
            const Block<T> to = y_.place(y, b, h, l);
            const bool ends = m + rows == chunks && b + 1 < piece.last && u_.scattered();
            const Ahead ahead =
                ends ? Ahead{u_.row(scan_.u, b + 1, h), y_.row(y, b + 1, h), u_.row_bytes()} : Ahead::none();
            for (int64_t j = 0; j < piece.count; ++j)
                features_[j].chunks(rows, from.at(j, 0), to.at(j, 0), to.channel, ahead);
            y_.write(y, b, h, l, rows * CHUNK);
        }
        if (rest == 0) return;
        const Block<const T> from = u_.read(scan_.u, b, h, whole, rest);
        const Block<T> to = y_.place(y, b, h, whole);
        for (int64_t j = 0; j < piece.count; ++j)
            features_[j].stepped(rest, direction, from.at(j, 0), to.at(j, 0), to.channel);
        y_.write(y, b, h, whole, rest);
    }

    const Scan<T> &scan_;
    T *local_;
    Rows steps_;
    Samples<T> u_, y_;
    const Forward<T> *features_;
};

}  // namespace

template <class T>
int64_t scan_scratch(const Scan<T> &scan, int64_t count) {
    Arena memory;
    ForwardPiece<T>(memory, scan, count);
    return memory.used();
}

template <class T>
void scan(const Scan<T> &scan, void *y, T *final, const ScanPiece &piece, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    ForwardPiece<T>(memory, scan, piece.count).run(y, final, piece);
}

template int64_t scan_scratch(const Scan<float> &, int64_t);
template int64_t scan_scratch(const Scan<double> &, int64_t);
template void scan(const Scan<float> &, void *, float *, const ScanPiece &, char *);
template void scan(const Scan<double> &, void *, double *, const ScanPiece &, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
