from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu, linear

from s4_fast import S4DLayer, S4Layer, native_library, use_backend
from s4_fast.layers.ssm_layer import SSMLayer
from s4_fast.ssm.dplr import truncated
from tests.helpers import needs_native, relative_error
from tests.layers.building import build, run, signal

DATA = Path(__file__).parents[1] / "data"
GOLDEN = [
    "diag_default", "diag_default_pert", "diag_lin_bilinear",
    "dplr_bidirectional", "dplr_fout_rank1", "dplr_legs_lmax", "dplr_legs_lmax_pert",
]  # fmt: skip
BOTH = pytest.mark.parametrize("cls", [S4DLayer, S4Layer])
TWO_SIDED = pytest.mark.parametrize("bidirectional", [False, True])
SETTINGS: list[tuple[type[SSMLayer], dict[str, Any]]] = [
    (S4DLayer, {}),
    (S4DLayer, {"init": "legs", "discretization": "bilinear", "n_ssm": 2}),
    (S4Layer, {}),
    (S4Layer, {"init": "legt", "rank": 2, "n_ssm": 1}),
    (S4Layer, {"init": "fout"}),
]
EVERY = pytest.mark.parametrize(("cls", "options"), SETTINGS)


@pytest.fixture(autouse=True)
def seeded(session_seed: int) -> None:
    torch.manual_seed(session_seed)  # D is drawn from the default generator


def definition(layer: SSMLayer, u: Tensor) -> Tensor:
    """y[l] = sum_(j <= l) k[0, l - j] u[j] + sum_(j > l) k[1, j - l - 1] u[j] + D u[l]."""
    L = u.shape[1]
    k = layer.kernel.impulse_response(L)
    outputs = []
    for position in range(L):
        y = layer.D * u[:, position]
        for j in range(L):
            if j <= position:
                y = y + k[0, :, position - j] * u[:, j]
            elif layer.bidirectional:
                y = y + k[1, :, j - position - 1] * u[:, j]
        outputs.append(y)
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_gradients_are_those_of_the_official_block(name):
    """The official block is this layer, a GELU and a gated linear mix, on (batch, features, length)."""
    golden = np.load(DATA / f"{name}.npz")
    options = json.loads(str(golden["config"]))["kwargs"]
    diagonal = options["mode"] == "diag"
    special = {"discretization": options["disc"]} if diagonal and "disc" in options else {}
    layer = (S4DLayer if diagonal else S4Layer)(
        options["d_model"], options["d_state"], bidirectional=options.get("bidirectional", False), **special
    ).double()
    checkpoint = {k.removeprefix("sd.layer."): torch.tensor(golden[k]) for k in golden if k.startswith("sd.layer.")}
    layer.load_state_dict({**checkpoint, "D": checkpoint["D"][0]})
    u = torch.tensor(golden["u"], requires_grad=True)
    weight, bias = (torch.tensor(golden[f"sd.output_linear.0.{name}"]) for name in ("weight", "bias"))

    y = glu(linear(gelu(layer(u.mT)), weight, bias), dim=-1).mT
    assert relative_error(y.detach(), torch.tensor(golden["y"])) < 1e-10
    leaves = {"grad_u": u, **{f"grad.layer.{name}": p for name, p in layer.named_parameters()}}
    grads = torch.autograd.grad(y, list(leaves.values()), torch.tensor(golden["g"]))
    want = {key: torch.tensor(golden[key]).view(t.shape) for key, t in leaves.items()}
    if not diagonal:
        # The official C is truncated, and its gradients are those beside that one.
        system = layer.kernel.recurrence()
        C = truncated(system.C, system.transition(), int(golden["sd_after.layer.kernel.l_kernel"]))
        of_C = want.pop("grad.layer.kernel.C")
        beside = torch.autograd.grad(
            torch.view_as_real(C), list(leaves.values()), of_C, allow_unused=True, materialize_grads=True
        )
        want = {key: want.get(key, 0) + g for key, g in zip(leaves, beside, strict=True)}
    for key, grad in zip(leaves, grads, strict=True):
        assert relative_error(grad, want[key]) < 1e-8, key


@EVERY
@TWO_SIDED
def test_forward_and_gradients_are_those_of_the_definition(cls, options, bidirectional, generator):
    layer = build(cls, generator, bidirectional=bidirectional, **options)
    for L in (12, 1):
        u = signal(generator, 3, L, 4).requires_grad_()
        got, want = layer(u), definition(layer, u)
        assert got.shape == u.shape
        assert relative_error(got.detach(), want.detach()) < 1e-12
        cotangent, leaves = signal(generator, 3, L, 4), (u, layer.D, layer.kernel.B, layer.kernel.C)
        grads = (torch.autograd.grad(y, leaves, cotangent) for y in (got, want))
        for g, w in zip(*grads, strict=True):
            assert relative_error(g, w) < 1e-9


