"""Modules under PyTorch's switches for how parameters are replaced: swapped, overwritten or written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from s4_fast import get_ssm_param_groups
from tests.modules import KINDS, STEPPING, close, over, prefilled, stepped


def _loaded(module: nn.Module, assign: bool) -> nn.Module:
    module.load_state_dict({name: t.clone() for name, t in module.state_dict().items()}, assign=assign)
    return module


def _emptied(module: nn.Module) -> nn.Module:
    values = copy.deepcopy(module.state_dict())
    module.to_empty(device="cpu").load_state_dict(values)
    return module


def _from_meta(module: nn.Module) -> nn.Module:
    values = copy.deepcopy(module.state_dict())
    module.to("meta").load_state_dict(values, assign=True)
    return module


def _swapped(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(p.detach().clone(), p.requires_grad))
    return module


CONVERSIONS: dict[str, Callable[[Any], nn.Module]] = {
    "to": lambda m: m.to("cpu", torch.float32),
    "double": lambda m: m.float().double(),
    "half": lambda m: m.half().double(),
    "load": lambda m: _loaded(m, False),
    "assign": lambda m: _loaded(m, True),
    "to_empty": _emptied,
    "meta": _from_meta,
    "share_memory": lambda m: m.share_memory(),
    "deepcopy": copy.deepcopy,
    "swap_tensors": _swapped,
}


@pytest.fixture(
    params=[
        (True, False),
        *(pytest.param(p, marks=pytest.mark.slow) for p in ((False, False), (False, True), (True, True))),
    ],
    ids=str,
)
def switches(request: pytest.FixtureRequest) -> Iterator[None]:
    future = torch.__future__
    before = future.get_swap_module_params_on_conversion(), future.get_overwrite_module_params_on_conversion()
    future.set_swap_module_params_on_conversion(request.param[0])
    future.set_overwrite_module_params_on_conversion(request.param[1])
    yield
    future.set_swap_module_params_on_conversion(before[0])
    future.set_overwrite_module_params_on_conversion(before[1])


def trained(kind: str) -> nn.Module:
    torch.manual_seed(0)
    module = KINDS[kind](dt_min=0.01)
    over(module, torch.ones(2, 5, 4)).sum().backward()
    return module


@pytest.mark.usefixtures("switches")
@pytest.mark.parametrize(
    "kind", ["S4Block dplr", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "S4Block dplr")]
)
def test_modules_are_converted_as_others_are(kind: str) -> None:
    for name in CONVERSIONS:
        module = CONVERSIONS[name](trained(kind))
        marks = [sorted(group.keys()) for group in get_ssm_param_groups(module, 1e-3)]
        assert marks == [sorted(group.keys()) for group in get_ssm_param_groups(trained(kind), 1e-3)]
        u = torch.randn(2, 6, 4, dtype=next(module.parameters()).dtype)
        fresh = KINDS[kind](dt_min=0.01).to(u.dtype)
        fresh.load_state_dict(module.state_dict())
        with torch.no_grad():
            assert close(over(module, u), over(fresh, u)), name
            if kind in STEPPING:
                assert close(stepped(module.eval(), u)[0], prefilled(fresh.eval(), u)[0], 1e-5), name
        over(module.train(), u).sum().backward()
        assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("kind", ["S4DLayer", "S4Block dplr"])
def test_a_compiled_module_can_be_swapped(kind: str) -> None:
    """A graph that asks for an object's id holds a weak reference, and what has one is not swapped."""
    module, before = trained(kind), torch.__future__.get_swap_module_params_on_conversion()
    module.compile(backend="eager")
    over(module, torch.ones(2, 6, 4)).sum().backward()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert all(p.dtype == torch.float64 for p in module.parameters())
