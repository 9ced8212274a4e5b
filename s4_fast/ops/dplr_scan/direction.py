"""A DPLR recurrence over signals in one direction, forth and back: chunks as matrix products, and what they carry.

Products are in the precision of the call. What is carried from chunk to chunk is float64: a rounding of A^T, or of a
state that hardly decays, would show in every later sample.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from s4_fast.ops.dplr_scan.maps import MapGradients, Maps, complex_, real
from s4_fast.ops.scan.chunks import sum_of_products

# Numbers in the signals and states of one block of features.
_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 27}
# Chunks that the carry takes one after the other; groups of that many are the chunks of its next level.
_RADIX = 16


class Direction:
    """The channels ``which`` of ``maps``. With ``late``, an output sees the samples before its own alone.

    Signals are (batch, H, L) in time's order here. D (c, H) is added to the first lag.
    """

    def __init__(self, maps: Maps, which: slice, late: bool, D: Tensor | None, dtype: torch.dtype) -> None:
        self.maps, self.which, self.T, self.first = maps, which, maps.T, 0 if late else 1
        lags = maps.lags[:, which]
        if late:
            lags = pad(lags[..., :-1], (1, 0))
        elif D is not None:
            lags = torch.cat((lags[..., :1] + D.mT[..., None], lags[..., 1:]), -1)
        self.c = lags.shape[1]
        # Row j holds k_{t-j}: windows of k behind T - 1 zeros. (H, j, c, t)
        self.toeplitz = pad(lags.to(dtype), (self.T - 1, 0)).unfold(-1, self.T, 1).flip(2).transpose(1, 2)
        outgoing = maps.outgoing[:, which, self.first : self.first + self.T]
        self.outgoing = outgoing.to(dtype).permute(0, 3, 1, 2)  # (H, N, c, t)
        self.incoming = maps.incoming.flip(1).to(dtype)  # (H, j, N)

    def forward(self, u: Tensor, start: Tensor | None, y: Tensor) -> Tensor:
        """Write y (batch, c, H, L) and return the state after u, (batch, H, n) complex128."""
        u, lost = _until_lost(u)
        final = u.new_empty(*u.shape[:2], self.incoming.shape[-1], dtype=torch.float64)
        for h, pieces in self._blocks(u):
            s = self._real_state(start, u, h)
            for piece in pieces:
                samples = _cut(u[:, None, h, piece], self.T)
                R, Cmap, _ = self._tables(h, samples.shape[-1])
                states, s = self._states(samples, s, h)
                found = torch.bmm(_rows(samples), R).baddbmm_(_rows(states), Cmap)
                y[:, :, h, piece] = _joined(found, samples, self.c)
            final[:, h] = s.transpose(0, 1)
        if lost is not None:
            y.masked_fill_(lost[:, None], torch.nan)
            final.masked_fill_(lost[..., -1:], torch.nan)
        return complex_(final)

    def backward(
        self,
        dy: Tensor,
        grad_final: Tensor | None,
        u: Tensor,
        start: Tensor | None,
        grad_u: Tensor,
        gradients: MapGradients | None,
    ) -> Tensor:
        """Write the gradient of u and return that of the state before u, complex128, for those of y and the final
        state; add those of the maps to ``gradients``.

        The adjoint states g are the same recurrence in reversed time, ``g = A^T g' + Cmap dy``, with A transposed.
        """
        known_u, lost_u = _until_lost(u)
        known_dy, lost_dy = _until_lost(dy, reverse=True)
        grad_start = u.new_empty(*u.shape[:2], self.incoming.shape[-1], dtype=torch.float64)
        for h, pieces in self._blocks(u):
            s, known = self._real_state(start, u, h), []
            for piece in pieces if gradients is not None else ():
                samples = _cut(known_u[:, None, h, piece], self.T)
                states, s = self._states(samples, s, h)
                known.append((samples, states))
            g = self._real_state(grad_final, u, h)
            for piece in reversed(pieces):
                seen = _cut(known_dy[:, :, h, piece], self.T)
                r = min(self.T, piece.stop - piece.start)
                R, Cmap, Bmap = self._tables(h, r)
                transitions = [t.mT for t in self._transitions(h, r, seen.shape[2])]
                increments = torch.bmm(_rows(seen), Cmap.mT).view(*seen.shape[:3], -1)
                adjoints, g = _carry(increments, transitions, g, reverse=True)
                found = torch.bmm(_rows(seen), R.mT).baddbmm_(_rows(adjoints), Bmap.mT)
                grad_u[:, h, piece] = _joined(found, seen, 1)[:, 0]
                if gradients is not None:
                    samples, states = known.pop()
                    # With what is not finite, so that the gradients are not either.
                    samples = samples if lost_u is None else _cut(u[:, None, h, piece], self.T)
                    seen = seen if lost_dy is None else _cut(dy[:, :, h, piece], self.T)
                    self._add(gradients, h, samples, states, seen, adjoints)
            grad_start[:, h] = g.transpose(0, 1)
        if lost_dy is not None:
            lost = lost_dy.any(1)
            grad_u.masked_fill_(lost, torch.nan)
            grad_start.masked_fill_(lost[..., :1], torch.nan)
        return complex_(grad_start)

    def _states(self, samples: Tensor, s: Tensor, h: slice) -> tuple[Tensor, Tensor]:
        """The states before the chunks, and after the last."""
        _, _, Bmap = self._tables(h, samples.shape[-1])
        increments = torch.bmm(_rows(samples), Bmap).view(*samples.shape[:3], -1)
        return _carry(increments, self._transitions(h, samples.shape[-1], samples.shape[2]), s)

    def _tables(self, h: slice, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """R (h, r, c r), Cmap (h, N, c r) and Bmap (h, r, N) of chunks of r samples."""
        return (
            self.toeplitz[h, :r, :, :r].flatten(2),
            self.outgoing[h, ..., :r].flatten(2),
            self.incoming[h, self.T - r :],
        )

    def _transitions(self, h: slice, r: int, chunks: int) -> list[Tensor]:
        """The powers A^(r radix^k) that a carry over so many chunks needs."""
        found = [self.maps.transition(r, 1)]
        while chunks >= 2 * _RADIX:
            chunks //= _RADIX
            found.append(self.maps.transition(r, _RADIX ** len(found)))
        return [t[h] for t in found]

    def _add(self, gradients: MapGradients, h: slice, u: Tensor, states: Tensor, dy: Tensor, adjoints: Tensor) -> None:
        """Add the sums of products over chunks and rows that are the gradients of the maps."""
        r, first = u.shape[-1], self.first
        u, states, dy, adjoints = (_rows(t) for t in (u, states, dy, adjoints))
        products = sum_of_products(u, dy).unflatten(2, (self.c, r)).transpose(1, 2)  # (h, c, j, t)
        # Shifted by one behind each row, column d of the matrix is the diagonal of lag d.
        sheared = pad(products, (0, r))
        sheared = sheared.as_strided((*sheared.shape[:2], r, r), (*sheared.stride()[:2], 2 * r + 1, 1)).sum(2)
        gradients.lags[h, self.which, : r - 1 + first] += sheared[..., 1 - first :]
        outgoing = sum_of_products(states, dy).unflatten(2, (self.c, r))
        gradients.outgoing[h, self.which, first : first + r] += outgoing.permute(0, 2, 3, 1)
        gradients.incoming[h, :r] += sum_of_products(u, adjoints).flip(1)
        gradients.add_transition(h, r, sum_of_products(states, adjoints))

    def _real_state(self, state: Tensor | None, u: Tensor, h: slice) -> Tensor:
        """(h, batch, N) float64."""
        if state is None:
            return u.new_zeros(h.stop - h.start, len(u), self.incoming.shape[-1], dtype=torch.float64)
        return real(state[:, h]).transpose(0, 1).double()

    def _blocks(self, u: Tensor) -> Iterator[tuple[slice, list[slice]]]:
        """Features, and the pieces of time: the whole chunks, and what is left."""
        batch, H, L = u.shape
        whole = L - L % self.T
        pieces = [piece for piece in (slice(0, whole), slice(whole, L)) if piece.stop > piece.start]
        size = batch * (L * (2 + 2 * self.c) + 4 * self.incoming.shape[-1] * (L // self.T + 1))
        step = max(1, _BLOCK.get(u.device.type, _BLOCK["cuda"]) // size)
        for start in range(0, H, step):
            yield slice(start, min(start + step, H)), pieces


def _until_lost(signal: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor | None]:
    """``signal`` with 0 from the first sample of each row that is not finite on, and where that is; None for nowhere.

    With ``reverse``, from the last such sample back. In a product with a triangular matrix, 0 times NaN would reach the
    outputs before it.
    """
    # Reading a number of an accelerator would wait for it.
    if signal.device.type == "cpu" and signal.sum().isfinite():
        return signal, None
    bad = signal.isfinite().logical_not()
    lost = (bad.flip(-1) if reverse else bad).cumsum(-1, dtype=torch.int32) > 0
    lost = lost.flip(-1) if reverse else lost
    return signal.masked_fill(lost, 0), lost


def _carry(increments: Tensor, powers: list[Tensor], start: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """``s_m = s_{m-1} A + increments_m`` from ``start`` (H, batch, N): s_{m-1} for every m, and the last s.

    increments (H, batch, M, N); powers are A^(radix^k), (H, N, N) float64. With ``reverse``, from the last m to the
    first.
    """
    before = torch.empty_like(increments)
    return before, _carry_to(before, increments, powers, start, reverse)


def _carry_to(before: Tensor, increments: Tensor, powers: list[Tensor], s: Tensor, reverse: bool) -> Tensor:
    A, *further = powers
    if not further:
        return _step_through(increments, A, s, before, reverse)
    batch, M = increments.shape[1:3]
    done = M - M % _RADIX
    whole, rest = (slice(M - done, M), slice(M - done)) if reverse else (slice(done), slice(done, M))
    grouped = increments[:, :, whole].unflatten(2, (-1, _RADIX)).flatten(1, 2)  # (H, batch groups, radix, N)
    sums = _step_through(grouped, A, torch.zeros_like(grouped[:, :, 0], dtype=s.dtype), None, reverse)
    starts, s = _carry(sums.unflatten(1, (batch, -1)), further, s, reverse)
    found = torch.empty_like(grouped)
    _step_through(grouped, A, starts.flatten(1, 2), found, reverse)
    before[:, :, whole] = found.view(len(found), batch, done, -1)
    return _step_through(increments[:, :, rest], A, s, before[:, :, rest], reverse)


def _step_through(increments: Tensor, A: Tensor, s: Tensor, before: Tensor | None, reverse: bool) -> Tensor:
    """The last s, one chunk after the other; those before each chunk are written to ``before``."""
    chunks = range(increments.shape[2])
    for m in reversed(chunks) if reverse else chunks:
        if before is not None:
            before[:, :, m] = s
        s = torch.baddbmm(increments[:, :, m].to(s.dtype), s, A)
    return s


def _cut(signal: Tensor, T: int) -> Tensor:
    """(batch, c, H, M r) -> (H, batch, M, c r), whose rows flatten to a view."""
    return signal.unflatten(-1, (-1, min(T, signal.shape[-1]))).permute(2, 0, 3, 1, 4).flatten(3).contiguous()


def _joined(rows: Tensor, like: Tensor, c: int) -> Tensor:
    """(H, batch M, c r) -> (batch, c, H, M r), for the batch and M of ``like``."""
    return rows.view(*like.shape[:3], c, -1).permute(1, 3, 0, 2, 4).flatten(3)


def _rows(t: Tensor) -> Tensor:
    """(H, batch, M, ...) -> (H, batch M, ...)."""
    return t.flatten(1, 2)