@EVERY
def test_stepping_is_forward(cls, options, generator):
    layer = build(cls, generator, **options)
    u = signal(generator, 3, 50, 4)
    with torch.no_grad():
        before, want, after = run(layer, u)[0], layer(u), run(layer, u)[0]
    assert relative_error(before, want) < 1e-12 and relative_error(after, want) < 1e-12


@EVERY
def test_stepping_continues_from_a_prefix(cls, options, generator):
    layer = build(cls, generator, **options)
    u = signal(generator, 2, 31, 4)
    with torch.no_grad():
        state = layer.kernel.forward_state(u[:, :30].mT, layer.init_state(2))
        y, _ = layer.step(u[:, 30], state)
        assert relative_error(y, layer(u)[:, 30]) < 1e-12


@EVERY
@pytest.mark.parametrize("lengths", [(1, 40, 7, 90), (90, 7, 40, 1), (8, 9, 100, 90)])
def test_any_length_in_any_order_and_no_look_ahead(cls, options, lengths, generator):
    layer = build(cls, generator, **options)
    u = signal(generator, 2, 100, 4)
    with torch.no_grad():
        want = run(layer, u)[0]
        for L in lengths:
            assert relative_error(layer(u[:, :L]), want[:, :L]) < 1e-10, L
            assert relative_error(layer(u)[:, :L], want[:, :L]) < 1e-10, L


@EVERY
@pytest.mark.parametrize("backend", ["auto", "pytorch", "reference", pytest.param("native", marks=needs_native)])
def test_steps_without_gradients_are_those_with(cls, options, backend, generator):
    layer = build(cls, generator, **options).float()
    u = torch.randn(3, 20, 4, generator=generator)
    want, _ = run(copy.deepcopy(layer).double(), u.double())
    with torch.no_grad(), use_backend(backend):
        got = run(layer, u)[0]  # rows of which no two are neighbours in memory
    # The discretisation in float32 is a part of the error.
    assert got.dtype == torch.float32 and relative_error(got, want.detach()) < 5e-6
    assert relative_error(run(layer, u)[0].detach(), want.detach()) < 5e-6


@needs_native
@BOTH
def test_one_native_call_makes_a_step(cls, generator):
    layer = build(cls, generator)
    u, state = signal(generator, 2, 4), layer.init_state(2)
    with torch.no_grad():
        y, _ = layer.step(u, state)
        with mock.patch.object(native_library, "_check", wraps=native_library._check) as check:
            assert torch.equal(layer.step(u, state)[0], y)
    assert check.call_count == 1  # it sees the code that every call returns


@BOTH
def test_state_dim_is_another_name_for_d_state(cls):
    assert cls(4, state_dim=6).d_state == cls(4, 6, state_dim=6).d_state == 6
    assert cls(4).d_state == 64
    with pytest.raises(ValueError, match="got 6 and 8"):
        cls(4, 6, state_dim=8)
    for sizes in ({"d_state": 0}, {"state_dim": 0}, {"state_dim": 7}):
        with pytest.raises(ValueError, match=r"0|7"):
            cls(4, **sizes)


@BOTH
def test_options_reach_the_kernel(cls):
    layer = cls(4, 8, 0.02, 0.03, bidirectional=True, lr=2e-4, n_ssm=2)
    assert layer.kernel.channels == 2 and layer.kernel.n_ssm == 2
    assert layer.kernel.A_real._optim["lr"] == 2e-4
    assert ((layer.kernel.dt() > 0.0199) & (layer.kernel.dt() < 0.0301)).all()
    with pytest.raises(TypeError, match="typo"):
        cls(4, 8, typo=1)


@BOTH
def test_a_bidirectional_layer_does_not_step(cls, generator):
    layer = build(cls, generator, bidirectional=True)
    with pytest.raises(RuntimeError, match="bidirectional"):
        layer.step(torch.zeros(2, 4).double(), layer.init_state(2))


@BOTH
@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 3), (2, 4, 5), (2, 5, 4, 1)])
def test_wrong_shapes_are_refused(cls, shape):
    with pytest.raises(ValueError, match=r"\(batch, length, 4\) .* got \(" + str(shape)[1:-1]):
        cls(4, 8)(torch.zeros(shape))


