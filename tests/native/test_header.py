"""The library, its bindings and the header agree: names, arguments, types, limits, and what is refused."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from s4_fast import native_library
from s4_fast.ops.diagonal import native as diagonal
from s4_fast.ops.diagonal.form import Form
from s4_fast.ops.dplr import native as dplr
from s4_fast.ops.dplr_scan import native as dplr_scan
from s4_fast.ops.long_conv import native as long_conv
from s4_fast.ops.scan import native as scan
from tests.helpers import needs_native
from tests.native import boundary, header
from tests.native.emulated import Emulated, needs_compiler
from tests.native.header import Argument
from tests.properties.holding import results
from tests.properties.strategies import Plan

CPU, CUDA = boundary.functions("cpu"), boundary.functions("cuda")
DTYPES = {"FLOAT32": torch.float32, "FLOAT64": torch.float64, "BFLOAT16": torch.bfloat16, "FLOAT16": torch.float16}
# A call of every op, from which the bindings make theirs.
_SIZES = {"batch": 2, "H": 3, "n": 5}
_CONTINUOUS = {"batch": 2, "rows": 2, "copies": 2, "n": 5, "L": 20, "channels": 3, "steps": "column"}
_CONTINUOUS |= {"bidirectional": True, "time_major": True, "rate": 2.0}
PLANS = (
    Plan("log_vandermonde", {"leads": ((2, 3), (3,)), "n": 5, "L": 20}),
    Plan("log_vandermonde_transpose", {"leads": ((2, 3), (3,), (3,)), "n": 5, "L": 20}),
    Plan("cauchy_mult", {"leads": ((2, 3), (), (3,)), "n": 5, "L": 20, "symmetric": True}),
    Plan("cauchy_bilinear", {"leads": ((2, 3), (3,)), "n": 5, "L": 20}),
    Plan("dplr_kernel", {"H": 3, "n": 5, "L": 20, "rank": 2, "b": 1, "c": 2, "per_state": False}),
    Plan("dplr_step", {**_SIZES, "rank": 2, "c": 2}),
    Plan("fft_conv", {"batch": 2, "H": 3, "L": 20, "Lk": 7, "c": 2}),
    Plan("ssm_scan", {**_SIZES, "L": 20}),
    Plan("ssm_step", _SIZES),
    Plan("diagonal_ssm", {**_CONTINUOUS, "discretization": "zoh"}),
    Plan("dplr_scan", {**_CONTINUOUS, "rank": 2}),
)


def test_the_families_take_the_same_arguments() -> None:
    """Those for tensor cores have the arguments of their namesakes, and are there for GPUs alone."""
    assert any(name.startswith(boundary.TENSOR) for name in CUDA)
    assert {name: CPU[boundary.namesake(name)] for name in CUDA} == CUDA
    assert {name: CUDA[boundary.namesake(name)] for name in CUDA} == CUDA
    assert not [name for name in CPU if name.startswith(boundary.TENSOR)]


def test_constants_are_those_of_the_bindings() -> None:
    constants = header.constants()
    assert {name: native_library.DTYPES[dtype] for name, dtype in DTYPES.items()} == {n: constants[n] for n in DTYPES}
    flags = [Form(**{name.lower(): True}).flags for name in boundary.FLAG_NAMES]
    assert flags == [constants[name] for name in boundary.FLAG_NAMES]
    assert constants.keys() == {*DTYPES, *boundary.FLAG_NAMES, *header.limits()}


@needs_native
def test_limits_are_those_that_the_library_enforces() -> None:
    handle = native_library._handle()
    assert {name: native_library.limit(name.lower()) for name in header.limits()} == header.limits()
    assert handle.s4_fast_limit(b"CPU_DPLR") == handle.s4_fast_limit(None) == -1
    for name, limit in boundary.LIMITS.items():
        for more in (0, 1):
            rank = header.limits()[f"CPU_{limit}"] + more
            assert bool(refusal(name, {"rank": rank})) == bool(more)


def refusal(name: str, changes: dict[str, Any]) -> str:
    """Why the library fails a call in which all sizes are 1, but for ``changes``; or the empty string."""
    memory = ctypes.create_string_buffer(1 << 14)

    def given(argument: Argument) -> object:
        if boundary.is_array(argument):
            return ctypes.byref(memory, 0) if argument.name not in changes else None
        if argument.type == "double":
            return ctypes.c_double(1)
        plain = 1 if boundary.is_size(argument) else 0
        return ctypes.c_int64(changes.get(argument.name, plain))

    handle = native_library._handle()
    failed = getattr(handle, f"s4_fast_cpu_{name}")(*map(given, CPU[name]), ctypes.c_int64(1))
    return native_library._error(handle) if failed else ""


@needs_native
@pytest.mark.parametrize("name", CPU)
def test_the_library_refuses_what_it_cannot_take(name: str) -> None:
    with_signals = any(a.name == "signal_dtype" for a in CPU[name])
    assert refusal(name, {}) == refusal(name, {"dtype": 1, "signal_dtype": 1}) == ""
    for dtype in (-1, 2, 2**32):
        assert refusal(name, {"dtype": dtype}) == f"{name}: unknown dtype {dtype}"
    if with_signals:
        assert refusal(name, {"signal_dtype": 1}) == f"{name}: signal_dtype 1 does not go with dtype 0"
    sizes = [a.name for a in CPU[name] if boundary.is_size(a)]
    for size in sizes:
        for value in (0, -1, -(2**32) + 1):
            assert refusal(name, {size: value}).endswith(f" must be at least 1, got {value}")
        assert refusal(name, {size: 2**51}) == f"{name}: the product of the sizes is larger than 2^50"
    pair = [size for size in sizes if size not in boundary.BESIDE][:2]
    if len(pair) == 2:  # whose product is 0 in 64 bits
        assert refusal(name, dict.fromkeys(pair, 2**32)).endswith("larger than 2^50")
    for argument in filter(boundary.is_array, CPU[name]):
        optional = boundary.may_be_null(name, argument.name)
        missing = "" if optional else f"{name}: an argument that must be given is NULL"
        assert refusal(name, {argument.name: None}) == missing, argument.name


@needs_compiler
@pytest.mark.parametrize("name", CUDA)
def test_the_cuda_functions_refuse_what_is_not_given(name: str, emulated: Emulated) -> None:
    memory = torch.zeros(1 << 11, dtype=torch.float64)

    def value(argument: Argument, absent: Argument) -> Any:
        if boundary.is_array(argument):
            return None if argument == absent else memory
        if argument.name.endswith("dtype"):
            return torch.float32
        return 1.0 if argument.type == "double" else int(boundary.is_size(argument))

    for absent in filter(boundary.is_array, CUDA[name]):
        arguments = [value(argument, absent) for argument in CUDA[name]]
        if boundary.may_be_null(name, absent.name):
            emulated.call(name, memory, *arguments)
        else:
            with pytest.raises(RuntimeError, match=f"^{name}: an argument that must be given is NULL$"):
                emulated.call(name, memory, *arguments)


def kind(value: Any) -> str:
    """What C sees of an argument that ctypes passes."""
    if isinstance(value, (ctypes.c_double, float)):
        return "d"
    return "p" if value is None or isinstance(value, ctypes.c_void_p) else "i"


class Watched:
    """The library, whose functions note how they are called."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        self.handle, self.calls = handle, dict[str, str]()

    def __getattr__(self, name: str) -> Any:
        return self[name] if name.startswith("s4_fast_cpu_") else getattr(self.handle, name)

    def __getitem__(self, name: str) -> Any:
        return WatchedFunction(self, name, self.handle[name])


