"""The classes of state-spaces/s4 4.x: how each is told, and the layer of this package that is made of one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from s4_fast import torch_private
from s4_fast.layers.dropout import DropoutNd
from s4_fast.state_spaces.activation import ACTIVATIONS, Activation, halves
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.comparing import Trial
from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.copying import Weights, under_the_same_names
from s4_fast.state_spaces.kernels import SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.s4d import S4D, S4DKernel


class Official(NamedTuple):
    """One class of state-spaces/s4, and what takes its place.

    Attributes:
        name: the class's name.
        parts: attributes that tell it from other classes of this name, dots between those of attributes.
        build: makes a layer of this package, with weights of its own, of an instance.
        trial: how to call that layer, and the instance, to compare them.
        weights: what the layer's ``state_dict`` takes from the instance's.
    """

    name: str
    parts: tuple[str, ...]
    build: Callable[[Any], nn.Module]
    trial: Callable[[Any], Trial]
    weights: Weights = under_the_same_names

    def lacks(self, module: nn.Module) -> str:
        """The first part that ``module`` lacks, "" where it has all."""
        return next((part for part in self.parts if not _has(module, part)), "")


def class_name(module: nn.Module) -> str:
    """The name of the module's class, without what FSDP and parametrizations make of it."""
    return torch_private.written_class(module).__name__


def is_own(module: nn.Module) -> bool:
    """Whether the module's class is of this package, or derived from one."""
    return any(c.__module__.partition(".")[0] == "s4_fast" for c in type(module).__mro__)


def recognized(module: nn.Module) -> Official | None:
    """The row of the official class that ``module`` is an instance of; None where it is of none."""
    return None if is_own(module) else next((row for row in _rows(module) if not row.lacks(module)), None)


def looks_official(module: nn.Module) -> bool:
    """Whether ``module`` might be a layer of some release of state-spaces/s4, or be meant as one.

    A common name alone does not count: something inside must be called as the parameters of a state space are.
    """
    name = class_name(module)
    if is_own(module) or not (_CERTAIN_NAMES.fullmatch(name) or name in _COMMON_NAMES):
        return False
    tensors = (*module.named_parameters(), *module.named_buffers())
    inside = {path.rpartition(".")[2] for path, _ in tensors}
    return name not in _COMMON_NAMES or bool(inside & _PARAMETERS)


def why_not(module: nn.Module) -> str:
    """Why :func:`recognized` knows no row for ``module``."""
    lacking = [row.lacks(module) for row in _rows(module)]
    if not lacking:
        return f"there is no layer here for a {class_name(module)}"
    return f"is no {class_name(module)} of state-spaces/s4: it has no {' or '.join(dict.fromkeys(lacking))}"


_CERTAIN_NAMES = re.compile(r"(Hippo)?SSKernel\w*|SSMKernel\w*|S4DKernel|S4ND")
_COMMON_NAMES = ("S4", "S4Block", "S4D", "FFTConv")
_PARAMETERS = {"A_imag", "A_real", "C", "D", "inv_dt", "inv_A_real", "inv_w_real", "l_kernel", "log_A_real", "log_dt"}

# Options that decide what a kernel computes, by the attributes that hold them. Those of initial values are not here.
_KERNEL = (
    "rank", "n_ssm", "dt_tie", "dt_transform", "dt_fast", "real_transform", "imag_transform", "bandlimit", "lr", "wd",
    "verbose",
)  # fmt: skip
_KERNELS: dict[str, tuple[str, type[SSMKernelDiag | SSMKernelDPLR]]] = {
    "SSMKernelDiag": ("diag", SSMKernelDiag),
    "SSMKernelDPLR": ("dplr", SSMKernelDPLR),
}


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


def _rows(module: nn.Module) -> list[Official]:
    return [row for row in OFFICIAL if row.name == class_name(module)]


