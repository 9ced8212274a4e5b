#include "isa.h"

#include <atomic>
#include <cstring>
#include <initializer_list>

#include "../../common/error.h"
#include "../../include/s4_fast.h"

namespace s4_fast::cpu {
namespace {

bool runs(Isa candidate) {
    switch (candidate) {
#if defined(S4_FAST_HAS_AVX512)
        case Isa::avx512:
            return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
#if defined(S4_FAST_HAS_AVX2)
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
        case Isa::portable:
            return true;
        default:
            return false;
    }
}

const char *name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable"; }

Isa best() {
    for (Isa candidate : {Isa::avx512, Isa::avx2}) {
        if (runs(candidate)) return candidate;
    }
    return Isa::portable;
}

std::atomic<Isa> &chosen() {
    static std::atomic<Isa> value{best()};
    return value;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed); }

}  // namespace s4_fast::cpu

extern "C" const char *s4_fast_cpu_isa(void) { return s4_fast::cpu::name(s4_fast::cpu::isa()); }

extern "C" int s4_fast_cpu_use(const char *isa) {
    using namespace s4_fast::cpu;
    if (isa == nullptr) {
        chosen() = best();
        return 0;
    }
    for (Isa candidate : {Isa::avx512, Isa::avx2, Isa::portable}) {
        if (std::strcmp(isa, name(candidate)) == 0 && runs(candidate)) {
            chosen() = candidate;
            return 0;
        }
    }
    return s4_fast::fail("instruction set '%s' is not known, not compiled in, or not in this processor", isa);
}
