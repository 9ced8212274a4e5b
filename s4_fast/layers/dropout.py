"""Dropout with one mask for all time steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s4_fast.time_split import TimeSplittable


class DropoutNd(TimeSplittable):
    """Dropout on (batch, ..., features): with ``tie`` a feature is dropped at every position at once, or at none.

    Tied masks leave the temporal correlations of a feature intact (the variational dropout of Gal and Ghahramani
    2016, arXiv 1512.05287), which is what state space models are trained with.

    Args:
        p: probability of a zero, in [0, 1).
        tie: whether positions share one mask; False is ``torch.nn.Dropout``.
        transposed: whether features come second, (batch, features, ...).

    Examples:
        >>> y = DropoutNd(0.5)(torch.ones(2, 100, 8))
        >>> torch.equal(y[:, 0], y[:, -1])
        True
    """

    def __init__(self, p: float = 0.5, tie: bool = True, transposed: bool = False) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability must be in [0, 1), got {p}")
        self.p, self.tie, self.transposed = p, tie, transposed

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        shape = list(x.shape)
        if self.tie:
            positions = range(2, x.ndim) if self.transposed else range(1, x.ndim - 1)
            for position in positions:
                shape[position] = 1
        keep = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        if self.time_split is not None and self.tie:
            keep = self.time_split.from_first(keep)
        return x * keep.div_(1 - self.p)

    if TYPE_CHECKING:
        __call__ = forward

    def extra_repr(self) -> str:
        return f"p={self.p}, tie={self.tie}, transposed={self.transposed}"
