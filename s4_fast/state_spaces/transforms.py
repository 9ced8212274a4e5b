"""The maps between a stored number and the positive quantity that it stands for, by their names in state-spaces/s4."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from s4_fast import torch_private

# What "relu" keeps above 0, and the least value that anything starts from.
LEAST = 1e-4

_FORWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda stored: stored,
    "exp": torch.exp,
    "relu": lambda stored: relu(stored) + LEAST,
    "sigmoid": torch.sigmoid,
    "softplus": softplus,
}
_INVERSE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda value: value,
    "exp": torch.log,
    "relu": lambda value: value,
    "sigmoid": torch.logit,
    # log(exp(value) - 1), which would overflow.
    "softplus": lambda value: value + torch.log(-torch.expm1(-value)),
}
TRANSFORMS = tuple(_FORWARD)


def check_transform(option: str, transform: str) -> None:
    """Raise ValueError unless ``transform`` is the name of a transform."""
    if transform not in TRANSFORMS:
        raise ValueError(f"unknown {option} {transform!r}; expected one of {', '.join(TRANSFORMS)}")


def transformed(stored: Tensor, transform: str) -> Tensor:
    """The quantity that ``stored`` stands for: itself, ``exp``, ``relu + 1e-4``, ``sigmoid`` or ``softplus`` of it."""
    return _FORWARD[transform](stored)


def untransformed(value: Tensor, transform: str, name: str) -> Tensor:
    """What to store for ``value``, at least 1e-4 of which is kept; ``"relu"`` stores the value itself, as the original.

    Raises:
        ValueError: a sigmoid would have to be 1 or more; ``name`` is how the message calls the quantity.
    """
    value = value.clamp(min=LEAST)
    if transform == "sigmoid" and torch_private.has_numbers(value) and not bool((value < 1).all()):
        raise ValueError(f"{name} starts at up to {float(value.max()):g}, and a sigmoid stays below 1")
    return _INVERSE[transform](value)
