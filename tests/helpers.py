"""What the tests of the ops share: the accuracy contract, and inputs that are hard in a known way."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Generator, Tensor

import s4_fast
from s4_fast import dispatch, native_library
from s4_fast.bench.accuracy import FORWARD, GRADIENT

DTYPES = (torch.complex64, torch.complex128)

Tensors = dict[str, Tensor]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """norm(actual - expected) / norm(expected), in float64; NaN where ``actual`` is not finite."""
    assert actual.shape == expected.shape
    expected = widened(expected.detach())
    scale = torch.linalg.vector_norm(expected)
    error = torch.linalg.vector_norm(widened(actual.detach()) - expected)
    return float(error / scale if scale > 0 else error)


def widened(t: Tensor) -> Tensor:
    """``t`` in float64 or complex128."""
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


class Outcome(NamedTuple):
    output: Any  # a tensor, or a tuple of them
    grads: Tensors


def parts(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of an op, one or several, as a tuple."""
    return output if isinstance(output, tuple) else (output,)


def cotangents(output: Tensor | tuple[Tensor, ...], seed: int = 0) -> list[Tensor]:
    """A normal cotangent per output, which float32 holds exactly."""
    generator = Generator().manual_seed(seed)
    singles = [torch.complex64 if t.is_complex() else torch.float32 for t in parts(output)]
    return [normal(generator, *t.shape, dtype=d).to(t) for t, d in zip(parts(output), singles, strict=True)]


def evaluate(
    op: str, tensors: Tensors, backend: str, *, seed: int = 0, wrt: str | None = None, **scalars: Any
) -> Outcome:
    """The op and its gradients, all or that of ``wrt`` alone, for :func:`cotangents`."""
    inputs = {name: t.detach().requires_grad_(wrt in (None, name)) for name, t in tensors.items()}
    output = getattr(s4_fast, op)(**inputs, **scalars, backend=backend)
    leaves = {name: t for name, t in inputs.items() if t.requires_grad}
    grads = torch.autograd.grad(parts(output), list(leaves.values()), cotangents(output, seed))
    detached = tuple(t.detach() for t in parts(output))
    return Outcome(detached if isinstance(output, tuple) else detached[0], dict(zip(leaves, grads, strict=True)))


def assert_contract(
    op: str,
    tensors: Tensors,
    backend: str,
    *,
    forward: float | None = None,
    gradient: float | None = None,
    **scalars: Any,
) -> None:
    """``backend`` runs the op and is within the contract of the reference in float64 on the same inputs."""
    with mock.patch.object(dispatch, "load", wraps=dispatch.load) as load:
        actual = evaluate(op, tensors, backend, **scalars)
    assert {call.args for call in load.call_args_list} == {(op, backend)}
    expected = evaluate(op, {name: widened(t) for name, t in tensors.items()}, "reference", **scalars)

    outputs = list(zip(parts(actual.output), parts(expected.output), strict=True))
    precision = torch.finfo(outputs[0][0].dtype).dtype
    errors = {f"output {i}": relative_error(a, e) for i, (a, e) in enumerate(outputs)}
    allowed = dict.fromkeys(errors, forward or FORWARD[precision])
    errors |= {f"grad {name}": relative_error(g, expected.grads[name]) for name, g in actual.grads.items()}
    allowed = dict.fromkeys(errors, gradient or GRADIENT[precision]) | allowed
    # `not <=` where `>` would let NaN pass.
    assert not {name: error for name, error in errors.items() if not error <= allowed[name]}, (errors, allowed)


def assert_gradients_one_by_one(op: str, tensors: Tensors, backend: str, **scalars: Any) -> None:
    """Asking for one gradient alone gives what asking for all of them gives."""
    every = evaluate(op, tensors, backend, **scalars).grads
    for name, g in every.items():
        alone = evaluate(op, tensors, backend, wrt=name, **scalars).grads
        assert alone.keys() == {name}
        assert relative_error(alone[name], g) <= 1e-14


def backends(op: str) -> list[Any]:
    """The backends that must hold the contract everywhere, as parameters. Triton has a process of its own, and the
    kernels for tensor cores are emulated."""
    others = ("reference", "keops", "triton", "tensor_cores")
    names = [name for name in dispatch.implementations(op) if name not in others]
    return [pytest.param(name, marks=needs_native) if name == "native" else name for name in names]


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """The native library's kernels for ``name``, in this block."""
    try:
        native_library.use_isa(name)
    except RuntimeError as error:
        pytest.skip(str(error))
    try:
        assert native_library.isa() == name
        yield
    finally:
        native_library.use_isa(None)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's, and the native library's, number of threads in this block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keops_missing() -> str:
    """What KeOps lacks here, or the empty string."""
    return dispatch.backends()["keops"].cause


needs_native = pytest.mark.skipif(bool(native_library.cause()), reason=f"native: {native_library.cause()}")
needs_keops = pytest.mark.skipif(bool(keops_missing()), reason=f"keops: {keops_missing()}")
KEOPS = pytest.param("keops", marks=needs_keops)
# KeOps takes ten seconds to compile a formula for float64, once per machine.
KEOPS_FLOAT64 = pytest.param("keops", marks=[needs_keops, pytest.mark.slow])
needs_cxx = pytest.mark.skipif(not shutil.which("g++"), reason="inductor: g++ is not installed")


def normal(generator: Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=generator)


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Float64, in [low, high)."""
    return low + (high - low) * torch.rand(*shape, dtype=torch.float64, generator=generator)


def log_uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Float64, its logarithm uniform."""
    return torch.exp(uniform(generator, math.log(low), math.log(high), *shape))


# -Re x of a node's logarithm, by name. A mixed batch has all three, and decays between them.
DECAYS: dict[str, Callable[..., Tensor]] = {
    "none": lambda generator, *shape: torch.zeros(*shape, dtype=torch.float64),
    "weak": lambda generator, *shape: log_uniform(generator, 1e-7, 1e-3, *shape),
    "strong": lambda generator, *shape: log_uniform(generator, 1e-1, 1e2, *shape),
}


def log_nodes(generator: Generator, decay: str, *shape: int, dtype: torch.dtype) -> Tensor:
    """x = log(lambda) with phases up to pi on both sides."""
    phase = uniform(generator, -math.pi, math.pi, *shape)
    return torch.complex(-DECAYS[decay](generator, *shape), phase).to(dtype)


def unusual_views(tensors: Tensors) -> dict[str, Tensors]:
    """The same values seen through other strides and through a pending conjugation."""

    def strided(t: Tensor) -> Tensor:
        return torch.stack((t, t + 1), -1).flatten(-2)[..., ::2]

    def transposed(t: Tensor) -> Tensor:
        return t.mT.contiguous().mT if t.ndim > 1 else t

    def conjugated(t: Tensor) -> Tensor:
        return t.conj().resolve_conj().conj() if t.is_complex() else t

    return {view.__name__: {name: view(t) for name, t in tensors.items()} for view in (strided, transposed, conjugated)}
