"""TorchScript is refused with what to use instead, by every way into it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from s4_fast import FrozenStep, S4DLayer, S4Layer, S4SequenceModel
from s4_fast.state_spaces import S4D, S4Block

MODULES: dict[str, Callable[[], nn.Module]] = {
    "model": lambda: S4SequenceModel(4, 4, 2, 1, 4),
    "S4DLayer": lambda: S4DLayer(4, 4),
    "S4Layer, inside another": lambda: nn.Sequential(nn.Linear(4, 4), S4Layer(4, 4)),
    "S4Block": lambda: S4Block(4, d_state=4, transposed=False),
    "S4D": lambda: S4D(4, 4, transposed=False),
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", MODULES)
def test_script(name: str) -> None:
    with pytest.raises(RuntimeError, match="python -m s4_fast export"):
        torch.jit.script(MODULES[name]().eval())


@pytest.mark.parametrize("name", MODULES)
def test_trace(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"use torch\.export"):
        torch.jit.trace(MODULES[name]().eval(), torch.randn(2, 5, 4), check_trace=False)


@pytest.mark.parametrize("layer", ["s4d", "s4"])
def test_trace_of_a_step(layer: str) -> None:
    model = S4SequenceModel(4, 4, 2, 1, 4, layer=layer).eval().requires_grad_(False)
    state = model.init_state(2)

    def step(u: torch.Tensor) -> torch.Tensor:
        return model.step(u, state)[0]

    with pytest.raises(RuntimeError, match=r"use torch\.export"):
        torch.jit.trace(step, torch.randn(2, 4), check_trace=False)


def test_after_a_refusal_the_model_works() -> None:
    model, u = S4SequenceModel(4, 4, 2, 1, 4).eval(), torch.randn(2, 5, 4)
    expected = model(u)
    with pytest.raises(RuntimeError):
        torch.jit.trace(model, u, check_trace=False)
    assert torch.equal(model(u), expected)


@pytest.mark.parametrize("layer", ["s4d", "s4"])
@pytest.mark.slow
def test_pytorchs_onnx_takes_a_frozen_step_and_no_sequence(layer: str) -> None:
    pytest.importorskip("onnxscript")
    model, u = S4SequenceModel(4, 4, 2, 1, 4, layer=layer).eval(), torch.randn(2, 5, 4)
    refused = pytest.raises(RuntimeError, match="python -m s4_fast export")
    with mock.patch("torch.onnx.is_in_onnx_export", return_value=True), refused:
        torch.export.export(model, (u,), strict=False)
    with pytest.raises(Exception, match=r"Failed to \w+ the (model|exported program)"):
        torch.onnx.export(model, (u,), dynamo=True, verbose=False)
    frozen = FrozenStep(model)
    program = torch.onnx.export(frozen, (u[:, 0], *frozen.init_state(2)), dynamo=True, verbose=False)
    y, expected = program(u[:, 0], *frozen.init_state(2))[0], model.step(u[:, 0], model.init_state(2))[0]
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-6)
