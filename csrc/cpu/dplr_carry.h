// States of a DPLR system carried from chunk to chunk: products with the dense
// matrix of a chunk's steps, for many rows of states at a time. The rounding of
// that matrix in float is wrong by its error times the number of chunks. Where
// these are many, four chunks are a group: its input is summed in float, states
// pass from group to group in double, and from there through the chunks of a
// group in float. Groups of a block are rows of the same products.
#pragma once

#include "carry.h"
#include "dplr_matrix.h"

namespace s4_fast {
namespace S4_FAST_ISA {
namespace {

template <class From, class To>
void convert(int64_t count, const From *from, To *to) {
  for (int64_t i = 0; i < count; i += kLanes<double>)
    store_double(to + i, load_double(from + i));
}

template <class T> class DenseCarry {
public:
  // `now` and `next` are scratch memory for rows of a block.
  DenseCarry(Arena &memory, int64_t np, bool chunks, bool grouped, bool adjoint,
             T *now, T *next)
      : N_(2 * np), grouped_(grouped),
        one_{memory.take<T>(chunks ? N_ * N_ : 0),
             memory.take<T>(chunks && adjoint ? N_ * N_ : 0)},
        group_{memory.take<double>(grouped ? N_ * N_ : 0),
               memory.take<double>(grouped && adjoint ? N_ * N_ : 0)},
        now_(now), next_(next), after_(memory.take<double>(grouped ? N_ : 0)) {}

  static T *make_rows(Arena &memory, const Scan<T> &scan) {
    const int64_t rows =
        scan.grouped() ? scan.block() / kGroup : scan.together();
    return memory.take<T>(scan.chunks() > 0 ? rows * 2 * padded(scan.n) : 0);
  }

  void set(const Transition &step, int64_t n, const Workshop &work,
           bool adjoint) const {
    ChunkMatrix(step, n, work).template make<T>();
    convert(N_ * N_, work.matrix, one_[0]);
    if (adjoint)
      transpose(N_, N_, one_[0], N_, one_[1], N_);
    if (!grouped_)
      return;
    square(work.matrix, work.square), square(work.square, group_[0]);
    static_assert(kGroup == 4, "");
    if (adjoint)
      transpose(N_, N_, group_[0], N_, group_[1], N_);
  }

  // Replaces the inputs of `count` chunks of each of some rows, `stride` apart,
  // by the states before them, and takes the rows of `states` over them. The
  // adjoint runs from the last chunk to the first.
  void over(const Rows &states, bool adjoint, int64_t rows, int64_t count,
            T *local, int64_t stride) const {
    const int64_t step = adjoint ? -N_ : N_;
    if (adjoint)
      local += (count - 1) * N_;
    if (grouped_) {
      const int64_t groups = count / kGroup;
      over_groups(states.data, adjoint, groups, local, step);
      local += groups * kGroup * step, count -= groups * kGroup;
    }
    if (count == 0)
      return;
    T *now = now_;
    convert(rows * N_, states.data, now);
    now =
        pass(one_[adjoint], now, next_, rows, stride, count, local, step, true);
    convert(rows * N_, now, states.data);
  }

private:
  void square(const double *from, double *to) const {
    multiply<double>(N_, N_, {N_, {from, N_, 1}, from, N_}, to, N_, false);
  }

  void copy(const T *from, T *to) const {
    for (int64_t i = 0; i < N_; i += kLanes<T>)
      store(to + i, load(from + i));
  }

  // Rows of states over `count` inputs each, which the states before them
  // replace if `keep`; where they are then.
  T *pass(const T *table, T *now, T *next, int64_t rows, int64_t stride,
          int64_t count, T *local, int64_t step, bool keep) const {
    for (int64_t q = 0; q < count; ++q, local += step) {
      for (int64_t r = 0; r < rows; ++r) {
        copy(local + r * stride, next + r * N_);
        if (keep)
          copy(now + r * N_, local + r * stride);
      }
      multiply<T>(rows, N_, {N_, {now, N_, 1}, table, N_}, next, N_, true);
      T *const other = now;
      now = next, next = other;
    }
    return now;
  }

  void over_groups(double *state, bool adjoint, int64_t groups, T *local,
                   int64_t step) const {
    if (groups == 0)
      return;
    const int64_t stride = kGroup * step;
    for (int64_t g = 0; g < groups; ++g)
      copy(local + g * stride, now_ + g * N_);
    T *now = pass(one_[adjoint], now_, next_, groups, stride, kGroup - 1,
                  local + step, step, false);
    for (int64_t g = 0; g < groups; ++g)
      over_group(state, group_[adjoint], now + g * N_);
    now = pass(one_[adjoint], now, now == now_ ? next_ : now_, groups, stride,
               kGroup - 1, local, step, true);
    for (int64_t g = 0; g < groups; ++g)
      copy(now + g * N_, local + g * stride + (kGroup - 1) * step);
  }

  // The state after a group for that before it, which takes the place of the
  // group's input.
  void over_group(double *state, const double *table, T *input) const {
    for (int64_t i = 0; i < N_; i += kLanes<double>) {
      store(after_ + i, load_double(input + i)),
          store_double(input + i, load(state + i));
    }
    multiply<double>(1, N_, {N_, {state, N_, 1}, table, N_}, after_, N_, true);
    convert(N_, after_, state);
  }

  int64_t N_;
  bool grouped_;
  T *one_[2]; // (N, N): the transpose of a chunk's matrix for states, itself
              // for their adjoint
  double *group_[2]; // the same of a group
  T *now_, *next_;
  double *after_;
};

} // namespace
} // namespace S4_FAST_ISA
} // namespace s4_fast
