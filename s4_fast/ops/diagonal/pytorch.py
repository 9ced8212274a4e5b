"""A diagonal SSM from its continuous parameters in pure PyTorch: the discretisation, and a scan per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, conj_physical
from torch.nn.functional import pad

from s4_fast.ops.diagonal.discretization import Discretized
from s4_fast.ops.diagonal.form import form_of
from s4_fast.ops.scan import pytorch as scan

_Scan = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # u, x, B, C, D and the state


def diagonal_ssm(*given: Any) -> tuple[Tensor, Tensor]:
    """``given`` are the tensors of ``form.Arguments``, the flags and the rate.

    y is (batch, c H, L), or (batch, L, c H).
    """
    call = _Call(*given)
    form, u = call.form, given[0]
    rows, final = [], None
    for j in range(call.c):
        y, after = scan.ssm_scan(*call.forwards(j), False)
        final = after if final is None else final
        if form.bidirectional:
            y = y + call.late(scan.ssm_scan(*call.reversed(j), False)[0], j)
        rows.append(y)
    y = rows[0] if len(rows) == 1 else torch.cat(rows, 1)
    assert final is not None
    return (y.mT if form.time_major else y).to(u.dtype), final.to(call.C.dtype)


def diagonal_ssm_backward(grad_y: Tensor | None, grad_final: Tensor | None, *given: Any) -> tuple[Tensor | None, ...]:
    """``given`` are as in ``diagonal_ssm``, and then which gradients are needed."""
    *inputs, needs = given
    call = _Call(*inputs)
    form = call.form
    u, dt, A_real, A_imag, B, C, D, state, ahead = inputs[:9]
    size = (len(u), call.c * len(dt), call.u.shape[-1])
    grad_y = call.C.real.new_zeros(size) if grad_y is None else call.signal(grad_y)
    parameters = any(needs[1:6])
    wanted = (needs[0], parameters, parameters, parameters, needs[6], True)  # of u, x, B, C, D and the state
    grad_u = torch.zeros_like(call.u) if needs[0] else None
    grad_x, grad_B_bar, grad_C = torch.zeros_like(call.x), torch.zeros_like(call.x), torch.zeros_like(call.C)
    grad_D = None if D is None else torch.zeros_like(D.view(call.c, -1))
    grad_state = None if state is None else torch.zeros_like(state)
    grad_ahead = None if ahead is None else torch.zeros_like(ahead)
    for j, dy in enumerate(grad_y.chunk(call.c, 1)):
        # One final state is that of all channels.
        seen = grad_final if j == 0 else None
        found = scan.ssm_scan_backward(dy, seen, *call.forwards(j), False, wanted)
        of_u, of_x, of_B, of_C, of_D, of_state = found
        pairs = [(grad_u, of_u), (grad_x, of_x), (grad_B_bar, of_B), (grad_C[j], of_C), (grad_state, of_state)]
        _add(*pairs, (None if grad_D is None else grad_D[j], of_D))
        if form.bidirectional:
            late = call.c + j
            flipped = dy.flip(-1)
            of_z, unseen = pad(flipped[..., 1:], (0, 1)), (*wanted[:4], False, True)
            found = scan.ssm_scan_backward(of_z, None, *call.reversed(j), False, unseen)
            of_u, of_x, of_B, of_C, _, of_start = found
            of_u = None if of_u is None else of_u.flip(-1)
            _add((grad_u, of_u), (grad_x, of_x), (grad_B_bar, of_B), (grad_C[late], of_C))
            if ahead is not None:
                first = flipped[..., :1]
                of_C = (2 * first * conj_physical(ahead)).sum(0)
                _add(
                    (grad_C[late], of_C), (grad_ahead, of_start), (grad_ahead, 2 * first * conj_physical(call.C[late]))
                )
    of_dt, of_A_real, of_A_imag, of_weight = call.system.gradients(grad_x, grad_B_bar)
    if grad_u is not None:
        grad_u = (grad_u.mT if form.time_major else grad_u).to(u.dtype)
    return (
        grad_u,
        of_dt.to(dt.dtype).view(dt.shape),
        of_A_real.to(A_real.dtype),
        of_A_imag.to(A_imag.dtype),
        None if B is None else of_weight.to(B.dtype).view(B.shape),
        torch.view_as_real(grad_C).view(C.shape),
        None if D is None or grad_D is None else grad_D.view(D.shape),
        grad_state,
        grad_ahead,
    )


class _Call:
    """The arguments of a call as the scan takes them."""

    def __init__(self, *given: Any) -> None:
        u, dt, A_real, A_imag, B, C, D, state, ahead, flags, rate = given
        self.form = form = form_of(flags, rate)
        H, n = u.shape[2 if form.time_major else 1], A_real.shape[1]
        self.time_major = form.time_major
        self.C = torch.view_as_complex(C).view(-1, H, n)
        self.c = form.channels(len(self.C))
        self.u = self.signal(u)
        self.system = Discretized(dt.view(H, -1), A_real, A_imag, None if B is None else B.view(-1, n, 2), form)
        self.x, self.B_bar = self.system.x, self.system.B_bar
        self.skips, self.ahead = None if D is None else D.view(self.c, H), ahead
        self.nothing = self.u.new_empty(0)
        self.state = self.nothing if state is None else state

    def signal(self, t: Tensor) -> Tensor:
        """(batch, features, L) in the parameters' precision."""
        return (t.mT if self.time_major else t).to(self.C.dtype.to_real()).contiguous()

    def forwards(self, j: int) -> _Scan:
        """The arguments of a channel's scan."""
        skip = self.nothing if self.skips is None else self.skips[j]
        return self.u, self.x, self.B_bar, self.C[j], skip, self.state

    def reversed(self, j: int) -> _Scan:
        """The scan of u from its end, whose outputs are seen one sample late."""
        start = self.nothing if self.ahead is None else self.ahead
        return self.u.flip(-1), self.x, self.B_bar, self.C[self.c + j], self.nothing, start

    def late(self, z: Tensor, j: int) -> Tensor:
        """What the scan z of the reversed u adds to y."""
        y = pad(z[..., :-1], (1, 0))
        if self.ahead is not None:
            y[..., 0] += 2 * (self.C[self.c + j] * self.ahead).sum(-1).real
        return y.flip(-1)


def _add(*pairs: tuple[Tensor | None, Tensor | None]) -> None:
    """Add to each total its part, where there are both."""
    for total, part in pairs:
        if total is not None and part is not None:
            total += part
