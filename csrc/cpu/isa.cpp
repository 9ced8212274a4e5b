// STAND-IN until the choice of the instruction set is merged.
#include "isa.h"

#include <cstring>
#include <initializer_list>

#include "../include/s4_fast.h"
#include "error.h"

namespace s4_fast {
namespace {
Isa best() {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::portable;
}
Isa chosen = best();
}  // namespace
Isa isa() { return chosen; }
}  // namespace s4_fast

const char *s4_fast_cpu_isa(void) {
    const char *names[] = {"portable", "avx2", "avx512"};
    return names[int(s4_fast::isa())];
}

int s4_fast_cpu_use(const char *name) {
    using namespace s4_fast;
    if (!name) return chosen = best(), 0;
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
        const char *names[] = {"portable", "avx2", "avx512"};
        if (!std::strcmp(name, names[int(isa)]) && isa <= best()) return chosen = isa, 0;
    }
    return fail("no instruction set '%s' here", name);
}
