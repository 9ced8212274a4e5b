"""The recurrence of an S4 layer as dense real matrices: whole sequences from state to state, in blocks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


class DenseRecurrence:
    """``s' = A s + B u``, ``y = C s'`` on real states (batch, d_model, N), with what blocks of a sequence need of it.

    Powers of A are formed in float64, and rounded once, to ``dtype``; products are in ``dtype`` also under autocast.
    """

    def __init__(self, A: Tensor, B: Tensor, C: Tensor, dtype: torch.dtype) -> None:
        """A (d_model, N, N), B (d_model, N), C (d_model, channels, N), float64."""
        self._A, self._B, self._C, self._dtype = A, B, C, dtype
        self._levels = self._block = 0
        self._powers: list[Tensor] = []  # the transposes of A^(2^level)

    def after(self, u: Tensor, s: Tensor | None, counts: Tensor | None) -> Tensor:
        """The state after u (batch, d_model, L) from ``s``, or from 0.

        Where rows begin late, ``counts`` (batch,) says how many of their samples, the last ones, come after ``s``.

        Blocks of about sqrt(L) samples leave a state each; then neighbours are merged until one is left. So the cost is
        O(N L) per feature, and O(log L) products depend on each other.
        """
        L = u.shape[-1]
        level, block = self._prepare(L)
        count = -(-L // block)
        with torch.autocast(u.device.type, enabled=False):
            blocks = pad(u.to(self._dtype), (count * block - L, 0)).transpose(0, 1).unflatten(-1, (count, block))
            found = _times(blocks, self._inputs[:, self._block - block :])  # (d_model, batch, blocks, N)
            while count > 1:
                count = (count + 1) // 2
                found = pad(found, (0, 0, 2 * count - found.shape[2], 0))
                found = _times(found[:, :, ::2], self._powers[level]) + found[:, :, 1::2]
                level += 1
            after = found[:, :, 0].transpose(0, 1)
            return after if s is None else after + self._advanced(s, L, counts)

    def response(self, s: Tensor, L: int) -> Tensor:
        """``C A^l s``, (batch, channels, d_model, L). Blocks as in :meth:`after`."""
        level, block = self._prepare(L)
        channels = self._C.shape[1]
        with torch.autocast(s.device.type, enabled=False):
            starts = s.transpose(0, 1)[:, :, None]  # (d_model, batch, blocks, N)
            while starts.shape[2] * block < L:
                starts = torch.cat((starts, _times(starts, self._powers[level])), 2)
                level += 1
            y = _times(starts, self._outputs[..., : block * channels]).unflatten(-1, (block, channels))
        return y.permute(1, 4, 0, 2, 3).flatten(-2)[..., :L]

    def advanced(self, s: Tensor, L: int) -> Tensor:
        """The state L samples of 0 after ``s``."""
        self._prepare(L)
        with torch.autocast(s.device.type, enabled=False):
            return self._advanced(s, L, None)

    def kernel(self, L: int) -> Tensor:
        """``C A^l B``, (channels, d_model, L): the impulse response."""
        return self.response(self._B[None].to(self._dtype), L)[0]

    def _advanced(self, s: Tensor, L: int, counts: Tensor | None) -> Tensor:
        """A^L s, or A^counts s for each row, counts being at most L."""
        s = s.transpose(0, 1)
        bit = 0
        while 1 << bit <= L:
            if counts is not None:
                taken = (counts >> bit & 1).bool()[:, None]
                s = torch.where(taken, _times(s, self._powers[bit]), s)
            elif L >> bit & 1:
                s = _times(s, self._powers[bit])
            bit += 1
        return s.transpose(0, 1)

    def _prepare(self, L: int) -> tuple[int, int]:
        """Make what length L needs; the level and the size of its blocks, the least power of two from sqrt(L) on."""
        levels = 1
        while 1 << levels <= L:
            levels += 1
        level = (levels + 1) // 2
        if levels > self._levels:
            power = self._A.mT
            inputs, outputs, self._powers = self._B[:, None], self._C.mT, []
            for i in range(levels):
                self._powers.append(power.to(self._dtype))
                if i < level:
                    inputs = torch.cat((inputs @ power, inputs), 1)
                    outputs = torch.cat((outputs, power @ outputs), -1)
                if i + 1 < levels:
                    power = power @ power
            # What each sample of a block adds to the state at its end, (d_model, block, N), and what the state at its
            # first output adds to each, (d_model, N, block * channels).
            self._inputs, self._outputs = inputs.to(self._dtype), outputs.to(self._dtype)
            self._levels, self._block = levels, 1 << level
        return level, 1 << level


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """(d_model, ..., j), (d_model, j, k) -> (d_model, ..., k)."""
    return (vectors.flatten(1, -2) @ matrices).unflatten(1, vectors.shape[1:-1])
