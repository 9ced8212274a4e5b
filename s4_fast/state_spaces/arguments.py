"""Checks of what the layers here are called with."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from s4_fast.arguments import from_array, integer, is_array
from s4_fast.layers.padding import Lengths


def longest(l_max: Any) -> int | None:
    """``l_max`` as an int, or None; TypeError or ValueError where it is not a length."""
    return None if l_max is None else integer("l_max", l_max, 1)


def check_shape(x: Tensor, features: int, transposed: bool, least: int = 0) -> None:
    """Raise ValueError unless x is (batch, features, length), or (batch, length, features) where not ``transposed``.

    ``least`` is the least length.
    """
    if x.ndim != 3 or x.shape[1 if transposed else 2] != features or x.shape[2 if transposed else 1] < least:
        expected = f"(batch, {features}, length)" if transposed else f"(batch, length, {features})"
        behind = f" with length >= {least}" if least else ""
        raise ValueError(f"expected x of shape {expected}{behind}, got {tuple(x.shape)}")


def refuse_requests(kwargs: Mapping[str, Any], taken: str) -> None:
    """Raise TypeError where a keyword argument asks for something: is neither None nor False."""
    asked = [name for name, value in kwargs.items() if value is not None and value is not False]
    if asked:
        raise TypeError(f"{taken}; got {', '.join(asked)}")


def per_row(lengths: Lengths | int | None, batch: int) -> Lengths | None:
    """``lengths`` with one entry per row, where one was given for all."""
    if isinstance(lengths, bool):
        raise TypeError(f"expected lengths to be integers, got {lengths}")
    if is_array(lengths):
        lengths = from_array(lengths)
    if isinstance(lengths, Integral):  # NumPy's too
        return torch.full((batch,), int(lengths))
    if isinstance(lengths, Tensor) and lengths.shape == (1,):
        return lengths.expand(batch)
    return lengths  # type: ignore[return-value]


def flattened(state: Tensor) -> Tensor:
    """(..., features, states) -> (..., features * states)."""
    return state.flatten(-2)
