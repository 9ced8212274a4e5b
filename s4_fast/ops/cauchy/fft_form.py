"""Cauchy sums at the roots of unity as the FFT of a Vandermonde product.

With lambda = (2 + w)/(2 - w) and omega^L = 1,

    2 v / ((2 - w) - omega (2 + w)) = s v / (1 - omega lambda) (1 - lambda^L) = sum_{l < L} s v (omega lambda)^l,
    s = 2 / ((2 - w)(1 - lambda^L)),

so that all L/2 + 1 sums are one GEMM and one real FFT. Poles with lambda^L close to 1 are summed node by node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, conj_physical

from s4_fast.ops._complex import expm1, log_bilinear
from s4_fast.ops.cauchy.resonances import Resonances
from s4_fast.ops.vandermonde.two_level import TwoLevelTables, log_powers

# The least |1 - lambda^L|: rounding errors grow by its inverse, those of grad_w by its inverse square. Without decay a
# pole falls below it with a probability of 1/100. Float32 poles summed in float64 have digits to lose.
_RESONANT = 3e-2
_RESONANT_WITH_SPARE_DIGITS = 1e-4


class PowerProducts(Protocol):
    """Products with powers of nodes lambda (H, n), as those of ``TwoLevelTables``."""

    def synthesize(self, v: Tensor) -> Tensor:
        """Re sum_n v_n lambda_n^l, v (c, H, n) in any precision -> (c, H, L)."""

    def moments(self, u: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        """sum_l u_l lambda^l and, if ``first``, sum_l l u_l lambda^l: u (c, H, L) -> (c, H, n)."""


def two_level(x: Tensor, negative: Tensor, L: int, dtype: torch.dtype, rows: int) -> PowerProducts:
    """Those with the nodes exp(x), or -exp(x) where ``negative``, x being complex128."""
    powers = log_powers(x, L)
    powers[0] = torch.where(negative, -powers[0], powers[0])
    return TwoLevelTables(powers, L, dtype, rows)


Powers = Callable[[Tensor, Tensor, int, torch.dtype, int], PowerProducts]


class FFTForm:
    """Sums with (H, n) poles ``w`` at the L-th roots of unity, evaluated in the complex dtype ``dtype``.

    ``rows`` is how many coefficient vectors per feature will be summed; ``powers`` makes the products, as
    ``two_level`` does.
    """

    def __init__(self, w: Tensor, L: int, dtype: torch.dtype, rows: int, powers: Powers = two_level) -> None:
        least = _RESONANT if w.dtype == dtype else _RESONANT_WITH_SPARE_DIGITS
        w = w.to(torch.complex128)
        # At w = -2 the node lambda is 0 and its logarithmic derivative infinite: step off by one rounding.
        w = torch.where(w == -2, w * (1 + 2**-52), w)
        # For large w the phase of lambda is close to pi, where rounding it would cost more than rounding w does: there
        # take the logarithm of -lambda, which is small. Around w = -2 it would be the less accurate of the two.
        far = w.abs() > 3
        x = log_bilinear(torch.where(far, 4 / w, w))
        last, one_minus_last = torch.exp(L * x), -expm1(L * x)  # lambda^L, 1 - lambda^L
        if L % 2:
            last = torch.where(far, -last, last)
            one_minus_last = torch.where(far, 1 - last, one_minus_last)
        self.L = L
        self.tables = powers(x, far, L, dtype, rows)
        resonant = one_minus_last.abs() < least
        self.resonances = Resonances(w, resonant, L) if resonant.any() else None
        scale = 2 / ((2 - w) * one_minus_last)
        self.dx = 4 / ((2 - w) * (2 + w))
        dscale = scale * (1 / (2 - w) + L * last / one_minus_last * self.dx)
        self.scale, self.dscale = scale.masked_fill(resonant, 0), dscale.masked_fill(resonant, 0)

    def sums(self, v: Tensor) -> Tensor:
        """v (R, H, n) -> (R, H, L//2 + 1)."""
        out = torch.fft.rfft(self.tables.synthesize(2 * v * self.scale))
        if self.resonances is not None:
            self.resonances.add_sums(out, v)
        return out

    def sums_backward(self, grad: Tensor, v: Tensor, need_w: bool) -> tuple[Tensor, Tensor | None]:
        """grad (R, H, L//2 + 1) -> grad_v (R, H, n), grad_w (H, n), in complex128."""
        weight = irfft_weight(self.L, grad)
        return self.paired_backward(conj_physical(grad) / weight, weight, v, need_w)

    def paired_backward(self, half: Tensor, weight: Tensor, v: Tensor, need_w: bool) -> tuple[Tensor, Tensor | None]:
        """``sums_backward`` for the gradient ``(half * weight)*``, with ``weight`` of ``irfft_weight``.

        The gradient of the signal, Re sum_k g_k exp(2 pi i k l / L), is then an inverse FFT of ``half*`` as it is.
        """
        signal = torch.fft.irfft(conj_physical(half.transpose(0, 1)), n=self.L, norm="forward").transpose(0, 1)
        zeroth, first = self.tables.moments(signal, first=need_w)
        by_v = 2 * self.scale * zeroth
        by_w = None if first is None else 2 * (self.dscale * zeroth + self.scale * self.dx * first)
        if self.resonances is not None:
            at = slice(None), self.resonances.h, self.resonances.n
            by_v[at], resonant_by_w = self.resonances.moments(half, weight)
            if by_w is not None:
                by_w[at] = resonant_by_w
        return conj_physical(by_v), None if by_w is None else conj_physical((v * by_w).sum(0))


@dataclass(frozen=True)
class BilinearSums:
    """The functions of a backend's module."""

    powers: Powers

    def cauchy_bilinear(self, v: Tensor, w: Tensor, L: int) -> Tensor:
        """v (c, H, n), w (H, n) -> (c, H, L//2 + 1)."""
        return FFTForm(w, L, w.dtype, v.shape[0], self.powers).sums(v)

    def cauchy_bilinear_backward(
        self, grad: Tensor, v: Tensor, w: Tensor, L: int, needs: tuple[bool, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        form = FFTForm(w, L, w.dtype, v.shape[0], self.powers)
        grad_v, grad_w = form.sums_backward(grad, v, needs[1])
        return grad_v.to(v.dtype), None if grad_w is None else grad_w.to(w.dtype)


def irfft_weight(L: int, like: Tensor) -> Tensor:
    """How often ``irfft`` of length L counts each node, (L//2 + 1,): twice, but once for omega = 1 and omega = -1."""
    weight = like.real.new_full((L // 2 + 1,), 2)
    # Assigned by index, a number could be copied from the host, which a CUDA graph cannot capture.
    weight[:1].fill_(1)
    if L % 2 == 0:
        weight[-1:].fill_(1)
    return weight


def adjoint_irfft(grad: Tensor, L: int) -> Tensor:
    """The gradient of ``irfft`` of length L with respect to its half spectrum."""
    return torch.fft.rfft(grad, norm="forward") * irfft_weight(L, grad)
