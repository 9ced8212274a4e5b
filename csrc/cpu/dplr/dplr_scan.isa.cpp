// The forward pass of a DPLR system.
#include "dplr_chunks.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// What a piece of `count` features works with.
template <class T>
class DenseForwardPiece {
   public:
    DenseForwardPiece(Arena &memory, const Scan<T> &scan, int64_t count)
        : scan_(scan),
          work_(memory, padded(scan.n), scan.system.rank, scan.chunks() > 0),
          local_(DenseForward<T>::make_local(memory, scan)),
          now_(DenseCarry<T>::make_rows(memory, scan)),
          next_(DenseCarry<T>::make_rows(memory, scan)),
          u_(memory, scan, count, 1),
          y_(memory, scan, count, scan.c),
          features_(each<DenseForward<T>>(memory, count, [&] {
              return DenseForward<T>(memory, scan, false, false, &work_, local_, now_, next_);
          })) {}

    void run(void *y, T *final, const ScanPiece &piece) {
        for (int64_t j = 0; j < piece.count; ++j) features_[j].set(scan_, piece.h + j, false);
        for (int direction = 0; direction < scan_.directions(); ++direction) {
            u_.start(direction), y_.start(direction);
            for (int64_t j = 0; j < piece.count; ++j) features_[j].set_outputs(scan_, piece.h + j, direction);
            for (int64_t b = piece.first; b < piece.last; b += scan_.together()) {
                const int64_t left = piece.last - b, rows = left < scan_.together() ? left : scan_.together();
                for (int64_t r = 0; r < rows; ++r) {
                    for (int64_t j = 0; j < piece.count; ++j) {
                        const T *const start = scan_.start(direction);
                        features_[j].states[r].set(start ? start + pairs(piece, b + r, j) : nullptr, scan_.n,
                                                   padded(scan_.n));
                    }
                }
                for (int64_t m = 0; m < scan_.chunks(); m += scan_.block()) block(y, piece, b, rows, m);
                for (int64_t r = 0; r < rows; ++r) {
                    steps(y, piece, b, r, direction);
                    for (int64_t j = 0; j < piece.count && final && direction == 0; ++j)
                        features_[j].states[r].write(final + pairs(piece, b + r, j), scan_.n);
                }
            }
        }
    }

   private:
    int64_t pairs(const ScanPiece &piece, int64_t b, int64_t j) const {
        return 2 * (b * scan_.H + piece.h + j) * scan_.n;
    }

    // The chunks from m on of some rows.
    void block(void *y, const ScanPiece &piece, int64_t b, int64_t rows, int64_t m) {
        const int64_t left = scan_.chunks() - m, count = left < scan_.block() ? left : scan_.block();
        const int64_t stride = count * 2 * padded(scan_.n), l = m * DENSE, h = piece.h;
        Block<const T> from[Scan<T>::TOGETHER];
        Block<T> to[Scan<T>::TOGETHER];
        for (int64_t r = 0; r < rows; ++r) {
            from[r] = u_[r].read(scan_.u, b + r, h, l, count * DENSE), to[r] = y_[r].place(y, b + r, h, l);
        }
        for (int64_t j = 0; j < piece.count; ++j) {
            const DenseForward<T> &feature = features_[j];
            for (int64_t r = 0; r < rows; ++r) {
                feature.take_in(count, from[r].at(j, 0), local_ + r * stride);
                if (m + count == scan_.chunks()) look_ahead(y, piece, b, r);
            }
            feature.carry.over(feature.states, false, rows, count, local_, stride);
            for (int64_t r = 0; r < rows; ++r)
                feature.put_out(count, local_ + r * stride, from[r].at(j, 0), to[r].at(j, 0), to[r].channel);
        }
        for (int64_t r = 0; r < rows; ++r) y_[r].write(y, b + r, h, l, count * DENSE);
    }

    // Asks for the row that comes after row b + r.
    void look_ahead(const void *y, const ScanPiece &piece, int64_t b, int64_t r) {
        const int64_t next = b + r + scan_.together();
        if (next >= piece.last || !u_[r].scattered()) return;
        const Ahead ahead = {u_[r].row(scan_.u, next, piece.h), y_[r].row(y, next, piece.h), u_[r].row_bytes()};
        for (int64_t quarter = 0; quarter < 4; ++quarter) ahead.quarter(quarter);
    }

    // The samples of row b + r after whole chunks.
    void steps(void *y, const ScanPiece &piece, int64_t b, int64_t r, int direction) {
        const int64_t whole = scan_.chunks() * DENSE, rest = scan_.rest(), h = piece.h;
        if (rest == 0) return;
        const Block<const T> from = u_[r].read(scan_.u, b + r, h, whole, rest);
        const Block<T> to = y_[r].place(y, b + r, h, whole);
        for (int64_t j = 0; j < piece.count; ++j)
            features_[j].stepped(r, rest, direction, from.at(j, 0), to.at(j, 0), to.channel);
        y_[r].write(y, b + r, h, whole, rest);
    }

    const Scan<T> &scan_;
    Workshop work_;
    T *local_, *now_, *next_;
    SampleRows<T> u_, y_;
    const DenseForward<T> *features_;
};

}  // namespace

template <class T>
int64_t dplr_scan_scratch(const Scan<T> &scan, int64_t count) {
    Arena memory;
    DenseForwardPiece<T>(memory, scan, count);
    return memory.used();
}

template <class T>
void dplr_scan(const Scan<T> &scan, void *y, T *final, const ScanPiece &piece, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    DenseForwardPiece<T>(memory, scan, piece.count).run(y, final, piece);
}

template int64_t dplr_scan_scratch(const Scan<float> &, int64_t);
template int64_t dplr_scan_scratch(const Scan<double> &, int64_t);
template void dplr_scan(const Scan<float> &, void *, float *, const ScanPiece &, char *);
template void dplr_scan(const Scan<double> &, void *, double *, const ScanPiece &, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
