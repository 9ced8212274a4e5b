"""The backend ``tensor_cores``: what it refuses, what it calls, and the Cauchy sums that are made of its products."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from s4_fast import (
    BackendUnavailableError,
    S4DLayer,
    backend_table,
    dispatch,
    explain,
    gpu,
    native_library,
    use_backend,
)
from s4_fast.dispatch import Call
from s4_fast.ops.cauchy import tensor_cores
from s4_fast.ops.cauchy.fft_form import BilinearSums
from s4_fast.ops.cauchy.rounded_nodes import RoundedNodes, terms
from s4_fast.ops.diagonal import tensor_cores as diagonal
from s4_fast.ops.vandermonde import pytorch
from tests.helpers import (
    Tensors,
    assert_contract,
    evaluate,
    log_nodes,
    log_uniform,
    needs_native,
    normal,
    uniform,
)
from tests.native import header

OPS = ("ssm_scan", "diagonal_ssm", "log_vandermonde", "log_vandermonde_transpose", "dplr_kernel", "cauchy_bilinear")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 with the CUDA part of the library."""
    monkeypatch.setattr(gpu, "capability", lambda: (9, 0))
    monkeypatch.setattr(native_library, "cause", lambda cuda=False: "")
    monkeypatch.setattr(native_library, "refusal", lambda device: None)
    monkeypatch.setattr(native_library, "limit", lambda name: header.limits()[name.upper()])


def call(op: str, dtype: torch.dtype = torch.float32, device: str = "cuda", **sizes: int) -> Call:
    if op == "dplr_kernel":
        sizes = {"rank": 1, "b": 1, "c": 1, **sizes}
    return Call(op, device, dtype, {"H": 4, "n": 3, "L": 100, **sizes})


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("device")
def test_it_runs_where_it_is_asked_for_and_nowhere_else(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.choose(call(op), "tensor_cores").backend == "tensor_cores"
    assert "tensor_cores" not in backend_table.AUTOMATIC_ORDER
    assert dispatch.choose(call(op)).backend != "tensor_cores"
    with use_backend("tensor_cores"):
        assert dispatch.choose(call(op)) == ("tensor_cores", "requested by use_backend()", None)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "tensor_cores")
    assert dispatch.choose(call(op)).backend == "tensor_cores"


