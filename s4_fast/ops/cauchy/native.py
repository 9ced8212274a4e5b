"""Cauchy sums by the native library: at arbitrary nodes, and on the CPU at the roots of unity."""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast import native_library


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool) -> Tensor:
    """v (c, H, n), z (1 or H, Lz), w (H, n) -> (c, H, Lz)."""
    out = v.new_empty(*v.shape[:2], z.shape[1])
    native_library.call("cauchy_mult", v, *_sizes(v, z), v, z, w, symmetric, out)
    return out


def cauchy_mult_backward(
    grad: Tensor, v: Tensor, z: Tensor, w: Tensor, symmetric: bool, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    grads = _empty_where(needs, v, z, w)
    native_library.call("cauchy_mult_backward", v, *_sizes(v, z), grad, v, z, w, symmetric, *grads)
    return grads


def cauchy_bilinear(v: Tensor, w: Tensor, L: int) -> Tensor:
    """v (c, H, n), w (H, n) -> (c, H, L//2 + 1)."""
    out = v.new_empty(*v.shape[:2], L // 2 + 1)
    native_library.call("cauchy_bilinear", v, v.dtype, *v.shape, L, v, w, out)
    return out


def cauchy_bilinear_backward(
    grad: Tensor, v: Tensor, w: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    grads = _empty_where(needs, v, w)
    native_library.call("cauchy_bilinear_backward", v, v.dtype, *v.shape, L, grad, v, w, *grads)
    return grads


def _sizes(v: Tensor, z: Tensor) -> tuple[torch.dtype, int, int, int, int, int]:
    return v.dtype, *v.shape, z.shape[1], z.shape[0]


def _empty_where(needs: tuple[bool, ...], *tensors: Tensor) -> tuple[Tensor | None, ...]:
    return tuple(torch.empty_like(t) if needed else None for t, needed in zip(tensors, needs, strict=True))
