"""Layers of this package with the options of official ones of releases 1 to 3, and with weights of their own."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from torch import nn

from s4_fast.layers.dropout import DropoutNd
from s4_fast.ssm.model import SSMModel
from s4_fast.state_spaces.activation import ACTIVATIONS, Activation, halves
from s4_fast.state_spaces.copying import Weight
from s4_fast.state_spaces.older_kernels import SSKernel
from s4_fast.state_spaces.releases import older_kernel, older_layer
from s4_fast.state_spaces.s4 import S4
from s4_fast.torch_private import written_class

# The entries of the originals' kernels whose learning rate is that of a group here.
_GROUPS = {
    "A": ("w", "log_w_real", "inv_w_real", "inv_A_real"),
    "P": ("P",),
    "B": ("B",),
    "C": ("C",),
    "dt": ("log_dt",),
}


def s4(old: Any) -> S4:
    """Of an ``S4`` of any release before 4, or the ``S4D`` of release 2, which has channels."""
    kernel, release = inner_kernel(old.kernel), _release(old)
    features = getattr(old, "d_model", None) or old.h
    options = {"d_model": features, "release": release, "transposed": old.transposed, **_kernel_options(old.kernel)}
    if release == 1:
        for name in ("stride", "resample"):
            options[name] = getattr(old, name)
        options["hyper_act"] = _activation_of(old.hyper_linear) if old.hyper else None
        options["input_linear"] = not isinstance(old.input_linear, nn.Identity)
    else:
        options |= {"channels": old.channels, "bidirectional": old.bidirectional}
        if getattr(old, "hyper", False):
            options["hyper_act"] = _activation(old.hyper_activation) or "id"
    if release == 3:
        options |= {"bottleneck": old.bottleneck, "gate": old.gate, "l_max": old.L}
        if getattr(old, "shift", False) or getattr(old, "linear", False):
            raise ValueError("shift and linear, options of the package's release 3, have no counterpart here")
    else:
        options["l_max"] = _length(kernel)
    new = S4(
        activation=_activation(old.activation),
        postact=_activation_of(old.output_linear),
        weight_norm=any(name.endswith("weight_g") for name, _ in old.output_linear.named_parameters()),
        **options,
    )
    new.add_module("drop", _dropout(old.dropout))
    _hold_fixed(new, layer_weights(old), dict(old.named_parameters()))
    return new


def kernel_wrapper(old: Any) -> SSKernel:
    """Of an ``SSKernel`` of release 3."""
    options, inner = _kernel_options(old), inner_kernel(old)
    length = getattr(inner, "l_max", None)
    new = SSKernel(old.H, options.pop("d_state"), length, channels=len(inner.C), **options)
    _hold_fixed(new, kernel_weights(old), dict(old.named_parameters()))
    return new


def layer_weights(old: nn.Module) -> dict[str, Weight]:
    """The weights of an S4 layer before release 4, as those of ``S4``."""
    return _weights(old, older_layer)


def kernel_weights(old: nn.Module) -> dict[str, Weight]:
    """The weights of an ``SSKernel``, as those of the one here."""
    return _weights(old, lambda entries, prefix, transform: older_kernel(entries, "kernel.", "kernel.", transform))


def _weights(old: Any, read: Any) -> dict[str, Weight]:
    found = read(old.state_dict(), "", _real_type(inner_kernel(getattr(old, "kernel", old))))
    if found is None:
        raise ValueError("its entries are those of no release before 4")
    # A B that the original has in C is nobody's parameter.
    sources = {change.new: "" if change.constant else change.old for change in found.changes}
    return {c.new: Weight(sources[c.new], c.value) for c in found.changes if c.new is not None}


def inner_kernel(wrapper: Any) -> Any:
    """The kernel inside ``SSKernel``, ``HippoSSKernel`` or ``S4DKernel``."""
    return wrapper.krylov if hasattr(wrapper, "krylov") else getattr(wrapper, "kernel", wrapper)


def _release(old: Any) -> int:
    if hasattr(old.kernel, "krylov"):
        return 1
    kernel = inner_kernel(old.kernel)
    return 3 if hasattr(kernel, "inv_w_real") or hasattr(kernel, "inv_A_real") else 2


def _kernel_options(wrapper: Any) -> dict[str, Any]:
    kernel = inner_kernel(wrapper)
    if getattr(wrapper, "rate", 1.0) != 1.0:
        raise ValueError("resample=True is not supported: its kernel is stretched to every input")
    for name in ("quadrature", "force_real"):
        if getattr(kernel, name, None):
            raise ValueError(f"{name}={getattr(kernel, name)!r} has no counterpart here")
    C = kernel.C
    options: dict[str, Any] = {
        "d_state": 2 * C.shape[-2],
        "real_type": _real_type(kernel),
        "bandlimit": getattr(kernel, "bandlimit", None),
        "lr": {group: _rate(kernel, names) for group, names in _GROUPS.items()},
    }
    if getattr(kernel, "fast_gate", False):
        options["fast_gate"] = True
    if hasattr(wrapper, "krylov"):
        copies = [len(t) if t.ndim == whole else 1 for t, whole in ((kernel.w, 3), (kernel.B, 4))]
        options["lr"]["P"] = options["lr"]["B"]
        return {**options, "trainable": True, "n_ssm": max(copies), "rank": C.shape[1] - 1}
    options["n_ssm"] = len(_poles(kernel))
    if hasattr(kernel, "w") or hasattr(kernel, "log_w_real"):
        options["trainable"] = True  # but for what the rates hold fixed
    if hasattr(kernel, "P"):
        return {**options, "rank": len(kernel.P)}
    # The file of S4D alone in release 2 knows no other.
    return {**options, "mode": "diag", "disc": getattr(kernel, "disc", "zoh"), "measure": "diag-lin"}


def _poles(kernel: Any) -> Any:
    return next(getattr(kernel, name) for name in _GROUPS["A"] if hasattr(kernel, name))


def _real_type(kernel: Any) -> str:
    if hasattr(kernel, "w"):  # a complex number, which may have lost its stability in training
        return "exp" if bool((kernel.w[..., 0] < -1e-4).all()) else "none"
    return getattr(kernel, "real_type", None) or "exp"


def _rate(kernel: Any, names: tuple[str, ...]) -> float | None:
    parameters = (kernel._parameters[name] for name in names if name in kernel._parameters)
    rates = (getattr(parameter, "_optim", {}).get("lr") for parameter in parameters)
    return next((rate for rate in rates if rate), None)


def _hold_fixed(new: nn.Module, weights: Mapping[str, Weight], trained: Container[str]) -> None:
    """Make buffers of the kernel's parameters that the original does not train, each by itself."""
    for module in new.modules():
        if isinstance(module, SSMModel):
            for name in list(module._parameters):
                found = next(weight for full, weight in weights.items() if full.endswith(f"kernel.{name}"))
                if found.source not in trained:
                    module.register_buffer(name, module._parameters.pop(name).detach())  # type: ignore[union-attr]


def _length(kernel: Any) -> int | None:
    found: Any = getattr(kernel, "L", None)
    return None if found is None else int(found) or None


def _activation_of(module: Any) -> str | None:
    """The activation behind a linear map; None for the map alone."""
    return (_activation(module[1]) or "id") if isinstance(module, nn.Sequential) else None


def _activation(module: Any) -> str | None:
    if isinstance(module, nn.Identity):
        return None
    for name in ACTIVATIONS:
        # A GLU in front of time has another dim than one behind.
        dims = (-1, -2) if halves(name) else (-1,)
        if name != "modrelu" and repr(module) in [repr(Activation(name, dim)) for dim in dims]:
            return name
    raise ValueError(f"expected an activation of {', '.join(ACTIVATIONS)}, got {module}")


def _dropout(module: Any) -> nn.Module:
    kind = written_class(module).__name__
    if kind in ("Dropout2d", "DropoutNd"):
        return DropoutNd(module.p, getattr(module, "tie", True), transposed=False)
    if kind == "Dropout":
        return nn.Dropout(module.p)
    if kind != "Identity":
        raise ValueError(f"expected dropout to be Identity, Dropout, Dropout2d or DropoutNd, got {kind}")
    return nn.Identity()
