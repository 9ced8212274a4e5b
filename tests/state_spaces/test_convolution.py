from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import glu, linear

from s4_fast.ssm import diagonal, sequence
from s4_fast.state_spaces import FFTConv, S4Block, SSMKernelDiag, SSMKernelDPLR
from tests.helpers import normal, relative_error

DATA = Path(__file__).parents[1] / "data"
GOLDEN = [
    "diag_default", "diag_default_pert", "diag_lin_bilinear", "diag_nssm2_channels2",
    "dplr_bidirectional", "dplr_fout_rank1", "dplr_legs_lmax", "dplr_legs_lmax_pert",
]  # fmt: skip
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}


class Golden:
    """The official block's numbers; its layer works on (batch, length, features)."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, state: str = "sd") -> None:
        self.arrays = np.load(DATA / f"{name}.npz")
        self.dtype = dtype
        self.options = json.loads(str(self.arrays["config"]))["kwargs"]
        self.layer = FFTConv(transposed=False, **self.options).to(dtype)
        prefix = f"{state}.layer."
        loaded = {
            key.removeprefix(prefix): torch.tensor(self.arrays[key]) for key in self.arrays if key.startswith(prefix)
        }
        self.layer.load_state_dict(loaded)

    def tensor(self, key: str) -> Tensor:
        t = torch.tensor(self.arrays[key])
        return t.to(self.dtype) if t.is_floating_point() else t

    def mix(self, y: Tensor) -> Tensor:
        """(batch, ..., features) through the block's last map."""
        return glu(linear(y, self.tensor("sd.output_linear.0.weight"), self.tensor("sd.output_linear.0.bias")), dim=-1)


def states_of(golden: Golden) -> list[str]:
    return ["sd"] + (["sd_after"] if "sd_after.layer.D" in golden.arrays else [])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", GOLDEN)
def test_kernels_and_outputs_are_the_official_ones(name, dtype):
    for state in states_of(Golden(name)):
        golden = Golden(name, dtype, state)
        y, after = golden.layer(golden.tensor("u").mT)
        assert after is None and y.dtype is dtype
        assert relative_error(golden.mix(y).mT.detach(), golden.tensor("y")) <= TOLERANCE[dtype]
        k, _ = golden.layer.kernel(L=golden.arrays["u"].shape[-1])
        assert relative_error(k.detach(), golden.tensor("k")) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", GOLDEN)
def test_gradients_are_the_official_ones(name):
    golden = Golden(name)
    u = golden.tensor("u").requires_grad_()
    y = golden.mix(golden.layer(u.mT)[0]).mT
    leaves = {"grad_u": u, **{f"grad.layer.{key}": p for key, p in golden.layer.named_parameters()}}
    grads = torch.autograd.grad(y, list(leaves.values()), golden.tensor("g"))
    for key, grad in zip(leaves, grads, strict=True):
        assert relative_error(grad, golden.tensor(key)) <= 1e-8, key


@pytest.mark.parametrize("mode", ["dense", "linear", "diagonal"])
@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "dplr_bidirectional"])
def test_steps_are_the_official_ones(name, mode):
    for state in states_of(Golden(name)):
        golden = Golden(name, state=state)
        layer, u = golden.layer, golden.tensor("u")
        layer.setup_step(mode=mode)
        s, outputs = layer.default_state(u.shape[0]), []
        with torch.no_grad():
            for l in range(u.shape[-1]):
                y, s = layer.step(u[..., l], s)
                outputs.append(golden.mix(y))
        assert relative_error(torch.stack(outputs, -1), golden.tensor("y_step")) <= 1e-10
        official = golden.tensor("step_state")
        assert relative_error(s, official[..., : s.shape[-1]]) <= 1e-10
        assert s.shape == official.shape or mode == "linear"


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("dplr") and "bidirectional" not in name])
def test_the_matrices_of_a_step_are_the_official_ones(name):
    kernel = Golden(name).layer.kernel
    for attribute in ("dA", "dB", "dC"):
        assert relative_error(getattr(kernel, attribute), Golden(name).tensor(f"step_{attribute}")) <= 1e-10


