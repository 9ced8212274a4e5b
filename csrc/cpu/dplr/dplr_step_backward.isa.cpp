// The adjoint of a step of a DPLR recurrence, in double whatever T is. With q = grad_next + sum_c 2 C_c* dy_c the whole
// gradient of the next state, o_r = 2 Re sum_n V_r s the overlaps and p_r = -Re sum_n G_r* q their gradients:
// grad_u = Re sum_n B* q + D sum_c dy_c, grad_state = q + increment* q + sum_r 2 p_r V_r*, and summed over the batch
// grad_increment = q s*, grad_G_r = -o_r q, grad_V_r = 2 p_r s*, grad_B = q u, grad_C_c = 2 dy_c next*,
// grad_D = u sum_c dy_c.
#include "dplr_step_backward.h"

#include "../../include/s4_fast.h"
#include "../shared/arena.h"
#include "../shared/interleaved.h"

namespace s4_fast::cpu::S4_FAST_ISA {
namespace {

// The sums over the batch for the features of one call, and what one row needs. A feature has `stride` numbers per
// vector of states; V holds the sum of p_r s and C that of dy_c next.
struct Scratch {
    int64_t stride, each;
    double *increment, *B, *G, *V, *C, *D, *q, *dy;

    Scratch(Arena &arena, const DplrStepSizes &s, int64_t features)
        : stride(2 * padded(s.n)),
          each(features * stride),
          increment(arena.take<double>(each)),
          B(arena.take<double>(each)),
          G(arena.take<double>(s.rank * each)),
          V(arena.take<double>(s.rank * each)),
          C(arena.take<double>(s.c * each)),
          D(arena.take<double>(features)),
          q(arena.take<double>(stride)),
          dy(arena.take<double>(s.c)) {}
};

S4_FAST_INLINE void add(double *to, vec what) { store(to, load(to) + what); }

void clear(double *array, int64_t count) {
    for (int64_t i = 0; i < count; ++i) array[i] = 0;
}

// The state of one row and feature, and what belongs to its feature.
template <class T>
class Row {
   public:
    Row(const DplrStepBackward<T> &of, const Scratch &scratch, int64_t batch, int64_t h, int64_t at)
        : of_(of),
          scratch_(scratch),
          n_(of.sizes.n),
          h_(h),
          row_(batch * of.sizes.H + h),
          batch_(batch),
          at_(at * scratch.stride),
          u_(double(of.u[row_])) {}

    void run() {
        gradient_of_next();
        for (int64_t r = 0; r < of_.sizes.rank; ++r) dots(r);
        over_pairs(n_, [&](int64_t i, int64_t count) __attribute__((always_inline)) { add_states(i, count); });
    }

    double u() const { return u_; }
    double sum_dy() const { return sum_dy_; }

   private:
    const T *of_feature(const T *array, int64_t k) const { return array + 2 * (k * of_.sizes.H + h_) * n_; }

    // q, and from it grad_u.
    void gradient_of_next() {
        const int64_t c = of_.sizes.c, H = of_.sizes.H;
        for (int64_t k = 0; k < c; ++k) {
            scratch_.dy[k] = of_.grad_y ? double(of_.grad_y[(batch_ * c + k) * H + h_]) : 0;
            sum_dy_ += scratch_.dy[k];
        }
        const T *grad_next = of_.grad_next ? of_.grad_next + 2 * row_ * n_ : nullptr, *B = of_feature(of_.B, 0);
        vec total = {};
        over_pairs(n_, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
            vec q = {};
            for (int64_t k = 0; k < c; ++k)
                q -= 2 * scratch_.dy[k] * signs() * load_pairs(of_feature(of_.C, k) + 2 * i, count);
            if (grad_next) q += load_pairs(grad_next + 2 * i, count);
            total += load_pairs(B + 2 * i, count) * q;
            store(scratch_.q + 2 * i, q);
        });
        if (of_.grad_u) of_.grad_u[row_] = T(sum(total) + (of_.D ? double(of_.D[h_]) * sum_dy_ : 0));
    }

    void dots(int64_t r) {
        const T *G = of_feature(of_.G, r), *V = of_feature(of_.V, r), *state = of_.state + 2 * row_ * n_;
        vec pulled = {}, overlap = {};
        over_pairs(n_, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
            pulled -= load_pairs(G + 2 * i, count) * load(scratch_.q + 2 * i);
            overlap -= signs() * load_pairs(V + 2 * i, count) * load_pairs(state + 2 * i, count);
        });
        pulls_[r] = sum(pulled), overlaps_[r] = 2 * sum(overlap);
    }

