// The roots of unity omega_k = exp(-i theta), theta = 2 pi k / L, k = 0 .. L/2, in half angles.
#pragma once

#include <cstdint>

#include "isa.h"

namespace s4_fast::cpu {

// The nodes of a feature are divided into ranges that begin at multiples of this, and tables of nodes padded to one.
constexpr int64_t NODES = 16;

// cos and twice_sin + low are cos(theta/2) and 2 sin(theta/2) times a common factor of 1 + O(eps) that makes cos a
// number of type T. Only their ratio matters.
template <class T>
struct HalfAngles {
    T *cos, *twice_sin, *low;
};
using Roots = HalfAngles<double>;

// Powers of exp(i pi/L): four arrays of fine_count, and of 2 * coarse_count, for cos, its low part, sin, its low part.
struct RootPowers {
    int64_t L, fine_count, coarse_count;
    double *fine, *coarse;
};

// root_powers fills the arrays of `powers`; roots writes the nodes that row `row` of 2 * coarse_count makes.
// clang-format off
S4_FAST_DECLARE_FOR_ISAS(
    void root_powers(const RootPowers &powers);
    void roots(const RootPowers &powers, const Roots &to, int64_t row);)
// clang-format on

}  // namespace s4_fast::cpu
