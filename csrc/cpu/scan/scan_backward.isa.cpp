// The backward pass over the rows of a piece.
#include "scan_sums.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// Bytes of the states that the backward pass keeps: what fits in the second cache.
constexpr int64_t SEGMENT_BYTES = 1 << 20;
// Blocks whose products are summed in T before they are added up in double.
constexpr int64_t SUMMED = 8;

// What a piece of `count` features works with.
template <class T>
class BackwardPiece {
   public:
    BackwardPiece(Arena &memory, const ScanBackward<T> &scan, int64_t count)
        : scan_(scan),
          f_(scan.forward),
          segment_(chunks_of_segment(f_, count)),
          local_(Forward<T>::make_local(memory, f_)),
          adjoints_(Forward<T>::make_local(memory, f_)),
          correlations_(memory.take<double>(f_.chunks() > 0 ? f_.c * CHUNK : 0)),
          steps_(Forward<T>::make_steps(memory, f_)),
          gradients_(memory, f_.rest(), padded(f_.n)),
          u_(memory, f_, count, 1),
          grad_y_(memory, f_, count, f_.c, scan.grad_y != nullptr),
          grad_u_(memory, f_, count, 1, scan.grad_u != nullptr),
          features_(each<Backward<T>>(memory, count, [&] { return make(memory); })) {}

    void run(const ScanPiece &piece, double *sums, int64_t stride) {
        for (int64_t j = 0; j < piece.count; ++j) features_[j].set(f_, piece.h + j);
        for (int direction = 0; direction < f_.directions(); ++direction) {
            u_.start(direction), grad_y_.start(direction), grad_u_.start(direction);
            for (int64_t j = 0; j < piece.count; ++j) features_[j].set_outputs(f_, piece.h + j, direction);
            for (int64_t b = piece.first; b < piece.last; ++b) row(piece, b, direction);
            if (!scan_.parameters) continue;
            flush_products(piece);
            for (int64_t j = 0; j < piece.count; ++j)
                write_sums(features_[j], f_, direction, correlations_, sums + j * stride);
        }
    }

   private:
    Backward<T> make(Arena &memory) const {
        return {memory, f_, segment_, Forward<T>(memory, f_, local_, steps_), adjoints_, gradients_};
    }

    static int64_t chunks_of_segment(const Scan<T> &scan, int64_t count) {
        const int64_t fitting = SEGMENT_BYTES / (count * 2 * padded(scan.n) * int64_t(sizeof(T)));
        const int64_t most = fitting < BLOCK ? BLOCK : fitting / BLOCK * BLOCK;
        return scan.chunks() < 1 ? 1 : scan.chunks() < most ? scan.chunks() : most;
    }

    // The first chunk of segment s.
    int64_t start(int64_t s) const { return s * segment_ < f_.chunks() ? s * segment_ : f_.chunks(); }

    void row(const ScanPiece &piece, int64_t b, int direction) {
        const int64_t segments = (f_.chunks() + segment_ - 1) / segment_;
        const auto pairs = [&](int64_t j) { return 2 * (b * f_.H + piece.h + j) * f_.n; };
        const auto at = [](const T *from, int64_t offset) { return from ? from + offset : nullptr; };
        for (int64_t j = 0; j < piece.count; ++j) {
            const Backward<T> &feature = features_[j];
            feature.adjoint.set(direction == 0 ? at(scan_.grad_final, pairs(j)) : nullptr, f_.n, feature.np());
            feature.forward.state.set(at(f_.start(direction), pairs(j)), f_.n, feature.np());
        }
        for (int64_t s = 0; s < segments && scan_.parameters; ++s) {
            for (int64_t j = 0; j < piece.count; ++j) features_[j].keep_start(s);
            advance(piece, b, s, s == segments - 1);
        }
        steps(piece, b, direction);
        for (int64_t s = segments - 1; s >= 0; --s) {
            if (scan_.parameters && s < segments - 1) {
                for (int64_t j = 0; j < piece.count; ++j) features_[j].go_to_start(s);
                advance(piece, b, s, true);
            }
            segment_back(piece, b, s);
        }
        T *const to = scan_.grad_start(direction);
        for (int64_t j = 0; j < piece.count && to; ++j) features_[j].adjoint.write(to + pairs(j), f_.n);
    }

    // The states of the chunks of a segment, kept or only passed through.
    void advance(const ScanPiece &piece, int64_t b, int64_t s, bool keep) {
        const int64_t h = piece.h;
        const bool looks = s == 0 && u_.scattered() && scan_.grad_y && scan_.grad_u;
        const Ahead ahead =
            looks ? Ahead{grad_y_.row(scan_.grad_y, b, h), grad_u_.row(scan_.grad_u, b, h), u_.row_bytes()}
                  : Ahead::none();
        ahead.quarter(0), ahead.quarter(1);
        for (int64_t first = start(s); first < start(s + 1); first += BLOCK) {
            const int64_t rows = start(s + 1) - first < BLOCK ? start(s + 1) - first : BLOCK;
            const Block<const T> samples = u_.read(f_.u, b, h, first * CHUNK, rows * CHUNK);
            for (int64_t j = 0; j < piece.count; ++j) {
                const Backward<T> &feature = features_[j];
                T *const kept = feature.states + (first - start(s)) * 2 * feature.np();
                feature.forward.states(rows, samples.at(j, 0), keep ? kept : local_);
            }
        }
        ahead.quarter(2), ahead.quarter(3);
    }

