// The backward pass of a DPLR system over the rows of a piece.
#include "dplr_gradients.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// Bytes of the states that the backward pass keeps. They are as many as the samples where a chunk is as long as a state
// is large, and making them a second time costs a quarter of the pass.
constexpr int64_t SEGMENT_BYTES = 1 << 23;
// Rows of chunks whose products are summed in T before they are added up in double.
constexpr int64_t SUMMED = 8 * DENSE_BLOCK;

// What a piece of `count` features works with.
template <class T>
class DenseBackwardPiece {
   public:
    DenseBackwardPiece(Arena &memory, const ScanBackward<T> &scan, int64_t count)
        : scan_(scan),
          f_(scan.forward),
          segment_(chunks_of_segment(f_, count)),
          back_(memory, padded(f_.n), f_.system.rank, f_.chunks() > 0),
          local_(DenseForward<T>::make_local(memory, f_)),
          adjoints_(DenseForward<T>::make_local(memory, f_)),
          inputs_(make_gathered(memory, f_)),
          outputs_(make_gathered(memory, f_)),
          now_(DenseCarry<T>::make_rows(memory, f_)),
          next_(DenseCarry<T>::make_rows(memory, f_)),
          steps_(Forward<T>::make_steps(memory, f_)),
          u_(memory, f_, count, 1),
          grad_y_(memory, f_, count, f_.c, scan.grad_y != nullptr),
          grad_u_(memory, f_, count, 1, scan.grad_u != nullptr),
          features_(each<DenseBackward<T>>(memory, count, [&] {
              // Adjoints begin with what is behind whole chunks.
              const bool begins = scan.grad_final || f_.rest() > 0;
              const DenseForward<T> forward(memory, f_, begins, true, &back_.work, local_, now_, next_);
              return DenseBackward<T>(memory, f_, segment_, forward, adjoints_, steps_);
          })) {}

    void run(const ScanPiece &piece, double *sums, int64_t stride) {
        for (int64_t j = 0; j < piece.count; ++j) features_[j].set(f_, piece.h + j);
        for (int direction = 0; direction < f_.directions(); ++direction) {
            u_.start(direction), grad_y_.start(direction), grad_u_.start(direction);
            for (int64_t j = 0; j < piece.count; ++j) features_[j].set_outputs(f_, piece.h + j, direction);
            for (int64_t b = piece.first; b < piece.last; b += f_.together()) {
                const int64_t left = piece.last - b;
                rows(piece, b, left < f_.together() ? left : f_.together(), direction);
            }
            if (!scan_.parameters) continue;
            flush_products(piece);
            for (int64_t j = 0; j < piece.count; ++j) {
                if (f_.chunks() > 0) features_[j].chains_back(back_, direction);
                write_sums(features_[j], direction, sums + j * stride);
            }
        }
    }

   private:
    static int64_t chunks_of_segment(const Scan<T> &scan, int64_t count) {
        const int64_t block = scan.block(), bytes = count * scan.together() * 2 * padded(scan.n) * int64_t(sizeof(T));
        const int64_t fitting = SEGMENT_BYTES / bytes, most = fitting < block ? block : fitting / block * block;
        return scan.chunks() < 1 ? 1 : scan.chunks() < most ? scan.chunks() : most;
    }

    // The first chunk of segment s.
    int64_t start(int64_t s) const { return s * segment_ < f_.chunks() ? s * segment_ : f_.chunks(); }

