"""What the FFT form of Cauchy sums needs, by Vandermonde products whose nodes are given in single precision.

There exp(x l) must be right to the last l, but x is what w says in float64. With r the rounded x and d = x - r,

    exp(x l) = exp(r l) sum_k (d l)^k / k!,

of which few terms count, as |Im d| is at most 2^-23: they are further rows of the same products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from s4_fast.ops.vandermonde.products import Nodes

_ROUNDING = 2**-23
# The first term that is left out, for the worst node and the last sample. Of all of them it is a seventh.
_LEFT_OUT = 2**-20


@dataclass(frozen=True)
class RoundedNodes:
    """Makes the products of a backend's ``nodes``, as ``.fft_form.two_level`` does; ``dtype`` is complex64."""

    nodes: type[Nodes]

    def __call__(self, x: Tensor, negative: Tensor, L: int, dtype: torch.dtype, rows: int) -> SeriesProducts:
        half_turn = torch.copysign(torch.full_like(x.real, math.pi), x.imag)
        x = torch.complex(x.real, torch.where(negative, x.imag - half_turn, x.imag))
        return SeriesProducts(x, L, dtype, rows, self.nodes)


class SeriesProducts:
    """``.fft_form.PowerProducts`` with the nodes exp(x), x (H, n) in complex128."""

    def __init__(self, x: Tensor, L: int, dtype: torch.dtype, rows: int, nodes: type[Nodes]) -> None:
        rounded = x.to(dtype)
        self.L, self.terms = L, terms(L)
        step = (x - rounded) * L
        self._weights = [torch.ones_like(step)]  # (d L)^k / k!
        for k in range(1, self.terms):
            self._weights.append(self._weights[-1] * step / k)
        self._nodes = nodes(rounded, L, rows * self.terms)
        self._time = torch.arange(L, dtype=rounded.real.dtype, device=x.device) / L

    def synthesize(self, v: Tensor) -> Tensor:
        dtype = self._nodes.x.dtype
        stacked = torch.cat([(v * weight).to(dtype) for weight in self._weights])
        *parts, out = self._nodes.synthesize(stacked, 1.0).chunk(self.terms)
        for part in reversed(parts):
            out = torch.addcmul(part, out, self._time)
        return out

    def moments(self, u: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        sums = self._scaled_moments(u.to(self._time.dtype), self.terms + first)
        zeroth = self._series(sums[: self.terms])
        return zeroth, self.L * self._series(sums[1:]) if first else None

    def _series(self, sums: list[Tensor]) -> Tensor:
        return torch.stack([weight * s for weight, s in zip(self._weights, sums, strict=True)]).sum(0)

    def _scaled_moments(self, u: Tensor, count: int) -> list[Tensor]:
        """sum_l (l/L)^k u_l exp(r l) for k < ``count``. A backend has those of k and k + 1 of one row."""
        rows = [u]
        for _ in range((count - 1) // 2):
            rows.append(rows[-1] * self._time.square())
        even, odd = self._nodes.moments(torch.cat(rows), count > 1)
        found = [even] if odd is None else [even, odd / self.L]
        pairs = zip(*(t.chunk(len(rows)) for t in found), strict=True)
        return [s for pair in pairs for s in pair][:count]


def terms(L: int) -> int:
    """How many terms of the series count at length L."""
    left_out, k = 1.0, 0
    while left_out > _LEFT_OUT:
        k += 1
        left_out *= _ROUNDING * L / k
    return k
