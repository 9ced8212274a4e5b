from __future__ import annotations

import math

import pytest
import torch

from s4_fast import DropoutNd


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("tie", [True, False])
def test_kept_values_are_scaled_and_the_rest_are_zero_at_the_given_rate(tie):
    y = DropoutNd(0.3, tie=tie)(torch.ones(200, 5, 100))
    dropped = (y == 0).double()
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / 0.7))
    independent = 200 * 100 * (1 if tie else 5)
    assert abs(dropped.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / independent)


@pytest.mark.parametrize("shape", [(8, 9, 10), (8, 3, 4, 10), (8, 10)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_tied_feature_is_dropped_at_every_position_or_at_none(shape, transposed):
    x = torch.ones(shape)
    y = DropoutNd(0.5, transposed=transposed)(x.movedim(-1, 1) if transposed else x)
    y = y.movedim(1, -1) if transposed else y
    assert y.shape == shape
    mask = y.flatten(1, -2) if y.ndim > 2 else y[:, None]
    assert (mask == mask[:, :1]).all()
    rows = mask[:, 0]
    assert len(rows.unique(dim=0)) > 1 and len(rows.unique(dim=1)) > 1  # a mask of its own for each sequence


@pytest.mark.parametrize("transposed", [False, True])
def test_untied_positions_have_masks_of_their_own(transposed):
    y = DropoutNd(0.5, tie=False, transposed=transposed)(torch.ones(4, 20, 20))
    assert (y != y[:, :1]).any() and (y != y[:, :, :1]).any() and (y != y[:1]).any()


@pytest.mark.parametrize("tie", [True, False])
def test_evaluation_and_zero_probability_return_the_input(tie):
    x = torch.randn(2, 3, 4)
    assert DropoutNd(0.9, tie=tie).eval()(x) is x
    assert DropoutNd(0.0, tie=tie)(x) is x


def test_gradients_pass_where_values_did():
    x = torch.ones(3, 5, 7, requires_grad=True)
    y = DropoutNd(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dtype_is_kept():
    for dtype in (torch.float64, torch.bfloat16):
        assert DropoutNd(0.5)(torch.ones(2, 3, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, math.nan])
def test_probabilities_outside_the_range_are_refused(p):
    with pytest.raises(ValueError, match=rf"in \[0, 1\), got {p}"):
        DropoutNd(p)
