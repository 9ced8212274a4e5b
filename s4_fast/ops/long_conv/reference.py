"""The definition, in any precision."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import conv1d, pad


def fft_conv(u: Tensor, k: Tensor, D: Tensor) -> Tensor:
    """y[b, c, h, l] = sum_{j <= l} k[c, h, j] u[b, h, l - j] + D[c, h] u[b, h, l]; D is empty where there is none."""
    c, H, Lk = k.shape
    weight = k.flip(-1).transpose(0, 1).reshape(H * c, 1, Lk)
    y = conv1d(pad(u, (Lk - 1, 0)), weight, groups=H).unflatten(1, (H, c)).transpose(1, 2)
    return y + D[..., None] * u[:, None] if D.numel() else y
