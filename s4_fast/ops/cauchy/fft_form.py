"""Cauchy sums at the roots of unity as the FFT of a Vandermonde product.

With lambda = (2 + w)/(2 - w) and omega^L = 1,

    2 v / ((2 - w) - omega (2 + w)) = s v / (1 - omega lambda) (1 - lambda^L) = sum_{l < L} s v (omega lambda)^l,
    s = 2 / ((2 - w)(1 - lambda^L)),

so that all L/2 + 1 sums are one GEMM and one real FFT.
"""

from __future__ import annotations

import torch
from torch import Tensor, conj_physical

from s4_fast.ops._complex import expm1, log_bilinear
from s4_fast.ops.vandermonde.two_level import TwoLevelTables, log_powers


class FFTForm:
    """Sums with (H, n) poles ``w`` at the L-th roots of unity, evaluated in the complex dtype ``dtype``.

    ``rows`` is how many coefficient vectors per feature will be summed.
    """

    def __init__(self, w: Tensor, L: int, dtype: torch.dtype, rows: int) -> None:
        w = w.to(torch.complex128)
        # At w = -2 the node lambda is 0 and its logarithmic derivative infinite: step off by one rounding.
        w = torch.where(w == -2, w * (1 + 2**-52), w)
        # For large w the phase of lambda is close to pi, where rounding it would cost more than rounding w does: there
        # take the logarithm of -lambda, which is small. Around w = -2 it would be the less accurate of the two.
        far = w.abs() > 3
        x = log_bilinear(torch.where(far, 4 / w, w))
        powers = log_powers(x, L)
        powers[0] = torch.where(far, -powers[0], powers[0])
        last, one_minus_last = torch.exp(L * x), -expm1(L * x)  # lambda^L, 1 - lambda^L
        if L % 2:
            last = torch.where(far, -last, last)
            one_minus_last = torch.where(far, 1 - last, one_minus_last)
        self.L = L
        self.tables = TwoLevelTables(powers, L, dtype, rows)
        self.scale = 2 / ((2 - w) * one_minus_last)
        self.dx = 4 / ((2 - w) * (2 + w))
        self.dscale = self.scale * (1 / (2 - w) + L * last / one_minus_last * self.dx)

    def sums(self, v: Tensor) -> Tensor:
        """v (R, H, n) -> (R, H, L//2 + 1)."""
        return torch.fft.rfft(self.tables.synthesize(2 * v * self.scale))

    def sums_backward(
        self, grad: Tensor, v: Tensor, need_w: bool, conjugated: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """grad (R, H, L//2 + 1) -> grad_v (R, H, n), grad_w (H, n), in complex128.

        ``conjugated`` says that ``grad`` is the conjugate of the gradient.
        """
        zeroth, first = self.tables.moments(_adjoint_rfft(grad, self.L, conjugated), first=need_w)
        grad_v = conj_physical(2 * self.scale * zeroth)
        if first is None:
            return grad_v, None
        return grad_v, conj_physical(2 * (v * (self.dscale * zeroth + self.scale * self.dx * first)).sum(0))


def adjoint_irfft(grad: Tensor, L: int) -> Tensor:
    """The gradient of ``irfft`` of length L with respect to its half spectrum."""
    spectrum = torch.fft.rfft(grad, norm="forward")
    spectrum[..., 1 : (L + 1) // 2] *= 2
    return spectrum


def _adjoint_rfft(grad: Tensor, L: int, conjugated: bool) -> Tensor:
    """The gradient of a real signal of length L whose ``rfft`` has ``grad``: Re sum_k grad_k exp(2 pi i k l / L)."""
    weight = grad.new_full((L // 2 + 1,), 0.5)
    weight[0] = 1
    if L % 2 == 0:
        weight[-1] = 1
    weighted = grad * weight
    if conjugated:
        weighted = weighted.conj_physical_()
    return torch.fft.irfft(weighted.transpose(0, 1), n=L, norm="forward").transpose(0, 1)
