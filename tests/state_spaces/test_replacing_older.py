from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s4_fast.state_spaces import S4, SSKernel, replace_layers, replacement
from tests.helpers import relative_error
from tests.state_spaces import older
from tests.state_spaces.test_releases import LAYERS, signal

# The originals of releases 1 and 2 drop features of three-dimensional signals so, and PyTorch has come to warn of it.
pytestmark = pytest.mark.filterwarnings("ignore:dropout2d:UserWarning")


@pytest.mark.parametrize(("release", "options"), [case[:2] for case in LAYERS], ids=str)
def test_a_layer_is_replaced_by_one_that_computes_the_same(release, options):
    model = nn.Sequential(nn.Identity(), older.S4(release, **options).eval())
    old = model[1]
    u = signal(old, 40)
    y = model(u)[0]
    before = {name: t.clone() for name, t in old.state_dict().items()}
    (done,) = replace_layers(model)
    assert (done.name, done.old, done.new) == ("1", older.S4, S4)
    assert model[1].release == release
    assert relative_error(model(u)[0].detach(), y) < 1e-5
    assert all(torch.equal(t, before[name]) for name, t in old.state_dict().items())


@pytest.mark.parametrize(
    ("release", "options"),
    [(1, {}), (2, {"hurwitz": True}), (2, {"mode": "diag", "disc": "zoh"}), (3, {"n_ssm": 2}), (3, {"mode": "diag"})],
)
def test_marks_switches_and_modes_stay(release, options):
    old = older.S4(release, dropout=0.3, **options).train()
    (kernel,) = old.kernel.children()
    kernel.log_dt.requires_grad_(False)
    kernel.C._optim = {"lr": 0.25}
    new = replacement(old)
    assert new.training and new.drop.training
    assert new.drop.p == 0.3
    assert not new.kernel.inv_dt.requires_grad
    assert new.kernel.A_imag.requires_grad
    assert new.kernel.C._optim == {"lr": 0.25}


def test_buffers_stay_buffers():
    old = older.S4(2)
    kernel = old.kernel.kernel
    for name in ("log_dt", "B", "P", "Q", "w"):
        value = kernel._parameters.pop(name).detach()
        kernel.register_buffer(name, value)
    new = replacement(old)
    assert {name for name, _ in new.kernel.named_parameters()} == {"C"}


def test_each_parameter_is_held_fixed_by_itself():
    old = older.S4(2, hurwitz=True)
    kernel = old.kernel.kernel
    kernel.register_buffer("log_w_real", kernel._parameters.pop("log_w_real").detach())
    new = replacement(old)
    assert "A_real" in new.kernel._buffers
    assert "A_imag" in new.kernel._parameters


def test_a_B_that_is_in_C_is_not_trained():
    new = replacement(older.S4(2, mode="diag", disc="zoh"))
    assert "B" in new.kernel._buffers
    assert "C" in new.kernel._parameters


class S4D(older.S4):
    """That of the file of release 2 which has S4D alone."""


def test_S4D_of_release_2():
    old = S4D(2, mode="diag", disc="zoh", n_ssm=1, channels=2)
    kernel = old.kernel.kernel
    del kernel.disc, kernel.real_type, kernel.bandlimit
    kernel.disc = "zoh"
    u = torch.randn(2, 6, 30)
    assert relative_error(replacement(old)(u)[0].detach(), old(u)[0]) < 1e-5


def test_a_kernel_by_itself():
    kernel = older.S4(3, mode="diag").kernel
    model = nn.ModuleDict({"kernel": kernel})
    replace_layers(model)
    assert type(model["kernel"]) is SSKernel
    assert relative_error(model["kernel"](L=20)[0].detach(), kernel(L=20)[0]) < 1e-5