@BOTH
def test_an_empty_sequence_is_refused(cls):
    with pytest.raises(ValueError, match=r"length >= 1, got \(2, 0, 4\)"):
        cls(4, 8)(torch.zeros(2, 0, 4))


@BOTH
def test_a_wrong_state_is_refused_with_its_shape(cls):
    layer = cls(4, 8)
    with pytest.raises(ValueError, match=r"\(2, 4, 4\) .* got \(3, 4, 4\)"):
        layer.step(torch.zeros(2, 4), layer.init_state(3))


@BOTH
@TWO_SIDED
def test_a_batch_of_zero_rows(cls, bidirectional):
    layer = cls(4, 8, bidirectional=bidirectional)
    y = layer(torch.zeros(0, 5, 4))
    assert y.shape == (0, 5, 4)
    y.sum().backward()
    assert all((p.grad == 0).all() for p in layer.parameters())


@BOTH
@TWO_SIDED
def test_strided_input(cls, bidirectional, generator):
    layer = build(cls, generator, bidirectional=bidirectional)
    u = signal(generator, 2, 9, 4)
    want = layer(u)
    for view in (u.mT.contiguous().mT, u.repeat_interleave(2, 1)[:, ::2], u[:, :, None].expand(-1, -1, 2, -1)[:, :, 1]):
        assert torch.equal(layer(view), want)
    assert torch.equal(layer(u[:1].expand(3, -1, -1))[2], layer(u[:1])[0])


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_gives_what_it_gives_of_a_linear_map(cls, dtype, generator):
    layer = build(cls, generator).to(torch.float64 if dtype == torch.float64 else torch.float32)
    u = torch.randn(2, 20, 4, generator=generator).to(dtype).requires_grad_()
    half = u if dtype == torch.float64 else u.bfloat16()
    want = layer(half)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(u)
        assert got.dtype == nn.Linear(4, 4).to(layer.D.dtype)(u).dtype
    assert torch.equal(got, want)
    got.sum().backward()
    assert u.grad.dtype == dtype
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in layer.parameters())


# Checkpoints


def contents(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


@BOTH
def test_a_state_dict_survives_a_file(cls, generator, tmp_path):
    source = build(cls, generator, bidirectional=True)
    want = source(signal(torch.Generator().manual_seed(0), 2, 20, 4))
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    loaded = [torch.load(buffer, weights_only=True)]
    try:
        from safetensors import torch as safetensors
    except ImportError:
        pass
    else:
        safetensors.save_file(source.state_dict(), tmp_path / "layer.safetensors")  # refuses tensors that share memory
        loaded.append(safetensors.load_file(tmp_path / "layer.safetensors"))
    for state_dict in loaded:
        target = build(cls, generator, bidirectional=True)
        target.load_state_dict(state_dict)
        assert torch.equal(target(signal(torch.Generator().manual_seed(0), 2, 20, 4)), want)


@BOTH
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("value", [torch.zeros(2, 3), None, [1.0], np.zeros(4), 0.5])
def test_a_checkpoint_that_does_not_fit_is_named_and_changes_nothing(cls, strict, value):
    layer = cls(4, 8)
    before, checkpoint = contents(layer), {**cls(4, 8).state_dict(), "D": value}
    found = r"shape \(4,\), the checkpoint has \(2, 3\)" if isinstance(value, Tensor) else type(value).__name__
    with pytest.raises(RuntimeError, match=rf"{cls.__name__}; nothing was loaded:\n  D: expected .*{found}"):
        layer.load_state_dict(checkpoint, strict=strict)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@BOTH
def test_missing_and_unexpected_keys_are_named_where_strict(cls):
    layer, checkpoint = cls(4, 8), cls(4, 8).state_dict()
    before = contents(layer)
    del checkpoint["kernel.B"]
    checkpoint["kernel.log_dt"] = torch.zeros(4)
    with pytest.raises(RuntimeError, match=r"kernel.B: missing .*\n.*kernel.log_dt: not a key of this module"):
        layer.load_state_dict(checkpoint)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())
    found = layer.load_state_dict(checkpoint, strict=False)
    assert found.missing_keys == ["kernel.B"] and found.unexpected_keys == ["kernel.log_dt"]
    assert torch.equal(layer.D, checkpoint["D"]) and torch.equal(layer.kernel.B, before["kernel.B"])
    with pytest.raises(TypeError, match=r"mapping .* got list"):
        layer.load_state_dict([])


@BOTH
def test_a_deep_copy_is_independent(cls, generator):
    layer = build(cls, generator)
    u = signal(generator, 1, 9, 4)
    want = layer(u)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(layer(u), want)
