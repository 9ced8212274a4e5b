// Tables whose columns, or rows, beyond the nodes that there are hold zeros.
#pragma once

#include "simd.h"

namespace s4_fast {
namespace S4_FAST_ISA {

template <class T>
void clear_columns(T *table, int64_t from, int64_t to, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = from; i < to; ++i) table[r * columns + i] = 0;
    }
}

template <class T>
void clear_rows(T *table, int64_t from, int64_t to, int64_t columns) {
    for (int64_t i = from * columns; i < to * columns; ++i) table[i] = 0;
}

}  // namespace S4_FAST_ISA
}  // namespace s4_fast
