from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu, linear, relu

from s4_fast.state_spaces.block import S4Block
from tests.helpers import relative_error

DATA = Path(__file__).parents[1] / "data"
GOLDEN = [
    "diag_default", "diag_default_pert", "diag_lin_bilinear", "diag_nssm2_channels2",
    "dplr_bidirectional", "dplr_fout_rank1", "dplr_legs_lmax", "dplr_legs_lmax_pert",
]  # fmt: skip
GATED: list[dict[str, Any]] = [
    {},
    {"gate": 1},
    {"gate": 2, "gate_act": "gelu", "channels": 2},
    {"bottleneck": 2},
    {"gate": 4, "bottleneck": 4, "gate_act": "glu-relu", "mult_act": "gelu"},
    {"gate": 3, "mult_act": "glu", "final_act": None},
    {"channels": 3, "final_act": None, "activation": None},
    {"weight_norm": True, "final_act": "id", "activation": "glu"},
]
EVERY = pytest.mark.parametrize("options", GATED, ids=str)


def build(**options: Any) -> S4Block:
    return S4Block(8, **{"d_state": 6, "mode": "diag", **options}).double().eval()


def signal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def off(actual: Tensor, expected: Tensor) -> float:
    return relative_error(actual, expected.detach())


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    arrays = np.load(DATA / f"{name}.npz")
    config = json.loads(str(arrays["config"]))
    return config, {key: torch.tensor(arrays[key]) for key in arrays if key != "config"}


