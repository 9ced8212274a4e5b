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
from s4_fast.bench.cases import Arguments

DIRECT = "direct"


def implementation(op: str, backend: str) -> Callable[..., Tensor]:
    """The function that evaluates ``op``: the public one with an explicit backend, or the direct evaluation."""
    if backend == DIRECT:
        return getattr(direct, op)
    return partial(getattr(s4_fast, op), backend=backend)


def refusal(op: str, backend: str, arguments: Arguments, *, grads: bool) -> str:
    """Why ``backend`` cannot serve this call, with gradients or without, or the empty string."""
    if backend == DIRECT:
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
    """What an evaluation returned: the output, and the gradients of the inputs by name (empty if not asked for)."""

    output: Tensor
    gradients: dict[str, Tensor]


def forward(function: Callable[..., Tensor], arguments: Arguments) -> Callable[[], Tensor]:
    """The evaluation without gradients, to be called many times."""

    def run() -> Tensor:
        with torch.no_grad():
            return function(**arguments.tensors, **arguments.scalars)

    return run


def forward_backward(function: Callable[..., Tensor], arguments: Arguments) -> Callable[[], Outcome]:
    """The evaluation and the gradients of every tensor, for the cotangent of :func:`cotangent`."""
    leaves = _leaves(arguments)
    grad: list[Tensor] = []

    def run() -> Outcome:
        output = function(**leaves, **arguments.scalars)
        if not grad:
            grad.append(cotangent(output))
        grads = torch.autograd.grad(output, list(leaves.values()), grad)
        return Outcome(output.detach(), dict(zip(leaves, grads, strict=True)))

    return run


def cotangent(output: Tensor) -> Tensor:
    """A fixed normal cotangent for ``output``, representable in its precision."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, dtype=output.dtype, generator=generator).to(output.device)


def _leaves(arguments: Arguments) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_() for name, t in arguments.tensors.items()}
