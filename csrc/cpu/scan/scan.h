// The recurrence of a diagonal SSM, s_l = lambda s_{l-1} + B u_l, y_l = 2 Re sum_n C s_l + D u_l, for several C and
// from both ends, one feature at a time, or, where samples are time-major, those of a cache line together.
#pragma once

#include <cstdint>

#include "../shared/isa.h"

namespace s4_fast::cpu {

// The type of the signals: that of all else, or a half type beside float.
enum class Signal { same, bfloat16, float16 };

// Where x = log lambda and B come from: they are given, or if x is null, discretised from the rest, all as in
// s4_fast.h. Where the rank is not 0, the state matrix is Lambda - P P*, and its kernels are those of dplr_chunks.h.
template <class T>
struct System {
    const T *x = nullptr, *B = nullptr;
    const T *dt = nullptr, *A_real = nullptr, *A_imag = nullptr, *P = nullptr;
    int64_t rank = 0, copies = 0, dt_states = 0;
    double rate = 1;
    bool bilinear = false, log_dt = false, log_decay = false, conjugate = false;
};

// As in s4_fast.h; what may be absent is null.
template <class T>
struct Scan {
    int64_t batch, H, n, L, c;
    bool time_major, bidirectional;
    Signal signal;
    System<T> system;
    const void *u;
    const T *C, *D, *state, *ahead;

    int directions() const { return bidirectional ? 2 : 1; }
    int64_t outputs() const { return directions() * c; }
    // The state that a direction starts from.
    const T *start(int direction) const { return direction == 0 ? state : ahead; }

    bool dense() const { return system.rank > 0; }
    int64_t chunk() const { return dense() ? DENSE_CHUNK : CHUNK; }
    // Whole chunks of a row. Their tables cost more than they save where there are few samples.
    int64_t chunks() const { return batch * L < (dense() ? DENSE_FEW : FEW) ? 0 : L / chunk(); }
    int64_t rest() const { return L - chunks() * chunk(); }
    // Whether states pass so many chunks in T that roundings add up, so that some are carried in double.
    bool grouped() const { return sizeof(T) == sizeof(float) && chunks() > IN_SINGLE; }
    // Rows whose states are carried together: a product with a dense matrix wants several.
    int64_t together() const { return !dense() || grouped() ? 1 : batch < TOGETHER ? batch : TOGETHER; }
    // Chunks of a row between two passes over the same samples: their local states stay in the first cache.
    int64_t block() const { return dense() ? DENSE_BLOCK / together() : BLOCK; }
    int64_t signal_bytes() const { return signal == Signal::same ? int64_t(sizeof(T)) : 2; }

    static constexpr int64_t CHUNK = 32, FEW = 192, BLOCK = 48;
    static constexpr int64_t DENSE_CHUNK = 64, DENSE_FEW = 768, DENSE_BLOCK = 64, IN_SINGLE = 32, TOGETHER = 4;
};

template <class T>
struct ScanBackward {
    Scan<T> forward;
    const void *grad_y;
    const T *grad_final;
    void *grad_u;
    T *grad_state, *grad_ahead;
    bool parameters;  // whether gradients of any others are wanted

    T *grad_start(int direction) const { return direction == 0 ? grad_state : grad_ahead; }
};

// What one worker does: the rows first <= b < last of features h <= . < h + count, count = 1 unless time-major.
struct ScanPiece {
    int64_t h, count, first, last;
};

// Where the gradients of one feature are among doubles: of x, B, P and every C, conjugated, then of D. Of a DPLR system
// those of a, B_bar, G and C as they are, and behind D those of W (dplr_system.h), until dplr_chain has been there.
template <class T>
struct Sums {
    int64_t B, P, C, D, W, size;

    explicit Sums(const Scan<T> &scan)
        : B(2 * scan.n),
          P(2 * B),
          C(P + 2 * scan.system.rank * scan.n),
          D(C + 2 * scan.outputs() * scan.n),
          W(D + scan.c),
          size(W + 2 * scan.system.rank * scan.n) {}
};

// Bytes of scratch memory for pieces of `count` features, and the work on a piece. `final` may be null. The sums of the
// features of a piece are `stride` doubles apart. scan_chain takes the sums of a discretised feature from x to pairs of
// A_real and A_imag and from B_bar to B, and writes the gradient of dt unless that is null. The others do the same for
// a DPLR system.
// clang-format off
S4_FAST_DECLARE_FOR_ISAS(
    template <class T> int64_t scan_scratch(const Scan<T> &scan, int64_t count);
    template <class T> void scan(const Scan<T> &scan, void *y, T *final, const ScanPiece &piece, char *scratch);
    template <class T> int64_t scan_backward_scratch(const ScanBackward<T> &scan, int64_t count);
    template <class T>
    void scan_backward(const ScanBackward<T> &scan, const ScanPiece &piece, double *sums, int64_t stride,
                       char *scratch);
    template <class T> int64_t scan_chain_scratch(const Scan<T> &scan);
    template <class T> void scan_chain(const Scan<T> &scan, int64_t h, double *sums, T *grad_dt, char *scratch);
    template <class T> int64_t dplr_scan_scratch(const Scan<T> &scan, int64_t count);
    template <class T> void dplr_scan(const Scan<T> &scan, void *y, T *final, const ScanPiece &piece, char *scratch);
    template <class T> int64_t dplr_scan_backward_scratch(const ScanBackward<T> &scan, int64_t count);
    template <class T>
    void dplr_scan_backward(const ScanBackward<T> &scan, const ScanPiece &piece, double *sums, int64_t stride,
                            char *scratch);
    template <class T> int64_t dplr_chain_scratch(const Scan<T> &scan);
    template <class T> void dplr_chain(const Scan<T> &scan, int64_t h, double *sums, T *grad_dt, char *scratch);)
// clang-format on

}  // namespace s4_fast::cpu
