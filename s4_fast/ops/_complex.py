"""Elementary functions of complex numbers that do not cancel, built from real ones."""

from __future__ import annotations

import torch
from torch import Tensor


def parts(z: Tensor) -> tuple[Tensor, Tensor]:
    """The real and the imaginary part. ``z.imag`` of a pending conjugate is what ``vmap`` has no rule for."""
    real, imag = torch.view_as_real(z.resolve_conj()).unbind(-1)
    return real, imag


def joined(real: Tensor, imag: Tensor) -> Tensor:
    """``real + i imag``, of one shape. The derivative of ``torch.complex`` takes ``imag`` of what may be conjugated."""
    return torch.view_as_complex(torch.stack((real, imag), -1))


def conjugate(z: Tensor) -> Tensor:
    """``z*`` in memory of its own, as ``torch.conj_physical`` gives it, by operations that ``vmap`` has rules for."""
    real, imag = parts(z)
    return joined(real, -imag)


def plus(z: Tensor, number: float) -> Tensor:
    """``z + number``. AOTInductor compiles no number beside a complex tensor, and runs no difference of two."""
    real, imag = parts(z)
    return joined(real + number, imag)


def expm1(z: Tensor) -> Tensor:
    """exp(z) - 1, accurate near 0 and, for Re z <= 0, near every 2 pi i k."""
    # With expm1(a) cos(b) - 2 sin(b/2)^2, which is equal, the gradient would cancel for strong decay.
    a, b = parts(z)
    growth = torch.exp(a)
    return joined(torch.expm1(a) - 2 * growth * torch.sin(b / 2) ** 2, growth * torch.sin(b))


def log_bilinear(w: Tensor) -> Tensor:
    """log((2 + w)/(2 - w)), accurate in both parts for small w; Re <= 0 wherever Re w <= 0.

    With w/2 = a + ib: Re = -log1p(-4a / ((1 + a)^2 + b^2)) / 2, Im = atan2(2b, (1 - a)(1 + a) - b^2).
    """
    a, b = (t / 2 for t in parts(w))
    real = -torch.log1p(-4 * a / ((1 + a) ** 2 + b**2)) / 2
    return joined(real, torch.atan2(2 * b, (1 - a) * (1 + a) - b**2))
