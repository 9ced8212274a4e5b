"""Small copies of this project, to build and to break."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.scripts import load

ROOT = Path(__file__).resolve().parents[2]
BUILD_VARIABLES = ("CXX", "CXXFLAGS", "LDFLAGS", "NVCC", "NVCC_CCBIN", "CUDA_HOME", "CUDA_PATH")

# Kernels whose results show how they were called and compiled.
PROBE_ISA = """
#include <cstdint>
namespace S4_FAST_ISA {
int lanes() {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
    return 16;
#elif defined(__AVX2__) && defined(__FMA__)
    return 8;
#else
    return 0;
#endif
}
}
"""
PROBE = """
#include <cstring>
#include <stdexcept>
#include "../../include/s4_fast.h"
#include "../../common/error.h"
#ifdef S4_FAST_HAS_AVX512
namespace avx512 { int lanes(); }
#endif
#ifdef S4_FAST_HAS_AVX2
namespace avx2 { int lanes(); }
#endif
namespace portable { int lanes(); }

static const char *used = "portable";
const char *s4_fast_cpu_isa(void) { return used; }
int s4_fast_cpu_use(const char *isa) {
    if (isa && std::strcmp(isa, "portable") != 0) return s4_fast::fail("this processor has no %s", isa);
    return 0;
}
// As what comes with a static library.
extern "C" S4_FAST_API int of_another_library() { return 0; }
extern "C" S4_FAST_API int s4_fast_cpu_lanes(int64_t *out, int64_t) {
    out[0] = out[1] = out[2] = -1;
#ifdef S4_FAST_HAS_AVX512
    out[0] = avx512::lanes();
#endif
#ifdef S4_FAST_HAS_AVX2
    out[1] = avx2::lanes();
#endif
    out[2] = portable::lanes();
    return 0;
}
extern "C" S4_FAST_API int s4_fast_cpu_show(int64_t dtype, int64_t large, int64_t flag, const void *absent,
                                            const double *x, double scale, double *out, int64_t threads) {
    out[0] = dtype, out[1] = large, out[2] = flag, out[3] = absent == nullptr, out[4] = scale * x[0], out[5] = threads;
    return 0;
}
extern "C" S4_FAST_API int s4_fast_cpu_throw(int64_t what, int64_t) {
    return s4_fast::guard([&]() -> int {
        if (what == 0) throw std::bad_alloc();
        if (what == 1) throw std::runtime_error("the 17th tile");
        if (what == 2) throw what;
        return 0;
    });
}
"""
PROBE_CUDA = """
#include <cuda_runtime.h>
#include "../../include/s4_fast.h"
__global__ void probe(float *x) { x[threadIdx.x] = expf(x[threadIdx.x]); }
int s4_fast_cuda_usable(int64_t) {
    probe<<<1, 32>>>(nullptr);
    return cudaGetLastError() != cudaSuccess;
}
"""


def make(root: Path) -> Path:
    """The project's files for a build, with the probe for kernels, and none that was built."""
    names = "csrc/build_native.py csrc/symbols.map csrc/include/s4_fast.h csrc/common/error.h csrc/common/library.cpp"
    others = "pyproject.toml setup.py MANIFEST.in README.md LICENSE"
    for name in (*names.split(), *others.split()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    ignored = shutil.ignore_patterns("__pycache__", "_native")
    shutil.copytree(ROOT / "s4_fast", root / "s4_fast", ignore=ignored)
    probes = {"cpu/probe/probe.cpp": PROBE, "cpu/probe/lanes.isa.cpp": PROBE_ISA, "cuda/probe/probe.cu": PROBE_CUDA}
    for name, text in probes.items():
        (root / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "csrc" / name).write_text(text)
    return root


def tools(folder: Path, *names: str) -> Path:
    """A folder for PATH that has these programs alone, of those that this machine has."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return folder


def script(file: Path, body: str) -> Path:
    """A program for the shell, in place of a compiler."""
    file.unlink(missing_ok=True)
    file.write_text(f"#!{shutil.which('sh')}\n{body}\n")
    file.chmod(0o755)
    return file


def environment(path: Path, **settings: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in BUILD_VARIABLES and not k.startswith("S4_FAST_")}
    return inherited | {"PATH": str(path)} | settings


def build(root: Path, path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """The command of an uninstalled tree, without site-packages and so without setuptools."""
    command = [sys.executable, "-I", "-S", str(root / "csrc/build_native.py")]
    return subprocess.run(command, capture_output=True, text=True, env=environment(path, **settings))


def description(root: Path) -> dict[str, Any]:
    return json.loads((root / "s4_fast/_native/build.json").read_text())


def build_native() -> ModuleType:
    """The program csrc/build_native.py as a module."""
    return load("csrc/build_native.py")


@contextmanager
def kept_objects(name: str) -> Iterator[Path]:
    """A folder where objects stay for the next session, as the build's do. One process at a time compiles there."""
    import fcntl  # not on Windows

    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
