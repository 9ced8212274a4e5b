"""Causal long convolution by real FFTs, a block of features at a time so that the spectra stay in cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from s4_fast.ops import _finite
from s4_fast.ops._layout import sum_over

# Bytes of one padded block (batch * channels * features * FFT length): on a CPU for each thread, which has a cache of
# its own.
_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 29}


def fft_conv(u: Tensor, k: Tensor, D: Tensor) -> Tensor:
    """u (B, H, L), k (c, H, Lk), D (c, H) or empty -> (B, c, H, L)."""
    L = u.shape[-1]
    k = k[..., :L]
    if not _finite.suspected(u, k):
        return _in_blocks(u, k, D)
    y = _in_blocks(_finite.without(u), _finite.without(k), D)
    of_taps = _finite.spoilt(k)
    y += _finite.spoilt(u)[:, None]
    y[..., : k.shape[-1]] += of_taps
    y[..., k.shape[-1] :] += of_taps[..., -1:]
    return y


def _in_blocks(u: Tensor, k: Tensor, D: Tensor) -> Tensor:
    (B, H, L), c = u.shape, k.shape[0]
    size = _fft_size(L + k.shape[-1] - 1)
    step = _features(B * c * size, u)
    if step >= H:
        return _convolve(u, k, D, size)
    y = u.new_empty(B, c, H, L)
    for h in _blocks(H, step):
        _convolve(u[:, h], k[:, h], D[:, h] if D.numel() else D, size, out=y[:, :, h])
    return y


def _convolve(u: Tensor, k: Tensor, D: Tensor, size: int, out: Tensor | None = None) -> Tensor:
    spectrum = _times(torch.fft.rfft(u, n=size)[:, None], torch.fft.rfft(k, n=size))
    y = torch.fft.irfft(spectrum, n=size)[..., : u.shape[-1]]
    if D.numel():
        return torch.addcmul(y, u[:, None], D[..., None], out=out)
    return y if out is None else out.copy_(y)


def fft_conv_backward(
    grad: Tensor, u: Tensor, k: Tensor, D: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """grad_u: correlation of grad with k, summed over channels; grad_k: of grad with u, summed over the batch."""
    (B, H, L), c = u.shape, k.shape[0]
    taps = min(k.shape[-1], L)
    size = _fft_size(L + taps - 1)
    grad_u = torch.empty_like(u) if needs[0] else None
    grad_k = torch.zeros_like(k) if needs[1] else None
    grad_D = torch.empty_like(D) if needs[2] else None
    for h in _blocks(H, _features(B * c * size, u)):
        g, u_h = grad[:, :, h], u[:, h]
        if grad_D is not None and D.numel():
            grad_D[:, h] = (g * u_h[:, None]).sum((0, 3))
        if grad_u is None and grad_k is None:
            continue
        spectrum = torch.fft.rfft(g, n=size)
        if grad_u is not None:
            product = sum_over(spectrum * torch.fft.rfft(k[:, h, :L], n=size).conj_physical_(), 1)
            found = torch.fft.irfft(product, n=size)[..., :L]
            if not D.numel():
                grad_u[:, h] = found
            elif c == 1:
                torch.addcmul(found, g[:, 0], D[0, h, None], out=grad_u[:, h])
            else:
                torch.add(found, (g * D[:, h, None]).sum(1), out=grad_u[:, h])
        if grad_k is not None:
            product = sum_over(_times(torch.fft.rfft(u_h, n=size).conj_physical_()[:, None], spectrum), 0)
            grad_k[:, h, :taps] = torch.fft.irfft(product, n=size)[..., :taps]
    return grad_u, grad_k, grad_D


def _times(a: Tensor, b: Tensor) -> Tensor:
    """a (B, 1, ...) times b, in the memory of a where the product has no more channels."""
    return a.mul_(b) if b.shape[-3] == 1 else a * b


def _features(samples: int, like: Tensor) -> int:
    """How many features of so many padded samples each a block has."""
    least = samples * like.element_size()
    if like.device.type == "cpu":
        return max(1, _BLOCK["cpu"] * torch.get_num_threads() // least)
    return max(1, _BLOCK["cuda"] // least)


def _blocks(H: int, step: int) -> Iterator[slice]:
    return (slice(h, h + step) for h in range(0, H, step))


@lru_cache(maxsize=256)
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
