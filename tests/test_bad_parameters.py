"""A step size that is 0, huge or no number is the fault of one feature, and stays its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s4_fast import use_backend
from tests.helpers import needs_native
from tests.modules import KINDS, STEPPING, kernels, over, prefilled, set_up, stepped

STEPS = {"0": -math.inf, "underflow": -1e4, "tiny": -80.0, "huge": 80.0, "overflow": 1e4, "nan": math.nan}
SOUND = [0, 2, 3]
WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "forward": over,
    "prefill": lambda layer, u: prefilled(layer, u)[0],
    "step": lambda layer, u: stepped(layer, u)[0],
}
LAYERS = {"S4DLayer scan": "", "S4DLayer convolution": "", "S4Layer": "", "FFTConv diag": "", "FFTConv dplr": ""}
# What mixes features after the layer is no part of this.
LAYERS |= {"SSMBlock s4": "layer", "S4Block diag": "layer", "S4Block dplr": "layer"}


def layer(kind: str, dtype: torch.dtype, log_dt: float | None) -> nn.Module:
    torch.manual_seed(0)
    made = set_up(KINDS[kind](dt_min=0.01).to(dtype), 12).get_submodule(LAYERS[kind]).eval()
    (kernel,) = kernels(made)
    with torch.no_grad():
        if log_dt is not None:
            kernel.inv_dt[1] = log_dt
    return made


def run(made: nn.Module, u: Tensor, way: str) -> tuple[Tensor, list[Tensor]]:
    """The outputs of the sound features, and the gradients of what is theirs alone."""
    u = u.clone().requires_grad_(way == "forward")
    with torch.set_grad_enabled(way == "forward"):
        y = WAYS[way](made, u)[..., SOUND]
    if way != "forward":
        return y, []
    y.sum().backward()
    (kernel,) = kernels(made)
    assert u.grad is not None and kernel.inv_dt.grad is not None and kernel.C.grad is not None
    return y.detach(), [u.grad[..., SOUND], kernel.inv_dt.grad[SOUND], kernel.C.grad[:, SOUND]]


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "pytorch"])
@pytest.mark.parametrize(
    "kind", ["S4Block dplr", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LAYERS if kind != "S4Block dplr")]
)
def test_a_bad_step_is_the_fault_of_one_feature(kind: str, backend: str) -> None:
    for dtype in (torch.float32, torch.float64):
        u = torch.randn(2, 12, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
        for way in WAYS if kind in STEPPING else ("forward",):
            with use_backend(backend):
                y, grads = run(layer(kind, dtype, None), u, way)
                for name, log_dt in STEPS.items():
                    found, of = run(layer(kind, dtype, log_dt), u, way)
                    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
                    for actual, expected in zip((found, *of), (y, *grads), strict=True):
                        scale = expected.abs().max()
                        assert torch.allclose(actual, expected, 0, float(tolerance * scale)), (dtype, way, name)
