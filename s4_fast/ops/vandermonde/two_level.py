"""Products with lambda_n^l, l < L, as matrix products with two tables of about sqrt(L) powers each.

With l = m T + t:   lambda^l = coarse[m] * fine[t],   coarse[m] = lambda^(T m),   fine[t] = lambda^t,
so that a sum over n is one real GEMM per feature and nothing of size n * L exists.

Each table is filled by doubling, table[s + j] = table[j] * lambda^s for s = 1, 2, 4, ..., from powers
lambda^(2^k) that are formed in float64: a table entry is a product of at most log2(L) correctly rounded
factors, whatever the phase of lambda^l.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


# Squarings between two exponentials: each doubles the relative error, so 2^3 roundings of float64 at the most.
_SQUARINGS = 3


def log_powers(x: Tensor, L: int) -> list[Tensor]:
    """lambda^(2^k) = exp(2^k x) in complex128 for every 2^k < L. The product 2^k x is exact."""
    x = x.to(torch.complex128)
    powers: list[Tensor] = []
    for k in range(max(1, (L - 1).bit_length())):
        anchor = k % (_SQUARINGS + 1) == 0
        powers.append(torch.exp(x * 2**k) if anchor else powers[-1] * powers[-1])
    return powers


class TwoLevelTables:
    """The tables of (H, n) nodes lambda, given by their powers lambda^(2^k), for lengths up to L.

    ``rows`` is how many (c, L) sequences per feature will share the tables; it sets the split of L.
    """

    def __init__(self, powers: Sequence[Tensor], L: int, dtype: torch.dtype, rows: int = 1) -> None:
        self.L = L
        bits = (L - 1).bit_length()
        fine_bits = min(bits, (bits + max(rows, 1).bit_length()) // 2)
        self.T = 1 << fine_bits
        self.M = -(-L // self.T)
        self.fine = power_table(powers[:fine_bits], self.T, powers[0], dtype)
        self.coarse = power_table(powers[fine_bits:], self.M, powers[0], dtype)

    def synthesize(self, v: Tensor) -> Tensor:
        """Re sum_n v_n lambda_n^l: v (c, H, n) complex -> (c, H, L) real, stored as (H, c, L)."""
        c, H, n = v.shape
        left = (v.to(self.coarse.dtype)[:, None] * self.coarse).conj_physical_()
        left = torch.view_as_real(left).view(c * self.M, H, 2 * n).transpose(0, 1)
        right = torch.view_as_real(self.fine).view(self.T, H, 2 * n).permute(1, 2, 0)
        return torch.bmm(left, right).view(H, c, self.M * self.T)[..., : self.L].transpose(0, 1)

    def moments(self, u: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        """sum_l u_l lambda^l and, if ``first``, sum_l l u_l lambda^l: u (c, H, L) real -> (c, H, n) complex."""
        c, H, _ = u.shape
        n = self.fine.shape[-1]
        u = u.transpose(0, 1).to(_REAL[self.fine.dtype])
        if self.M * self.T > self.L:
            u = torch.nn.functional.pad(u, (0, self.M * self.T - self.L))
        u = u.reshape(H, c * self.M, self.T)
        fine = self.fine
        if first:
            fine = fine.new_empty(self.T, H, 2 * n)
            fine[..., :n] = self.fine
            torch.mul(self.fine, self._indices(self.T), out=fine[..., n:])
        right = torch.view_as_real(fine).view(self.T, H, -1).transpose(0, 1)
        inner = torch.view_as_complex(torch.bmm(u, right).view(H, c, self.M, -1, 2))
        coarse = self.coarse.transpose(0, 1).unsqueeze(1)
        zeroth = inner[..., :n] * coarse
        if not first:
            return zeroth.sum(2).transpose(0, 1), None
        m = (self.T * self._indices(self.M)).view(-1, 1)
        one = (inner[..., n:] * coarse).add_(zeroth * m).sum(2)
        return zeroth.sum(2).transpose(0, 1), one.transpose(0, 1)

    def _indices(self, count: int) -> Tensor:
        real = _REAL[self.fine.dtype]
        return torch.arange(count, dtype=real, device=self.fine.device).view(-1, 1, 1)


def power_table(powers: Sequence[Tensor], count: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """(count, H, n): entry j is the product of the powers at the binary digits of j."""
    table = torch.empty(count, *like.shape, dtype=dtype, device=like.device)
    table[:1].fill_(1)
    for k, power in enumerate(powers):
        done, end = 1 << k, min(2 << k, count)
        torch.mul(table[: end - done], power.to(dtype), out=table[done:end])
    return table
