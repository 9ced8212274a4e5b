"""The direct evaluations of layers compute what the layers do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator

from s4_fast import S4DLayer, S4Layer, state_spaces
from s4_fast.bench import direct_layers
from tests.helpers import relative_error


def test_a_direct_s4d_is_the_layer(generator: Generator) -> None:
    layer, u = S4DLayer(3, 8, generator=generator), torch.randn(2, 20, 3, generator=generator)
    with torch.no_grad():
        assert relative_error(direct_layers.MinimalS4D(layer)(u), layer(u)) < 1e-4


def test_a_direct_s4_is_the_layer(generator: Generator) -> None:
    layer, u = S4Layer(3, 8, generator=generator), torch.randn(2, 20, 3, generator=generator)
    with torch.no_grad():
        assert relative_error(direct_layers.s4_layer(layer, 20)(u), layer(u)) < 1e-4


def test_a_direct_drop_in_is_the_drop_in(generator: Generator) -> None:
    layer, u = state_spaces.S4D(3, 8), torch.randn(2, 3, 20, generator=generator)
    with torch.no_grad():
        assert relative_error(direct_layers.s4d(layer)(u), layer(u)[0]) < 1e-4


@pytest.mark.parametrize(("cls", "single"), [(S4DLayer, direct_layers.s4d_step), (S4Layer, direct_layers.s4_step)])
def test_direct_steps_are_the_layer(cls: Any, single: Any, generator: Generator) -> None:
    layer, u = cls(3, 8, generator=generator), torch.randn(2, 20, 3, generator=generator)
    with torch.no_grad():
        want, step = layer(u), single(layer)
        state = torch.zeros(2, 3, 8) if cls is S4Layer else layer.init_state(2)
        for position in range(20):
            y, state = step(u[:, position], state)
            assert relative_error(y, want[:, position]) < 1e-4
