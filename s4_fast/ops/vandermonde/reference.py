"""The definitions, in any precision."""

from __future__ import annotations

import torch
from torch import Tensor


def powers(x: Tensor, L: int) -> Tensor:
    """exp(x l) for l < L, (..., n) -> (..., n, L).

    x is split into a complex64 part and a rest so that in complex128 both products with l < 2^24 are exact:
    a rounded x l would cost 10 of 16 digits at l = 2^20.
    """
    l = torch.arange(L, dtype=x.real.dtype, device=x.device)
    high = x.to(torch.complex64).to(x.dtype)
    return torch.exp(high[..., None] * l) * torch.exp((x - high)[..., None] * l)


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """2 Re sum_n v_n exp(x_n l)."""
    return 2 * (v[..., None] * powers(x, L)).sum(-2).real


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """sum_l u_l v_n exp(x_n l)."""
    return v * (u[..., None, :] * powers(x, L)).sum(-1)
