"""The definition, in any precision: the continuous system, its bilinear discretisation, and the recurrence.

``B``, ``D``, ``state`` and ``ahead`` are None where there are none: B is then 1, the others are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.ops.diagonal.form import Form


def dplr_scan(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    P: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    form: Form,
) -> tuple[Tensor, Tensor]:
    """u (batch, H, L), dt (H, 1) or (H, n), A_real, A_imag (S, n), P (rank, S, n, 2), B (S, n, 2), C (channels, H, n,
    2), D (c, H), state, ahead (batch, H, n) -> y (batch, c, H, L), the state after u (batch, H, n).

    Time comes before the features in u and y where ``form.time_major``; the last half of the channels of C runs from
    the end where ``form.bidirectional``.
    """
    u = u.mT if form.time_major else u
    H, n = u.shape[1], A_real.shape[-1]
    copies = H // len(A_real)
    Lambda = torch.complex(-A_real.exp() if form.log_decay else A_real, -A_imag if form.conjugate else A_imag)
    Lambda, P = Lambda.repeat(copies, 1), torch.view_as_complex(P).repeat(1, copies, 1)
    weight = torch.ones_like(Lambda) if B is None else torch.view_as_complex(B).repeat(copies, 1)
    step = (form.rate * (dt.exp() if form.log_dt else dt)).expand(H, n)
    # With both halves of every pair, (s, s*), the system has complex matrices.
    both = torch.cat((P, P.conj()), -1)
    A = torch.diag_embed(torch.cat((Lambda, Lambda.conj()), -1)) - torch.einsum("rhi,rhj->hij", both, both.conj())
    Z = torch.cat((step, step), -1)[..., None] * A
    eye = torch.eye(2 * n, dtype=Z.dtype, device=Z.device)
    A_bar = torch.linalg.solve_ex(eye - Z / 2, eye + Z / 2).result
    B_bar = torch.linalg.solve_ex(eye - Z / 2, _both(step * weight)).result
    outputs = torch.view_as_complex(C)
    c = form.channels(len(outputs))
    y, after = _run(u, A_bar, B_bar, outputs[:c], state)
    if form.bidirectional:
        # Output l has the state that the samples after it leave behind: in reversed time, that before its own sample.
        late, _ = _run(u.flip(-1), A_bar, B_bar, outputs[c:], ahead, before=True)
        y = y + late.flip(-1)
    if D is not None:
        y = y + D[..., None] * u[:, None]
    return y.permute(0, 3, 1, 2) if form.time_major else y, after


def _run(
    u: Tensor, A_bar: Tensor, B_bar: Tensor, C: Tensor, state: Tensor | None, before: bool = False
) -> tuple[Tensor, Tensor]:
    """``2 Re C s_l``, or of s_{l-1} if ``before``, (batch, c, H, L), and the last state."""
    n = C.shape[-1]
    s = u.new_zeros(len(u), u.shape[1], n, dtype=C.dtype) if state is None else state
    s, rows = _both(s), []
    for u_l in u.unbind(-1):
        following = torch.einsum("hij,bhj->bhi", A_bar, s) + B_bar * u_l[..., None]
        seen = s if before else following
        rows.append(2 * torch.einsum("chn,bhn->bch", C, seen[..., :n]).real)
        s = following
    return torch.stack(rows, -1), s[..., :n]


def _both(half: Tensor) -> Tensor:
    return torch.cat((half, half.conj()), -1)
