from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from s4_fast.state_spaces import FFTConv, S4Block, S4DKernel, SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.replacing import replace_layers, replacement
from tests.helpers import relative_error
from tests.state_spaces import lookalikes
from tests.state_spaces.lookalikes import perturb

CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"mode": "diag", "transposed": False},
    {"mode": "diag", "channels": 2, "activation": "glu"},
    {"channels": 2, "activation": "glu-silu", "bidirectional": True, "transposed": False},
    {"mode": "diag", "channels": 2, "swap_channels": True, "l_max": 5, "activation": None},
    {"mode": "diag", "is_real": True, "bidirectional": True, "activation": "tanh"},
]
KERNELS: list[dict[str, Any]] = [
    {},
    {"l_max": 30, "rank": 2, "init": "legt", "n_ssm": 2},
    {"mode": "diag"},
    {"mode": "diag", "channels": 3, "lr": {"A": 0.0}, "dt_tie": False},
    {"mode": "diag", "is_real": True, "real_transform": "relu"},
    {"mode": "diag", "imag_transform": "exp", "disc": "bilinear", "dt_transform": "softplus"},
]


class Own(nn.Module):
    """A project's own layer, around a part of the official ones."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_by_itself_is_replaced(options, generator):
    old = perturb(lookalikes.fft_conv(d_state=8, **options).double(), generator)
    outer = Own(old)
    assert replace_layers(outer) == [("part", type(old), FFTConv)]
    x = torch.randn(3, 6, 11, dtype=torch.float64, generator=generator)
    x = x.mT if options.get("transposed") is False else x
    assert relative_error(outer.part(x)[0], old(x)[0].detach()) <= 1e-10
    assert outer.part.state_dict().keys() == old.state_dict().keys()


@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_a_kernel_by_itself_is_replaced(options, generator):
    old = perturb(lookalikes.kernel(d_state=8, **options).double(), generator)
    outer = Own(old)
    expected = SSMKernelDiag if options.get("mode") == "diag" else SSMKernelDPLR
    assert replace_layers(outer) == [("part", type(old), expected)]
    assert outer.part.l_max == options.get("l_max")
    (k, state), (k_old, _) = outer.part(L=12), old(L=12)
    assert state is None and relative_error(k, k_old.detach()) <= 1e-10
    assert isinstance(dict(outer.part.named_parameters()).get("A_real"), nn.Parameter) is ("lr" not in options)


@pytest.mark.parametrize("lr", [None, 0.02, 0.0])
def test_a_minimal_kernel_by_itself_is_replaced(lr, generator):
    old = perturb(lookalikes.s4d(lr=lr).double().kernel, generator)
    outer = Own(old)
    assert replace_layers(outer) == [("part", type(old), S4DKernel)]
    assert relative_error(outer.part(L=12), old(L=12).detach()) <= 1e-10
    marks = {name: getattr(p, "_optim", None) for name, p in old.named_parameters()}
    assert {name: getattr(p, "_optim", None) for name, p in outer.part.named_parameters()} == marks


def test_a_layer_over_several_axes_gets_our_kernels(generator):
    """``S4ND``: a kernel per axis, of which it takes the samples."""

    class S4ND(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.D = nn.Parameter(torch.ones(6))
            self.kernel = nn.ModuleList([lookalikes.kernel(d_state=8, mode=mode) for mode in ("diag", "dplr")])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, columns = (kernel(L=7, rate=1.0)[0][0] for kernel in self.kernel)
            k = rows[:, :, None] * columns[:, None]
            y = torch.fft.irfft2(torch.fft.rfft2(x, s=(14, 14)) * torch.fft.rfft2(k, s=(14, 14)), s=(14, 14))
            return y[..., :7, :7] + self.D[:, None, None] * x

    layer = perturb(S4ND().double(), generator)
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64, generator=generator)
    expected = layer(x).detach()
    assert [(r.name, r.new) for r in replace_layers(layer)] == [
        ("kernel.0", SSMKernelDiag),
        ("kernel.1", SSMKernelDPLR),
    ]
    assert relative_error(layer(x), expected) <= 1e-10


@pytest.mark.parametrize("options", [{"mode": "diag", "backend": "naive"}, {"l_max": 12}, {"mode": "diag", "rank": 2}])
def test_a_block_of_release_4_0_is_replaced(options, generator):
    """Its kernels call the backend ``kernel``, and ``is_real`` is unknown there."""
    options = {"d_state": 8, **options}
    old = perturb(lookalikes.s4_block(release="4.0", **options).double(), generator)
    assert not hasattr(old.layer.kernel, "backend") and not hasattr(old.layer.kernel, "is_real")
    new = replacement(old)
    expected = S4Block(6, **options).double()
    expected.load_state_dict(old.state_dict())
    x = torch.randn(2, 6, 11, dtype=torch.float64, generator=generator)
    assert torch.equal(new(x)[0], expected(x)[0])
    assert new.layer.kernel.backend == expected.layer.kernel.backend


def test_the_real_kernel_of_release_4_0_is_refused_by_name():
    block = lookalikes.s4_block(release="4.0", d_state=8, mode="diag")
    block.layer.kernel.force_real = True
    with pytest.raises(ValueError, match=r"force_real, an option of release 4\.0 alone"):
        replacement(block)
