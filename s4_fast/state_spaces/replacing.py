"""Puts the layers of this package in the place of those of state-spaces/s4 in a model."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from s4_fast import torch_private
from s4_fast.state_spaces import official
from s4_fast.state_spaces.comparing import NotComparable, Trial, check_agreement
from s4_fast.state_spaces.copying import copy_weights
from s4_fast.state_spaces.official import Official, class_name
from s4_fast.state_spaces.patching import Patch, patch


class Replacement(NamedTuple):
    """A layer that was replaced: its name in the model, its class, and the class of what is there now.

    Examples:
        >>> Replacement("0", nn.Linear, nn.Identity).name
        '0'
    """

    name: str
    old: type[nn.Module]
    new: type[nn.Module]


class _Place(NamedTuple):
    """Where a module is in a model: ``parent.key``, ``name`` from the top, and the wrapper around it, "" for none."""

    name: str
    parent: nn.Module
    key: str
    child: nn.Module
    wrapper: str


def replace_layers(model: nn.Module, *, check: bool = True) -> list[Replacement]:
    """Swap the official layers inside ``model`` for this package's, with the same weights.

    Official are ``S4D`` and ``S4Block`` of state-spaces/s4 4.x, and where a model uses them by themselves ``FFTConv``,
    ``SSMKernelDiag``, ``SSMKernelDPLR`` and ``S4DKernel``, those inside ``S4ND`` for example; ``S4`` of releases 1 to
    3, ``S4D`` of release 2 and ``SSKernel`` of release 3. They are told by their classes' names and their attributes:
    nothing is imported. A class that only has the name of one is left alone.

    Names, shapes, devices, dtypes, ``requires_grad``, marks for the optimiser, training mode and the state of random
    number generators stay as they are; layers of releases 1 to 3 get the names of release 4. The parameters are new
    ones: make the optimiser, and wrap the model (``torch.compile``, ``DistributedDataParallel``, FSDP), afterwards.

    Args:
        model: what to look through.
        check: whether a copy of every layer runs beside its replacement's first, on a random input and for a few steps,
            and must return the same: a project's own variant of an official class has other outputs.

    Returns:
        What was replaced, in the order of ``model.named_modules()``. A module used in several places is replaced by
        one module in all of them.

    Raises:
        ValueError: a layer computes something else than its replacement, cannot be checked or cannot be matched, it is
            inside a wrapper, or ``model`` itself is one (see ``replacement``); or none was found, but modules that
            look like official ones. The reasons are given for all such layers, and nothing has changed.

    Examples:
        >>> model = nn.Sequential(nn.Linear(1, 8))  # in place of a model made with state-spaces/s4
        >>> for replaced in replace_layers(model):
        ...     print(replaced.name, replaced.old, replaced.new)
    """
    if official.recognized(model):
        raise ValueError(f"the model is itself an official {class_name(model)}; use replacement(model) instead")
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    made: dict[int, nn.Module] = {}
    refused: dict[int, str] = {}
    places = list(_places(model, "", _wrapper(model, ""), {id(model)}))
    for place in places:
        key = id(place.child)
        try:
            if place.wrapper:
                raise ValueError(f"{place.wrapper}; replace layers before wrapping")
            if key not in made and key not in refused:
                shared = [name for name, p in place.child.named_parameters() if uses[id(p)] > 1]
                if shared:
                    raise ValueError(f"shares {', '.join(shared)} with another module")
                made[key] = replacement(place.child, check=check)
        except ValueError as reason:
            refused[key] = str(reason)
    if refused:
        problems = [_problem(place.name, place.child, refused.get(id(place.child), "")) for place in places]
        raise ValueError("cannot replace every official layer; nothing was replaced:" + "".join(problems))
    if not places:
        _refuse_lookalikes(model)
    for place in places:
        place.parent._modules[place.key] = made[id(place.child)]
    return [Replacement(p.name, type(p.child), type(made[id(p.child)])) for p in places]


def replacement(layer: nn.Module, *, check: bool = True) -> nn.Module:
    """This package's layer with the options and weights of an official one, which is not changed.

    Args:
        layer: an instance of one of the classes that ``replace_layers`` names.
        check: whether copies of both run first, and must return the same.

    Raises:
        ValueError: why there is no such layer.

    Examples:
        >>> replacement(nn.Linear(1, 8))
        Traceback (most recent call last):
        ValueError: expected one of ... of state-spaces/s4, got Linear
    """
    row = official.recognized(layer)
    if row is None:
        expected = ", ".join(dict.fromkeys(known.name for known in official.OFFICIAL))
        reason = official.why_not(layer) if official.looks_official(layer) else f"got {class_name(layer)}"
        raise ValueError(f"expected one of {expected} of state-spaces/s4, {reason}")
    if wrapper := _wrapper(layer, "it"):
        raise ValueError(f"{wrapper}; replace layers before wrapping")
    _check_hooks(layer)
    new = _built(row, layer)
    copy_weights(layer, new, row.weights)
    if check:
        try:
            _check(layer, new, row.trial(new))
        except NotComparable as error:
            raise ValueError(f"cannot be checked: {error}; check=False replaces layers unchecked") from None
    return new


def _check(layer: nn.Module, new: nn.Module, trial: Trial) -> None:
    """``check_agreement``, and where that fails once more with the sums in the layer's file replaced by ours.

    Releases 1 to 3 sum with KeOps or an extension, which may not be here, and some fall back to half of the sum.
    """
    try:
        check_agreement(layer, new, trial)
    except (NotComparable, ValueError) as alone:
        patched = _patched(layer)
        if patched is None:
            raise
        with patched:
            check_agreement(layer, new, trial)
        if isinstance(alone, ValueError):
            warnings.warn(
                f"{class_name(layer)} {alone}: its file sums half of what it does with KeOps or its extension. The "
                "replacement computes the whole; for a model trained on the half, patch(module, keep_faults=True)",
                stacklevel=4,
            )


def _patched(layer: nn.Module) -> Patch | None:
    """The file of the layer's class with our sums, or None where there is nothing to replace."""
    module = sys.modules.get(torch_private.written_class(layer).__module__)
    if module is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            patched = patch(module)
        except ValueError:
            return None
    return patched if patched.replaced else None