@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("device")
def test_what_it_does_not_serve_is_refused_with_what_does(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [(call(op, torch.float64), "its products are of float32; use backend='native' for float64")]
    cases.append((call(op, device="cpu"), "it serves cuda, not cpu"))
    if op == "diagonal_ssm":
        cases.append((call(op, channels=2), "it serves one channel, not 2; use backend='native'"))
        cases.append((call(op, directions=2), "it serves one direction, not both; use backend='native'"))
    if op == "dplr_kernel":
        cases.append((call(op, rank=5), "it takes a rank of at most 4, not 5"))
        cases.append((call(op, c=36), "it takes at most 36 sums, not 2 x 37 (rank 1, 1 B and 36 C)"))
    for refused, message in cases:
        with pytest.raises(BackendUnavailableError, match=rf"'tensor_cores' .*run {op}: {re.escape(message)}$"):
            dispatch.choose(refused, "tensor_cores")
        with use_backend("tensor_cores"):
            choice = dispatch.choose(refused)
        assert choice.replaces == "tensor_cores" != choice.backend and message in choice.reason
    monkeypatch.setattr(gpu, "capability", lambda: (7, 5))
    old = re.escape("it serves NVIDIA GPUs from sm_80 on, and this is sm_75; use backend='native'")
    with pytest.raises(BackendUnavailableError, match=old):
        dispatch.choose(call(op), "tensor_cores")


@pytest.mark.usefixtures("device")
def test_an_op_without_it_runs_on_another_backend_unless_that_is_forbidden() -> None:
    with use_backend("tensor_cores"):
        choice = dispatch.choose(call("cauchy_mult", symmetric=1))
    assert choice.reason.startswith(
        "use_backend() prefers tensor_cores, which does not implement cauchy_mult; automatic"
    )
    with pytest.raises(BackendUnavailableError, match="it does not implement cauchy_mult; backends that do: reference"):
        dispatch.choose(call("cauchy_mult"), "tensor_cores")


def test_without_the_cuda_part_the_cause_and_the_fix_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    part = {True: "its CUDA part was not built: there is no nvcc", False: ""}
    monkeypatch.setattr(native_library, "cause", lambda cuda=False: part[cuda])
    monkeypatch.setattr(native_library, "fix", lambda cuda=False: f"S4_FAST_BUILD={'cuda' if cuda else 'auto'} build")
    status = dispatch.backends()["tensor_cores"]
    assert (status.usable, status.cause, status.fix) == (False, part[True], "S4_FAST_BUILD=cuda build")
    assert set(status.ops) == set(OPS)
    v = torch.zeros(1, 2, dtype=torch.complex64)
    with pytest.raises(BackendUnavailableError, match=r"there is no nvcc; run: S4_FAST_BUILD=cuda build$"):
        explain("log_vandermonde", v, v, 3, backend="tensor_cores")


# ---------------------------------------------------------------------------------------------------- the C functions


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the tensors of the CPU."""
    row = dataclasses.replace(backend_table.BACKENDS["tensor_cores"], devices=(), requirements=())
    monkeypatch.setitem(backend_table.BACKENDS, "tensor_cores", row)


@pytest.fixture
def called(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    """The C functions that are called, with their arguments."""
    made: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setattr(native_library, "call", lambda name, like, *args: made.append((name, args)))
    monkeypatch.setattr(native_library.Function, "__call__", lambda self, like, *args: made.append((self._name, args)))
    monkeypatch.setattr(native_library, "limit", lambda name: header.limits()[name.upper()])
    for op in OPS:
        table = dispatch._implementations[op]
        monkeypatch.setitem(table, "native", dataclasses.replace(table["native"], refuses=lambda call: None))
    return made


def inputs(op: str, generator: Generator) -> tuple[Tensors, dict[str, int]]:
    x, v = log_nodes(generator, "weak", 3, 5, dtype=torch.complex64), normal(generator, 3, 5, dtype=torch.complex64)
    u = normal(generator, 2, 3, 40, dtype=torch.float32)
    return {
        "ssm_scan": ({"u": u, "x": x, "B": v, "C": v.clone()}, {}),
        "diagonal_ssm": ({"u": u, "A": x, "B": v, "C": v.clone(), "dt": torch.full((3,), 0.1)}, {}),
        "log_vandermonde": ({"v": v, "x": x}, {"L": 40}),
        "log_vandermonde_transpose": ({"u": u, "v": v, "x": x}, {"L": 40}),
        "dplr_kernel": (
            {"w": x, **{name: v[None].clone() for name in "PQBC"}, "dt": torch.full((3, 1), 0.1)},
            {"L": 40},
        ),
        "cauchy_bilinear": ({"v": v, "w": x}, {"L": 40}),
    }[op]


@pytest.mark.parametrize("op", OPS[:-2])
def test_it_calls_the_namesakes_with_the_same_arguments(op: str, called: list[Any], generator: Generator) -> None:
    tensors, scalars = inputs(op, generator)
    runs = []
    for backend in ("native", "tensor_cores"):
        called.clear()
        evaluate(op, tensors, backend, **scalars)
        runs.append([(name, [kind(argument) for argument in args]) for name, args in called])
    native, ours = runs
    assert [(f"tensor_{name}", args) for name, args in native] == ours and len(ours) >= 2


def kind(argument: Any) -> Any:
    return (argument.dtype, tuple(argument.shape)) if isinstance(argument, Tensor) else argument


def test_cauchy_sums_call_its_products(called: list[Any], generator: Generator) -> None:
    tensors, scalars = inputs("cauchy_bilinear", generator)
    evaluate("cauchy_bilinear", tensors, "tensor_cores", **scalars)
    assert {name for name, _ in called} == {"tensor_vandermonde", "tensor_moments"}


def test_dplr_kernels_are_of_float32(called: list[Any], generator: Generator) -> None:
    """The adjoint too, which the namesake is called for in float64."""
    tensors, scalars = inputs("dplr_kernel", generator)
    evaluate("dplr_kernel", tensors, "tensor_cores", **scalars)
    (forward, given), (backward, grads) = called
    assert (forward, backward) == ("tensor_dplr_spectrum", "tensor_dplr_spectrum_backward")
    assert given[0] == grads[0] == torch.complex64 == grads[7].dtype == grads[9].dtype


@needs_native
@pytest.mark.parametrize("op", OPS)
@pytest.mark.usefixtures("anywhere")
def test_by_the_namesakes_it_holds_the_contract(op: str, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings alone, as the namesakes of the C functions for the CPU compute the same."""
    right = native_library.call
    monkeypatch.setattr(
        native_library, "call", lambda name, like, *args: right(name.removeprefix("tensor_"), like, *args)
    )
    for function in (diagonal._DIAGONAL.forward, diagonal._DIAGONAL.backward):
        monkeypatch.setattr(function, "_name", function._name.removeprefix("tensor_"))
    tensors, scalars = inputs(op, generator)
    forward = 5e-6 if op == "dplr_kernel" else None
    assert_contract(op, tensors, "tensor_cores", forward=forward, **scalars)


@pytest.mark.usefixtures("anywhere")
def test_a_layer_scans_where_it_is_asked_for() -> None:
    u = torch.zeros(1, 3, 2)
    with use_backend("tensor_cores"):
        assert S4DLayer(2, 128).explain(u) == ("scan", "requested by use_backend()")
        both = S4DLayer(2, 4, bidirectional=True).explain(u)
    assert both.name == "convolution" and "it serves one direction" in both.reason


# ------------------------------------------------------------------------------------- Cauchy sums of rounded nodes


def test_the_module_is_made_of_its_own_products() -> None:
    assert tensor_cores._SUMS.powers == RoundedNodes(tensor_cores.TensorCoreNodes)


@pytest.mark.parametrize("decay", ["weak", "strong"])
@pytest.mark.parametrize("L", [1, 2, 7, 1024, 4097, 2**16, pytest.param(2**20, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("anywhere")
def test_cauchy_sums_by_nodes_in_single_precision_hold_the_contract(
    L: int, decay: str, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poles near and far, of which some are at and around -2, where the node is 0."""
    sums = BilinearSums(RoundedNodes(pytorch._PRODUCTS.nodes))
    for name in ("cauchy_bilinear", "cauchy_bilinear_backward"):
        monkeypatch.setattr(tensor_cores, name, getattr(sums, name))
    H, n = 2, 9
    real = -log_uniform(generator, *((1e-7, 1e-3) if decay == "weak" else (1e-1, 1e2)), H, n)
    w = torch.complex(real, uniform(generator, -9, 9, H, n)).to(torch.complex64)
    w[0, 0], w[0, 1], w[1, 0] = -2, -2.001, 3e3j - 1
    tensors = {"v": normal(generator, 2, H, n, dtype=torch.complex64), "w": w}
    assert_contract("cauchy_bilinear", tensors, "tensor_cores", L=L)


def test_a_longer_sequence_takes_more_terms() -> None:
    assert [terms(L) for L in (1, 2**10, 2**14, 2**18, 2**20)] == [1, 2, 3, 4, 5]
