"""Elementary functions of complex numbers that do not cancel, built from real ones."""

from __future__ import annotations

import torch
from torch import Tensor


def expm1(z: Tensor) -> Tensor:
    """exp(z) - 1, accurate near 0 and, for Re z <= 0, near every 2 pi i k."""
    # With expm1(a) cos(b) - 2 sin(b/2)^2, which is equal, the gradient would cancel for strong decay.
    a, b = z.real, z.imag
    growth = torch.exp(a)
    return torch.complex(torch.expm1(a) - 2 * growth * torch.sin(b / 2) ** 2, growth * torch.sin(b))


def log_bilinear(w: Tensor) -> Tensor:
    """log((2 + w)/(2 - w)), accurate in both parts for small w; Re <= 0 wherever Re w <= 0.

    With w/2 = a + ib: Re = -log1p(-4a / ((1 + a)^2 + b^2)) / 2, Im = atan2(2b, (1 - a)(1 + a) - b^2).
    """
    a, b = w.real / 2, w.imag / 2
    real = -torch.log1p(-4 * a / ((1 + a) ** 2 + b**2)) / 2
    return torch.complex(real, torch.atan2(2 * b, (1 - a) * (1 + a) - b**2))
