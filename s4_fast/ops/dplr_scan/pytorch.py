"""A DPLR SSM over a sequence in pure PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s4_fast.ops.diagonal.form import form_of
from s4_fast.ops.dplr_scan import reference

_COMPLEX = (8, 9)


def dplr_scan(*given: Any) -> tuple[Tensor, Tensor]:
    *tensors, flags, rate = given
    return _plain(tensors, flags, rate)


def _plain(tensors: Any, flags: int, rate: float) -> tuple[Tensor, Tensor]:
    u, dt, A_real, A_imag, P, B, C, D, state, ahead = tensors
    form = form_of(flags, rate)
    H, n = u.shape[2 if form.time_major else 1], A_real.shape[1]

    def wide(t: Any, *shape: int) -> Any:
        if t is None:
            return None
        t = t.to(torch.complex128 if t.is_complex() else torch.float64)
        return t.reshape(shape) if shape else t

    y, final = reference.dplr_scan(
        wide(u), wide(dt.reshape(H, -1)), wide(A_real), wide(A_imag), wide(P), wide(B, -1, n, 2), wide(C, -1, H, n, 2),
        wide(D, -1, H), wide(state), wide(ahead), form,
    )
    y = y.flatten(2) if form.time_major else y.flatten(1, 2)
    return y.to(u.dtype), final.to(C.dtype.to_complex())


def dplr_scan_backward(grad_y: Tensor | None, grad_final: Tensor | None, *given: Any) -> tuple[Tensor | None, ...]:
    *tensors, flags, rate, needs = given
    with torch.enable_grad():
        views = [None if t is None else t.detach().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
        outputs = _plain(views, flags, rate)
        used = [(o, g) for o, g in zip(outputs, (grad_y, grad_final), strict=True) if g is not None]
        wanted = [t for t, need in zip(views, needs, strict=True) if need]
        found = iter(torch.autograd.grad([o for o, _ in used], wanted, [g for _, g in used], materialize_grads=True))
    return tuple(next(found) if need else None for need in needs)
