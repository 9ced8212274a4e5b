from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s4_fast.state_spaces import FFTConv, S4Block, comparing
from s4_fast.state_spaces.comparing import Trial, check_agreement
from s4_fast.state_spaces.replacing import replace_layers, replacement
from tests.state_spaces import lookalikes
from tests.state_spaces.lookalikes import changed, perturb


def normalized(self: Any, u: Tensor) -> Tensor:
    """What a project puts between the convolution and the activation."""
    y = lookalikes._S4D.mapped(self, u)
    norm = y.norm(dim=1, keepdim=True)
    return y / norm * norm.mean()


def first_of(base: type[Any]) -> Any:
    return lambda self, x, **kwargs: base.forward(self, x)[0]


def with_a_state(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, _ = lookalikes._FFTConv.forward(self, x)
    return y, y[..., -1]


def as_a_list(self: Any, x: Tensor) -> list[Any]:
    return list(lookalikes._FFTConv.forward(self, x))


def by_hand(self: Any, L: int) -> Tensor:
    return 1.001 * lookalikes._S4DKernel.forward(self, L)


def samples_alone(self: Any, L: int) -> Tensor:
    return lookalikes._Kernel.forward(self, L)[0]


def cut(self: Any, x: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
    y, state = lookalikes._S4Block.forward(self, x)
    return y[..., 1:], state


S4D, CONV, BLOCK = lookalikes.s4d, lookalikes.fft_conv, lookalikes.s4_block


@pytest.mark.parametrize(
    ("make", "methods", "reason"),
    [
        (S4D, {"mapped": normalized}, r"something else than S4D: the outputs differ by \d\.\de-0[12] relative"),
        (S4D, {"forward": first_of(lookalikes._S4D)}, r"are Tensor\[2, 6, 20\], those of S4D tuple\(Tensor.*, None\)"),
        (CONV, {"forward": with_a_state}, r"tuple\(Tensor.*, Tensor\[2, 6\]\), those of FFTConv tuple\(.*, None\)"),
        (CONV, {"forward": as_a_list}, r"are list\(.*\), those of FFTConv tuple"),
        (BLOCK, {"forward": cut}, r"Tensor\[2, 6, 19\], None\), those of S4Block .*20"),
        (lambda: S4D().kernel, {"forward": by_hand}, r"than S4DKernel: the outputs differ by 1\.0e-03"),
        (lookalikes.kernel, {"forward": samples_alone}, r"are Tensor.*, those of SSMKernelDPLR tuple\("),
    ],
)
def test_a_changed_layer_is_refused_by_how_much_it_differs(make, methods, reason):
    layer = changed(make(), **methods)
    outer = nn.Sequential(S4D(), layer)
    with pytest.raises(ValueError, match=rf"nothing was replaced:\n  1 \(\w+\): .*{reason}"):
        replace_layers(outer)
    assert outer[1] is layer and type(outer[0]).__module__ != "s4_fast.state_spaces.s4d"
    assert [r.name for r in replace_layers(outer, check=False)] == ["0", "1"]


def test_a_changed_kernel_inside_a_layer_is_refused():
    layer = S4D()
    changed(layer.kernel, forward=by_hand)
    with pytest.raises(ValueError, match="the outputs differ by"):
        replacement(layer)


def test_a_changed_layer_of_any_dtype_is_refused_and_another_not(generator):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer = perturb(lookalikes.s4_block(d_state=8, mode="diag").to(dtype), generator)
        assert type(replacement(layer)) is S4Block
        changed(layer.layer, forward=lambda self, x, **kwargs: (1.0001 * lookalikes._FFTConv.forward(self, x)[0], None))
        with pytest.raises(ValueError, match="the outputs differ by"):
            replacement(layer)


def wrong_step(self: Any, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of the state before, which are right at the first step from no other state than 0."""
    _, after = lookalikes._Kernel.step(self, u, state)
    return 2 * torch.einsum("chm,bhm->bch", self.discrete.C, state).real, after


def raising(self: Any, *args: Any) -> None:
    raise AttributeError("no attribute that this step needs")


@pytest.mark.parametrize("make", [CONV, BLOCK, lookalikes.kernel])
def test_a_changed_step_is_refused(make):
    layer = make(d_state=8, mode="diag")
    kernel = next(module for module in layer.modules() if type(module).__name__ == "SSMKernelDiag")
    changed(kernel, step=wrong_step)
    with pytest.raises(ValueError, match=r"the steps differ by \d"):
        replacement(layer)
    assert replacement(layer, check=False)


@pytest.mark.parametrize("method", ["step", "_setup_step", "default_state"])
def test_a_step_that_fails_in_the_original_is_not_compared(method):
    layer = CONV(d_state=8)
    changed(layer.kernel, **{method: raising})
    assert type(replacement(layer)) is FFTConv


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "diag", "bidirectional": True},
        {"mode": "diag", "channels": 2, "swap_channels": True, "final_act": None},
        {"mode": "diag", "disc": "bilinear", "l_max": 2},
    ],
)
def test_steps_of_options_that_the_original_does_not_step_with_are_not_compared(options):
    assert type(replacement(BLOCK(d_state=8, **options))) is S4Block


def test_a_limited_band_of_s4_is_not_in_the_original_steps(generator):
    block = perturb(BLOCK(d_state=16, bandlimit=0.05, dt_min=0.05).double(), generator)
    block.layer.kernel.l_kernel.fill_(32)
    assert type(replacement(block)) is S4Block


def needs_cuda(self: Any, x: Tensor) -> Tensor:
    raise AssertionError("needs a CUDA device")


def test_a_layer_that_does_not_run_here_is_refused_and_how_to_go_on_is_said():
    outer = nn.Sequential(changed(S4D(), forward=needs_cuda))
    with pytest.raises(ValueError, match=r"cannot be checked: it does not run here \(AssertionError: needs a CUDA"):
        replace_layers(outer)
    with pytest.raises(ValueError, match="check=False replaces layers unchecked"):
        replace_layers(outer)
    assert len(replace_layers(outer, check=False)) == 1


def test_a_layer_that_cannot_be_copied_is_refused():
    layer = S4D()
    layer.stream = (value for value in ())
    with pytest.raises(ValueError, match=r"cannot be checked: .*pickle"):
        replacement(layer)


def test_a_layer_without_numbers_is_refused():
    with pytest.raises(ValueError, match="cannot be checked: its parameters are on the meta device"):
        replacement(S4D().to("meta"))
    assert replacement(S4D().to("meta"), check=False).D.is_meta


def test_a_layer_with_outputs_that_are_not_finite_is_refused():
    layer = S4D()
    with torch.no_grad():
        layer.D[2] = float("nan")
    with pytest.raises(ValueError, match="cannot be checked: its outputs are not finite"):
        replacement(layer)
    assert replacement(layer, check=False)


def test_what_runs_in_float32_alone_is_compared_there():
    def single(self: Any, u: Tensor) -> tuple[Tensor, None]:
        assert u.dtype == torch.float32
        return lookalikes._S4D.forward(self, u)

    layer = changed(S4D(), forward=single)
    with torch.autocast("cpu", torch.bfloat16):
        assert replacement(layer)
    changed(layer, mapped=normalized)
    with pytest.raises(ValueError, match="the outputs differ by"):
        replacement(layer)


def test_a_replacement_that_refuses_the_input_is_reported():
    class Stubborn(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes")

    new = nn.Sequential(Stubborn(2, 2))
    with pytest.raises(ValueError, match="Sequential refuses what it takes: shapes"):
        check_agreement(S4D(), new, Trial(6, True, steps=False))


def first_pass(self: Any, x: Tensor) -> tuple[Tensor, None]:
    """As the original's: it truncates C in place, writes a buffer and keeps results; and it draws a number."""
    outputs, kernel, L = lookalikes._FFTConv.forward(self, x), self.kernel, x.shape[1]
    of = kernel.system()
    truncation = torch.eye(of.A.shape[-1]) - torch.linalg.matrix_power(of.A, L)
    with torch.no_grad():
        kernel.C.copy_(torch.view_as_real((of.C[..., None, :] @ truncation)[..., 0, : kernel.N]))
        kernel.l_kernel.fill_(L)
    kernel.omega = torch.rand(2)
    self.calls.append(self.training)
    return outputs


def test_nothing_of_the_model_changes_by_a_check(generator):
    layer = perturb(BLOCK(d_state=8, dropout=0.5).double(), generator)
    outer = nn.Sequential(layer, nn.Identity())
    conv, kernel, calls = layer.layer, layer.layer.kernel, []
    conv.calls, kernel.z = [], torch.ones(3)
    changed(conv, forward=lambda self, x: (calls.append((self.training, x.dtype)), first_pass(self, x))[1])
    conv.D.grad = torch.ones_like(conv.D)
    kernel.C.requires_grad_(False)
    tensors = {name: t.clone() for name, t in outer.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in outer.named_modules()}
    random = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        new = replacement(layer)
    assert calls == [(False, torch.float64)] and conv.calls == []
    assert torch.equal(torch.get_rng_state(), random)
    after = outer.state_dict()
    assert all(
        torch.equal(t, after[name]) and torch.equal(t, new.state_dict()[name[2:]]) for name, t in tensors.items()
    )
    for name, module in outer.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert all(vars(module)[key] is value for key, value in attributes[name].items())
    assert torch.equal(conv.D.grad, torch.ones_like(conv.D))
    assert all(p.grad is None for p in new.parameters())
    assert kernel.verbose and kernel.backend == "cuda" and new.layer.kernel.verbose and new.layer.kernel.backend is None


@pytest.mark.parametrize("wide", [False, True])
def test_a_large_kernel_is_compared_at_a_short_length(wide, generator, monkeypatch):
    """The original would compute it at its whole length, here 2^20 samples, or make a fresh one by dense matrices."""
    kernel = perturb(lookalikes.kernel(d_model=32, d_state=16).double(), generator)
    length = 0 if wide else 2**20
    kernel.l_kernel.fill_(length)
    if wide:
        monkeypatch.setattr(comparing, "_MOST_IN_MATRICES", 32 * 16**2 - 1)
    lengths, steps = [], []

    def forward(self: Any, L: int) -> tuple[Tensor, None]:
        lengths.append(int(self.l_kernel))
        return lookalikes._Kernel.forward(self, L)

    def step(self: Any, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        steps.append(u)
        return lookalikes._Kernel.step(self, u, state)

    changed(kernel, forward=forward, step=step)
    assert int(replacement(kernel).l_kernel) == length
    assert lengths == [20] and int(kernel.l_kernel) == length and len(steps) == (0 if wide else 3)
    changed(kernel, forward=lambda self, L: (1.001 * lookalikes._Kernel.forward(self, L)[0], None))
    with pytest.raises(ValueError, match="the outputs differ by"):
        replacement(kernel)


@pytest.mark.parametrize("release", ["4.0", "4.1"])
def test_the_original_computes_with_pytorch_alone_and_without_a_word(release):
    kernel = lookalikes.kernel(release=release, d_state=8)
    kernel.omega = kernel.z = torch.ones(3, dtype=torch.complex64)
    seen = []

    def forward(self: Any, L: int) -> tuple[Tensor, None]:
        # Release 4.1 reads the option by its older name, where KeOps is installed.
        seen.append((self.kernel, self.verbose, hasattr(self, "omega") or hasattr(self, "z")))
        return lookalikes._Kernel.forward(self, L)

    assert replacement(changed(kernel, forward=forward))
    assert seen == [("naive", False, False)]
    assert "cuda" in (vars(kernel).get("backend"), vars(kernel).get("kernel")) and kernel.omega is kernel.z
