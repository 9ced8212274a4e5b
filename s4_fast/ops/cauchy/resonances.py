"""Cauchy sums at the roots of unity node by node, for the few poles that lie next to a node.

Next to a node the FFT form divides by 1 - lambda^L, which is almost 0: the sum at that node is right, but rounding
errors of its size reach all the others. In half angles, with e = exp(i theta/2), s and c its imaginary and real part,

    v / ((1 - omega) - (w/2)(1 + omega)) = v a,   its conjugate pair = (v b)*,
    a = e / (2is - w c),   b = e* / (-2is - w c).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, conj_physical

# Entries of one block of rows by poles by nodes.
_BLOCK = 1 << 20


class Resonances:
    """The poles of ``w`` (H, n), complex128, that ``mask`` selects: features ``h`` and states ``n``, (m,) each."""

    def __init__(self, w: Tensor, mask: Tensor, L: int) -> None:
        self.h, self.n = mask.nonzero(as_tuple=True)
        self.w = w[self.h, self.n, None]
        k = torch.arange(L // 2 + 1, dtype=torch.float64, device=w.device)
        self.sin, self.cos = torch.sin(math.pi / L * k), torch.sin(math.pi / (2 * L) * (L - 2 * k))
        self.e = torch.complex(self.cos, self.sin)

    def add_sums(self, out: Tensor, v: Tensor) -> None:
        """Add the sums over these poles to ``out`` (R, H, F): v (R, H, n)."""
        for block, left, right in self._blocks(rows=v.shape[0]):
            h = self.h[block]
            terms = v[:, h, self.n[block], None]
            terms = terms * (self.e * left) + conj_physical(terms * (conj_physical(self.e) * right))
            out.index_add_(1, h, terms.to(out.dtype))

    def moments(self, half: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """sum_k (g* a + g b) and sum_k (g* da/dw + g db/dw), (R, m), for g* = ``half`` (R, H, F) * ``weight`` (F,)."""
        e = self.e * weight
        zeroth, first = [], []
        for block, left, right in self._blocks(rows=half.shape[0]):
            g = half[:, self.h[block]] * e
            a, b = g * left, conj_physical(g) * right
            zeroth.append((a + b).sum(-1))
            first.append(((a * left + b * right) * self.cos).sum(-1))
        return torch.cat(zeroth, -1), torch.cat(first, -1)

    def _blocks(self, rows: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of poles with 1/(2is - w c) and 1/(-2is - w c), (m_block, F)."""
        step = max(1, _BLOCK // (rows * len(self.sin)))
        for start in range(0, len(self.h), step):
            block = slice(start, start + step)
            wc = self.w[block] * self.cos
            yield block, torch.reciprocal(2j * self.sin - wc), torch.reciprocal(-2j * self.sin - wc)
