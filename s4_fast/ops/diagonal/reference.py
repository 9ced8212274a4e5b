"""The definition, in any precision: the continuous system, its discretisation, and the recurrence in both directions.

``B``, ``D``, ``state`` and ``ahead`` are None where there are none: B is then 1, the others are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.ops.diagonal.form import Form
from s4_fast.ops.scan import reference as scan


def diagonal_ssm(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    form: Form,
) -> tuple[Tensor, Tensor]:
    """u (batch, H, L), dt (H, 1) or (H, n), A_real, A_imag (S, n), B (S, n, 2), C (channels, H, n, 2), D (c, H), state,
    ahead (batch, H, n) -> y (batch, c, H, L), the state after u (batch, H, n).

    Time comes before the features in u and y where ``form.time_major``; the last half of the channels of C runs from
    the end where ``form.bidirectional``.
    """
    u = u.mT if form.time_major else u
    copies = u.shape[1] // len(A_real)
    step = form.rate * (dt.exp() if form.log_dt else dt)
    A = torch.complex(-A_real.exp() if form.log_decay else A_real, -A_imag if form.conjugate else A_imag)
    A = A.repeat(copies, 1)
    weight = torch.ones_like(A) if B is None else torch.view_as_complex(B).repeat(copies, 1)
    x, B_bar = (bilinear if form.bilinear else zoh)(step, A, weight)
    outputs, nothing = torch.view_as_complex(C), u.new_empty(0)
    rows = [D_j for D_j in D] if D is not None else [nothing] * form.channels(len(C))
    begin = nothing if state is None else state
    both = [scan.ssm_scan(u, x, B_bar, C_j, D_j, begin) for C_j, D_j in zip(outputs, rows, strict=False)]
    y, after = torch.stack([y for y, _ in both], 1), both[0][1]
    if form.bidirectional:
        # Output l has the state that the samples after it leave behind: in reversed time, that before its own sample.
        start = torch.zeros_like(after) if ahead is None else ahead
        reversed_u = u.flip(-1)
        for j, C_j in enumerate(outputs[len(rows) :]):
            first = 2 * (C_j * start).sum(-1, keepdim=True).real
            others = scan.ssm_scan(reversed_u, x, B_bar, C_j, nothing, start)[0][..., :-1]
            y[:, j] += torch.cat((first, others), -1).flip(-1)
    return y.permute(0, 3, 1, 2) if form.time_major else y, after


def zoh(step: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """``x = z = step A`` and ``B (exp(z) - 1) / A``, by its series where that cancels (S4D, section 2).

    Not ``step B (exp(z) - 1) / z``, in whose gradient of the step ``exp(z)`` would be a difference of two ``1 / z``.
    """
    z = step * A
    small = z.abs() < 1e-3
    series = step * (1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5))))
    return z, B * torch.where(small, series, (torch.exp(z) - 1) / torch.where(small, 1, A))


def bilinear(step: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """``x = log((2 + z) / (2 - z))`` and ``step B / (1 - z/2)``, z = step A (S4, equation 3, for a diagonal A)."""
    z = step * A
    return torch.log((2 + z) / (2 - z)), step * B / (1 - z / 2)
