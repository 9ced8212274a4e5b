// A whole scan, cut for threads.
#pragma once

#include "scan.h"

namespace s4_fast::cpu {

// Where the gradients of parameters go, each or null.
template <class T>
struct ScanGradients {
    T *x = nullptr, *dt = nullptr, *A_real = nullptr, *A_imag = nullptr, *P = nullptr, *B = nullptr, *C = nullptr,
      *D = nullptr;

    bool any() const { return x || continuous() || P || B || C || D; }
    bool continuous() const { return dt || A_real || A_imag; }
};

// Both return 0. They throw std::bad_alloc.
template <class T>
int run_scan(const Scan<T> &scan, void *y, T *final, int64_t threads);
template <class T>
int run_scan_backward(const ScanBackward<T> &scan, const ScanGradients<T> &gradients, int64_t threads);

}  // namespace s4_fast::cpu
