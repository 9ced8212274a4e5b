"""Cauchy sums in pure PyTorch: blocks of bounded memory for arbitrary nodes, the FFT form for roots of unity."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, conj_physical

from s4_fast.ops.cauchy.fft_form import BilinearSums, two_level

# Entries of one block of 1/(z - w): small enough to stay in a CPU core's cache, large enough to fill a GPU.
_BLOCK = {"cpu": 1 << 16, "cuda": 1 << 24}


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool) -> Tensor:
    """v (c, H, n), z (1 or H, Lz), w (H, n) -> (c, H, Lz)."""
    v, w = _with_conjugates(v, w, symmetric)
    v = v.transpose(0, 1)
    out = v.new_empty(w.shape[0], v.shape[1], z.shape[-1])
    for h, l, inverse in _blocks(z, w):
        out[h, :, l] = torch.bmm(v[h], inverse)
    return out.transpose(0, 1)


def cauchy_mult_backward(
    grad: Tensor, v: Tensor, z: Tensor, w: Tensor, symmetric: bool, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """With r = 1/(z - w): grad_v = sum_z g r*, grad_w = sum_z g (v r^2)*, grad_z = -sum_n g (v r^2)*."""
    n = w.shape[-1]
    v, w = _with_conjugates(v, w, symmetric)
    v, grad = v.transpose(0, 1), grad.transpose(0, 1)
    conj_v = conj_physical(v).transpose(1, 2)
    grad_v, grad_w, grad_z = torch.zeros_like(v), torch.zeros_like(w), torch.zeros_like(z)
    for h, l, inverse in _blocks(z, w):
        inverse = inverse.conj_physical_()
        if needs[0]:
            grad_v[h] += torch.bmm(grad[h, :, l], inverse.transpose(1, 2))
        if needs[1] or needs[2]:
            product = torch.bmm(conj_v[h], grad[h, :, l]).mul_(inverse).mul_(inverse)
            grad_w[h] += product.sum(-1)
            by_node = product.sum(1)
            grad_z[h if z.shape[0] > 1 else slice(None), l] -= by_node if z.shape[0] > 1 else by_node.sum(0)
    if symmetric:
        grad_v = grad_v[..., :n] + conj_physical(grad_v[..., n:])
        grad_w = grad_w[..., :n] + conj_physical(grad_w[..., n:])
    return grad_v.transpose(0, 1), grad_z, grad_w


_SUMS = BilinearSums(two_level)
cauchy_bilinear = _SUMS.cauchy_bilinear
cauchy_bilinear_backward = _SUMS.cauchy_bilinear_backward


def _with_conjugates(v: Tensor, w: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    if not symmetric:
        return v, w
    return torch.cat((v, conj_physical(v)), -1), torch.cat((w, conj_physical(w)), -1)


def _blocks(z: Tensor, w: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Slices of features and of nodes with 1/(z - w), (H_block, n, L_block), for each."""
    H, n = w.shape
    budget = max(1, _BLOCK.get(z.device.type, _BLOCK["cuda"]) // n)
    nodes = min(z.shape[-1], max(256, budget // H))
    features = max(1, budget // nodes)
    for first in range(0, H, features):
        h = slice(first, first + features)
        for start in range(0, z.shape[-1], nodes):
            l = slice(start, start + nodes)
            block = z[h, None, l] if z.shape[0] > 1 else z[:, None, l]
            yield h, l, torch.reciprocal(block - w[h, :, None])
