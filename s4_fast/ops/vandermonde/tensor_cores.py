"""Vandermonde products by the native library's kernels for tensor cores."""

from __future__ import annotations

from s4_fast.ops.vandermonde.native import LibraryNodes
from s4_fast.ops.vandermonde.products import Products


class TensorCoreNodes(LibraryNodes):
    prefix = "tensor_"


_PRODUCTS = Products(TensorCoreNodes)
log_vandermonde = _PRODUCTS.log_vandermonde
log_vandermonde_backward = _PRODUCTS.log_vandermonde_backward
log_vandermonde_transpose = _PRODUCTS.log_vandermonde_transpose
log_vandermonde_transpose_backward = _PRODUCTS.log_vandermonde_transpose_backward
