"""The definitions, in any precision."""

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
    correction = rho[..., :c, b:] @ torch.linalg.solve_ex(eye + h * rho[..., c:, b:], h * rho[..., c:, :b]).result
    return torch.fft.irfft((rho[..., :c, :b] - correction).permute(3, 2, 0, 1), n=L)


def dplr_step(
    u: Tensor, state: Tensor, increment: Tensor, G: Tensor, V: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """s' = s + increment s - sum_r G_r (2 Re sum_n V_r s) + B u, and y_c = 2 Re sum_n C_c s' + D u."""
    overlap = 2 * torch.einsum("rhn,bhn->brh", V, state).real
    state = state + increment * state - torch.einsum("rhn,brh->bhn", G, overlap.to(G.dtype)) + B * u[..., None]
    y = 2 * torch.einsum("chn,bhn->bch", C, state).real
    return (y if D is None else y + (D * u)[:, None]), state
