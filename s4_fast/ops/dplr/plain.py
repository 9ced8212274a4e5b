"""The kernel by its definition, in differentiable operations: what transforms and exported programs see.

Memory grows with n L.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s4_fast.ops.cauchy.plain import cauchy_bilinear

_WIDE = torch.complex128


def dplr_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """w (H, n), P, Q (r, H, n), B (b, H, n), C (c, H, n), dt (H, 1 or n) -> (b, c, H, L)."""
    X, Y = torch.cat((C, Q.conj())).to(_WIDE), torch.cat((B, P)).to(_WIDE)
    c, b, r = C.shape[0], B.shape[0], P.shape[0]
    v = (dt.double() * X[:, None] * Y).flatten(0, 1)
    rho = cauchy_bilinear(v, w, L).unflatten(0, (c + r, b + r)).permute(2, 3, 0, 1)
    theta = math.pi / L * torch.arange(L // 2 + 1, dtype=torch.float64, device=w.device)
    cos, sin = torch.cos(theta), torch.sin(theta)
    h = (torch.complex(cos, -sin) * cos)[:, None, None]  # (1 + omega) / 2
    eye = torch.eye(r, dtype=rho.dtype, device=rho.device)
    correction = rho[..., :c, b:] @ torch.linalg.solve_ex(eye + h * rho[..., c:, b:], h * rho[..., c:, :b]).result
    return torch.fft.irfft((rho[..., :c, :b] - correction).permute(3, 2, 0, 1), n=L).to(dt.dtype)
