"""Modules with the official ones' class names, attributes, parameters and parts, and without a forward."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.s4d import S4D

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


def made(name: str, like: nn.Module | None = None, **attributes: Any) -> nn.Module:
    """A module of a class of this name with copies of the parameters, buffers and marks of ``like`` itself."""
    module = type(name, (nn.Module,), {})()
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


def s4_block(d_model: int = 6, package: bool = False, **options: Any) -> nn.Module:
    """The official ``S4Block`` with these options; ``package``: with the activation where the package has it."""
    ours = S4Block(d_model, **options)
    known = {**DEFAULTS, **options}
    states = ours.layer.kernel.C.shape[2]
    n_ssm = known["n_ssm"] or d_model
    kernel_name = "SSMKernelDiag" if known.get("mode") == "diag" else "SSMKernelDPLR"
    attributes = {**{key: known[key] for key in DEFAULTS if key not in CONV}, "N": states, "n_ssm": n_ssm, "H": d_model}
    kernel = made(kernel_name, ours.layer.kernel, **attributes)
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
        d_model=d_model,
        transposed=False,
        **{key: known[key] for key in CONV},
        activation=nn.Identity() if package else activation,
        kernel=kernel,
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
