"""One op on one backend, as a call without arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import s4_fast
from s4_fast import dispatch
from s4_fast.bench import direct
from s4_fast.bench.inputs import Arguments

# Evaluations that an op is compared with, beside its backends: the direct one, and for ``ssm_scan`` the convolution
# with a kernel that costs nothing.
DIRECT, KERNEL_GIVEN = "direct", "fft_conv"
BASELINES = (DIRECT, KERNEL_GIVEN)

Output = Tensor | tuple[Tensor, ...]


def implementation(op: str, backend: str) -> Callable[..., Output]:
    """The function that evaluates ``op``: the public one with an explicit backend, or a baseline."""
    if backend == DIRECT:
        return getattr(direct, op)
    if backend == KERNEL_GIVEN:
        return s4_fast.fft_conv
    return partial(getattr(s4_fast, op), backend=backend)


def inputs(backend: str, arguments: Arguments) -> Arguments:
    """What :func:`implementation` takes for the arguments of the op."""
    if backend != KERNEL_GIVEN:
        return arguments
    u, x, B, C, D = (arguments.tensors[name] for name in "uxBCD")
    return Arguments({"u": u, "k": s4_fast.log_vandermonde(C * B, x, u.shape[-1]), "D": D}, {})


def parts(output: Output) -> tuple[Tensor, ...]:
    """One output or several, as a tuple."""
    return output if isinstance(output, tuple) else (output,)


def refusal(op: str, backend: str, arguments: Arguments, *, grads: bool) -> str:
    """Why ``backend`` cannot serve this call, with gradients or without, or the empty string."""
    if backend in BASELINES:
        return ""
    tensors = _leaves(arguments) if grads else arguments.tensors
    try:
        dispatch.explain(op, **tensors, **arguments.scalars, backend=backend)
    except dispatch.BackendUnavailableError as error:
        return str(error)
    return ""


def automatic(op: str, arguments: Arguments) -> str:
    """The backend that the automatic choice takes for this call with gradients, whatever is set around it."""
    return dispatch.explain(op, **_leaves(arguments), **arguments.scalars, backend="auto").backend


class Outcome(NamedTuple):
    """What an evaluation returned: the outputs, and the gradients of the inputs by name (empty if not asked for)."""

    outputs: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


def forward(function: Callable[..., Output], arguments: Arguments) -> Callable[[], tuple[Tensor, ...]]:
    """The evaluation without gradients, to be called many times."""

    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return parts(function(**arguments.tensors, **arguments.scalars))

    return run


def forward_backward(function: Callable[..., Output], arguments: Arguments) -> Callable[[], Outcome]:
    """The evaluation and the gradients of every tensor, for the cotangents of :func:`cotangent`."""
    leaves = _leaves(arguments)
    cotangents: list[Tensor] = []

    def run() -> Outcome:
        outputs = parts(function(**leaves, **arguments.scalars))
        if not cotangents:
            cotangents.extend(map(cotangent, outputs))
        grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
        return Outcome(tuple(t.detach() for t in outputs), dict(zip(leaves, grads, strict=True)))

    return run


def cotangent(output: Tensor) -> Tensor:
    """A fixed normal cotangent for ``output``, representable in its precision."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, dtype=output.dtype, generator=generator).to(output.device)


def _leaves(arguments: Arguments) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_() for name, t in arguments.tensors.items()}
