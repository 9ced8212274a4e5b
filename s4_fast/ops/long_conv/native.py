"""The causal convolution by the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.native_library import DTYPES, Function

_FORWARD = Function("fft_conv", "iiiiiipppp")
_BACKWARD = Function("fft_conv_backward", "iiiiiippppppp")


def fft_conv(u: Tensor, k: Tensor, D: Tensor) -> Tensor:
    """u (B, H, L), k (c, H, Lk), D (c, H) or empty -> (B, c, H, L)."""
    y = u.new_empty(u.shape[0], k.shape[0], *u.shape[1:])
    _FORWARD(u, *_sizes(u, k), u, k, _given(D), y)
    return y


def fft_conv_backward(
    grad: Tensor, u: Tensor, k: Tensor, D: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad_u, grad_k, grad_D = (torch.empty_like(t) if need else None for t, need in zip((u, k, D), needs, strict=True))
    of_D = None if grad_D is None else _given(grad_D)
    _BACKWARD(u, *_sizes(u, k), grad, u, k, _given(D), grad_u, grad_k, of_D)
    return grad_u, grad_k, grad_D


def _sizes(u: Tensor, k: Tensor) -> tuple[int, ...]:
    B, H, L = u.shape
    return DTYPES[u.dtype], B, k.shape[0], H, L, k.shape[2]


def _given(t: Tensor) -> Tensor | None:
    return t if t.numel() else None
