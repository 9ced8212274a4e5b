"""What a benchmark of layers consists of: sizes, rows, and the calls that are timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s4_fast.bench import measure


class Sizes(NamedTuple):
    """What is measured, and for about how many seconds each."""

    batch: int = 16
    length: int = 1024
    features: int = 128
    steps: int = 100_000
    seconds: float = 2.0


SMOKE = Sizes(2, 20, 4, 50, 0.01)


@dataclass
class Row:
    """One case: milliseconds, MiB, the relative norm of a difference, and the goal in words."""

    name: str
    ours: float
    baseline: float | None = None
    peak: float | None = None
    baseline_peak: float | None = None
    error: float | None = None
    goal: str = ""
    met: bool | None = None


class Pair(NamedTuple):
    """Ours and the baseline, as calls without arguments."""

    ours: Callable[[], Any]
    baseline: Callable[[], Any]


def forward(evaluate: Callable[[Tensor], Tensor], u: Tensor) -> Callable[[], Any]:
    """``evaluate`` at u without gradients."""
    return torch.no_grad()(lambda: evaluate(u))


def both_ways(evaluate: Callable[[Tensor], Tensor], u: Tensor, parameters: Sequence[Tensor]) -> Callable[[], Any]:
    """``evaluate`` at u and the gradients of u and ``parameters``; the cotangent lies in memory as the output does."""
    leaf = u.detach().requires_grad_()
    leaves = [leaf, *parameters]
    with torch.no_grad():
        cotangent = torch.randn_like(evaluate(u))
    return lambda: torch.autograd.grad(evaluate(leaf), leaves, cotangent)


def timed(name: str, pair: Pair, sizes: Sizes) -> Row:
    """Both in turn, so that a slow spell of the machine does not fall on one of them alone."""
    ours, baseline = measure.timed_in_turn(pair, sizes.seconds)
    return Row(name, ours.median, baseline.median)
