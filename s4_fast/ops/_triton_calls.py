"""Which calls the Triton kernels serve. Importing this does not import Triton."""

from __future__ import annotations

import functools
import os
import shutil
from importlib import metadata

import torch

from s4_fast import gpu, torch_private
from s4_fast.dispatch import Call


def refuses(call: Call) -> str | None:
    """Why Triton cannot run ``call`` where its tensors are, or None."""
    if call.device == "cuda":
        if torch.version.hip:
            return "its kernels are written for NVIDIA GPUs; this PyTorch is built for AMD"
        if not _has_compiler():
            return "it compiles how its kernels are launched, and there is no C compiler; run: apt-get install gcc"
        return None
    if call.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"the tensors are on {call.device!r} and Triton runs on CUDA devices (on a CPU with TRITON_INTERPRET=1)"


@torch_private.constant_in_graphs
def version() -> tuple[int, ...]:
    """Major and minor version of the installed Triton."""
    return _version()


@functools.cache
def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version("triton").split(".")[:2])


def refuses_products(call: Call) -> str | None:
    """The same for calls that are served by matrix products."""
    if call.dtype == torch.float64 and version() < (3, 5):
        return f"its matrix products in float64 need Triton 3.5; this is {metadata.version('triton')}"
    return refuses(call)


def preferred(call: Call) -> bool:
    """On the GPUs that the kernels are compiled for in the tests, from sm_80 on, and not in the interpreter."""
    return call.device == "cuda" and gpu.capability() >= (8, 0)


# Environments in which a compiler was found: looking takes tens of microseconds. One that is missing is looked for
# again, as it may be installed meanwhile.
_with_compiler: set[tuple[str | None, str | None]] = set()


@torch_private.constant_in_graphs
def _has_compiler() -> bool:
    where = os.environ.get("CC"), os.environ.get("PATH")
    if where not in _with_compiler and any(name and shutil.which(name) for name in (where[0], "gcc", "clang")):
        _with_compiler.add(where)
    return where in _with_compiler