@pytest.mark.parametrize("name", ["diag_lin_bilinear", "diag_nssm2_channels2"])
def test_the_vectors_of_a_diagonal_step_are_those_of_the_kernel(name):
    kernel = Golden(name).layer.kernel
    powers = kernel.dA[..., None] ** torch.arange(20)
    k = 2 * torch.einsum("chn,hn,hnl->chl", kernel.dC, kernel.dB, powers).real
    assert relative_error(k, kernel(L=20)[0]) <= 1e-12


def test_how_many_numbers_a_state_has():
    for layer in (FFTConv(4, d_state=6), FFTConv(4, d_state=6, kernel="s4d"), S4Block(4, d_state=6, bottleneck=2)):
        state = layer.default_state(3)
        assert layer.state_to_tensor(state).shape == (3, layer.d_state)


def test_a_seed_gives_the_official_weights():
    """Where no basis is involved, which the original leaves to LAPACK."""
    golden = Golden("diag_lin_bilinear")
    config: dict[str, Any] = json.loads(str(golden.arrays["config"]))
    torch.manual_seed(config["seed"])
    for key, value in FFTConv(transposed=False, **golden.options).state_dict().items():
        assert relative_error(value, golden.tensor(f"sd.layer.{key}")) <= 1e-6, key


MODES = ["diag", "dplr"]
H, N, L = 4, 6, 13
SETTINGS: list[dict[str, Any]] = [
    {},
    {"channels": 3, "swap_channels": True, "activation": "tanh"},
    {"channels": 3, "activation": None},
    {"activation": "glu", "transposed": False},
    {"activation": "glu", "channels": 2, "bidirectional": True},
    {"bidirectional": True},
    {"bidirectional": True, "l_max": 5, "transposed": False},
    {"l_max": 5, "channels": 2},
    {"l_max": 40},
    {"backend": "naive"},
]
ONE_WAY = [options for options in SETTINGS if not options.get("bidirectional")]
EACH_MODE = pytest.mark.parametrize("mode", MODES)
PATHS = pytest.mark.parametrize("path", ["scan", "convolution"])


def build(mode: str, **options: Any) -> FFTConv:
    return FFTConv(H, **{"mode": mode, "d_state": N, "dt_min": 0.02, "verbose": False, **options}).double()


def signal(generator: torch.Generator, layer: FFTConv, batch: int = 3, length: int = L) -> Tensor:
    shape = (batch, H, length) if layer.transposed else (batch, length, H)
    return normal(generator, *shape, dtype=torch.float64)


def at(layer: FFTConv, x: Tensor, positions: Any) -> Tensor:
    return x[..., positions] if layer.transposed else x[:, positions]


def finished(layer: FFTConv, y: Tensor) -> Tensor:
    """(batch, channels, d_model, length) in the layer's order of features, and through its activation."""
    y = (
        y.permute(0, 2, 1, 3).reshape(len(y), -1, y.shape[-1])
        if layer.swap_channels
        else y.reshape(len(y), -1, y.shape[-1])
    )
    if isinstance(layer.activation, nn.GLU):
        first, second = y.chunk(2, 1)
        y = first * torch.sigmoid(second)
    else:
        y = layer.activation(y)
    return y if layer.transposed else y.mT


def linear_part(layer: FFTConv, x: Tensor, rate: float = 1.0) -> Tensor:
    """y[l] = sum_(j <= l) k0[l - j] x[j] + sum_(j > l) k1[j - l - 1] x[j] + D x[l], the kernels cut at l_max / rate."""
    x = x if layer.transposed else x.mT
    length = x.shape[-1]
    taps = length if layer.l_max is None else min(length, round(layer.l_max / rate))
    k = layer.kernel(L=taps, rate=rate)[0]
    forwards, backwards = k.chunk(2) if layer.bidirectional else (k, None)
    outputs = []
    for l in range(length):
        y = layer.D * x[:, None, :, l]
        for j in range(length):
            if 0 <= l - j < taps:
                y = y + forwards[..., l - j] * x[:, None, :, j]
            elif backwards is not None and 0 <= j - l - 1 < taps:
                y = y + backwards[..., j - l - 1] * x[:, None, :, j]
        outputs.append(y)
    return torch.stack(outputs, -1)


def chosen(path: str) -> Any:
    return mock.patch.object(sequence, "faster", return_value=sequence.Path(path, "a test"))