@pytest.mark.parametrize("release", [1, 2, 3])
def test_a_layer_that_was_changed_is_refused(release):
    model = nn.Sequential(older.S4(release, scale=1.5))
    old = model[0]
    with pytest.raises(ValueError, match="computes something else than S4: the outputs differ by"):
        replace_layers(model)
    assert model[0] is old


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda old: setattr(old, "stride", 2), "stride=2 is not supported"),
        (lambda old: setattr(old, "resample", True), "resample"),
        (lambda old: old.kernel.krylov.C.data[:, 1].mul_(2), "Q was trained apart from P"),
        (lambda old: setattr(old, "activation", nn.Softmax(-1)), "expected an activation"),
        (lambda old: setattr(old, "dropout", nn.AlphaDropout(0.2)), "expected dropout"),
    ],
)
def test_what_has_no_counterpart_is_refused(change, message):
    old = older.S4(1)
    change(old)
    with pytest.raises(ValueError, match=message):
        replacement(old)


def test_poles_that_lost_their_stability_are_taken_as_they_are():
    old = older.S4(2).double()
    with torch.no_grad():
        old.kernel.kernel.w[..., 0, 0] = 1e-3
    u = torch.randn(2, 6, 30).double()
    assert relative_error(replacement(old)(u)[0].detach(), old(u)[0]) < 1e-8


def half_sum(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return (v.unsqueeze(-1) / (z.unsqueeze(-2) - w.unsqueeze(-1))).sum(-2)


def file_of(fallback: Any) -> tuple[types.ModuleType, type[nn.Module]]:
    """A module like the file of release 3, whose kernel sums with ``cauchy_naive``."""
    module = types.ModuleType("a_project_on_release_3")
    module.cauchy_naive = fallback
    source = """
import torch
from tests.state_spaces import older

class SSKernelNPLR(older.SSKernelNPLR):
    def forward(self, L):
        dt, n = self.log_dt.exp()[:, None], self.L_max
        k = torch.arange(n // 2 + 1, dtype=torch.float64)
        roots = torch.polar(torch.ones_like(k), -2 * torch.pi * k / n)
        z, w = 2 * (1 - roots) / (1 + roots), self.poles().to(torch.complex128)
        P, B, C = (torch.view_as_complex(t.double()) for t in (self.P, self.B, self.C))
        right, left = torch.cat((B, P)), torch.cat((C, P.conj()))
        sums = cauchy_naive(right[:, None] * left * dt, z, w * dt)
        spectrum = sums[:1, :1] - sums[-1:, :1] * sums[:1, -1:] / (1 + sums[-1:, -1:])
        return torch.fft.irfft(spectrum[0] * 2 / (1 + roots), n=n)[..., :L].to(self.log_dt)

class S4(older.S4):
    def __init__(self):
        super().__init__(3)
        self.kernel.kernel = SSKernelNPLR(3, 6, 4, 1, 40, 1, 6, False, "exp")
"""
    exec(source, module.__dict__)
    for name in ("SSKernelNPLR", "S4"):
        getattr(module, name).__module__ = module.__name__
    return module, module.S4


def whole_sum(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return half_sum(v, z, w) + half_sum(v.conj(), z, w.conj())


def test_a_fallback_that_loses_half_of_the_sum_is_a_warning(monkeypatch):
    module, made = file_of(half_sum)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = nn.Sequential(made().double())
    old, u = model[0], torch.randn(2, 6, 20).double()
    with pytest.warns(UserWarning, match="sums half"):
        replace_layers(model)
    assert module.cauchy_naive is half_sum
    module.cauchy_naive = whole_sum
    assert relative_error(model(u)[0].detach(), old(u)[0]) < 1e-6


def test_a_fallback_that_is_right_is_no_warning(monkeypatch):
    module, made = file_of(whole_sum)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replacement(made())


def test_a_changed_layer_with_such_a_fallback_is_refused(monkeypatch):
    module, made = file_of(half_sum)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    old = made()
    old.scale = 2.0
    with pytest.raises(ValueError, match="computes something else"):
        replacement(old)


def test_a_file_whose_sums_do_not_run_here_is_compared_with_ours(monkeypatch):
    def needs_keops(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
        raise RuntimeError("no CUDA")

    module, made = file_of(needs_keops)
    module.cauchy_conj = module.__dict__.pop("cauchy_naive")
    source = module.S4.__init__.__globals__
    source["cauchy_naive"] = needs_keops
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError, match="check=False"):
        replacement(made())
    assert isinstance(replacement(made(), check=False), S4)
