"""The recurrence by its kernel, in differentiable operations: what transforms and exported programs see.

The FFT is in float64, so that it rounds less than the outputs do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.ops import _finite
from s4_fast.ops.long_conv.plain import convolved
from s4_fast.ops.scan.pytorch import ssm_step as ssm_step
from s4_fast.ops.vandermonde.plain import log_vandermonde, log_vandermonde_transpose, power


def ssm_scan(
    u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, time_major: bool
) -> tuple[Tensor, Tensor]:
    """u (Bt, H, L), or (Bt, L, H) if ``time_major``, x, B, C (H, n), D (H,) or empty, state (Bt, H, n) or empty
    -> y like u, the state after u."""
    u = u.mT if time_major else u
    L, started = u.shape[-1], state.ndim == 3
    kernel = log_vandermonde((C * B)[None], x, L)
    y = convolved(_finite.without(u).double(), kernel.double())[:, 0].to(u.dtype) + _finite.spoilt(u)
    if started:
        y = y + log_vandermonde(C * torch.exp(x) * state, x, L)
    if D.numel():
        y = y + D[:, None] * u
    return (y.mT if time_major else y), final_state(u, x, B, state if started else None)


def final_state(u: Tensor, x: Tensor, B: Tensor, state: Tensor | None) -> Tensor:
    """The state after u (Bt, H, L), from ``state`` or from zero, for x and B (H, n) in any precision."""
    L = u.shape[-1]
    after = log_vandermonde_transpose(u.flip(-1), B[None], x, L)
    return after if state is None else (power(x, L) * state + after).to(state.dtype)
