"""Vandermonde products by KeOps, which evaluates every exp(x l) and stores none.

The phase x l is formed in the precision of x, so in float32 its error grows with l: 1e-3 at l = 2^20.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.ops._keops import pairs, sum_over_j
from s4_fast.ops.vandermonde.products import Nodes, Products

_POWER = "ComplexExp(ComplexRealScal(l, x))"


class _Nodes(Nodes):
    def synthesize(self, v: Tensor, scale: float) -> Tensor:
        nodes = {"v": pairs(scale * v), "x": pairs(self.x)[None]}
        return sum_over_j(f"ComplexReal(ComplexMult(v, {_POWER}))", {"l": self._indices()}, nodes)[..., 0]

    def moments(self, u: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        signal = {"u": u[..., None], "l": self._indices()}
        # Both in one formula: another one would have to be compiled.
        out = sum_over_j(f"TensorProd(Concat(u, u * l), {_POWER})", {"x": pairs(self.x)[None]}, signal)
        zeroth, with_l = torch.view_as_complex(out.unflatten(-1, (2, 2))).unbind(-1)
        return zeroth, with_l if first else None

    def _indices(self) -> Tensor:
        return torch.arange(self.L, dtype=self.x.real.dtype, device=self.x.device).view(1, 1, self.L, 1)


_PRODUCTS = Products(_Nodes)
log_vandermonde = _PRODUCTS.log_vandermonde
log_vandermonde_backward = _PRODUCTS.log_vandermonde_backward
log_vandermonde_transpose = _PRODUCTS.log_vandermonde_transpose
log_vandermonde_transpose_backward = _PRODUCTS.log_vandermonde_transpose_backward
