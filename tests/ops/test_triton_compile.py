"""Every Triton kernel as it is launched, compiled ahead of time for three GPUs: no spill and no stack. Needs no GPU."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from s4_fast import dispatch
from s4_fast.ops._triton_calls import version

MISSING = dispatch.backends()["triton"].cause
VERSION = () if MISSING else version()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"triton: {MISSING}"),
    pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 leaves nothing to compile"),
]

POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64"}
SCALARS = {int: "i32", float: "fp32"}


class Launch:
    """A recorded launch: the kernel, the types of its arguments, its constants and its options."""

    def __init__(self, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.kernel, self.options = kernel, options
        bound = dict(zip(kernel.arg_names, args, strict=True))
        constant = {p.name for p in kernel.params if p.is_constexpr}
        self.constants = {name: value for name, value in bound.items() if name in constant}
        self.types = {name: "constexpr" if name in constant else self._type(value) for name, value in bound.items()}

    @staticmethod
    def _type(value: Any) -> str:
        return POINTERS[value.dtype] if isinstance(value, Tensor) else SCALARS[type(value)]

    def __repr__(self) -> str:
        types = [t for t in self.types.values() if t.startswith("*")]
        return f"{self.kernel.__name__}({', '.join(types)}, {self.constants}, {self.options})"


def launches(op: str, *args: Any) -> Iterator[Launch]:
    """What the backend's module launches for the op and for all its gradients. Nothing is computed."""
    module = dispatch.load(op, "triton")
    from triton.runtime.jit import JITFunction

    recorded: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        recorded.append(Launch(kernel, args, options))

    with mock.patch.object(JITFunction, "run", record):
        out = getattr(module, op)(*args)
        tensors = [t for t in args if isinstance(t, Tensor)]
        getattr(module, f"{op}_backward")(out, *args, (True,) * len(tensors))
    yield from recorded


def cases(real: torch.dtype, every: bool) -> Iterator[Launch]:
    """Every kernel at its largest tile, or at every kind of tile, form and number of rows."""
    wide = torch.complex64 if real == torch.float32 else torch.complex128

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=wide)

    lengths = (20000, *((200, 1000, 4000) if every else ()))
    for L in lengths if real == torch.float32 or VERSION >= (3, 5) else ():
        v, x = ones(1, 1, 3), ones(1, 3)
        yield from launches("log_vandermonde", v, x, L)
        yield from launches("log_vandermonde_transpose", ones(1, 1, L).real, v, x, L)
    for rows in (4, *((1, 2) if every else ())):
        yield from launches("cauchy_bilinear", ones(rows, 1, 3), ones(1, 3), 9)
        yield from launches("cauchy_mult", ones(rows, 1, 3), ones(1, 9), ones(1, 3), True)
        if every:
            yield from launches("cauchy_mult", ones(rows, 1, 3), ones(1, 9), ones(1, 3), False)
    for r, b, c in ((2, 1, 1), *(((1, 1, 1), (1, 3, 2), (3, 1, 1)) if every else ())):
        factors = [ones(k, 1, 3) for k in (r, r, b, c)]
        yield from launches("dplr_kernel", ones(1, 3), *factors, ones(1, 1).real, 9)


def resources(launch: Launch, architecture: int, folder: Path) -> dict[str, int]:
    """Registers, bytes of stack and accesses to local memory of the compiled kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    positions = {(launch.kernel.arg_names.index(name),): value for name, value in launch.constants.items()}
    if VERSION < (3, 3):
        types = {name: t for name, t in launch.types.items() if t != "constexpr"}
        source = ASTSource(launch.kernel, types, launch.constants)
    else:
        source = ASTSource(launch.kernel, launch.types, positions)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage, code = (
        subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True).stdout
        for option in ("-res-usage", "-sass")
    )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found and "EXIT" in code, usage
    local = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return {"registers": int(found[1]), "stack": int(found[2]), "local": local}


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("real", [torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_no_kernel_spills(architecture: int, real: torch.dtype, every: bool, tmp_path: Path) -> None:
    if architecture >= 100 and VERSION < (3, 3):
        pytest.skip(f"Triton {metadata.version('triton')} does not know sm_{architecture}")
    table = {repr(launch): launch for launch in cases(real, every)}
    used = {name: resources(launch, architecture, tmp_path) for name, launch in table.items()}
    for name, values in used.items():
        print(f"sm_{architecture}", values, name)
    kernels = {launch.kernel.__name__ for launch in table.values()}
    assert len(kernels) == (6 if real == torch.float32 or VERSION >= (3, 5) else 4), kernels
    if VERSION >= (3, 5):  # earlier compilers spill 10 registers of one kernel
        assert not {name: values for name, values in used.items() if values["stack"] or values["local"]}
