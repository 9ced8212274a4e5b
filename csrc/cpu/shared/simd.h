// Vectors of the instruction set that a *.isa.cpp file is compiled for. Such files use no function of the C++ library
// that is not certainly inlined: the linker keeps one copy of each, and could keep one that the processor does not run.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace s4_fast::cpu::S4_FAST_ISA {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, REGISTERS = 32;
#else
constexpr int VECTOR_BYTES = 16, REGISTERS = 16;
#endif

template <class T>
constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

typedef float FloatVector __attribute__((vector_size(VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t IndexVector __attribute__((vector_size(VECTOR_BYTES)));

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    using type = FloatVector;
};
template <>
struct VectorOf<double> {
    using type = DoubleVector;
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
inline Vector<T> load(const T *from) {
    Vector<T> v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

template <class T>
inline void store(T *to, Vector<T> v) {
    __builtin_memcpy(to, &v, sizeof v);
}

typedef float HalfFloatVector __attribute__((vector_size(VECTOR_BYTES / 2)));

// Loads and stores of as many numbers as a vector of doubles has, from and to memory of either type.
inline DoubleVector load_double(const double *from) { return load(from); }
inline DoubleVector load_double(const float *from) {
    HalfFloatVector v;
    __builtin_memcpy(&v, from, sizeof v);
    return __builtin_convertvector(v, DoubleVector);
}
inline void store_double(double *to, DoubleVector v) { store(to, v); }
inline void store_double(float *to, DoubleVector v) {
    const HalfFloatVector half = __builtin_convertvector(v, HalfFloatVector);
    __builtin_memcpy(to, &half, sizeof half);
}

// The lower and the upper half of a vector of floats in double, and back.
#if defined(__AVX512F__)
#define S4_FAST_LOWER 0, 1, 2, 3, 4, 5, 6, 7
#define S4_FAST_UPPER 8, 9, 10, 11, 12, 13, 14, 15
#elif defined(__AVX2__)
#define S4_FAST_LOWER 0, 1, 2, 3
#define S4_FAST_UPPER 4, 5, 6, 7
#else
#define S4_FAST_LOWER 0, 1
#define S4_FAST_UPPER 2, 3
#endif
inline DoubleVector lower(FloatVector v) {
    return __builtin_convertvector(__builtin_shufflevector(v, v, S4_FAST_LOWER), DoubleVector);
}
inline DoubleVector upper(FloatVector v) {
    return __builtin_convertvector(__builtin_shufflevector(v, v, S4_FAST_UPPER), DoubleVector);
}
inline FloatVector joined(DoubleVector low, DoubleVector high) {
    return __builtin_shufflevector(__builtin_convertvector(low, HalfFloatVector),
                                   __builtin_convertvector(high, HalfFloatVector), S4_FAST_LOWER, S4_FAST_UPPER);
}
#undef S4_FAST_LOWER
#undef S4_FAST_UPPER

// The halves are added first: one after the other, additions would wait for each other.
template <int FIRST = 0, int COUNT = LANES<double>>
inline double sum(DoubleVector v) {
    if constexpr (COUNT == 1)
        return v[FIRST];
    else
        return sum<FIRST, COUNT / 2>(v) + sum<FIRST + COUNT / 2, COUNT / 2>(v);
}

// n nodes as whole vectors of doubles; their 2n real and imaginary parts are then whole vectors of floats too.
constexpr int64_t padded(int64_t n) { return (n + LANES<double> - 1) / LANES<double> * LANES<double>; }

// Numbers below the normal range, which a decayed state reaches, cost an assist each. Here they are zero.
class FlushDenormals {
   public:
#if defined(__x86_64__)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

   private:
    unsigned saved_;
#else
    FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals &) = delete;
    FlushDenormals &operator=(const FlushDenormals &) = delete;
};

}  // namespace s4_fast::cpu::S4_FAST_ISA
