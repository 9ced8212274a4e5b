"""The definitions, in any precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool = True) -> Tensor:
    """sum_n v_n / (z - w_n), plus v_n* / (z - w_n*) if symmetric."""
    v, z, w = v[..., None], z[..., None, :], w[..., None]
    out = (v / (z - w)).sum(-2)
    return out + (v.conj() / (z - w.conj())).sum(-2) if symmetric else out


def cauchy_bilinear(v: Tensor, w: Tensor, L: int) -> Tensor:
    """sum_n 2 v / ((2 - w) - omega (2 + w)), plus conjugates, at omega_k = exp(-2 pi i k / L), 0 <= k <= L/2.

    Divided by exp(-i theta/2), theta = 2 pi k / L: the denominator is then -w cos(theta/2) + 2i sin(theta/2).
    """
    k = torch.arange(L // 2 + 1, dtype=w.real.dtype, device=w.device)
    sin, cos = torch.sin(math.pi / L * k), torch.sin(math.pi / (2 * L) * (L - 2 * k))
    v, w = v[..., None], w[..., None]
    terms = v / torch.complex(-w.real * cos, 2 * sin - w.imag * cos)
    terms = terms + v.conj() / torch.complex(-w.real * cos, 2 * sin + w.imag * cos)
    return torch.complex(cos, sin) * terms.sum(-2)