class WatchedFunction:
    def __init__(self, library: Watched, name: str, function: Any) -> None:
        self._library, self._name, self._function = library, name.removeprefix("s4_fast_cpu_"), function

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "argtypes":
            kinds = {ctypes.c_int64: "i", ctypes.c_double: "d", ctypes.c_void_p: "p"}
            self._library.calls[self._name] = "".join(kinds[t] for t in value)
            self._function.argtypes = value
        else:
            object.__setattr__(self, name, value)

    def __call__(self, *arguments: Any) -> Any:
        if self._function.argtypes is None:
            self._library.calls[self._name] = "".join(map(kind, arguments))
        return self._function(*arguments)


@needs_native
def test_bindings_pass_what_the_header_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Watched(native_library._handle())
    monkeypatch.setattr(native_library, "_handle", lambda: library)
    for module in (diagonal, dplr_scan, long_conv):
        for function in (module._FORWARD, module._BACKWARD):
            monkeypatch.setattr(function, "_functions", {})
    for plan in PLANS:
        tensors, scalars = plan.call()
        results(plan.op, tensors, "native", 0, **scalars)
    expected = {"int64_t": "i", "double": "d"}
    declared = {name: "".join(expected.get(a.type, "p") for a in found) + "i" for name, found in CPU.items()}
    assert library.calls == declared
    # Steps that are prepared for many calls.
    library.calls.clear()
    given = {plan.op: plan.call()[0] for plan in PLANS if plan.op.endswith("step")}
    step, low_rank = given["ssm_step"], given["dplr_step"]
    scan.prepared_step(step["x"].to(torch.complex128), step["B"], step["C"][None])
    low_rank["increment"] = low_rank["increment"].to(torch.complex128)
    dplr.prepared_step(*(low_rank[name] for name in ("increment", "G", "V", "B", "C")))
    assert library.calls == {name: declared[name] for name in ("step", "dplr_step")}
