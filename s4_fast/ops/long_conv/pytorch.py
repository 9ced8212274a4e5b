"""Causal convolution by real FFTs, a block of features at a time so that the spectra stay in cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, conj_physical

from s4_fast.ops._layout import sum_over

# Samples of one padded block (batch * channels * features * FFT length).
_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 27}


def fft_conv(u: Tensor, k: Tensor, D: Tensor) -> Tensor:
    """u (B, H, L), k (c, H, Lk), D (c, H) or empty -> (B, c, H, L)."""
    (B, H, L), c = u.shape, k.shape[0]
    k = k[..., :L]
    size = _fft_size(L + k.shape[-1] - 1)
    y = u.new_empty(B, c, H, L)
    for h in _features(B * c, H, size, u.device):
        spectrum = torch.fft.rfft(u[:, h], n=size)[:, None] * torch.fft.rfft(k[:, h], n=size)
        y[:, :, h] = torch.fft.irfft(spectrum, n=size)[..., :L]
        if D.numel():
            y[:, :, h].addcmul_(u[:, None, h], D[:, h, None])
    return y


def fft_conv_backward(
    grad: Tensor, u: Tensor, k: Tensor, D: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """grad_u: correlation of grad with k, summed over channels; grad_k: of grad with u, summed over the batch."""
    (B, H, L), c = u.shape, k.shape[0]
    taps = min(k.shape[-1], L)
    size = _fft_size(L + taps - 1)
    grad_u = torch.empty_like(u)
    grad_k = torch.zeros_like(k)
    for h in _features(B * c, H, size, u.device):
        g = torch.fft.rfft(grad[:, :, h], n=size)
        if needs[0]:
            spectrum = sum_over(g * conj_physical(torch.fft.rfft(k[:, h, :L], n=size)), 1)
            grad_u[:, h] = torch.fft.irfft(spectrum, n=size)[..., :L]
            if D.numel():
                grad_u[:, h] += sum_over(grad[:, :, h] * D[:, h, None], 1)
        if needs[1]:
            spectrum = sum_over(g * conj_physical(torch.fft.rfft(u[:, h], n=size))[:, None], 0)
            grad_k[:, h, :taps] = torch.fft.irfft(spectrum, n=size)[..., :taps]
    grad_D = torch.einsum("bchl,bhl->ch", grad, u) if needs[2] and D.numel() else torch.zeros_like(D)
    return grad_u, grad_k, grad_D


def _features(rows: int, H: int, size: int, device: torch.device) -> Iterator[slice]:
    step = max(1, _BLOCK.get(device.type, _BLOCK["cuda"]) // (rows * size))
    return (slice(h, h + step) for h in range(0, H, step))


def _fft_size(least: int) -> int:
    """The smallest even 2^a 3^b 5^c that is at least ``least``."""
    best = 1 << max(1, (least - 1).bit_length())
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(1, (-(-least // three) - 1).bit_length())
            best = min(best, two)
            three *= 3
        five *= 5
    return best
