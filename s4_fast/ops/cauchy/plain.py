"""The sums by their definition, in differentiable operations: what transforms and exported programs see.

Memory grows with n times the number of nodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s4_fast.ops._complex import joined, parts


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool) -> Tensor:
    """v (c, H, n), z (1 or H, Lz), w (H, n) -> (c, H, Lz)."""
    z, w = z[:, None], w[..., None]
    out = _weighted(v, 1 / (z - w))
    return out + _weighted(v.conj(), 1 / (z - w.conj())) if symmetric else out


def cauchy_bilinear(v: Tensor, w: Tensor, L: int) -> Tensor:
    """v (c, H, n), w (H, n) -> (c, H, L//2 + 1), formed in complex128: beside a weakly damped pole terms cancel."""
    k = torch.arange(L // 2 + 1, dtype=torch.float64, device=w.device)
    sin, cos = torch.sin(math.pi / L * k), torch.sin(math.pi / (2 * L) * (L - 2 * k))
    wide, (real, imag) = v.to(torch.complex128), (t.double()[..., None] for t in parts(w))
    sums = _weighted(wide, 1 / joined(-real * cos, 2 * sin - imag * cos))
    sums = sums + _weighted(wide.conj(), 1 / joined(-real * cos, 2 * sin + imag * cos))
    return (joined(cos, sin) * sums).to(v.dtype)


def _weighted(v: Tensor, inverse: Tensor) -> Tensor:
    """sum_n v_n inverse_n: (c, H, n), (H, n, F) -> (c, H, F)."""
    return (v.transpose(0, 1) @ inverse).transpose(0, 1)
