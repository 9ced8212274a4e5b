"""The definitions, in any precision: the recurrence s_l = lambda s_{l-1} + B u_l, unrolled.

Unrolled because a loop would multiply L times by a rounded lambda, which costs 6 of 16 digits at L = 2^20. ``D`` and
``state`` are empty where there are none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.ops.vandermonde.reference import powers


def ssm_scan(u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """y_l = 2 Re sum_n C (lambda^(l+1) state + sum_{j<=l} lambda^(l-j) B u_j) + D u_l, and the state after u."""
    L = u.shape[-1]
    table = powers(x, L + 1)
    kernel = 2 * ((C * B)[..., None] * table[..., :L]).sum(-2).real
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(kernel, n=2 * L), n=2 * L)[..., :L]
    final = B * torch.einsum("bhl,hnl->bhn", u.flip(-1).to(x.dtype), table[..., :L])
    if state.numel():
        y = y + 2 * torch.einsum("bhn,hnl->bhl", C * state, table[..., 1:]).real
        final = final + table[..., L] * state
    return (y + D[..., None] * u if D.numel() else y), final


def ssm_step(u: Tensor, state: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """next = lambda state + B u, y = 2 Re sum_n C next + D u."""
    following = torch.exp(x) * state + B * u[..., None]
    y = 2 * (C * following).sum(-1).real
    return (y + D * u if D.numel() else y), following
