"""Modules are made without numbers, and models keep off float64 on devices that have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from s4_fast import S4DLayer, S4Layer, S4SequenceModel
from s4_fast.layers import model as module
from tests.modules import KINDS

SIGMOID: dict[str, Callable[..., nn.Module]] = {
    "FFTConv diag sigmoid": lambda **kwargs: KINDS["FFTConv diag"](dt_transform="sigmoid", **kwargs)
}


@pytest.mark.parametrize("make", [*KINDS.values(), *SIGMOID.values()], ids=[*KINDS, *SIGMOID])
@pytest.mark.sample(8)
def test_modules_are_made_without_numbers(make: Callable[..., nn.Module]) -> None:
    like = {name: (t.shape, t.dtype) for name, t in make().state_dict().items()}
    with FakeTensorMode():
        fake = make()
    with torch.device("meta"):
        meta = make()
    for found in (fake, meta, make(device="meta")):
        assert {name: (t.shape, t.dtype) for name, t in found.state_dict().items()} == like
    assert all(isinstance(p, FakeTensor) for p in fake.parameters())
    assert all(t.is_meta for t in meta.state_dict().values())


@pytest.mark.parametrize("cls", [S4DLayer, S4Layer])
def test_shapes_are_computed_without_numbers(cls: type[S4DLayer] | type[S4Layer]) -> None:
    y = cls(4, 8, device="meta")(torch.zeros(2, 10, 4, device="meta"))
    assert y.is_meta and y.shape == (2, 10, 4)


class NoDouble(TorchDispatchMode):
    """Refuses float64, as devices do that have none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for t in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(t, torch.Tensor) and t.dtype is torch.float64:
                raise TypeError(f"{func} made a float64 tensor")
        return found


@pytest.mark.parametrize("task", ["classification", "regression"])
@torch.no_grad()
def test_a_model_needs_no_float64_outside_its_layers(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Identity(nn.Module):
        """A block without a layer."""

        def forward(self, x: Any, state: Any, lengths: Any, return_state: bool) -> Any:
            return (x, state) if return_state else x

        def step(self, x: Any, state: Any) -> Any:
            return x, state

        def init_state(self, batch: int) -> torch.Tensor:
            return torch.zeros(batch, 1)

    model = S4SequenceModel(2, 4, 3, 1, 8, task=task).eval()
    model.blocks = nn.ModuleList([Identity()])  # type: ignore[assignment]
    u = torch.randn(2, 9, 2)

    def run() -> None:
        _, state = model.prefill(u, model.init_state(2), lengths=[9, 4])
        model.step(u[:, 0], state)

    with NoDouble(), pytest.raises(TypeError, match="made a float64 tensor"):
        run()
    monkeypatch.setattr(module, "_WITHOUT_DOUBLE", ("cpu",))
    with NoDouble():
        run()