@EACH_MODE
@PATHS
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_outputs_and_gradients_are_those_of_the_definition(mode, path, options, generator):
    layer = build(mode, **options)
    for length, rate in ((L, 1.0), (1, 1.0), (L, 0.5)):
        x = signal(generator, layer, length=length).requires_grad_()
        with chosen(path):
            got, after = layer(x, rate=rate)
        want = finished(layer, linear_part(layer, x, rate))
        assert after is None and got.shape == want.shape and at(layer, got, 0).shape[1] == layer.d_output
        assert relative_error(got.detach(), want.detach()) <= 1e-11
        leaves = [x, *layer.parameters()]
        g = normal(generator, *got.shape, dtype=torch.float64)
        for a, b in zip(*(torch.autograd.grad(y, leaves, g) for y in (got, want)), strict=True):
            assert relative_error(a, b) <= 1e-7 or float(b.abs().max()) <= 1e-14


@EACH_MODE
@PATHS
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_rows_end_where_their_lengths_say(mode, path, options, generator):
    layer = build(mode, **options)
    layer.setup_length(L)
    x = signal(generator, layer)
    lengths = [5, L, 1]
    padded, zeros = x.clone(), x.clone()
    for row, length in enumerate(lengths):
        at(layer, padded[row : row + 1], slice(length, None)).fill_(math.nan)
        at(layer, zeros[row : row + 1], slice(length, None)).zero_()
    with torch.no_grad(), chosen(path):
        want = layer(zeros)[0]
        for given in (lengths, torch.tensor(lengths)):
            y, after = layer(padded, lengths=given)
            assert after is None and relative_error(y, want) <= 1e-12
        for row, length in enumerate(lengths):
            alone = layer(at(layer, x[row : row + 1], slice(length)))[0]
            # As long as the whole kernel: one cut at l_max is the same for all.
            assert relative_error(at(layer, y[row : row + 1], slice(length)), alone) <= 1e-10
        one = layer(at(layer, x, slice(5)))[0]
        for given in (5, torch.tensor([5])):
            y, _ = layer(x, lengths=given)
            assert relative_error(at(layer, y, slice(5)), one) <= 1e-10


