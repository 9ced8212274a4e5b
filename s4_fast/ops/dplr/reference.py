"""The definition, in any precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s4_fast.ops.cauchy.reference import cauchy_bilinear


def dplr_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """irfft of rho_CB - h rho_CP (I + h rho_QP)^-1 rho_QB at the L-th roots of unity, h = (1 + omega)/2."""
    X, Y = torch.cat((C, Q.conj())), torch.cat((B, P))
    c, b = C.shape[0], B.shape[0]
    rho = cauchy_bilinear(dt * X[:, None] * Y, w, L).permute(2, 3, 0, 1)
    omega = torch.exp(-2j * math.pi / L * torch.arange(L // 2 + 1, dtype=w.real.dtype, device=w.device))
    h = ((1 + omega) / 2)[:, None, None]
    eye = torch.eye(P.shape[0], dtype=rho.dtype, device=rho.device)
    correction = rho[..., :c, b:] @ torch.linalg.solve(eye + h * rho[..., c:, b:], h * rho[..., c:, :b])
    return torch.fft.irfft((rho[..., :c, :b] - correction).permute(3, 2, 0, 1), n=L)