def _built(row: Official, layer: nn.Module) -> nn.Module:
    kinds = {(t.device, t.dtype) for t in layer.state_dict().values() if t.is_floating_point()}
    if len(kinds) != 1:
        raise ValueError("its parameters are not all on one device and of one dtype")
    device, dtype = kinds.pop()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            new = row.build(layer)
    except AttributeError as error:
        raise ValueError(f"is no layer of state-spaces/s4: {error}") from None
    except (TypeError, NotImplementedError) as error:
        raise ValueError(str(error)) from None
    return new.to(device=device, dtype=dtype)


def _places(parent: nn.Module, path: str, wrapper: str, seen: set[int]) -> Iterator[_Place]:
    """Where the official layers inside ``parent`` are. What is inside one of them is not looked at."""
    for key, child in parent._modules.items():
        if child is None:
            continue
        name = f"{path}.{key}" if path else key
        around = wrapper or _wrapper(child, name)
        if official.recognized(child):
            yield _Place(name, parent, key, child, around)
        elif id(child) not in seen:
            seen.add(id(child))
            yield from _places(child, name, around, seen)


def _wrapper(module: nn.Module, name: str) -> str:
    """What ``module`` is wrapped by that knows its parameters or its code, as a sentence; "" for nothing."""
    subject = name or "the model"
    if torch_private.is_compiled(module):
        return f"{subject} is compiled (torch.compile)"
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return f"{subject} is a DistributedDataParallel, which has the old parameters in its buckets"
    if torch_private.is_sharded(module):
        return f"{subject} is sharded by FSDP"
    return ""


def _problem(name: str, module: nn.Module, reason: str) -> str:
    return f"\n  {name} ({class_name(module)}): {reason}" if reason else ""


def _refuse_lookalikes(model: nn.Module) -> None:
    found = {name: module for name, module in model.named_modules() if official.looks_official(module)}
    outer = {name: m for name, m in found.items() if not any(_inside(name, other) for other in found)}
    if outer:
        problems = [_problem(name or "the model", module, official.why_not(module)) for name, module in outer.items()]
        raise ValueError("no layer that can be replaced, but some that look official:" + "".join(problems))


def _inside(name: str, other: str) -> bool:
    return name != other and (other == "" or name.startswith(f"{other}."))


def _check_hooks(layer: nn.Module) -> None:
    for name, module in layer.named_modules():
        for kind in torch_private.HOOKS:
            # The hook of torch.nn.utils.weight_norm, which holds no state of its own.
            hooks = [h for h in getattr(module, kind, {}).values() if type(h).__name__ != "WeightNorm"]
            if hooks:
                raise ValueError(f"{name or 'it'} has hooks ({kind}), which would be lost")
