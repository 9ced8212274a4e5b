"""Modules with the official ones' class names, attributes, parameters, parts and outputs, these by the definition."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.s4d import S4D
from tests.state_spaces import definition

DEFAULTS = {
    "l_max": None,
    "channels": 1,
    "swap_channels": False,
    "bidirectional": False,
    "lr": None,
    "wd": 0.0,
    "verbose": True,
    "deterministic": False,
    "dt_min": 0.001,
    "dt_max": 0.1,
    "dt_tie": True,
    "dt_transform": "exp",
    "rank": 1,
    "n_ssm": None,
    "init": "legs",
    "disc": "zoh",
    "dt_fast": False,
    "real_transform": "exp",
    "imag_transform": "none",
    "bandlimit": None,
    "backend": "cuda",
    "is_real": False,
}
CONV = ("l_max", "channels", "swap_channels", "bidirectional")


class DropoutNd(nn.Module):
    def __init__(self, p: float, tie: bool = True, transposed: bool = True) -> None:
        super().__init__()
        self.p, self.tie, self.transposed = p, tie, transposed

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x


class _Kernel(nn.Module):
    def forward(self, L: int, state: None = None, rate: float = 1.0) -> tuple[Tensor, None]:
        of = self.system()
        return definition.response(of, of.B, L).to(self.C.dtype), None

    def system(self, **changes: Any) -> definition.System:
        of = definition.system(self, {**vars(self), **changes})
        length = int(self.l_kernel) if "l_kernel" in self._buffers else 0
        if length == 0:
            return of
        truncation = torch.eye(of.A.shape[-1], dtype=of.A.dtype) - torch.linalg.matrix_power(of.A, length)
        return of._replace(C=torch.linalg.solve(truncation, of.C[..., None, :], left=False)[..., 0, :])

    def _setup_step(self) -> None:
        """Of a DPLR kernel with all of its band, whatever the option says."""
        self.discrete = self.system(bandlimit=None) if hasattr(self, "P") else self.system()

    def default_state(self, *batch: int) -> Tensor:
        return self.discrete.B.new_zeros(*batch, *self.discrete.B.shape)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        of = self.discrete
        state = torch.einsum("hmn,bhn->bhm", of.A, state) + of.B * u[..., None]
        return of.factor * torch.einsum("chm,bhm->bch", of.C, state).real, state


class _FFTConv(nn.Module):
    def forward(self, x: Tensor, state: None = None, **kwargs: Any) -> tuple[Tensor, None]:
        x = x if self.transposed else x.mT
        y = definition.convolution(self.kernel.system(), self.D, x.double(), vars(self))
        y = self.drop(y.to(x.dtype))
        return self.activation(y if self.transposed else y.mT), None

    def setup_step(self) -> None:
        self.kernel._setup_step()

    def default_state(self, *batch: int) -> Tensor:
        return self.kernel.default_state(*batch)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The features in the order of one whose channels are not swapped, whatever the option says."""
        y, state = self.kernel.step(x, state)
        return self.activation((y + self.D * x[:, None]).flatten(1)), state


class _S4Block(nn.Module):
    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        x = x.mT if self.transposed else x
        y, state = self.layer(self.entered(x))
        y = self.left(y, x)
        return (y.mT if self.transposed else y), state

    def entered(self, x: Tensor) -> Tensor:
        return x if self.bottleneck is None else self.input_linear(x)

    def left(self, y: Tensor, x: Tensor) -> Tensor:
        y = y if not hasattr(self, "activation") else self.activation(y)
        y = y if self.gate is None else self.output_gate(y) * self.input_gate(x)
        return self.output_linear(self.drop(self.mult_activation(y)))

    def setup_step(self) -> None:
        self.layer.setup_step()

    def default_state(self, *batch: int) -> Tensor:
        return self.layer.default_state(*batch)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.layer.step(self.entered(x), state)
        return self.left(y, x), state


class _S4DKernel(nn.Module):
    def forward(self, L: int) -> Tensor:
        A, C = torch.complex(-self.log_A_real.exp(), self.A_imag), torch.view_as_complex(self.C)
        z = self.log_dt.exp()[:, None] * A
        powers = torch.exp(z[..., None] * torch.arange(L, device=z.device))
        return 2 * torch.einsum("hn,hnl->hl", C * (z.exp() - 1) / A, powers).real


class _S4D(nn.Module):
    def forward(self, u: Tensor) -> tuple[Tensor, None]:
        u = u if self.transposed else u.mT
        y = self.activation(self.mapped(u))
        y = self.output_linear(self.dropout(y))
        return (y if self.transposed else y.mT), None

    def mapped(self, u: Tensor) -> Tensor:
        """The convolution and the skip."""
        L = u.shape[-1]
        lag = torch.arange(L)[:, None] - torch.arange(L)
        toeplitz = torch.where(lag >= 0, self.kernel(L=L)[:, lag.clamp(min=0)], 0)
        return torch.einsum("hlj,bhj->bhl", toeplitz, u) + self.D[:, None] * u


class _NormedLinear(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True), self.bias)