    // The samples after whole chunks, there and back.
    void steps(const ScanPiece &piece, int64_t b, int direction) {
        const int64_t whole = f_.chunks() * CHUNK, count = f_.rest(), h = piece.h;
        if (count == 0) return;
        const Block<const T> input = u_.read(f_.u, b, h, whole, count);
        const Block<const T> dy = grad_y_.read(scan_.grad_y, b, h, whole, count);
        const Block<T> du = grad_u_.place(scan_.grad_u, b, h, whole);
        for (int64_t j = 0; j < piece.count; ++j) {
            const Backward<T> &feature = features_[j];
            const Nodes<T> &nodes = feature.forward.nodes;
            if (scan_.parameters) {
                step_states(nodes.lambda, nodes.B, feature.forward.state, count, input.at(j, 0), feature.forward.steps);
            }
            feature.step_back(count, direction, dy.at(j, 0), dy.channel, input.at(j, 0),
                              scan_.grad_u ? du.at(j, 0) : nullptr, scan_.parameters);
        }
        if (scan_.grad_u) grad_u_.write(scan_.grad_u, b, h, whole, count);
    }

    // Takes the adjoint back over the chunks of a segment whose states are kept.
    void segment_back(const ScanPiece &piece, int64_t b, int64_t s) {
        const int64_t h = piece.h, count = start(s + 1) - start(s);
        for (int64_t first = (count - 1) / BLOCK * BLOCK; first >= 0; first -= BLOCK) {
            const int64_t rows = count - first < BLOCK ? count - first : BLOCK;
            const int64_t l = (start(s) + first) * CHUNK, length = rows * CHUNK;
            const Block<const T> dy = grad_y_.read(scan_.grad_y, b, h, l, length);
            const Block<const T> input = scan_.parameters ? u_.read(f_.u, b, h, l, length) : dy;
            const Block<T> du = grad_u_.place(scan_.grad_u, b, h, l);
            const bool looks = l == 0 && b + 1 < piece.last && u_.scattered();
            const char *const next = looks ? u_.row(f_.u, b + 1, h) : nullptr;
            const Ahead ahead = looks ? Ahead{next, next, u_.row_bytes()} : Ahead::none();
            for (int64_t j = 0; j < piece.count; ++j) {
                const Backward<T> &feature = features_[j];
                feature.block_back(rows, dy.at(j, 0), dy.channel, scan_.grad_u ? du.at(j, 0) : nullptr, ahead);
                if (!scan_.parameters) continue;
                feature.add_products(rows, feature.states + first * 2 * feature.np(), dy.at(j, 0), dy.channel,
                                     input.at(j, 0), summed_ > 0);
            }
            if (scan_.grad_u) grad_u_.write(scan_.grad_u, b, h, l, length);
            if (scan_.parameters && ++summed_ == SUMMED) flush_products(piece);
        }
    }

    void flush_products(const ScanPiece &piece) {
        for (int64_t j = 0; j < piece.count && summed_ > 0; ++j) features_[j].flush_products();
        summed_ = 0;
    }

    const ScanBackward<T> &scan_;
    const Scan<T> &f_;
    int64_t segment_;  // chunks whose states are kept at a time
    T *local_, *adjoints_;
    double *correlations_;
    Rows steps_, gradients_;
    Samples<T> u_, grad_y_, grad_u_;
    const Backward<T> *features_;
    int64_t summed_ = 0;  // blocks whose products are not added up yet
};

}  // namespace

template <class T>
int64_t scan_backward_scratch(const ScanBackward<T> &scan, int64_t count) {
    Arena memory;
    BackwardPiece<T>(memory, scan, count);
    return memory.used();
}

template <class T>
void scan_backward(const ScanBackward<T> &scan, const ScanPiece &piece, double *sums, int64_t stride, char *scratch) {
    const FlushDenormals flush;
    Arena memory(scratch);
    BackwardPiece<T>(memory, scan, piece.count).run(piece, sums, stride);
}

template int64_t scan_backward_scratch(const ScanBackward<float> &, int64_t);
template int64_t scan_backward_scratch(const ScanBackward<double> &, int64_t);
template void scan_backward(const ScanBackward<float> &, const ScanPiece &, double *, int64_t, char *);
template void scan_backward(const ScanBackward<double> &, const ScanPiece &, double *, int64_t, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
