"""A DPLR SSM over a sequence in pure PyTorch: its maps in blocks of features, and a scan per direction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from s4_fast.ops.diagonal.form import form_of
from s4_fast.ops.dplr_scan.direction import Direction
from s4_fast.ops.dplr_scan.discretization import Discretized
from s4_fast.ops.dplr_scan.maps import MapGradients, Maps

# Complex numbers in the chains of one block of features.
_CHAINS = 1 << 20


def dplr_scan(*given: Any) -> tuple[Tensor, Tensor]:
    """``given`` are the tensors of ``reference.py``, the flags and the rate.

    y is (batch, c H, L), or (batch, L, c H). From the first sample of a row that is not finite on, y is NaN.
    """
    call = _Call(*given)
    y = call.u.new_empty(call.size)
    final = call.C.new_empty(len(call.u), *call.C.shape[1:])
    for h, maps in call.blocks():
        ahead, *late = call.directions(maps, h)
        final[:, h] = ahead.forward(call.u[:, h], call.start(call.state, h), y[:, :, h])
        for direction in late:
            z = torch.empty_like(y[:, :, h])
            direction.forward(call.u[:, h].flip(-1), call.start(call.ahead, h), z)
            y[:, :, h] += z.flip(-1)
    y = y.flatten(1, 2)
    return (y.mT if call.form.time_major else y).to(given[0].dtype), final


def dplr_scan_backward(grad_y: Tensor | None, grad_final: Tensor | None, *given: Any) -> tuple[Tensor | None, ...]:
    """``given`` are as in ``dplr_scan``, and then which gradients are needed."""
    *inputs, needs = given
    call = _Call(*inputs)
    u, parameters = call.u, any(needs[1:7])
    dy = u.new_zeros(call.size) if grad_y is None else call.signal(grad_y).view(call.size)
    grad_u, grad_C = torch.empty_like(u), torch.empty_like(call.C)
    grad_state, grad_ahead = (None if t is None else torch.empty_like(t) for t in (call.state, call.ahead))
    found = []
    for h, maps in call.blocks():
        gradients = MapGradients(maps) if parameters else None
        ahead, *late = call.directions(maps, h)
        seen, start = call.start(grad_final, h), call.start(call.state, h)
        of_start = ahead.backward(dy[:, :, h], seen, u[:, h], start, grad_u[:, h], gradients)
        if grad_state is not None:
            grad_state[:, h] = of_start
        for direction in late:
            of_z, z, start = dy[:, :, h].flip(-1), u[:, h].flip(-1), call.start(call.ahead, h)
            of_u = torch.empty_like(z)
            of_start = direction.backward(of_z, None, z, start, of_u, gradients)
            grad_u[:, h] += of_u.flip(-1)
            if grad_ahead is not None:
                grad_ahead[:, h] = of_start
        if gradients is not None:
            *of_system, grad_C[:, h] = gradients.gradients()
            found.append(of_system)
    stored: tuple[Tensor | None, ...] = (None,) * 5
    if parameters:
        stored = call.system.gradients(*(torch.cat(parts, -2) for parts in zip(*found, strict=True)))
    # A sum of L products that may all but cancel.
    grad_D = (dy.double() * u[:, None]).sum((0, 3)) if needs[7] else None
    grad_u = grad_u.mT if call.form.time_major else grad_u
    every = (grad_u, *stored, torch.view_as_real(grad_C), grad_D, grad_state, grad_ahead)
    pairs = zip(every, inputs[:10], strict=True)
    return tuple(None if g is None or t is None else g.to(t.dtype).reshape(t.shape) for g, t in pairs)


class _Call:
    """The arguments of a call as its blocks of features take them."""

    def __init__(self, *given: Any) -> None:
        u, dt, A_real, A_imag, P, B, C, D, self.state, self.ahead, flags, rate = given
        self.form = form = form_of(flags, rate)
        H, n = u.shape[2 if form.time_major else 1], A_real.shape[1]
        self.C = torch.view_as_complex(C).view(-1, H, n)
        self.c = form.channels(len(self.C))
        self.u = self.signal(u)
        self.size = (len(u), self.c, H, self.u.shape[-1])
        self.D = None if D is None else D.view(self.c, H)
        self.system = Discretized(dt.view(H, -1), A_real, A_imag, P, None if B is None else B.view(-1, n, 2), form)

    def signal(self, t: Tensor) -> Tensor:
        """(batch, features, L) in the parameters' precision."""
        return (t.mT if self.form.time_major else t).to(self.C.dtype.to_real()).contiguous()

    def blocks(self) -> Iterator[tuple[slice, Maps]]:
        """Features, and their maps."""
        system, (channels, H, n) = self.system, self.C.shape
        T = min(_chunk_length(n), self.size[-1])
        step = max(1, _CHAINS // (T * n * (channels + len(system.G) + 1)))
        for first in range(0, H, step):
            h = slice(first, min(first + step, H))
            C = self.C[:, h].to(system.a.dtype)
            yield h, Maps(system.a[h], system.G[:, h], system.V[:, h], system.B_bar[h], C, T)

    def directions(self, maps: Maps, h: slice) -> Iterator[Direction]:
        """The scan of u, and if the system is bidirectional, that of u from its end."""
        D, dtype = None if self.D is None else self.D[:, h], self.u.dtype
        yield Direction(maps, slice(0, self.c), False, D, dtype)
        if self.form.bidirectional:
            yield Direction(maps, slice(self.c, None), True, None, dtype)

    def start(self, state: Tensor | None, h: slice) -> Tensor | None:
        return None if state is None else state[:, h]


def _chunk_length(n: int) -> int:
    """T: T + 4n products a sample inside the chunks, and 4n^2/T float64 ones between them."""
    return min(max(32, 2 * n), 128)