_BASES = {
    "SSMKernelDiag": _Kernel,
    "SSMKernelDPLR": _Kernel,
    "FFTConv": _FFTConv,
    "S4Block": _S4Block,
    "S4DKernel": _S4DKernel,
    "S4D": _S4D,
    "Linear": _NormedLinear,
}


def made(name: str, like: nn.Module | None = None, **attributes: Any) -> nn.Module:
    """A module of a class of this name with copies of the parameters, buffers and marks of ``like`` itself."""
    module = type(name, (_BASES.get(name, nn.Module),), {})()
    for key, parameter in {} if like is None else like._parameters.items():
        copied = nn.Parameter(parameter.detach().clone())
        if hasattr(parameter, "_optim"):
            copied._optim = dict(parameter._optim)
        module.register_parameter(key, copied)
    for key, buffer in {} if like is None else like._buffers.items():
        module.register_buffer(key, buffer.clone())
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def changed(module: nn.Module, **methods: Any) -> nn.Module:
    """The module with a class of the same name that has these methods instead."""
    module.__class__ = type(type(module).__name__, (type(module),), methods)
    return module


def kernel(d_model: int = 6, package: bool = False, release: str = "4.1", **options: Any) -> nn.Module:
    """The official kernel with these options, by itself."""
    return s4_block(d_model, package, release, **options).layer.kernel


def _kernel_like(ours: Any, release: str, known: dict[str, Any]) -> nn.Module:
    attributes = {
        **{key: known[key] for key in DEFAULTS if key not in CONV},
        "N": ours.C.shape[2],
        "n_ssm": known["n_ssm"] or ours.d_model,
        "H": ours.d_model,
        "channels": ours.C.shape[0],
        "l_max": known["l_max"],
    }
    if release == "4.0":
        attributes["kernel"] = attributes.pop("backend")
        attributes["force_real"] = attributes.pop("is_real")
    return made("SSMKernelDiag" if known.get("mode") == "diag" else "SSMKernelDPLR", ours, **attributes)


def fft_conv(d_model: int = 6, release: str = "4.1", **options: Any) -> nn.Module:
    """The official ``FFTConv`` with these options."""
    ours = FFTConv(d_model, **options)
    known = {**DEFAULTS, **options}
    return made(
        "FFTConv",
        D=nn.Parameter(ours.D.detach().clone()),
        d_model=d_model,
        transposed=ours.transposed,
        **{key: known[key] for key in CONV},
        activation=copy.deepcopy(ours.activation),
        kernel=_kernel_like(ours.kernel, release, known),
        drop=nn.Identity(),
        drop_kernel=nn.Identity(),
    )


def s4_block(d_model: int = 6, package: bool = False, release: str = "4.1", **options: Any) -> nn.Module:
    """The official ``S4Block`` with these options; ``package``: with the activation where the package has it."""
    ours = S4Block(d_model, **options)
    known = {**DEFAULTS, **options}
    p, tie = known.get("dropout", 0.0), known.get("tie_dropout", False)
    dropped = known.get("drop_kernel", 0.0)
    parts = {key: copy.deepcopy(getattr(ours, key)) for key in ("mult_activation", "output_linear")}
    if options.get("weight_norm"):
        # What the older torch.nn.utils.weight_norm makes of a linear map; its hook does not matter here.
        parts["output_linear"][0] = made("Linear", ours.output_linear[0])
    if ours.bottleneck:
        parts["input_linear"] = copy.deepcopy(ours.input_linear)
    activation = copy.deepcopy(ours.layer.activation)
    conv = made(
        "FFTConv",
        D=nn.Parameter(ours.layer.D.detach().clone()),
        d_model=ours.layer.d_model,
        transposed=False,
        **{key: known[key] for key in CONV},
        activation=nn.Identity() if package else activation,
        kernel=_kernel_like(ours.layer.kernel, release, known),
        drop=nn.Identity() if p == 0 else (DropoutNd(p) if tie and not package else nn.Dropout(p)),
        drop_kernel=nn.Dropout(dropped) if dropped else nn.Identity(),
    )
    if package:
        parts["activation"] = activation
    return made(
        "S4Block",
        d_model=d_model,
        transposed=ours.transposed,
        gate=None,
        bottleneck=ours.bottleneck,
        layer=conv,
        drop=nn.Identity() if p == 0 else (DropoutNd(p, transposed=False) if tie else nn.Dropout(p)),
        **parts,
    )


def s4d(d_model: int = 6, d_state: int = 8, dropout: float = 0.0, transposed: bool = True, **options: Any) -> nn.Module:
    """The official minimal ``S4D`` with these options."""
    ours = S4D(d_model, d_state, transposed=transposed, **options)
    return made(
        "S4D",
        ours,
        h=d_model,
        n=d_state,
        d_output=d_model,
        transposed=transposed,
        kernel=made("S4DKernel", ours.kernel),
        activation=nn.GELU(),
        dropout=DropoutNd(dropout) if dropout else nn.Identity(),
        output_linear=copy.deepcopy(ours.output_linear),
    )


def perturb(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """The module with every parameter moved, so that none is where its constructor puts it."""
    with torch.no_grad():
        for p in module.parameters():
            p += 0.05 * torch.randn(p.shape, dtype=torch.float64, generator=generator).to(p)
    return module