@EACH_MODE
@PATHS
@pytest.mark.parametrize("options", ONE_WAY, ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_states_are_carried_on(mode, path, options, rate, generator):
    """What a state leaves is not cut at l_max; what the inputs leave is."""
    layer = build(mode, **options)
    layer.setup_length(2 * L)
    x = signal(generator, layer)
    zero, nothing = layer.default_state(3), torch.zeros_like(x)
    with torch.no_grad(), chosen(path):
        whole, after = layer(x, state=zero, rate=rate)
        assert relative_error(whole, layer(x, rate=rate)[0]) <= 1e-12
        parts, state = [], zero
        for cut in (slice(0, 4), slice(4, 5), slice(5, L)):
            y, state = layer(at(layer, x, cut), state=state, rate=rate)
            parts.append(y)
        joined = torch.cat(parts, -1 if layer.transposed else 1)
        assert state.shape == zero.shape and relative_error(state, after) <= 1e-11
        if layer.l_max is None or layer.l_max / rate >= L:
            assert relative_error(joined, whole) <= 1e-10
        # Linear in input and state.
        y, _ = layer(x, state=state, rate=rate)
        free = layer.kernel.free_response(layer.kernel.read_state(state), L, rate)
        assert relative_error(y, finished(layer, linear_part(layer, x, rate) + free)) <= 1e-11
        _, ended = layer(x, state=state, rate=rate, lengths=[4, L, 1])
        for row, length in enumerate((4, L, 1)):
            want = layer(at(layer, x[row : row + 1], slice(length)), state=state[row : row + 1], rate=rate)[1]
            assert relative_error(ended[row : row + 1], want) <= 1e-11
        assert relative_error(layer(nothing, state=zero, rate=rate)[1], zero) == 0


@EACH_MODE
@pytest.mark.parametrize("options", [*ONE_WAY, {"is_real": True}, {"bandlimit": 0.2, "dt_tie": False}], ids=str)
def test_steps_are_forward(mode, options, generator):
    if mode == "dplr" and options.get("is_real"):
        return
    layer = build(mode, **options)
    x = signal(generator, layer)
    with torch.no_grad():
        want, end = layer(x, state=layer.default_state(3))
        if layer.l_max == 5:  # which a recurrence does not know
            want = build_like(layer, l_max=None)(x)[0]
        for mode_ in ("dense", "linear"):
            layer.setup_step(mode=mode_)
            state, outputs = layer.default_state(3), []
            for l in range(L):
                y, state = layer.step(at(layer, x, l), state)
                outputs.append(y)
            assert relative_error(torch.stack(outputs, -1 if layer.transposed else 1), want) <= 1e-10
            assert relative_error(state, end[..., : state.shape[-1]]) <= 1e-10


def build_like(layer: FFTConv, l_max: int | None) -> FFTConv:
    """The layer before it was set up for l_max."""
    other = copy.deepcopy(layer)
    other.l_max = l_max
    return other


@EACH_MODE
def test_dropout_zeros_outputs_and_kernels(mode, generator):
    x = torch.zeros(3, H, 64, dtype=torch.float64)
    x[..., 0] = 1
    layer = build(mode, activation=None, dropout=0.25, init="diag-lin")
    full = layer.eval()(x)[0]
    dropped = layer.train()(x)[0]
    kept = dropped != 0
    assert relative_error(dropped[kept], full[kept] / 0.75) <= 1e-12 and 0.6 < float(kept.double().mean()) < 0.9
    assert not (kept == kept[..., :1]).all()

    tied = build(mode, activation=None, dropout=0.5, tie_dropout=True, init="diag-lin", transposed=False)
    y = tied.train()(torch.ones(8, 16, H, dtype=torch.float64))[0] != 0
    assert (y == y[:, :1]).all() and y.any() and not y.all()

    sparse = build(mode, activation=None, drop_kernel=0.5, init="diag-lin")
    with torch.no_grad():
        sparse.D.zero_()
        whole, part = sparse.eval()(x)[0], sparse.train()(x)[0]
    kept = part.abs() > 1e-12
    assert relative_error(part[kept], 2 * whole[kept]) <= 1e-9 and 0.3 < float(kept.double().mean()) < 0.7
    assert relative_error(part, part[:1].expand(3, -1, -1)) <= 1e-12  # one kernel for all rows


@EACH_MODE
def test_the_scan_runs_only_where_it_is_the_same(mode):
    x = torch.zeros(2, H, L, dtype=torch.float64)
    ops = mock.patch.object(diagonal, "stored_diagonal_ssm", wraps=diagonal.stored_diagonal_ssm)
    with ops as scan, chosen("scan"):
        build(mode)(x)
        assert scan.call_count == (mode == "diag")
        scan.reset_mock()
        for options in ({"l_max": 5}, {"drop_kernel": 0.5}):
            build(mode, **options)(x)
        if mode == "diag":
            build(mode, disc="dss")(x)
        assert not scan.called
        for options in ({"drop_kernel": 0.5, "l_max": L}, {"channels": 2, "bidirectional": True}, {"backend": "naive"}):
            scan.reset_mock()
            build(mode, **options).eval()(x)
            assert scan.call_count == (mode == "diag")


@EACH_MODE
def test_older_checkpoints_load(mode):
    """Those with the nodes of the FFT, which the original once kept as buffers, in any module around the layer."""
    layer = build(mode)
    layer(torch.zeros(1, H, 8, dtype=torch.float64))
    older = {**layer.state_dict(), "kernel.omega": torch.zeros(5, 2), "kernel.z": torch.zeros(5, 2)}
    fresh = build(mode)
    fresh.load_state_dict(older, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), layer.state_dict().values(), strict=True))
    nn.Sequential(build(mode)).load_state_dict({f"0.{key}": value for key, value in older.items()}, strict=True)
    assert "kernel.omega" in older and "kernel.z" in older
    with pytest.raises(RuntimeError, match=r"kernel\.omeg: not a key"):
        fresh.load_state_dict({**older, "kernel.omeg": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"kernel.C: expected shape \(1, 4, 3, 2\)"):
        fresh.load_state_dict(build(mode, d_state=8).state_dict())


@EACH_MODE
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "n_ssm": 2}], ids=str)
@pytest.mark.sample(1)
def test_one_graph_when_compiled(mode, options, generator):
    layer = build(mode, **options)
    layer.setup_length(L)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = signal(generator, layer).requires_grad_()
    lengths = torch.tensor([3, L, 7])
    state = None if layer.bidirectional else layer.default_state(3)
    got, want = (f(x, state=state, lengths=lengths) for f in (compiled, layer))
    assert relative_error(got[0].detach(), want[0].detach()) <= 1e-12
    grads = (torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (got[0], want[0]))
    for a, b in zip(*grads, strict=True):
        assert relative_error(a, b) <= 1e-10
    if state is not None:
        assert relative_error(got[1].detach(), want[1].detach()) <= 1e-12