    inline __attribute__((always_inline)) void add_states(int64_t i, int64_t count) {
        const vec s = load_pairs(of_.state + 2 * row_ * n_ + 2 * i, count), q = load(scratch_.q + 2 * i);
        const vec increment = load_pairs(of_.increment + 2 * h_ * n_ + 2 * i, count);
        vec next = s + product(increment, s) + u_ * load_pairs(of_feature(of_.B, 0) + 2 * i, count);
        vec before = q + conj_product(increment, q);
        const int64_t to = at_ + 2 * i;
        for (int64_t r = 0; r < of_.sizes.rank; ++r) {
            next -= overlaps_[r] * load_pairs(of_feature(of_.G, r) + 2 * i, count);
            before -= 2 * pulls_[r] * signs() * load_pairs(of_feature(of_.V, r) + 2 * i, count);
            add(scratch_.G + r * scratch_.each + to, -overlaps_[r] * q);
            add(scratch_.V + r * scratch_.each + to, pulls_[r] * s);
        }
        for (int64_t k = 0; k < of_.sizes.c; ++k) add(scratch_.C + k * scratch_.each + to, scratch_.dy[k] * next);
        add(scratch_.increment + to, conj_product(s, q));
        add(scratch_.B + to, u_ * q);
        if (of_.grad_state) store_pairs(of_.grad_state + 2 * row_ * n_ + 2 * i, before, count);
    }

    const DplrStepBackward<T> &of_;
    const Scratch &scratch_;
    const int64_t n_, h_, row_, batch_, at_;
    const double u_;
    double sum_dy_ = 0, overlaps_[S4_FAST_CPU_DPLR_STEP_RANK], pulls_[S4_FAST_CPU_DPLR_STEP_RANK];
};

// The sums of one feature, times `re` and `im`, as the gradient `to`, which may be null.
template <class T>
void write(T *to, const double *sums, int64_t n, double re, double im) {
    for (int64_t i = 0; to && i < n; ++i) to[2 * i] = T(re * sums[2 * i]), to[2 * i + 1] = T(im * sums[2 * i + 1]);
}

template <class T>
T *of_feature(T *array, int64_t k, int64_t h, const DplrStepSizes &s) {
    return array ? array + 2 * (k * s.H + h) * s.n : nullptr;
}

}  // namespace

int64_t dplr_step_backward_scratch(const DplrStepSizes &sizes, int64_t features) {
    Arena arena;
    Scratch(arena, sizes, features);
    return arena.used();
}

template <class T>
void dplr_step_backward(const DplrStepBackward<T> &of, int64_t first, int64_t last, char *memory) {
    const FlushDenormals flush;
    const DplrStepSizes &s = of.sizes;
    Arena arena(memory);
    const int64_t features = last - first;
    const Scratch scratch(arena, s, features);
    clear(scratch.increment, scratch.each), clear(scratch.B, scratch.each), clear(scratch.D, features);
    clear(scratch.G, s.rank * scratch.each), clear(scratch.V, s.rank * scratch.each);
    clear(scratch.C, s.c * scratch.each);
    for (int64_t batch = 0; batch < s.batch; ++batch)
        for (int64_t h = first; h < last; ++h) {
            Row<T> row(of, scratch, batch, h, h - first);
            row.run();
            scratch.D[h - first] += row.u() * row.sum_dy();
        }
    for (int64_t h = first; h < last; ++h) {
        const int64_t from = (h - first) * scratch.stride;
        write(of_feature(of.grad_increment, 0, h, s), scratch.increment + from, s.n, 1, 1);
        write(of_feature(of.grad_B, 0, h, s), scratch.B + from, s.n, 1, 1);
        for (int64_t r = 0; r < s.rank; ++r) {
            write(of_feature(of.grad_G, r, h, s), scratch.G + r * scratch.each + from, s.n, 1, 1);
            write(of_feature(of.grad_V, r, h, s), scratch.V + r * scratch.each + from, s.n, 2, -2);
        }
        for (int64_t k = 0; k < s.c; ++k)
            write(of_feature(of.grad_C, k, h, s), scratch.C + k * scratch.each + from, s.n, 2, -2);
        if (of.grad_D) of.grad_D[h] = T(scratch.D[h - first]);
    }
}

template void dplr_step_backward(const DplrStepBackward<float> &, int64_t, int64_t, char *);
template void dplr_step_backward(const DplrStepBackward<double> &, int64_t, int64_t, char *);

}  // namespace s4_fast::cpu::S4_FAST_ISA
