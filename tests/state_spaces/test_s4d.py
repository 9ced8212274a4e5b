from __future__ import annotations

import copy
import json
import math
import pathlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu, linear

from s4_fast import get_ssm_param_groups
from s4_fast.ssm import sequence
from s4_fast.state_spaces import S4D, S4DKernel
from tests.helpers import normal, relative_error

DATA = pathlib.Path(__file__).parents[1] / "data"
GOLDEN = ("s4d_default", "s4d_default_pert", "s4d_nodrop_untransposed")
DOUBLE = torch.float64
EACH_PATH = pytest.mark.parametrize("path", ["scan", "convolution"], indirect=True)


class Golden:
    def __init__(self, name: str) -> None:
        arrays = np.load(DATA / f"{name}.npz")
        self.config = json.loads(str(arrays["config"]))
        self.arrays = {key: torch.tensor(arrays[key]) for key in arrays if key != "config"}
        self.state_dict = self.under("sd.")

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): t for key, t in self.arrays.items() if key.startswith(prefix)}

    def layer(self, dtype: torch.dtype = DOUBLE) -> S4D:
        layer = S4D(**self.config["kwargs"]).to(dtype)
        layer.load_state_dict(self.state_dict)
        return layer


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """The way through the sequence that `request.param` names."""
    with mock.patch.object(sequence, "faster", return_value=sequence.Path(request.param, "a test")) as choose:
        yield
        choose.assert_called()


def definition(layer: S4D, u: Tensor) -> Tensor:
    """The layer on u (batch, h, L), by the recurrence ``x_l = exp(dt A) x_(l-1) + (exp(dt A) - 1) / A u_l``."""
    kernel = layer.kernel
    A = -kernel.log_A_real.exp() + 1j * kernel.A_imag
    lam = torch.exp(kernel.log_dt.exp()[:, None] * A)
    C, x, outputs = torch.view_as_complex(kernel.C), torch.zeros_like(A), []
    for sample in u.unbind(-1):
        x = lam * x + (lam - 1) / A * sample[..., None]
        outputs.append(2 * (C * x).sum(-1).real + layer.D * sample)
    mixed = linear(gelu(torch.stack(outputs, 1)), layer.output_linear[0].weight[..., 0], layer.output_linear[0].bias)
    return glu(mixed).mT


@EACH_PATH
def test_outputs_and_gradients_are_the_official_ones(golden, path):
    layer = golden.layer()
    u = golden.arrays["u"].requires_grad_()
    y, state = layer(u)
    assert state is None
    assert relative_error(y, golden.arrays["y"]) <= 1e-10
    assert relative_error(layer.kernel(L=golden.config["L"]), golden.arrays["k"]) <= 1e-10
    parameters = dict(layer.named_parameters())
    grads = torch.autograd.grad(y, [u, *parameters.values()], golden.arrays["g"])
    expected = golden.under("grad.")
    assert expected.keys() == parameters.keys()
    errors = [relative_error(grads[0], golden.arrays["grad_u"])]
    errors += [relative_error(g, expected[name]) for name, g in zip(parameters, grads[1:], strict=True)]
    assert all(error <= 1e-10 for error in errors), errors


@EACH_PATH
def test_float32_outputs_are_the_official_ones(golden, path):
    y, _ = golden.layer(torch.float32)(golden.arrays["u"].float())
    assert relative_error(y, golden.arrays["y"]) <= 2e-6


@pytest.mark.parametrize("golden", ["s4d_default", "s4d_nodrop_untransposed"], indirect=True)
def test_the_official_seed_gives_the_official_weights(golden):
    torch.manual_seed(golden.config["seed"])
    layer = S4D(**golden.config["kwargs"])
    assert all(relative_error(t, golden.state_dict[name]) <= 1e-7 for name, t in layer.state_dict().items())


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("d_state", "L"), [(2, 1), (3, 2), (7, 33), (16, 100)])
def test_outputs_are_those_of_the_recurrence(d_state, L, transposed, generator, device):
    layer = S4D(3, d_state, transposed=transposed).to(device, DOUBLE)
    u = normal(generator, 2, 3, L, dtype=DOUBLE).to(device)
    expected = definition(layer, u).detach()
    y, state = layer(u if transposed else u.mT)
    assert state is None
    assert relative_error(y if transposed else y.mT, expected) <= 1e-11
    single, _ = layer(u[1] if transposed else u[1].mT)
    assert relative_error(single if transposed else single.mT, expected[1]) <= 1e-11


def test_gradients_are_those_of_the_recurrence(generator):
    layer = S4D(3, 6).double()
    u = normal(generator, 2, 3, 20, dtype=DOUBLE).requires_grad_()
    g = normal(generator, 2, 3, 20, dtype=DOUBLE)
    leaves = [u, *layer.parameters()]
    actual, expected = (torch.autograd.grad(y, leaves, g) for y in (layer(u)[0], definition(layer, u)))
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert all(error <= 1e-10 for error in errors), errors