    void rows(const ScanPiece &piece, int64_t b, int64_t count, int direction) {
        const int64_t segments = (f_.chunks() + segment_ - 1) / segment_;
        const auto pairs = [&](int64_t r, int64_t j) { return 2 * ((b + r) * f_.H + piece.h + j) * f_.n; };
        const auto at = [](const T *from, int64_t offset) { return from ? from + offset : nullptr; };
        for (int64_t r = 0; r < count; ++r) {
            for (int64_t j = 0; j < piece.count; ++j) {
                const DenseBackward<T> &of = features_[j];
                of.adjoints[r].set(direction == 0 ? at(scan_.grad_final, pairs(r, j)) : nullptr, f_.n, of.np());
                of.forward.states[r].set(at(f_.start(direction), pairs(r, j)), f_.n, of.np());
            }
        }
        for (int64_t s = 0; s < segments && scan_.parameters; ++s) {
            for (int64_t j = 0; j < piece.count; ++j) {
                const DenseBackward<T> &of = features_[j];
                for (int64_t r = 0; r < count; ++r)
                    of.copy(of.forward.states[r].re, of.starts[s * f_.together() + r].re);
            }
            advance(piece, b, count, s, s == segments - 1);
        }
        for (int64_t r = 0; r < count; ++r) steps(piece, b, r, direction);
        for (int64_t s = segments - 1; s >= 0; --s) {
            if (scan_.parameters && s < segments - 1) {
                for (int64_t j = 0; j < piece.count; ++j) {
                    const DenseBackward<T> &of = features_[j];
                    for (int64_t r = 0; r < count; ++r)
                        of.copy(of.starts[s * f_.together() + r].re, of.forward.states[r].re);
                }
                advance(piece, b, count, s, true);
            }
            segment_back(piece, b, count, s);
        }
        T *const to = scan_.grad_start(direction);
        for (int64_t r = 0; r < count && to; ++r)
            for (int64_t j = 0; j < piece.count; ++j) features_[j].adjoints[r].write(to + pairs(r, j), f_.n);
    }

    // The states of the chunks of a segment, kept or only passed through.
    void advance(const ScanPiece &piece, int64_t b, int64_t rows, int64_t s, bool keep) {
        for (int64_t first = start(s); first < start(s + 1); first += f_.block()) {
            const int64_t left = start(s + 1) - first, count = left < f_.block() ? left : f_.block();
            const int64_t N = 2 * padded(f_.n), stride = count * N;
            Block<const T> samples[Scan<T>::TOGETHER];
            for (int64_t r = 0; r < rows; ++r)
                samples[r] = u_[r].read(f_.u, b + r, piece.h, first * DENSE, count * DENSE);
            for (int64_t j = 0; j < piece.count; ++j) {
                const DenseBackward<T> &of = features_[j];
                T *const to = keep ? of.states + (first - start(s)) * f_.together() * N : local_;
                for (int64_t r = 0; r < rows; ++r) of.forward.take_in(count, samples[r].at(j, 0), to + r * stride);
                of.forward.carry.over(of.forward.states, false, rows, count, to, stride);
            }
        }
    }

    // The samples of row b + r after whole chunks, there and back.
    void steps(const ScanPiece &piece, int64_t b, int64_t r, int direction) {
        const int64_t whole = f_.chunks() * DENSE, count = f_.rest(), h = piece.h;
        if (count == 0) return;
        const Block<const T> input = u_[r].read(f_.u, b + r, h, whole, count);
        const Block<const T> dy = grad_y_[r].read(scan_.grad_y, b + r, h, whole, count);
        const Block<T> du = grad_u_[r].place(scan_.grad_u, b + r, h, whole);
        for (int64_t j = 0; j < piece.count; ++j) {
            features_[j].step_back(r, count, direction, dy.at(j, 0), dy.channel, input.at(j, 0),
                                   scan_.grad_u ? du.at(j, 0) : nullptr, scan_.parameters);
        }
        if (scan_.grad_u) grad_u_[r].write(scan_.grad_u, b + r, h, whole, count);
    }

    // Takes the adjoint back over the chunks of a segment whose states are kept.
    void segment_back(const ScanPiece &piece, int64_t b, int64_t rows, int64_t s) {
        const int64_t h = piece.h, chunks = start(s + 1) - start(s), N = 2 * padded(f_.n);
        for (int64_t first = (chunks - 1) / f_.block() * f_.block(); first >= 0; first -= f_.block()) {
            const int64_t count = chunks - first < f_.block() ? chunks - first : f_.block();
            const int64_t l = (start(s) + first) * DENSE, length = count * DENSE, stride = count * N;
            Block<const T> dy[Scan<T>::TOGETHER], input[Scan<T>::TOGETHER];
            Block<T> du[Scan<T>::TOGETHER];
            for (int64_t r = 0; r < rows; ++r) {
                dy[r] = grad_y_[r].read(scan_.grad_y, b + r, h, l, length);
                input[r] = scan_.parameters ? u_[r].read(f_.u, b + r, h, l, length) : dy[r];
                du[r] = grad_u_[r].place(scan_.grad_u, b + r, h, l);
            }
            for (int64_t j = 0; j < piece.count; ++j) {
                const DenseBackward<T> &of = features_[j];
                const T *const S = of.states + first * f_.together() * N;
                for (int64_t r = 0; r < rows; ++r)
                    of.take_back(count, dy[r].at(j, 0), dy[r].channel, adjoints_ + r * stride);
                of.forward.carry.over(of.adjoints, true, rows, count, adjoints_, stride);
                for (int64_t r = 0; r < rows && scan_.grad_u; ++r)
                    of.put_back(count, adjoints_ + r * stride, dy[r].at(j, 0), dy[r].channel, du[r].at(j, 0));
                if (!scan_.parameters) continue;
                const T *const u = gathered(input, rows, j, 0, length, inputs_);
                of.add_products(rows * count, S, adjoints_, u, summed_ > 0);
                for (int64_t k = 0; k < f_.c; ++k) {
                    const T *const grad_y = gathered(dy, rows, j, k, length, outputs_);
                    of.add_output_products(k, rows * count, S, grad_y, u, summed_ > 0);
                }
            }
            for (int64_t r = 0; r < rows && scan_.grad_u; ++r) grad_u_[r].write(scan_.grad_u, b + r, h, l, length);
            summed_ += rows * count;
            if (scan_.parameters && summed_ >= SUMMED) flush_products(piece);
        }
    }

