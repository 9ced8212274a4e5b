"""The error of an evaluation against the op's definition in float64, and the accuracy contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import s4_fast
from s4_fast.bench import direct
from s4_fast.bench.cases import Case
from s4_fast.bench.evaluate import Outcome, Output, cotangent, implementation, parts
from s4_fast.bench.inputs import OPS, Arguments, Axes, cast

# The accuracy contract: the largest relative error of an output and of a gradient, by precision.
# A half type is what outputs and gradients are rounded to.
FORWARD = {"bfloat16": 4e-3, "float32": 2e-6, "float64": 1e-12}
GRADIENT = {"bfloat16": 4e-3, "float32": 1e-5, "float64": 1e-11}
DPLR_KERNEL_FORWARD = FORWARD | {"float32": 5e-6}

PASS, FAIL, KNOWN_LIMIT = "pass", "FAIL", "known limit"

# Elements of one (features, states, L) block of the float64 reference: 64 MiB a temporary.
_BLOCK = 2**22
# Steps up to which the quadratic definition of fft_conv is evaluated; beyond, one FFT in float64, good to 1e-15.
_QUADRATIC = 2**28
# Powers up to which the definitions of scans are evaluated; beyond, their kernels by matrix products and that FFT.
_POWERS = 2**24


def reference(case: Case, arguments: Arguments) -> Outcome:
    """The op's definition and its autograd in float64, for the cotangents of :func:`.cotangent` in ``case.dtype``.

    Evaluated in blocks of features, and of states where the op is additive in them, so that memory stays bounded.
    """
    op = OPS[case.op]
    definition = _definition(case)
    inputs = {name: cast(t.detach(), "float64") for name, t in arguments.tensors.items()}
    gradients = {name: torch.zeros_like(t) for name, t in inputs.items()}
    outputs: list[Tensor] = []
    cotangents: list[Tensor] = []
    for block in _blocks(case, op.additive):
        leaves = {name: _part(t, op.inputs[name], block).detach().requires_grad_() for name, t in inputs.items()}
        results = parts(definition(**leaves, **arguments.scalars))
        axes = op.outputs[: len(results)]
        if not outputs:
            outputs = [t.new_zeros(_whole_shape(t, a, case)) for t, a in zip(results, axes, strict=True)]
            cotangents = [cotangent(cast(t, case.dtype)).to(t.dtype) for t in outputs]
        for output, result, a in zip(outputs, results, axes, strict=True):
            _part(output, a, block).add_(result.detach())
        grads = torch.autograd.grad(
            results, list(leaves.values()), [_part(t, a, block) for t, a in zip(cotangents, axes, strict=True)]
        )
        for name, g in zip(leaves, grads, strict=True):
            _part(gradients[name], op.inputs[name], block).add_(g)
    return Outcome(tuple(outputs), gradients)


def _definition(case: Case) -> Callable[..., Output]:
    if case.op == "fft_conv" and case.batch * case.H * case.L**2 > _QUADRATIC:
        return direct.fft_conv
    states = case.n**2 if case.op == "dplr_scan" else case.n  # entries of a step's matrix
    if case.op in _CONVOLUTIONS and not case.state and case.H * states * case.L > _POWERS:
        return _CONVOLUTIONS[case.op]
    return implementation(case.op, "reference")


def _convolution(u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor, return_state: bool) -> Tensor:
    """``ssm_scan`` without a state, apart from everything that is in its backends."""
    return direct.fft_conv(u, s4_fast.log_vandermonde(C * B, x, u.shape[-1], backend="pytorch"), D)


def _continuous_convolution(
    u: Tensor, A: Tensor, B: Tensor, C: Tensor, dt: Tensor, D: Tensor, return_state: bool
) -> Tensor:
    """``diagonal_ssm`` under zero-order hold, in the same way."""
    x = dt * A
    return _convolution(u, x, B * torch.expm1(x) / A, C, D, return_state)


def _dplr_convolution(
    u: Tensor, A: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, D: Tensor, return_state: bool
) -> Tensor:
    """``dplr_scan`` likewise, its kernel from that of a truncated C."""
    L = u.shape[-1]
    A_bar, _ = direct.dense_bilinear(A, P, B, dt)
    row = direct.truncated(C, A_bar, L)[None]
    return direct.fft_conv(u, s4_fast.dplr_kernel(dt * A, P, P, B[None], row, dt, L, backend="pytorch")[0, 0], D)


_CONVOLUTIONS: dict[str, Callable[..., Tensor]] = {
    "ssm_scan": _convolution,
    "diagonal_ssm": _continuous_convolution,
    "dplr_scan": _dplr_convolution,
}


class _Block(NamedTuple):
    features: tuple[int, int]
    states: tuple[int, int]


def _blocks(case: Case, additive: bool) -> Iterator[_Block]:
    """(start, length) of features and states, covering all of them once."""
    length = case.batch * case.L
    states = min(case.n, max(1, _BLOCK // length)) if additive else case.n
    features = max(1, _BLOCK // (length * states))
    for h in range(0, case.H, features):
        for n in range(0, case.n, states):
            yield _Block((h, min(features, case.H - h)), (n, min(states, case.n - n)))


def _part(t: Tensor, axes: Axes, block: _Block) -> Tensor:
    if axes.features is not None:
        t = t.narrow(axes.features, *block.features)
    if axes.states is not None:
        t = t.narrow(axes.states, *block.states)
    return t


def _whole_shape(part: Tensor, axes: Axes, case: Case) -> list[int]:
    shape = list(part.shape)
    if axes.features is not None:
        shape[axes.features] = case.H
    if axes.states is not None:
        shape[axes.states] = case.n
    return shape


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """norm(actual - expected) / norm(expected), in the precision of ``expected``."""
    scale = torch.linalg.vector_norm(expected)
    error = torch.linalg.vector_norm(actual.detach().to(expected.dtype) - expected)
    return float(error / scale if scale > 0 else error)


class Errors(NamedTuple):
    """Relative errors of the worst output and of the worst gradient, with the name of that gradient's input."""

    forward: float
    gradient: float | None
    worst: str


