"""The convolution by one FFT, in differentiable operations: what transforms and exported programs see."""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.ops import _finite


def fft_conv(u: Tensor, k: Tensor, D: Tensor) -> Tensor:
    """u (B, H, L), k (c, H, Lk), D (c, H) or empty -> (B, c, H, L)."""
    k = k[..., : u.shape[-1]]
    y = convolved(_finite.without(u), _finite.without(k)) + _finite.spoilt(u)[:, None]
    of_taps = _finite.spoilt(k)
    y = y + torch.cat((of_taps, of_taps[..., -1:].expand(*k.shape[:-1], u.shape[-1] - k.shape[-1])), -1)
    return y + D[..., None] * u[:, None] if D.numel() else y


def convolved(u: Tensor, k: Tensor) -> Tensor:
    """u (B, H, L) and k (c, H, Lk), finite -> (B, c, H, L): ``sum_{j <= l} k[j] u[l - j]``."""
    L = u.shape[-1]
    size = L + k.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, n=size)[:, None] * torch.fft.rfft(k, n=size), n=size)[..., :L]
