"""Right-padded batches: which samples belong to a row, and which are padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from s4_fast import torch_private
from s4_fast.arguments import from_array, integer, is_array

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Rows(NamedTuple):
    """The rows of a right-padded batch."""

    lengths: Tensor  # (batch,), int64
    mask: Tensor  # (batch, length, 1), True inside the rows

    def cut(self, x: Tensor) -> Tensor:
        """x (batch, length, features) with zeros in the padding, whatever was there: NaN times 0 would be NaN."""
        return torch.where(self.mask, x, 0)


Lengths: TypeAlias = Tensor | Sequence[int] | Rows


def rows(lengths: Lengths | None, x: Tensor) -> Rows | None:
    """The rows of x (batch, length, ...), or None where no lengths are given. Rows are passed through.

    Raises:
        TypeError: ``lengths`` are not integers.
        ValueError: there is not one length per row, or one is not in [1, length].
    """
    if lengths is None or isinstance(lengths, Rows):
        return lengths
    batch, longest = x.shape[:2]
    found = _integers(lengths)
    if found.shape != (batch,):
        raise ValueError(f"expected lengths of shape ({batch},), one per row, got {tuple(found.shape)}")
    inside = ((found >= 1) & (found <= longest)).all()
    if torch.compiler.is_compiling():
        torch_private.assert_when_computed(
            inside, "lengths: expected each to be at least 1 and at most the length of the batch"
        )
    elif not torch_private.unwrapped(inside).all():  # under vmap, of all members
        raise ValueError(f"expected lengths from 1 to {longest}, got {torch_private.unwrapped(found).tolist()}")
    found = found.to(x.device, torch.int64)
    return Rows(found, (torch.arange(longest, device=x.device) < found[:, None])[..., None])


def _integers(lengths: Tensor | Sequence[int]) -> Tensor:
    if is_array(lengths):
        lengths = from_array(lengths)
    if isinstance(lengths, Tensor):
        if lengths.dtype not in _INTEGERS:
            raise TypeError(f"expected lengths to be integers, got {lengths.dtype}")
        return lengths
    if not isinstance(lengths, Sequence) or isinstance(lengths, str):
        raise TypeError(f"expected lengths to be a tensor or a sequence of integers, got {lengths!r}")
    try:
        return torch.tensor([integer("lengths", n) for n in lengths], dtype=torch.int64)
    except TypeError as error:
        raise TypeError(f"expected lengths to be integers, got {lengths!r}") from error
