"""The accuracy contract of whole layers, against float64 on the same float32 parameters, logarithms of dt included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Generator, Tensor

from s4_fast import S4DLayer, S4Layer
from s4_fast.layers.ssm_layer import SSMLayer
from tests.helpers import needs_native, relative_error

SETTINGS = [
    (S4Layer, {"init": "legs"}),
    (S4Layer, {"init": "legs", "rank": 2}),
    (S4Layer, {"init": "legt", "rank": 2}),
    (S4Layer, {"init": "fout"}),
    (S4Layer, {"init": "fout", "rank": 2}),
    (S4Layer, {"init": "lagt"}),
    (S4DLayer, {"init": "legs"}),
    (S4DLayer, {"init": "lin", "discretization": "bilinear"}),
]


def passed(layer: SSMLayer, u: Tensor, g: Tensor) -> dict[str, Tensor]:
    u = u.clone().requires_grad_()
    y = layer(u)
    leaves = {"u": u, **dict(layer.named_parameters())}
    found = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), g), strict=True))
    return {"y": y.detach(), **found}


@needs_native
@pytest.mark.parametrize("L", [1047, pytest.param(1 << 17, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("cls", "options"), SETTINGS, ids=str)
def test_a_layer_holds_the_contract(cls: type[SSMLayer], options: dict, L: int, generator: Generator) -> None:
    layer = cls(3, 64, generator=generator, **options)
    with torch.no_grad():
        layer.D.zero_()  # D u would hide the error of the rest
    u, g = (torch.randn(1, L, 3, generator=generator) for _ in range(2))
    assert layer.explain(u).name == "scan"
    got, want = passed(layer, u, g), passed(copy.deepcopy(layer).double(), u.double(), g.double())
    errors = {name: relative_error(t, want[name]) for name, t in got.items()}
    assert errors.pop("y") <= 2e-6 and max(errors.values()) <= 1e-5, errors
    with torch.no_grad():
        for shorter in (L // 2, 70, 1):
            assert relative_error(layer(u[:, :shorter]), want["y"][:, :shorter]) <= 2e-6
