"""The canonical layout of batched ops, (c, H, m) beside a shared (H, n), so that tables over (H, n) are built once."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def fold(lead: torch.Size, shared: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """``shared`` as (H, n) and every other tensor as (c, H, m), where c * H is the number of entries of ``lead``.

    ``lead`` is the broadcast shape of all leading dimensions. Those that ``shared`` lacks become c. Where
    ``shared`` broadcasts in the middle, it is expanded to ``lead`` and c = 1.
    """
    own = shared.shape[:-1]
    while own and own[0] == 1:
        own = own[1:]
    if lead[len(lead) - len(own) :] != own:
        own = lead
        shared = shared.expand(*lead, shared.shape[-1])
    H, c = prod(own), prod(lead[: len(lead) - len(own)])
    folded = [shared.reshape(H, shared.shape[-1])]
    folded += [t.expand(*lead, t.shape[-1]).reshape(c, H, t.shape[-1]) for t in others]
    return tuple(folded)


def sum_over(t: Tensor, dim: int) -> Tensor:
    """``t.sum(dim)`` without the pass over memory that it costs where there is nothing to add."""
    return t.squeeze(dim) if t.shape[dim] == 1 else t.sum(dim)
