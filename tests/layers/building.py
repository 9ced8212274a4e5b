"""Layers and signals in float64 for the tests of layers, a layer run step by step, and comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s4_fast.layers.ssm_layer import SSMLayer
from tests.helpers import relative_error


def build(cls: type[SSMLayer], generator: torch.Generator, **options: Any) -> SSMLayer:
    return cls(4, **{"d_state": 8, **options}, generator=generator).double()


def signal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def run(layer: SSMLayer, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Outputs and last state, one step after the other."""
    state, outputs = layer.init_state(u.shape[0]) if state is None else state, []
    for position in range(u.shape[1]):
        y, state = layer.step(u[:, position], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    errors = [relative_error(g.detach(), w.detach()) for g, w in zip(got, want, strict=True)]
    assert all(error <= tolerance for error in errors), errors