def test_initial_values_are_those_of_s4d_lin():
    kernel = S4DKernel(500, N=9, dt_min=0.01, dt_max=0.02)
    assert {name: tuple(t.shape) for name, t in kernel.state_dict().items()} == {
        "C": (500, 4, 2), "log_dt": (500,), "log_A_real": (500, 4), "A_imag": (500, 4),
    }  # fmt: skip
    torch.testing.assert_close(kernel.log_A_real.exp(), torch.full((500, 4), 0.5))
    torch.testing.assert_close(kernel.A_imag, (math.pi * torch.arange(4.0)).expand(500, 4))
    dt = kernel.log_dt.detach().exp()
    assert 0.01 * (1 - 1e-6) <= dt.min() < 0.011 < 0.018 < dt.max() <= 0.02 * (1 + 1e-6)
    assert abs(float(kernel.C.detach().square().sum(-1).mean()) - 1) < 0.2  # E |C|^2


@pytest.mark.parametrize("lr", [0, 0.0])
def test_lr_0_makes_buffers_and_keeps_the_state_dict(lr):
    fixed, free = S4D(3, 8, lr=lr), S4D(3, 8)
    assert {name for name, _ in fixed.kernel.named_parameters()} == {"C"}
    assert fixed.state_dict().keys() == free.state_dict().keys()
    fixed.load_state_dict(free.state_dict())
    u = torch.randn(1, 3, 10)
    assert torch.equal(fixed(u)[0], free(u)[0])


@pytest.mark.parametrize(
    ("lr", "mark"),
    [(None, {"weight_decay": 0.0}), (1e-3, {"weight_decay": 0.0, "lr": 1e-3}), (1, {"weight_decay": 0.0, "lr": 1.0})],
)
def test_marks_for_the_optimiser(lr, mark):
    layer = S4D(3, 8, lr=lr)
    for same in (layer, copy.deepcopy(layer)):
        marked = {name: p._optim for name, p in same.named_parameters() if hasattr(p, "_optim")}
        assert marked == dict.fromkeys(("kernel.log_dt", "kernel.log_A_real", "kernel.A_imag"), mark)
    groups = get_ssm_param_groups(layer, lr=0.1, ssm_lr=0.2, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (0.1, 0.3, 4), (mark.get("lr", 0.2), 0.0, 3),
    ]  # fmt: skip


def test_dropout_drops_features_at_all_positions():
    layer = S4D(40, 4, dropout=0.5, transposed=False)
    layer.output_linear = nn.Identity()
    u = torch.randn(2, 9, 40)
    y, _ = layer(u)
    whole, _ = layer.eval()(u)
    kept = (y != 0).any(1)
    assert 10 < kept.sum() < 70
    torch.testing.assert_close(y, 2 * whole * kept[:, None])


def test_a_compiled_layer_has_one_graph():
    layer = S4D(3, 8, dropout=0.1).eval()
    u = torch.randn(2, 3, 20)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(u)[0], layer(u)[0])


def test_half_precision_under_autocast_is_accurate():
    layer = S4D(4, 16)
    u = torch.randn(2, 4, 60).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(u)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, layer.double()(u.double())[0].detach()) <= 0.02


def test_callers_may_pass_what_asks_for_nothing():
    layer, u = S4D(3, 8), torch.randn(1, 3, 5)
    assert torch.equal(layer(u, state=None, return_output=False)[0], layer(u)[0])


@pytest.mark.parametrize("options", [{"mode": "s4"}, {"lr": 0.1, "rank": 2}, {"N": 8}])
def test_unknown_options_are_refused(options):
    with pytest.raises(TypeError, match=r"S4D: unknown options? .*; it takes .*dt_min, dt_max, lr"):
        S4D(3, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 1}, "N must be at least 2, got 1"),
        ({"lr": -0.1}, "lr must be at least 0, got -0.1"),
        ({"lr": math.nan}, "lr must be at least 0, got nan"),
        ({"dt_min": 0.2}, "0 < dt_min <= dt_max"),
        ({"dropout": 1.0}, r"dropout probability must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout probability must be in \[0, 1\)"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        S4D(3, **options)


def test_inputs_that_do_not_fit_are_refused():
    layer = S4D(3, 8)
    for shape in ((3,), (2, 4, 3), (2, 3, 0), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"expected u of shape \(batch, 3, length\)"):
            layer(torch.randn(shape))
    with pytest.raises(ValueError, match=r"expected u of shape \(batch, length, 3\)"):
        S4D(3, 8, transposed=False)(torch.randn(2, 3, 4))
    with pytest.raises(TypeError, match="one precision"):
        layer(torch.randn(2, 3, 5).double())
    with pytest.raises(TypeError, match="state, lengths"):
        layer(torch.randn(2, 3, 5), state=torch.zeros(()), lengths=[1, 2], mask=None)


def test_a_checkpoint_of_another_shape_is_named_and_changes_nothing():
    layer, other = S4D(3, 8), S4D(3, 16)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match=r"kernel.C: expected shape \(3, 4, 2\), the checkpoint has \(3, 8, 2\)"):
        layer.load_state_dict(other.state_dict())
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())
