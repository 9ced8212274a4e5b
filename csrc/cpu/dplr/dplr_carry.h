// States of a DPLR system carried from chunk to chunk: products with the dense matrix of a chunk's steps, for many rows
// of states at a time. In float its rounding is wrong by its error times the number of chunks, in one call or in many
// that pass a state on. So what a block of chunks adds to a state is carried in float, and the state that the block
// begins with in double. Where chunks are many, four of them are a group: its input is summed in float, states pass
// from group to group in double, and from there through the chunks of a group in float. Groups of a block are rows of
// the same products.
#pragma once

#include "../shared/carry.h"
#include "dplr_matrix.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

template <class From, class To>
void convert(int64_t count, const From *from, To *to) {
    for (int64_t i = 0; i < count; i += LANES<double>) store_double(to + i, load_double(from + i));
}

template <class T>
class DenseCarry {
   public:
    // `now` and `next` are scratch memory for rows of a block. `begins`: whether blocks begin with other states than 0.
    DenseCarry(Arena &memory, const Scan<T> &scan, bool begins, bool adjoint, T *now, T *next)
        : N_(2 * padded(scan.n)),
          grouped_(scan.grouped()),
          apart_(sizeof(T) == sizeof(float) && scan.chunks() > 0 &&
                 (begins || grouped_ || scan.chunks() > scan.block())),
          one_(memory, scan.chunks() > 0, adjoint, N_),
          wide_(memory, apart_, adjoint, N_),
          group_(memory, grouped_, adjoint, N_),
          now_(now),
          next_(next),
          after_(memory.take<double>(apart_ ? scan.together() * N_ : 0)) {}

    static T *make_rows(Arena &memory, const Scan<T> &scan) {
        const int64_t rows = scan.grouped() ? scan.block() / GROUP : scan.together();
        return memory.take<T>(scan.chunks() > 0 ? rows * 2 * padded(scan.n) : 0);
    }

    void set(const Transition &step, int64_t n, const Workshop &work, bool adjoint) const {
        ChunkMatrix(step, n, work).template make<T>();
        convert(N_ * N_, work.matrix, one_.forward);
        if (adjoint) one_.turn(N_);
        if (!apart_) return;
        convert(N_ * N_, work.matrix, wide_.forward);
        if (adjoint) wide_.turn(N_);
        if (!grouped_) return;
        square(work.matrix, work.square), square(work.square, group_.forward);
        static_assert(GROUP == 4, "");
        if (adjoint) group_.turn(N_);
    }

    // Replaces the inputs of `count` chunks of each of some rows, `stride` apart, by the states before them, and takes
    // the rows of `states` over them. The adjoint runs from the last chunk to the first.
    void over(const Rows &states, bool adjoint, int64_t rows, int64_t count, T *local, int64_t stride) const {
        const int64_t step = adjoint ? -N_ : N_, groups = grouped_ ? count / GROUP : 0;
        if (adjoint) local += (count - 1) * N_;
        if (groups > 0) over_groups(states.data, adjoint, groups, local, step);
        local += groups * GROUP * step, count -= groups * GROUP;
        if (count == 0) return;
        if (!apart_) {
            convert(rows * N_, states.data, now_);
            convert(rows * N_, pass(one_.of(adjoint), now_, next_, rows, stride, count, local, step, true),
                    states.data);
            return;
        }
        clear(now_, rows * N_);
        const T *const added = pass(one_.of(adjoint), now_, next_, rows, stride, count, local, step, true);
        for (int64_t q = 0; q < count; ++q, local += step) {
            for (int64_t r = 0; r < rows; ++r) add(states.data + r * N_, local + r * stride);
            multiply<double>(rows, N_, {N_, {states.data, N_, 1}, wide_.of(adjoint), N_}, after_, N_, false);
            convert(rows * N_, after_, states.data);
        }
        for (int64_t i = 0; i < rows * N_; i += LANES<double>)
            store(states.data + i, load(states.data + i) + load_double(added + i));
    }

   private:
    // A matrix (N, N) as rows of states are multiplied by it, and where there is an adjoint its transpose.
    template <class Number>
    struct Table {
        Number *forward, *back;

        Table(Arena &memory, bool there, bool adjoint, int64_t N)
            : forward(memory.take<Number>(there ? N * N : 0)),
              back(memory.take<Number>(there && adjoint ? N * N : 0)) {}

        void turn(int64_t N) const { transpose(N, N, forward, N, back, N); }
        const Number *of(bool adjoint) const { return adjoint ? back : forward; }
    };

    void add(const double *from, T *to) const {
        for (int64_t i = 0; i < N_; i += LANES<double>) store_double(to + i, load_double(to + i) + load(from + i));
    }

    void square(const double *from, double *to) const {
        multiply<double>(N_, N_, {N_, {from, N_, 1}, from, N_}, to, N_, false);
    }

    void copy(const T *from, T *to) const {
        for (int64_t i = 0; i < N_; i += LANES<T>) store(to + i, load(from + i));
    }

    // Rows of states over `count` inputs each, which the states before them
    // replace if `keep`; where they are then.
    T *pass(const T *table, T *now, T *next, int64_t rows, int64_t stride, int64_t count, T *local, int64_t step,
            bool keep) const {
        for (int64_t q = 0; q < count; ++q, local += step) {
            for (int64_t r = 0; r < rows; ++r) {
                copy(local + r * stride, next + r * N_);
                if (keep) copy(now + r * N_, local + r * stride);
            }
            multiply<T>(rows, N_, {N_, {now, N_, 1}, table, N_}, next, N_, true);
            T *const other = now;
            now = next, next = other;
        }
        return now;
    }

    void over_groups(double *state, bool adjoint, int64_t groups, T *local, int64_t step) const {
        if (groups == 0) return;
        const int64_t stride = GROUP * step;
        for (int64_t g = 0; g < groups; ++g) copy(local + g * stride, now_ + g * N_);
        T *now = pass(one_.of(adjoint), now_, next_, groups, stride, GROUP - 1, local + step, step, false);
        for (int64_t g = 0; g < groups; ++g) over_group(state, group_.of(adjoint), now + g * N_);
        now = pass(one_.of(adjoint), now, now == now_ ? next_ : now_, groups, stride, GROUP - 1, local, step, true);
        for (int64_t g = 0; g < groups; ++g) copy(now + g * N_, local + g * stride + (GROUP - 1) * step);
    }

    // The state after a group for that before it, which takes the place of the
    // group's input.
    void over_group(double *state, const double *table, T *input) const {
        for (int64_t i = 0; i < N_; i += LANES<double>) {
            store(after_ + i, load_double(input + i)), store_double(input + i, load(state + i));
        }
        multiply<double>(1, N_, {N_, {state, N_, 1}, table, N_}, after_, N_, true);
        convert(N_, after_, state);
    }

    int64_t N_;
    bool grouped_, apart_;
    Table<T> one_;  // of a chunk
    Table<double> wide_, group_;
    T *now_, *next_;
    double *after_;
};

}  // namespace
}  // namespace s4_fast::cpu::S4_FAST_ISA