def _s4d(old: Any) -> S4D:
    _expect(old.kernel, "kernel", "S4DKernel")
    new = S4D(old.h, old.n, transposed=old.transposed, lr=_minimal_rate(old.kernel))
    for name in ("activation", "output_linear"):
        if repr(getattr(old, name)) != repr(getattr(new, name)):
            raise ValueError(f"expected {name} to be {getattr(new, name)}, got {getattr(old, name)}")
    new.add_module("dropout", _dropout(old.dropout))
    return new


def _s4d_kernel(old: Any) -> S4DKernel:
    features, pairs, _ = old.C.shape
    return S4DKernel(features, N=2 * pairs, lr=_minimal_rate(old))


def _minimal_rate(kernel: Any) -> float | None:
    rate: float | None = 0.0
    if isinstance(kernel.log_dt, nn.Parameter):
        rate = getattr(kernel.log_dt, "_optim", {}).get("lr")
    return rate


def _kernel(old: Any) -> SSMKernelDiag | SSMKernelDPLR:
    _, kind = _KERNELS[class_name(old)]
    return kind(d_model=old.H, channels=old.channels, l_max=old.l_max, **_kernel_options(old))


def _kernel_options(kernel: Any) -> dict[str, Any]:
    options = {name: getattr(kernel, name) for name in _KERNEL}
    if isinstance(kernel, nn.Module) and class_name(kernel) == "SSMKernelDiag":
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
    mode, _ = _KERNELS[class_name(conv.kernel)]
    names = ("l_max", "channels", "swap_channels", "bidirectional")
    return {**{name: getattr(conv, name) for name in names}, "mode": mode, **_kernel_options(conv.kernel)}


def _fft_conv(old: Any) -> FFTConv:
    activation = _activation(old.activation, 1 if old.transposed else -1)
    new = FFTConv(old.d_model, activation=activation, transposed=old.transposed, **_convolution_options(old))
    for name in ("drop", "drop_kernel"):
        new.add_module(name, _dropout(getattr(old, name)))
    return new


def _s4_block(old: Any) -> S4Block:
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


def _steps_as_it_runs(conv: FFTConv) -> bool:
    """Whether the original's step with these options is the step of its own convolution.

    It keeps the order of the features, whatever ``swap_channels`` says, and a DPLR kernel steps with all of its band.
    """
    whole = isinstance(conv.kernel, SSMKernelDiag) or conv.kernel.bandlimit is None
    return whole and not (conv.swap_channels and len(conv.D) > 1)


def _kernel_trial(kernel: SSMKernelDiag | SSMKernelDPLR) -> Trial:
    steps = isinstance(kernel, SSMKernelDiag) or kernel.bandlimit is None
    return Trial(kernel.d_model, transposed=None, steps=steps)


# A class may have several rows, the first that fits counts.
OFFICIAL = (
    Official(
        "S4D",
        ("h", "n", "transposed", "D", "kernel", "activation", "dropout", "output_linear"),
        _s4d,
        lambda new: Trial(new.h, new.transposed, steps=False),
    ),
    Official(
        "S4Block",
        ("d_model", "transposed", "gate", "bottleneck", "layer", "mult_activation", "drop", "output_linear"),
        _s4_block,
        lambda new: Trial(new.d_model, new.transposed, _steps_as_it_runs(new.layer)),
    ),
    Official(
        "FFTConv",
        ("d_model", "transposed", "channels", "bidirectional", "activation", "D", "kernel"),
        _fft_conv,
        lambda new: Trial(new.d_model, new.transposed, _steps_as_it_runs(new)),
    ),
    Official("SSMKernelDPLR", ("H", "N", "inv_dt", "A_real", "B", "C", "P", "l_kernel"), _kernel, _kernel_trial),
    Official("SSMKernelDiag", ("H", "N", "inv_dt", "A_real", "B", "C"), _kernel, _kernel_trial),
    Official(
        "S4DKernel",
        ("log_dt", "log_A_real", "A_imag", "C"),
        _s4d_kernel,
        lambda new: Trial(new.d_model, transposed=None, steps=False),
    ),
)
