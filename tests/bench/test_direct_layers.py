"""The baselines of the layer benchmark compute what the layers do."""

from __future__ import annotations

import pytest
import torch

from s4_fast import S4DLayer, S4Layer, diagonal_ssm
from s4_fast.bench import direct
from tests.helpers import relative_error

CASES = pytest.mark.parametrize(
    ("cls", "whole", "single"),
    [(S4DLayer, direct.s4d_layer, direct.s4d_step), (S4Layer, direct.s4_layer, direct.s4_step)],
)


@CASES
def test_a_direct_layer_is_the_layer(cls, whole, single, generator):
    layer, u = cls(3, 8, generator=generator), torch.randn(2, 20, 3, generator=generator)
    with torch.no_grad():
        want, state = layer(u), None
        assert relative_error(whole(layer, u.shape[1])(u), want) < 1e-4
        step = single(layer)
        state = torch.zeros(2, 3, 8) if cls is S4Layer else layer.init_state(2)
        for position in range(20):
            y, state = step(u[:, position], state)
            assert relative_error(y, want[:, position]) < 1e-4


def test_the_minimal_s4d_is_a_diagonal_ssm():
    layer, u = direct.MinimalS4D(3, 8), torch.randn(2, 20, 3)
    with torch.no_grad():
        A, C = torch.complex(-layer.log_A_real.exp(), layer.A_imag), torch.view_as_complex(layer.C)
        want = diagonal_ssm(u, A, None, C, layer.log_dt.exp(), layer.D, time_major=True)
        assert relative_error(layer(u), want) < 1e-5
