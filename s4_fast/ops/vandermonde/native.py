"""Vandermonde products by the native library."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from s4_fast import native_library
from s4_fast.ops.vandermonde.products import Nodes, Products


class LibraryNodes(Nodes):
    """By the C functions ``<prefix>vandermonde`` and ``<prefix>moments``."""

    prefix: ClassVar[str] = ""

    def synthesize(self, v: Tensor, scale: float) -> Tensor:
        c, H, n = v.shape
        out = v.new_empty(c, H, self.L, dtype=v.real.dtype)
        native_library.call(f"{self.prefix}vandermonde", out, v.dtype, c, H, n, self.L, v, self.x, scale, out)
        return out

    def moments(self, u: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        (c, H, L), n = u.shape, self.x.shape[-1]
        zeroth = self.x.new_empty(c, H, n)
        with_l = self.x.new_empty(c, H, n) if first else None
        native_library.call(f"{self.prefix}moments", u, u.dtype, c, H, n, L, u, self.x, zeroth, with_l)
        return zeroth, with_l


_PRODUCTS = Products(LibraryNodes)
log_vandermonde = _PRODUCTS.log_vandermonde
log_vandermonde_backward = _PRODUCTS.log_vandermonde_backward
log_vandermonde_transpose = _PRODUCTS.log_vandermonde_transpose
log_vandermonde_transpose_backward = _PRODUCTS.log_vandermonde_transpose_backward
