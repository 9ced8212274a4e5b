"""Puts the layers of this package in the place of those of state-spaces/s4 in a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from s4_fast.layers.dropout import DropoutNd
from s4_fast.state_spaces.activation import ACTIVATIONS, Activation
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.s4d import S4D
from s4_fast.torch_private import HOOKS

_MODES = {"SSMKernelDiag": "diag", "SSMKernelDPLR": "dplr"}
# Options that decide what a kernel computes, by the attributes that hold them. Those of initial values are not here.
_KERNEL = (
    "rank", "n_ssm", "dt_tie", "dt_transform", "dt_fast", "real_transform", "imag_transform", "bandlimit", "backend",
    "is_real", "lr", "wd", "verbose",
)  # fmt: skip


class Replacement(NamedTuple):
    """A layer that was replaced: its name in the model, its class, and the class of what is there now."""

    name: str
    old: type[nn.Module]
    new: type[nn.Module]


def replace_layers(model: nn.Module) -> list[Replacement]:
    """Swap the official ``S4D`` and ``S4Block`` instances inside ``model`` for this package's, with the same weights.

    Official are those of ``models/s4/s4d.py``, ``models/s4/s4.py`` and the package of state-spaces/s4, told by their
    classes' names and their attributes: nothing is imported. Names, shapes, devices, dtypes, ``requires_grad``,
    marks for the optimiser, training mode and the state of random number generators stay as they are. The parameters
    are new ones: make the optimiser, and call ``setup_step``, afterwards.

    Returns:
        What was replaced, in the order of ``model.named_modules()``. A module used in several places is replaced by
        one module in all of them.

    Raises:
        ValueError: a layer cannot be matched, or ``model`` itself is one (see :func:`replacement`). The reasons are
            given for all such layers, and nothing has changed.
    """
    if _is_official(model):
        raise ValueError(f"the model is itself an official {type(model).__name__}; use replacement(model) instead")
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    made: dict[int, nn.Module] = {}
    places, problems = [], []
    for path, parent in model.named_modules():
        for key, child in parent._modules.items():
            if child is None or not _is_official(child):
                continue
            name = f"{path}.{key}" if path else key
            try:
                shared = [name for name, p in child.named_parameters() if uses[id(p)] > 1]
                if shared:
                    raise ValueError(f"shares {', '.join(shared)} with another module")
                if id(child) not in made:
                    made[id(child)] = replacement(child)
            except ValueError as reason:
                problems.append(f"{name} ({type(child).__name__}): {reason}")
            else:
                places.append((name, parent, key, child))
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"cannot replace every official layer; nothing was replaced:\n  {listed}")
    for _, parent, key, child in places:
        parent._modules[key] = made[id(child)]
    return [Replacement(name, type(child), type(made[id(child)])) for name, _, _, child in places]


def replacement(layer: nn.Module) -> S4Block | S4D:
    """This package's layer with the options and weights of an official ``S4D`` or ``S4Block``, which is not changed.

    Raises:
        ValueError: why there is no such layer.
    """
    if not _is_official(layer):
        raise ValueError(f"expected an S4D or S4Block of state-spaces/s4, got {type(layer).__name__}")
    _check_hooks(layer)
    devices = {(t.device, t.dtype) for t in layer.state_dict().values() if t.is_floating_point()}
    if len(devices) != 1:
        raise ValueError("its parameters are not all on one device and of one dtype")
    device, dtype = devices.pop()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            new = _BUILDERS[type(layer).__name__](layer)
    except AttributeError as error:
        raise ValueError(f"is no layer of state-spaces/s4: {error}") from None
    except (TypeError, NotImplementedError) as error:
        raise ValueError(str(error)) from None
    new.to(device=device, dtype=dtype)
    _copy(layer, new)
    return new


def _is_official(module: nn.Module) -> bool:
    return type(module).__name__ in _BUILDERS and not isinstance(module, (S4Block, S4D))


def _check_hooks(layer: nn.Module) -> None:
    for name, module in layer.named_modules():
        for kind in HOOKS:
            # The hook of torch.nn.utils.weight_norm, which holds no state of its own.
            hooks = [h for h in getattr(module, kind, {}).values() if type(h).__name__ != "WeightNorm"]
            if hooks:
                raise ValueError(f"{name or 'it'} has hooks ({kind}), which would be lost")


def _copy(old: nn.Module, new: nn.Module) -> None:
    try:
        new.load_state_dict(old.state_dict())
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    if before.keys() != after.keys():
        names = ", ".join(sorted(before.keys() ^ after.keys()))
        raise ValueError(f"{names}: a parameter on one side and a buffer on the other")
    for name, parameter in after.items():
        parameter.requires_grad_(before[name].requires_grad)
        if mark := getattr(before[name], "_optim", None):  # the original marks C with nothing, an empty one
            parameter._optim = dict(mark)  # type: ignore[attr-defined]
    modes = {name: module.training for name, module in old.named_modules()}
    for name, module in new.named_modules():
        module.training = modes.get(name, old.training)


def _s4d(old: Any) -> S4D:
    _expect(old.kernel, "kernel", "S4DKernel")
    dt = old.kernel.log_dt
    lr = getattr(dt, "_optim", {}).get("lr") if isinstance(dt, nn.Parameter) else 0.0
    new = S4D(old.h, old.n, transposed=old.transposed, lr=lr)
    for name in ("activation", "output_linear"):
        if repr(getattr(old, name)) != repr(getattr(new, name)):
            raise ValueError(f"expected {name} to be {getattr(new, name)}, got {getattr(old, name)}")
    new.add_module("dropout", _dropout(old.dropout))
    return new


def _s4_block(old: Any) -> S4Block:
    _expect(old.layer, "layer", "FFTConv")
    conv, kernel = old.layer, old.layer.kernel
    _expect(kernel, "kernel", *_MODES)
    mode = _MODES[type(kernel).__name__]
    options = {name: getattr(kernel, name) for name in _KERNEL}
    if mode == "diag":
        options["disc"] = kernel.disc  # what a DPLR kernel has there does nothing
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
        mode=mode,
        l_max=conv.l_max,
        channels=conv.channels,
        swap_channels=conv.swap_channels,
        bidirectional=conv.bidirectional,
        activation=next(iter(used), None),
        # A real SSM has as many states as d_state, one of conjugate pairs half as many.
        d_state=kernel.N if kernel.is_real else 2 * kernel.N,
        **options,
    )
    new.add_module("drop", _dropout(old.drop))
    for name in ("drop", "drop_kernel"):
        new.layer.add_module(name, _dropout(getattr(conv, name)))
    return new


_BUILDERS: dict[str, Callable[[Any], S4Block | S4D]] = {"S4D": _s4d, "S4Block": _s4_block}


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


def _activation(module: Any) -> str | None:
    """The name of an activation's module; None for the identity."""
    if isinstance(module, nn.Identity):
        return None
    size = module.features if type(module).__name__ == "ModReLU" else 1
    for name in ACTIVATIONS:
        if repr(Activation(name, size=size)) == repr(module):
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