def errors(actual: Outcome, expected: Outcome) -> Errors:
    """The errors of what ``actual`` and ``expected`` both have."""
    forward = max(map(relative_error, actual.outputs, expected.outputs), key=_badness)
    shared = actual.gradients.keys() & expected.gradients.keys()
    each = {name: relative_error(actual.gradients[name], expected.gradients[name]) for name in sorted(shared)}
    if not each:
        return Errors(forward, None, "")
    worst = max(each, key=lambda name: _badness(each[name]))
    return Errors(forward, each[worst], worst)


def _badness(error: float) -> float:
    # A NaN compares as neither larger nor smaller.
    return math.inf if math.isnan(error) else error


def tolerances(case: Case) -> tuple[float, float]:
    """The largest relative error of the output and of a gradient that the accuracy contract allows."""
    forward = DPLR_KERNEL_FORWARD if case.op == "dplr_kernel" else FORWARD
    return forward[case.dtype], GRADIENT[case.dtype]


def verdict(case: Case, backend: str, errors: Errors) -> str:
    """PASS, FAIL or KNOWN_LIMIT.

    PyKeOps evaluates exp(x l) in the precision of its inputs: a phase x l, |x| < 16, is rounded by up to
    2^-24 * 16 l in float32. An error within that is its known limit; it is never chosen automatically.
    """
    forward, gradient = tolerances(case)
    worst = 0.0 if errors.gradient is None else errors.gradient
    if errors.forward <= forward and worst <= gradient:
        return PASS
    rounded_phase = 2**-20 * case.L
    if backend == "keops" and case.dtype == "float32" and max(errors.forward, worst) <= rounded_phase:
        return KNOWN_LIMIT
    return FAIL