@EACH_MODE
def test_copies_and_pickles_are_whole(mode, generator):
    layer = build(mode, lr=0.5)
    x = signal(generator, layer)
    want = layer(x)[0]
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert relative_error(again(x)[0].detach(), want.detach()) == 0
        assert again.kernel.B._optim == {"weight_decay": 0.0, "lr": 0.5}


def test_next_states_of_s4_carry_no_graph(generator):
    """Neither do the original's: a loop over parts of a sequence may go backward after each."""
    layer = build("dplr")
    x, state = signal(generator, layer), layer.default_state(3)
    for _ in range(2):
        y, state = layer(x, state=state)
        y.sum().backward()
    assert not state.requires_grad
    x.requires_grad_()
    assert build("diag")(x, state=build("diag").default_state(3))[1].requires_grad


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "unknown option transposd", {"transposd": True}),
        (ValueError, "unknown kernel 'mega'.*s4d, diag, s4, nplr, dplr", {"mode": "mega"}),
        (ValueError, "unknown kernel None", {"mode": None}),
        (ValueError, "two names of one option", {"mode": "diag", "kernel": "dplr"}),
        (ValueError, "unknown activation", {"activation": "glou"}),
        (ValueError, "dropout", {"dropout": 1.5}),
        (ValueError, "dropout", {"dropout": 1.5, "tie_dropout": True}),
        (ValueError, "channels must be at least 1", {"channels": 0}),
    ],
)
def test_bad_options_are_refused(error, message, options):
    with pytest.raises(error, match=message):
        FFTConv(H, **options)


def test_names_of_the_kernel():
    for name in ("s4d", "diag"):
        assert isinstance(FFTConv(H, kernel=name).kernel, SSMKernelDiag)
        assert isinstance(FFTConv(H, mode=name, d_state=8).kernel, SSMKernelDiag)
    for name in ("s4", "nplr", "dplr"):
        assert isinstance(FFTConv(H, mode=None, kernel=name, d_state=8).kernel, SSMKernelDPLR)


def test_bad_inputs_are_refused():
    layer, both = build("dplr"), build("diag", bidirectional=True)
    x = torch.zeros(2, H, 5, dtype=torch.float64)
    for bad in (x[0], x[:, :3], x.mT):
        with pytest.raises(ValueError, match=r"expected x of shape \(batch, 4, length\)"):
            layer(bad)
    with pytest.raises(ValueError, match=r"expected x of shape \(batch, length, 4\)"):
        build("diag", transposed=False)(x)
    with pytest.raises(ValueError, match="rate"):
        layer(x, rate=0.0)
    with pytest.raises(ValueError, match="expected state of shape"):
        layer(x, state=layer.default_state(3))
    for lengths, error in (
        ([5, 6], ValueError),
        ([5], ValueError),
        (0, ValueError),
        (True, TypeError),
        (2.0, TypeError),
    ):
        with pytest.raises(error, match="lengths"):
            layer(x, lengths=lengths)
    with pytest.raises(RuntimeError, match="bidirectional"):
        both(x, state=both.default_state(2))
    with pytest.raises(RuntimeError, match="bidirectional"):
        both.step(x[..., 0], both.default_state(2))
    with pytest.raises(RuntimeError, match="no recurrence"):
        build("diag", disc="dss")(x, state=build("diag").default_state(2))
    with pytest.raises(TypeError, match="return_output"):
        layer(x, return_output=True)
    with pytest.raises(TypeError, match="float32"):
        layer(x.float())
    assert layer.default_state(2, device="meta").device.type == "meta"
