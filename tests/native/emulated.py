"""The CUDA kernels as a library for the CPU (cuda/shared/emulate.h), called as native_library calls the real one."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from s4_fast import native_library
from tests.native.trees import ROOT, build_native, kept_objects

ORDERS = {"forwards": 0, "backwards": 1, "shuffled": 2}
GUARD = 64
LIBRARY = ROOT / "csrc/common/library.cpp"
# The compiler's options, for a run of the tests with sanitizers.
OPTIONS_VARIABLE = "S4_FAST_EMULATED_OPTIONS"

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
needs_device = pytest.mark.skipif(
    bool(native_library.cause(cuda=True)), reason=f"the native library on a GPU: {native_library.cause(cuda=True)}"
)


def build(folder: Path, options: Sequence[str]) -> Path:
    """Compile csrc/cuda for the CPU into a library in ``folder``."""
    command = ["g++", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-DS4_FAST_EMULATE", '-DS4_FAST_VERSION="0"']
    command += ["-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare", "-Werror", *options, "-x", "c++"]
    sources = [path for path in sorted((ROOT / "csrc/cuda").rglob("*.cu")) if path.name != "device.cu"]
    library = folder / "libemulated.so"
    with kept_objects("_".join(["emulated", *options])) as objects:
        files = build_native()._compile(((path.stem, path, command) for path in [*sources, LIBRARY]), objects)
        subprocess.run(["g++", *options, "-shared", "-Wl,-z,defs", *map(str, files), "-o", str(library)], check=True)
    return library


class Emulated:
    """Calls the emulated library, with a poisoned workspace and a guard behind it."""

    device = torch.device("cpu")

    def __init__(self, path: Path) -> None:
        self._handle = ctypes.CDLL(str(path))
        self._handle.s4_fast_error.restype = ctypes.c_char_p
        self._handle.s4_fast_emulate_launches.restype = ctypes.c_long

    def order(self, name: str) -> None:
        """In which order the threads of a block run between barriers."""
        self._handle.s4_fast_emulate_order(ORDERS[name])

    def launches(self) -> int:
        """How many kernels have been launched so far."""
        return int(self._handle.s4_fast_emulate_launches())

    def call(self, name: str, like: Tensor, *args: Any) -> None:
        function = getattr(self._handle, f"s4_fast_cuda_{name}")
        converted = [native_library._to_c(argument, like.device) for argument in args]
        size = ctypes.c_int64(-1)
        where = (ctypes.byref(size), ctypes.c_int64(0), None)
        self._check(function(*converted, None, *where))
        assert size.value >= 0
        workspace = torch.full((size.value + GUARD,), 0xFF, dtype=torch.uint8)
        self._check(function(*converted, ctypes.c_void_p(workspace.data_ptr()), *where))
        assert (workspace[size.value :] == 0xFF).all(), f"{name} writes beyond its workspace"

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(self._handle.s4_fast_error().decode())


class Device:
    """Calls the library of this installation on the GPU."""

    device = torch.device("cuda", 0)

    def call(self, name: str, like: Tensor, *args: Any) -> None:
        native_library.call(name, like, *args)


Library = Emulated | Device
