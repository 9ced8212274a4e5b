"""A diagonal recurrence in chunks of T samples: matrix products inside the chunks, a scan over them.

With lambda = exp(x), u_m the m-th chunk of the input and S_m the state before it,

    y_m[t]  = sum_{j<=t} K[t-j] u_m[j] + 2 Re sum_n C lambda^(t+1) S_m,    K[d] = 2 Re sum_n C B lambda^d + D [d = 0]
    S_{m+1} = lambda^T S_m + B sum_j lambda^(T-1-j) u_m[j].

Tables are formed in complex128 and multiplied in the precision of the call. What is carried from chunk to chunk stays
complex128: a rounding of lambda^T, or of a state that hardly decays, would show in every later sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, conj_physical
from torch.nn.functional import pad

from s4_fast.ops import _finite
from s4_fast.ops.vandermonde.two_level import power_table

# Chunks that the scan takes one after the other; groups of that many are the chunks of its next level.
_RADIX_BITS = 4
# Rows of one product whose sum runs over the chunks; float32 rounding would add up over more.
_ROWS = 1024


class Chunks:
    """The tables of (H, n) nodes, given by their powers lambda^(2^k), for chunks of up to T samples, in C's precision.

    Signals are (H, batch, M, r): M chunks of r samples, where M = 1 unless r = T, a power of two.
    """

    def __init__(self, powers: Sequence[Tensor], B: Tensor, C: Tensor, D: Tensor, T: int) -> None:
        self.B, self.C, self.T = B.to(torch.complex128), C.to(torch.complex128), T
        self.dtype = C.dtype
        self.carried = powers[(T - 1).bit_length() :]
        self.power = power_table(powers[: T.bit_length()], T + 1, C, torch.complex128).transpose(0, 1)
        input_powers = self.B[:, None] * self.power[:, :T]
        lags = 2 * torch.bmm(input_powers, self.C[..., None])[..., 0].real
        if D.numel():
            lags[:, 0] += D
        # Row j holds K[t - j]: windows of K behind T - 1 zeros.
        self.toeplitz = pad(lags.to(C.real.dtype), (T - 1, 0)).unfold(-1, T, 1).flip(1)
        self.falling = input_powers.to(self.dtype).flip(1)  # B lambda^(T-1-j)
        self.rising = (2 * self.C[:, None] * self.power[:, 1:]).to(self.dtype)  # 2 C lambda^(t+1)

    def cut(self, u: Tensor) -> Tensor:
        """(batch, H, M r) -> (H, batch, M, r), with rows that flatten to a view."""
        u = u.transpose(0, 1)
        if u.shape[1] > 1:
            u = u.contiguous()
        return u.unflatten(-1, (-1, min(self.T, u.shape[-1])))

    def inputs(self, u: Tensor) -> Tensor:
        """B sum_j lambda^(r-1-j) u[j]: what each chunk adds to the state, (H, batch, M, n)."""
        return _project(u, self.falling[:, self.T - u.shape[-1] :])

    def outputs(self, u: Tensor, states: Tensor) -> Tensor:
        """y of chunks u that begin in ``states``, (batch, H, M r)."""
        r = u.shape[-1]
        tables = self.toeplitz[:, :r, :r], states, self.rising[:, :r]
        if not _finite.suspected(u):
            return _respond(u, *tables)
        # Later chunks have a bad sample in their states.
        return _respond(_finite.without(u), *tables) + _finite.spoilt(u).flatten(2).transpose(0, 1)

    def adjoint_inputs(self, dy: Tensor) -> Tensor:
        """2 C sum_t lambda^(t+1) dy[t]: what each chunk adds to the conjugated gradient of the state before it."""
        return _project(dy, self.rising[:, : dy.shape[-1]])

    def adjoint_outputs(self, dy: Tensor, adjoints: Tensor) -> Tensor:
        """The gradient of u, ``adjoints`` being the conjugated gradients of the states after the chunks."""
        r = dy.shape[-1]
        return _respond(dy, self.toeplitz[:, :r, :r].mT, adjoints, self.falling[:, self.T - r :])

    def carry(self, increments: Tensor, start: Tensor, r: int, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """s_m = lambda^r s_{m-1} + increments_m from ``start``: s_{m-1} for every m, and the last s (complex128).

        With ``reverse``, from the last m to the first.
        """
        s = increments.to(torch.complex128)
        accumulate_(s, self.power[:, r], self.carried, start, reverse)
        before = torch.empty_like(increments)
        if reverse:
            before[:, :, -1] = start
            before[:, :, :-1] = s[:, :, 1:]
            return before, s[:, :, 0]
        before[:, :, 0] = start
        before[:, :, 1:] = s[:, :, :-1]
        return before, s[:, :, -1]


class Moments:
    """The sums over all chunks that the gradients of the parameters need.

    ``lags[d]`` = sum dy[t] u[t-d]; ``outgoing[l]`` = sum S dy[l-1] and ``incoming[l]`` = sum g u[r-1-l], to be weighted
    with lambda^l; ``through`` = sum r lambda^r g S. S is the state before a chunk, g the conjugated gradient of the one
    after it.
    """

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self.lags = chunks.power.new_zeros(*chunks.power.shape[:2], dtype=torch.float64)
        self.outgoing, self.incoming = torch.zeros_like(chunks.power), torch.zeros_like(chunks.power)
        self.through = torch.zeros_like(chunks.B)

    def add(self, u: Tensor, states: Tensor, dy: Tensor, adjoints: Tensor) -> None:
        """Add chunks of input ``u`` and gradient ``dy`` between their states and adjoints."""
        r = u.shape[-1]
        products = sum_of_products(_rows(u), _rows(dy))
        # Column d of the sheared matrix holds the products of lag d.
        sheared = pad(products, (0, r)).as_strided((len(products), r, r), (2 * r * r, 2 * r + 1, 1))
        self.lags[:, :r] += sheared.sum(1)
        self.outgoing[:, 1 : r + 1] += _complex(sum_of_products(_rows(dy), _real_rows(states)))
        self.incoming[:, :r] += _complex(sum_of_products(_rows(u), _real_rows(adjoints))).flip(1)
        self.through += r * self.chunks.power[:, r] * (adjoints * states).sum((1, 2))

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, B and C, (H, n) complex128."""
        B, C, power = self.chunks.B, self.chunks.C, self.chunks.power
        exponents = torch.arange(power.shape[1], dtype=torch.float64, device=power.device)
        weights = torch.stack((torch.ones_like(exponents), exponents)).to(power.dtype)
        out, out_first = torch.matmul(weights, power * self.outgoing).unbind(1)
        into, into_first = torch.matmul(weights, power * self.incoming).unbind(1)
        lag, lag_first = torch.bmm(weights * self.lags[:, None], power).unbind(1)
        grad_x = self.through + 2 * C * out_first + B * into_first + 2 * C * B * lag_first
        return conj_physical(grad_x), conj_physical(into + 2 * C * lag), conj_physical(2 * (out + B * lag))


