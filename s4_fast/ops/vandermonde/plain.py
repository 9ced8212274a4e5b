"""The products as matrix products of differentiable operations: what transforms and exported programs see.

``exp(x l) = exp(x T a) exp(x b)`` with l = T a + b, so that nothing of size n L exists. Powers are formed in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from s4_fast import torch_private
from s4_fast.ops._complex import joined, parts

# A constant, so that an exported program takes any length.
_T = 64


def powers(x: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
    """The real and imaginary parts of exp(x l), x (..., n) complex, l (m,) in float64 -> (..., n, m) in float64.

    Im x is split into a float32 part and a rest, which makes its product with l < 2^24 exact: a rounded one would cost
    10 of 16 digits at l = 2^20.
    """
    decay, phase = (t.double() for t in parts(x))
    growth = torch.exp(decay[..., None] * l)
    high = phase.detach().float().double()
    coarse, fine = high[..., None] * l, (phase - high)[..., None] * l
    cos, sin = torch.cos(coarse), torch.sin(coarse)
    cos_fine, sin_fine = torch.cos(fine), torch.sin(fine)
    return growth * (cos * cos_fine - sin * sin_fine), growth * (sin * cos_fine + cos * sin_fine)


def power(x: Tensor, L: int) -> Tensor:
    """exp(x L), (..., n), complex128."""
    real, imag = powers(x, torch.arange(L, L + 1, dtype=torch.float64, device=x.device))
    return joined(real[..., 0], imag[..., 0])


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """v (c, H, n), x (H, n) in any precision -> (c, H, L) in that of v."""
    (p_real, p_imag), (q_real, q_imag), _ = _tables(x, L)
    dtype = v.real.dtype  # Dynamo knows no dtype.to_real
    v_real, v_imag = (t.double()[..., None] for t in parts(v))
    left = torch.cat((v_real * p_real - v_imag * p_imag, -v_real * p_imag - v_imag * p_real), -2)
    right = torch.cat((q_real, q_imag), -2)
    return 2 * _in_a_row(left.mT.to(dtype) @ right.to(dtype), L)


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """u (c, H, L), v (c or 1, H, n), x (H, n) in any precision -> (c, H, n) in that of v."""
    (p_real, p_imag), (q_real, q_imag), M = _tables(x, L)
    inner = (_in_blocks(u, M) @ torch.cat((q_real, q_imag), -2).mT.to(u.dtype)).double().mT
    real, imag = inner.chunk(2, -2)
    sums = joined((real * p_real - imag * p_imag).sum(-1), (real * p_imag + imag * p_real).sum(-1))
    return (v * sums).to(v.dtype)


def _in_a_row(blocks: Tensor, L: int) -> Tensor:
    """(..., M, T) -> the first L of (..., M T)."""
    if torch_private.is_exporting():
        # Symbolic sizes do not show that M T is at least L.
        l = torch.arange(L, device=blocks.device)
        return blocks[..., l // _T, l % _T]
    return blocks.flatten(-2)[..., :L]


def _in_blocks(u: Tensor, M: int) -> Tensor:
    """(..., L) -> (..., M, T), with zeros behind."""
    L = u.shape[-1]
    if torch_private.is_exporting():
        first = _T * torch.arange(M, device=u.device)
        l = first[:, None] + torch.arange(_T, device=u.device)
        return torch.where(l < L, u[..., l.clamp(max=L - 1)], 0)
    return pad(u, (0, M * _T - L)).unflatten(-1, (M, _T))


def _tables(x: Tensor, L: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """exp(x T a), (H, n, M), and exp(x b), (H, n, T), and M."""
    M = L // _T + 2  # one more than there must be: a program of symbolic sizes takes sizes of 1 for a case apart
    blocks, inside = (torch.arange(k, dtype=torch.float64, device=x.device) for k in (M, _T))
    return powers(x, _T * blocks), powers(x, inside), M
