"""Layers of this package with the options of official ones of releases 4.0 and 4.1, and with weights of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from s4_fast.layers.dropout import DropoutNd
from s4_fast.state_spaces.activation import ACTIVATIONS, Activation, halves
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.kernels import SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.s4d import S4D, S4DKernel
from s4_fast.torch_private import written_class

# Options that decide what a kernel computes, by the attributes that hold them. Those of initial values are not here.
_KERNEL = (
    "rank", "n_ssm", "dt_tie", "dt_transform", "dt_fast", "real_transform", "imag_transform", "bandlimit", "lr", "wd",
    "verbose",
)  # fmt: skip
_KERNELS: dict[str, tuple[str, type[SSMKernelDiag | SSMKernelDPLR]]] = {
    "SSMKernelDiag": ("diag", SSMKernelDiag),
    "SSMKernelDPLR": ("dplr", SSMKernelDPLR),
}


def s4d(old: Any) -> S4D:
    _expect(old.kernel, "kernel", "S4DKernel")
    new = S4D(old.h, old.n, transposed=old.transposed, lr=_minimal_rate(old.kernel))
    for name in ("activation", "output_linear"):
        if repr(getattr(old, name)) != repr(getattr(new, name)):
            raise ValueError(f"expected {name} to be {getattr(new, name)}, got {getattr(old, name)}")
    new.add_module("dropout", _dropout(old.dropout))
    return new


def s4d_kernel(old: Any) -> S4DKernel:
    features, pairs, _ = old.C.shape
    return S4DKernel(features, N=2 * pairs, lr=_minimal_rate(old))


def _minimal_rate(kernel: Any) -> float | None:
    rate: float | None = 0.0
    if isinstance(kernel.log_dt, nn.Parameter):
        rate = getattr(kernel.log_dt, "_optim", {}).get("lr")
    return rate


def kernel(old: Any) -> SSMKernelDiag | SSMKernelDPLR:
    _, kind = _KERNELS[written_class(old).__name__]
    return kind(d_model=old.H, channels=old.channels, l_max=old.l_max, **_kernel_options(old))


def _kernel_options(kernel: Any) -> dict[str, Any]:
    options = {name: getattr(kernel, name) for name in _KERNEL}
    if written_class(kernel).__name__ == "SSMKernelDiag":
        options["disc"] = kernel.disc  # what a DPLR kernel has there does nothing
    # Release 4.0 calls the backend "kernel", and has force_real, which leaves all parameters complex.
    options["backend"] = kernel.backend if hasattr(kernel, "backend") else kernel.kernel
    if getattr(kernel, "force_real", False):
        raise ValueError(
            "force_real, an option of release 4.0 alone, has no counterpart here; is_real is another thing"
        )
    options["is_real"] = getattr(kernel, "is_real", False)
    # A real SSM has as many states as d_state, one of conjugate pairs half as many.
    options["d_state"] = kernel.N if options["is_real"] else 2 * kernel.N
    return options


def _convolution_options(conv: Any) -> dict[str, Any]:
    _expect(conv.kernel, "kernel", *_KERNELS)
    mode, _ = _KERNELS[type(conv.kernel).__name__]
    names = ("l_max", "channels", "swap_channels", "bidirectional")
    return {**{name: getattr(conv, name) for name in names}, "mode": mode, **_kernel_options(conv.kernel)}


def fft_conv(old: Any) -> FFTConv:
    activation = _activation(old.activation, 1 if old.transposed else -1)
    new = FFTConv(old.d_model, activation=activation, transposed=old.transposed, **_convolution_options(old))
    for name in ("drop", "drop_kernel"):
        new.add_module(name, _dropout(getattr(old, name)))
    return new


def s4_block(old: Any) -> S4Block:
    _expect(old.layer, "layer", "FFTConv")
    conv = old.layer
    options = _convolution_options(conv)
    # The package has the activation behind the convolution, the standalone file at its end: the same place.
    names = [_activation(m) for m in (conv.activation, getattr(old, "activation", None)) if m is not None]
    used = [name for name in names if name is not None]
    if len(used) > 1:
        raise ValueError(f"has two activations between the convolution and the gate, {' and '.join(used)}")
    final_act, linear = _linear(old.output_linear)
    new = S4Block(
        old.d_model * (old.bottleneck or 1),
        bottleneck=old.bottleneck,
        gate=old.gate,
        gate_act=None if old.gate is None else _linear(old.input_gate)[0],
        mult_act=_activation(old.mult_activation),
        final_act=final_act,
        weight_norm=linear is not None and "weight_g" in linear._parameters,
        transposed=old.transposed,
        activation=next(iter(used), None),
        **options,
    )
    new.add_module("drop", _dropout(old.drop))
    for name in ("drop", "drop_kernel"):
        new.layer.add_module(name, _dropout(getattr(conv, name)))
    return new


def _expect(module: nn.Module, name: str, *classes: str) -> None:
    if type(module).__name__ not in classes:
        raise ValueError(f"expected {name} to be {' or '.join(classes)}, got {type(module).__name__}")


def _linear(module: Any) -> tuple[str | None, nn.Module | None]:
    """The activation and the linear map that the official LinearActivation made ``module`` of."""
    if isinstance(module, nn.Identity):
        return None, None
    if not isinstance(module, nn.Sequential):
        _expect(module, "a linear map", "Linear")
        return None, module
    linear, activation = module
    _expect(linear, "a linear map", "Linear")
    return _activation(activation) or "id", linear


def _activation(module: Any, dim: int = -1) -> str | None:
    """The name of an activation's module, whose features lie in ``dim``; None for the identity."""
    if isinstance(module, nn.Identity):
        return None
    size = module.features if type(module).__name__ == "ModReLU" else 1
    for name in ACTIVATIONS:
        if repr(Activation(name, dim if halves(name) else -1, size)) == repr(module):
            return name
    raise ValueError(f"expected an activation of {', '.join(ACTIVATIONS)}, got {module}")


def _dropout(module: Any) -> nn.Module:
    kind = type(module).__name__
    if kind == "DropoutNd":
        return DropoutNd(module.p, module.tie, module.transposed)
    if kind == "Dropout" and not module.inplace:
        return nn.Dropout(module.p)
    _expect(module, "dropout", "Identity", "Dropout", "DropoutNd")
    return nn.Identity()