def accumulate_(s: Tensor, step: Tensor, powers: Sequence[Tensor], start: Tensor, reverse: bool) -> None:
    """s_m += step s_{m-1} in place along dimension 2 of s (H, batch, M, n), with s_{-1} = ``start`` (H, batch, n).

    ``step`` and ``powers`` = [step^(2^k)] are (H, n). With ``reverse``, m counts from the end.
    """
    radix = 1 << _RADIX_BITS
    groups = s.shape[2] // radix
    done = groups * radix if groups > 1 else 0

    def at(m: int) -> int:
        return -1 - m if reverse else m

    if done:
        grouped = (s[:, :, -done:] if reverse else s[:, :, :done]).unflatten(2, (groups, radix))
        for r in range(1, radix):
            grouped[:, :, :, at(r)].addcmul_(step[:, None, None], grouped[:, :, :, at(r - 1)])
        ends = grouped[:, :, :, at(radix - 1)]
        accumulate_(ends, powers[_RADIX_BITS], powers[_RADIX_BITS:], start, reverse)
        table = power_table(powers[:_RADIX_BITS], radix, step, s.dtype)[1:].transpose(0, 1)
        if reverse:
            before = torch.cat((ends[:, :, 1:], start[:, :, None]), 2)
            grouped[:, :, :, 1:].addcmul_(table.flip(1)[:, None, None], before[:, :, :, None])
        else:
            before = torch.cat((start[:, :, None], ends[:, :, :-1]), 2)
            grouped[:, :, :, :-1].addcmul_(table[:, None, None], before[:, :, :, None])
    for m in range(done, s.shape[2]):
        s[:, :, at(m)].addcmul_(step[:, None], s[:, :, at(m - 1)] if m else start)


def _project(signal: Tensor, table: Tensor) -> Tensor:
    """sum_t signal[t] table[t], (H, batch, M, n)."""
    pairs = torch.view_as_real(table).flatten(2)
    return torch.view_as_complex(torch.bmm(_rows(signal), pairs).view(*signal.shape[:3], -1, 2))


def _respond(signal: Tensor, toeplitz: Tensor, states: Tensor, table: Tensor) -> Tensor:
    """sum_j toeplitz[j, t] signal[j] + Re sum_n states table[t], (batch, H, M r)."""
    out = torch.bmm(_rows(signal), toeplitz)
    out.baddbmm_(_real_rows(states), torch.view_as_real(conj_physical(table)).flatten(2).mT)
    return out.view(signal.shape).flatten(2).transpose(0, 1)


def _rows(signal: Tensor) -> Tensor:
    """(H, batch, M, r) -> (H, batch M, r)."""
    return signal.flatten(1, 2)


def _real_rows(states: Tensor) -> Tensor:
    """(H, batch, M, n) -> (H, batch M, 2n) real."""
    return torch.view_as_real(states).flatten(3).flatten(1, 2)


def _complex(t: Tensor) -> Tensor:
    return torch.view_as_complex(t.unflatten(-1, (-1, 2)))


def sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """sum_i a[i, p] b[i, q]: (H, rows, p), (H, rows, q) -> (H, p, q) float64."""
    parts = zip(a.split(_ROWS, 1), b.split(_ROWS, 1), strict=True)
    first, *rest = parts
    total = torch.bmm(first[0].mT, first[1]).double()
    for left, right in rest:
        total += torch.bmm(left.mT, right)
    return total
