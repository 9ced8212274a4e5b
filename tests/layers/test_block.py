from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from s4_fast import S4DLayer, S4Layer, SSMBlock
from tests.helpers import relative_error

LAYERS = pytest.mark.parametrize("layer", ["s4d", "s4"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def build(layer: str, **options) -> SSMBlock:
    return SSMBlock(4, 8, layer=layer, **options).double()


@LAYERS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_block_is_its_formula(layer, bidirectional):
    block = build(layer, bidirectional=bidirectional)
    with torch.no_grad():
        for p in block.norm.parameters():
            p.add_(torch.randn_like(p))
        x = torch.randn(3, 20, 4, dtype=torch.float64)
        normed = layer_norm(x, (4,), block.norm.weight, block.norm.bias)
        value, gate = (gelu(block.layer(normed)) @ block.mix.weight.T + block.mix.bias).chunk(2, -1)
        assert relative_error(block(x), x + value * torch.sigmoid(gate)) < 1e-14


@LAYERS
def test_stepping_is_forward(layer):
    block = build(layer, dropout=0.5).eval()
    x = torch.randn(2, 15, 4, dtype=torch.float64)
    state, outputs = block.init_state(2), []
    with torch.no_grad():
        for position in range(15):
            y, state = block.step(x[:, position], state)
            outputs.append(y)
        assert relative_error(torch.stack(outputs, 1), block(x)) < 1e-12


@LAYERS
def test_gradients_reach_every_parameter_and_the_input(layer):
    block = build(layer, bidirectional=True, dropout=0.1)
    x = torch.randn(2, 15, 4, dtype=torch.float64, requires_grad=True)
    block(x).square().sum().backward()
    for name, t in [*block.named_parameters(), ("x", x)]:
        assert t.grad is not None and t.grad.isfinite().all() and (t.grad != 0).any(), name


def test_dropout_is_tied_over_time_and_off_in_evaluation():
    block = build("s4d", dropout=0.5)
    x = torch.randn(8, 15, 4, dtype=torch.float64)

    def left_alone(y: Tensor) -> Tensor:
        return (y == x).all(1)  # (batch, features) that the last dropout removed from the residual branch

    y = block(x)
    assert left_alone(y).any() and not left_alone(y).all()
    assert torch.equal(left_alone(y), (y == x).any(1))
    assert not torch.equal(block(x), y)
    block.eval()
    assert torch.equal(block(x), block(x)) and not left_alone(block(x)).any()


def test_layer_chooses_the_class_and_options_reach_it():
    assert isinstance(SSMBlock(4).layer, S4DLayer)
    block = SSMBlock(4, layer="s4", init="legt", rank=2, state_dim=6)
    assert isinstance(block.layer, S4Layer) and block.layer.kernel.P.shape == (2, 4, 3, 2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"'s5'; expected one of s4d, s4"):
        SSMBlock(4, layer="s5")
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.5"):
        SSMBlock(4, dropout=1.5)
    with pytest.raises(ValueError, match=r"\(batch, length, 4\) .* got \(3, 4\)"):
        SSMBlock(4, 8)(torch.zeros(3, 4))


@LAYERS
def test_a_checkpoint_that_does_not_fit_changes_nothing(layer):
    block = build(layer)
    before = {name: t.clone() for name, t in block.state_dict().items()}
    checkpoint = {**build(layer).state_dict(), "layer.D": torch.zeros(5)}
    with pytest.raises(RuntimeError, match=r"SSMBlock; nothing was loaded:\n  layer.D: expected shape \(4,\).*\(5,\)"):
        block.load_state_dict(checkpoint)
    assert all(torch.equal(t, before[name]) for name, t in block.state_dict().items())
