"""Vandermonde products in pure PyTorch: two-level GEMMs, forward and backward."""

from __future__ import annotations

from torch import Tensor

from s4_fast.ops.vandermonde.products import Nodes, Products
from s4_fast.ops.vandermonde.two_level import TwoLevelTables, log_powers


class _Nodes(Nodes):
    def __init__(self, x: Tensor, L: int, rows: int) -> None:
        super().__init__(x, L, rows)
        self._tables = TwoLevelTables(log_powers(x, L), L, x.dtype, rows)

    def synthesize(self, v: Tensor, scale: float) -> Tensor:
        return self._tables.synthesize(v if scale == 1 else scale * v)

    def moments(self, u: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        return self._tables.moments(u, first)


_PRODUCTS = Products(_Nodes)
log_vandermonde = _PRODUCTS.log_vandermonde
log_vandermonde_backward = _PRODUCTS.log_vandermonde_backward
log_vandermonde_transpose = _PRODUCTS.log_vandermonde_transpose
log_vandermonde_transpose_backward = _PRODUCTS.log_vandermonde_transpose_backward