    static T *make_gathered(Arena &memory, const Scan<T> &scan) {
        return memory.take<T>(scan.chunks() > 0 && scan.together() > 1 ? DENSE_BLOCK * DENSE : 0);
    }

    // Samples of all rows one after another, for products as deep as all of their chunks.
    static const T *gathered(const Block<const T> *from, int64_t rows, int64_t j, int64_t k, int64_t length, T *to) {
        if (rows == 1) return from[0].at(j, k);
        for (int64_t r = 0; r < rows; ++r) copy_row(length, from[r].at(j, k), 1, to + r * length);
        return to;
    }

    void flush_products(const ScanPiece &piece) {
        for (int64_t j = 0; j < piece.count && summed_ > 0; ++j) features_[j].flush_products();
        summed_ = 0;
    }

    // To the sums of a feature, or added to those of the direction before.
    void write_sums(const DenseBackward<T> &of, int direction, double *sums) const {
        const Sums<T> places(f_);
        const int64_t n = f_.n;
        const auto put = [&](int64_t place, Split value, double factor, bool add) {
            for (int64_t i = 0; i < n; ++i) {
                const Complex before = add ? get(sums + place, i) : Complex{0, 0};
                s4_fast::cpu::S4_FAST_ISA::put(sums + place, i, before + factor * value.get(i));
            }
        };
        for (int64_t k = 0; k < f_.c; ++k) {
            if (direction == 0) sums[places.D + k] = of.products[k].by_D[0];
            put(places.C + 2 * (direction * f_.c + k) * n, of.products[k].by_C, 2, false);
        }
        put(0, of.sums.a, 1, direction > 0), put(places.B, of.by_B, 1, direction > 0);
        for (int64_t r = 0; r < f_.system.rank; ++r) {
            put(places.P + 2 * r * n, of.sums.G[r], 1, direction > 0);
            put(places.W + 2 * r * n, of.sums.W[r], 1, direction > 0);
        }
    }

    const ScanBackward<T> &scan_;
    const Scan<T> &f_;
    int64_t segment_;  // chunks whose states are kept at a time
    BackWorkshop back_;
    T *local_, *adjoints_, *inputs_, *outputs_, *now_, *next_;
    Rows steps_;
    SampleRows<T> u_, grad_y_, grad_u_;
    const DenseBackward<T> *features_;
    int64_t summed_ = 0;  // rows of chunks whose products are not added up yet
};

}  // namespace

template <class T>
int64_t dplr_scan_backward_scratch(const ScanBackward<T> &scan, int64_t count) {
    Arena memory;
    DenseBackwardPiece<T>(memory, scan, count);
    return memory.used();
}

template <class T>
void dplr_scan_backward(const ScanBackward<T> &scan, const ScanPiece &piece, double *sums, int64_t stride,
                        char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    DenseBackwardPiece<T>(memory, scan, piece.count).run(piece, sums, stride);
}

template int64_t dplr_scan_backward_scratch(const ScanBackward<float> &, int64_t);
template int64_t dplr_scan_backward_scratch(const ScanBackward<double> &, int64_t);
template void dplr_scan_backward(const ScanBackward<float> &, const ScanPiece &, double *, int64_t, char *);
template void dplr_scan_backward(const ScanBackward<double> &, const ScanPiece &, double *, int64_t, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