def under(prefix: str, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def steps(block: S4Block, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (batch, features, length) and last state, one step after the other."""
    outputs = []
    for position in range(x.shape[-1]):
        y, state = block.step(x[..., position], state)
        outputs.append(y)
    return torch.stack(outputs, -1), state


@pytest.mark.parametrize("checkpoint", ["sd.", "sd_after."])
@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_gradients_are_the_official_ones(name, checkpoint):
    """From the plain C, and from the C~ that the official first forward pass leaves behind."""
    config, arrays = golden(name)
    saved = under(checkpoint, arrays) or under("sd.", arrays)
    block = S4Block(**config["kwargs"]).double()
    block.load_state_dict(saved)
    u = arrays["u"].clone().requires_grad_()
    y, after = block(u)
    assert after is None
    assert off(y, arrays["y"]) <= 1e-10

    leaves = {"grad_u": u, **{f"grad.{name}": p for name, p in block.named_parameters()}}
    grads = torch.autograd.grad(y, list(leaves.values()), arrays["g"])
    errors = {key: off(grad, arrays[key]) for key, grad in zip(leaves, grads, strict=True)}
    assert all(error <= 1e-8 for error in errors.values()), errors

    single = S4Block(**config["kwargs"])
    single.load_state_dict(saved)
    assert off(single(arrays["u"].float())[0], arrays["y"]) <= 2e-6


@pytest.mark.parametrize("name", GOLDEN)
def test_the_state_dict_is_the_official_one(name):
    """Names and shapes, before a pass and after; and after it the numbers too, which an official model goes on with."""
    config, arrays = golden(name)
    block = S4Block(**config["kwargs"]).double()
    saved = under("sd.", arrays)
    assert {k: (v.shape, v.is_floating_point()) for k, v in block.state_dict().items()} == {
        k: (v.shape, v.is_floating_point()) for k, v in saved.items()
    }
    block.load_state_dict(saved)
    block(arrays["u"])
    for key, value in (under("sd_after.", arrays) or saved).items():
        assert off(block.state_dict()[key], value) <= 1e-10, key


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "dplr_bidirectional"])
@pytest.mark.parametrize("mode", [None, "linear", "diagonal"])
def test_steps_are_the_official_ones(name, mode):
    config, arrays = golden(name)
    key = "y_step" if mode is None else f"y_step_{mode}"
    if key not in arrays:
        assert config["kwargs"]["mode"] == "diag"
        return
    block = S4Block(**config["kwargs"]).double()
    block.load_state_dict(under("sd_after.", arrays) or under("sd.", arrays))
    block.setup_step(**({} if mode is None else {"mode": mode}))
    y, state = steps(block, arrays["u"], block.default_state(arrays["u"].shape[0]))
    # The eigenvectors of the LegS matrix are ill-conditioned: the original itself is good to 4.5e-9 there.
    assert off(y, arrays["y_step"]) <= (2e-8 if mode == "diagonal" else 1e-10)
    if mode is None:
        assert off(state, arrays["step_state"]) <= 1e-10


def by_hand(block: S4Block, x: Tensor, options: dict[str, Any]) -> Tensor:
    """The block on x (batch, length, features), from its parameters and the outputs of its convolution."""
    p = dict(block.named_parameters())

    def mapped(name: str, x: Tensor) -> Tensor:
        if f"{name}.weight_v" in p:
            v = p[f"{name}.weight_v"]
            return linear(x, p[f"{name}.weight_g"] * v / v.square().sum(1, keepdim=True).sqrt(), p[f"{name}.bias"])
        return linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    y = block.layer(mapped("input_linear", x) if options.get("bottleneck") else x)[0]
    if options.get("gate"):
        if "gate_act" in options:
            v = mapped("input_gate.0", x)
            v = gelu(v) if options["gate_act"] == "gelu" else v.chunk(2, -1)[0] * relu(v.chunk(2, -1)[1])
        else:
            v = mapped("input_gate", x)
        y = v * (mapped("output_gate", y) if "output_gate.weight" in p else y)
    mult = {"gelu": gelu, "glu": glu}.get(options.get("mult_act", ""))
    y = y if mult is None else mult(y)
    final = options.get("final_act", "glu")
    if final is None:
        return y
    y = mapped("output_linear.0", y)
    return glu(y) if final == "glu" else y


@EVERY
def test_the_parts_are_put_together_as_documented(options, generator):
    block = build(**options, transposed=False)
    x = signal(generator, 2, 21, 8)
    y, _ = block(x)
    assert y.shape == (2, 21, block.d_output)
    assert off(y, by_hand(block, x, options)) <= 1e-12
    other = build(**options)
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(x.mT)[0], y.mT)


@EVERY
@pytest.mark.parametrize("mode", ["diag", "dplr"])
def test_steps_equal_the_convolution(options, mode, generator):
    block = build(**options, mode=mode)
    x = signal(generator, 3, 8, 17)
    y, after = block(x, state=block.default_state(3))
    block.setup_step()
    stepped, state = steps(block, x, block.default_state(3))
    assert off(stepped, y) <= 1e-10
    assert off(state[..., : after.shape[-1]], after) <= 1e-10


@pytest.mark.parametrize("cut", [1, 6, 16])
def test_a_sequence_may_be_cut(cut, generator):
    block = build(gate=2, bottleneck=2)
    x = signal(generator, 2, 8, 17)
    y, last = block(x, state=block.default_state(2))
    first, state = block(x[..., :cut], state=block.default_state(2))
    second, after = block(x[..., cut:], state=state)
    assert off(torch.cat((first, second), -1), y) <= 1e-10
    assert off(after, last) <= 1e-10


@pytest.mark.parametrize(
    "options", [{}, {"bottleneck": 2}, {"gate": 2, "bidirectional": True, "bottleneck": 2}, {"mode": "dplr"}], ids=str
)
def test_padding_is_not_read(options, generator):
    """Every row is as it would be alone, whatever lies behind its end: the reversed direction starts there."""
    block = build(**options)
    lengths = torch.tensor([13, 1, 7])
    x = signal(generator, 3, 8, 13)
    for row, length in enumerate(lengths.tolist()):
        x[row, :, length:] = torch.nan
    state = None if options.get("bidirectional") else block.default_state(3) + 0.3
    y, after = block(x, lengths, state=state)
    assert bool(y.isfinite().all())
    for row, length in enumerate(lengths.tolist()):
        own = None if state is None else state[row : row + 1]
        alone, end = block(x[row : row + 1, :, :length], state=own)
        assert off(y[row : row + 1, :, :length], alone) <= 1e-10
        if after is not None:
            assert off(after[row : row + 1], end) <= 1e-10


def test_one_length_serves_all_rows(generator):
    block, x = build(bidirectional=True), signal(generator, 3, 8, 10)
    expected, _ = block(x, torch.tensor([6, 6, 6]))
    assert off(expected[..., :6], block(x[..., :6])[0]) <= 1e-10
    for lengths in (6, torch.tensor([6]), [6, 6, 6]):
        assert torch.equal(block(x, lengths)[0], expected)
    assert torch.equal(block(x, 10)[0], block(x)[0])
    for lengths, error in (
        (11, ValueError),
        (0, ValueError),
        (True, TypeError),
        (6.0, TypeError),
        ([6, 6], ValueError),
    ):
        with pytest.raises(error, match="lengths"):
            block(x, lengths)


def test_weight_norm_has_the_names_and_values_of_torch(generator):
    block = build(weight_norm=True)
    assert [key for key in block.state_dict() if key.startswith("output_linear")] == [
        "output_linear.0.bias", "output_linear.0.weight_g", "output_linear.0.weight_v",
    ]  # fmt: skip
    normed = block.output_linear[0]
    reference = nn.Linear(8, 16).double()
    reference.weight.data.copy_(normed.weight.detach())
    reference.bias.data.copy_(normed.bias.detach())
    reference = nn.utils.parametrizations.weight_norm(reference)
    with torch.no_grad():
        reference.parametrizations.weight.original0.copy_(signal(generator, 16, 1))
        reference.parametrizations.weight.original1.copy_(signal(generator, 16, 8))
        normed.weight_g.copy_(reference.parametrizations.weight.original0)
        normed.weight_v.copy_(reference.parametrizations.weight.original1)
    x, g = signal(generator, 3, 8), signal(generator, 3, 16)
    assert off(normed(x), reference(x)) <= 1e-14
    grads = torch.autograd.grad(normed(x), [normed.weight_g, normed.weight_v], g)
    own = [reference.parametrizations.weight.original0, reference.parametrizations.weight.original1]
    expected = torch.autograd.grad(reference(x), own, g)
    assert all(off(a, b) <= 1e-13 for a, b in zip(grads, expected, strict=True))


@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_block_can_be_copied_and_saved_after_a_pass(weight_norm, generator):
    block = build(weight_norm=weight_norm, gate=2).train()
    x = signal(generator, 2, 8, 9)
    y, _ = block(x)
    y.sum().backward()
    assert torch.equal(copy.deepcopy(block)(x)[0], y)
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x)[0], y)


@pytest.mark.parametrize(("tie", "shared"), [(True, True), (False, False)])
def test_dropout_shares_its_mask_over_time_where_tied(tie, shared, generator):
    block = build(dropout=0.5, tie_dropout=tie, final_act=None, activation=None).train()
    y, _ = block(signal(generator, 4, 8, 33))
    zeros = y == 0
    assert bool(zeros.any()) and not bool(zeros.all())
    assert bool((zeros.all(-1) == zeros.any(-1)).all()) is shared
    assert bool((block.eval()(signal(generator, 4, 8, 33))[0] != 0).all())


@pytest.mark.parametrize(
    ("mode", "options"), [("diag", {"gate": 2, "bottleneck": 2, "weight_norm": True}), ("dplr", {})], ids=str
)
@pytest.mark.slow
def test_a_block_compiles_in_one_graph(mode, options, generator):
    block = build(**options, mode=mode)
    x, lengths = signal(generator, 2, 8, 12), torch.tensor([12, 5])
    block.setup_length(12)
    expected, after = block(x, lengths, state=block.default_state(2))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    y, state = compiled(x, lengths, state=block.default_state(2))
    assert off(y, expected) <= 1e-12
    assert off(state, after) <= 1e-12


def test_the_length_set_up_in_advance_is_that_of_the_first_pass(generator):
    block = build(mode="dplr")
    other = copy.deepcopy(block)
    x = signal(generator, 2, 8, 24)
    y, _ = block(x)
    other.setup_length(24)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    assert off(other(x)[0], y) <= 1e-14
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    assert all(off(value, before[key]) <= 1e-14 for key, value in block.state_dict().items())


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_nodes_cached_in_older_checkpoints_are_dropped(wrapped):
    block = build(mode="dplr")
    saved = build(mode="dplr").state_dict()
    older = {**saved, "layer.kernel.omega": torch.zeros(5, 2), "layer.kernel.z": torch.zeros(5, 2)}
    if wrapped:
        nn.ModuleList([block]).load_state_dict({f"0.{key}": value for key, value in older.items()})
    else:
        block.load_state_dict(older)
    assert block.state_dict().keys() == saved.keys()
    assert all(torch.equal(block.state_dict()[key], value) for key, value in saved.items())


def test_a_checkpoint_of_another_shape_names_the_keys():
    block, saved = build(), S4Block(8, d_state=10, mode="diag", final_act="id").state_dict()
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(RuntimeError, match=r"layer\.kernel\.C.*\n.*[\s\S]*output_linear\.0\.weight"):
        block.load_state_dict(saved)
    assert all(torch.equal(before[key], value) for key, value in block.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bottleneck": 3}, ValueError, "bottleneck must divide d_model"),
        ({"bottleneck": 0}, ValueError, "bottleneck must be at least 1"),
        ({"gate": 1.5}, TypeError, "gate must be an int"),
        ({"gate": True}, TypeError, "gate must be an int"),
        ({"postact": "id", "final_act": "relu"}, ValueError, "postact and final_act"),
        ({"final_act": "gleu"}, ValueError, "unknown activation 'gleu'; expected None or one of .*softplus"),
        ({"mult_act": 3}, TypeError, "name of an activation"),
        ({"bottleneck": 8, "mult_act": "glu"}, ValueError, "halves the features"),
        ({"initializer": "kaiming"}, ValueError, "unknown initializer 'kaiming'; expected one of uniform, normal"),
        ({"initializer": "zero", "weight_norm": True}, ValueError, "weight other than 0"),
        ({"weight_norm": True, "final_act": None}, ValueError, "which final_act=None leaves out"),
        ({"dropout": -0.1}, ValueError, "dropout probability"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


def test_wrong_inputs_are_refused(generator):
    block = build()
    x = signal(generator, 2, 8, 5)
    with pytest.raises(ValueError, match=r"expected x of shape \(batch, 8, length\), got \(2, 5, 8\)"):
        block(x.mT)
    with pytest.raises(ValueError, match=r"expected x of shape \(batch, 8\)"):
        block.step(x, block.default_state(2))
    with pytest.raises(TypeError, match="return_output"):
        block(x, return_output=True)
    assert torch.equal(block(x, return_output=False, mask=None)[0], block(x)[0])
    with pytest.raises(TypeError, match="d_stat"):
        build(d_stat=4)


@pytest.mark.parametrize("mode", ["diag", "dplr"])
def test_a_block_runs_where_its_parameters_are(mode, device, generator):
    block = build(mode=mode, gate=2, bottleneck=2, weight_norm=True)
    other = copy.deepcopy(block).to(device)
    x, lengths = signal(generator, 2, 8, 14), torch.tensor([14, 6])
    expected, last = block(x, lengths, state=block.default_state(2))
    y, after = other(x.to(device), lengths, state=other.default_state(2))
    assert y.device.type == after.device.type == device
    assert off(y.cpu(), expected) <= 1e-10
    assert off(after.cpu(), last) <= 1e-10
    other.setup_step()
    first, _ = other.step(x[..., 0].to(device), other.default_state(2))
    assert off(first.cpu(), expected[..., 0]) <= 1e-10
