// Cauchy sums and their adjoint, a range of nodes of one feature at a time.
#pragma once

#include <cstdint>

#include "../shared/isa.h"
#include "../shared/roots.h"

namespace s4_fast::cpu {

// What is summed: v/(z - w); that and its conjugate pair; or pairs at the roots of unity, v/(2 i s - w c).
enum class Terms { single, pairs, at_roots };

// As in s4_fast.h. At the roots of unity there is no z; `angles` has the nodes of `roots` in type T.
template <class T>
struct Cauchy {
    Terms terms;
    int64_t c, H, n, nodes;
    const T *v, *w, *z;
    int64_t z_rows;
    Roots roots;
    HalfAngles<T> angles;
};

// A range begins at a multiple of this, or a little is lost.
constexpr int64_t CAUCHY_BLOCK = 512;

// How many sums over nodes the gradients of a pole and of its c coefficients are made of.
template <class T>
int64_t cauchy_moments(const Cauchy<T> &of) {
    return 2 * of.c + 2;
}

// The nodes first <= k < last of feature h. The adjoint writes the moments (n, 2 c + 2) of this range, which
// cauchy.cpp makes gradients of, and to grad_z, unless it is null, what feature h adds at these nodes.
// clang-format off
S4_FAST_DECLARE_FOR_ISAS(
    template <class T> int64_t cauchy_scratch(const Cauchy<T> &of, bool backward);
    template <class T>
    void cauchy_sums(const Cauchy<T> &of, T *out, int64_t h, int64_t first, int64_t last, char *scratch);
    template <class T>
    void cauchy_sums_backward(const Cauchy<T> &of, const T *grad, int64_t h, int64_t first, int64_t last,
                              double *moments, T *grad_z, char *scratch);)
// clang-format on

}  // namespace s4_fast::cpu
