"""One step in real arithmetic, states and coefficients as pairs: for exported programs.

Code generators and other runtimes have no complex numbers, or few operations on them. What is computed is what
``s4_fast.ssm.stepping`` does, in the same precisions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from s4_fast.ssm.parameters import Stored


class Coefficients(NamedTuple):
    """``s' = decay s - sum_r G_r (2 Re V_r s) + B u``, ``y = 2 Re C s'``, complex numbers as pairs (..., 2)."""

    decay: Tensor  # (d_model, n, 2), float64
    B: Tensor  # (d_model, n, 2)
    C: Tensor  # (channels, d_model, n, 2)
    G: Tensor | None = None  # (rank, d_model, n, 2)
    V: Tensor | None = None  # (rank, d_model, n, 2)

    def step(self, u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
        """y (batch, channels d_model) and the next state, of u (batch, d_model) and state (batch, d_model, n, 2)."""
        following = _times(self.decay, state) + self.B * u[..., None, None]
        if self.G is not None and self.V is not None:
            for g, v in zip(self.G.unbind(0), self.V.unbind(0), strict=True):
                following = following - g * (2 * _real_sum(v, state))[..., None, None]
        following = following.to(state.dtype)
        y = 2 * _real_sum(self.C, following[:, None])
        return (y if D is None else y + (D * u)[:, None]).flatten(1), following


class _Pair(NamedTuple):
    """Complex numbers in two tensors."""

    re: Tensor
    im: Tensor

    def times(self, other: _Pair) -> _Pair:
        return _Pair(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)

    def scaled(self, factor: Tensor) -> _Pair:
        return _Pair(factor * self.re, factor * self.im)

    def inverse(self) -> _Pair:
        square = self.re * self.re + self.im * self.im
        return _Pair(self.re / square, -self.im / square)

    def conjugate(self) -> _Pair:
        return _Pair(self.re, -self.im)

    def stacked(self) -> Tensor:
        return torch.stack((self.re, self.im), -1)


def coefficients(stored: Stored, P: Tensor | None, kind: str) -> Coefficients:
    """The coefficients of logarithms and pairs as ``SSMParameters`` stores them.

    ``kind`` is ``"zoh"`` or ``"bilinear"`` for diagonal models, or ``"dplr"`` with P (rank, n_ssm, n, 2).
    """
    _, H, n, _ = stored.C.shape
    copies, dtype = H // len(stored.A_real), stored.C.dtype

    def shared(t: Tensor) -> Tensor:
        t = t.double()
        return t if copies == 1 else t.repeat(*([1] * (t.ndim - 2)), copies, 1)

    step = stored.dt.view(H, -1).double().exp()
    A = _Pair(-shared(stored.A_real).exp(), -shared(stored.A_imag))
    assert stored.B is not None
    given = stored.B.view(-1, n, 2)
    weight = _Pair(shared(given[..., 0]), shared(given[..., 1])).scaled(step)
    z = A.scaled(step)
    if kind == "zoh":
        growth = z.re.exp()
        decay = _Pair(growth * z.im.cos(), growth * z.im.sin())
        B_bar = weight.times(_phi(z, growth))
        return Coefficients(decay.stacked(), B_bar.stacked().to(dtype), stored.C)
    M = _Pair(1 - z.re / 2, -z.im / 2).inverse()
    increment = z.times(M)
    decay, B_bar = _Pair(1 + increment.re, increment.im), weight.times(M)
    if P is None:
        return Coefficients(decay.stacked(), B_bar.stacked().to(dtype), stored.C)
    factor = _Pair(shared(P[..., 0]), shared(P[..., 1]))
    G, Q = factor.times(M).scaled(step / 2), factor.conjugate().times(M)
    E = _mixed(_capacitance(factor, G), Q)
    overlap = 2 * (E.re * weight.re - E.im * weight.im).sum(-1, keepdim=True)
    B_bar = _Pair(B_bar.re - (G.re * overlap).sum(0), B_bar.im - (G.im * overlap).sum(0))
    pairs = (t.stacked().to(dtype) for t in (B_bar, G, E))
    B, G_pairs, E_pairs = pairs
    return Coefficients(decay.stacked(), B, stored.C, G_pairs, 2 * E_pairs)


def _phi(z: _Pair, growth: Tensor) -> _Pair:
    """``(exp(z) - 1) / z``, and 1 at 0; ``growth`` is exp(Re z)."""
    small = z.re.abs() + z.im.abs() < torch.finfo(z.re.dtype).eps
    safe = _Pair(torch.where(small, 1.0, z.re), z.im)
    above = _Pair(torch.expm1(z.re) - 2 * growth * (z.im / 2).sin() ** 2, growth * z.im.sin())
    found = above.times(safe.inverse())
    return _Pair(torch.where(small, 1.0, found.re), torch.where(small, 0.0, found.im))


def _capacitance(P: _Pair, G: _Pair) -> Tensor:
    """``(I + 2 Re P* G)^{-1}``, (d_model, rank, rank)."""
    products = (P.re[:, None] * G.re[None] + P.im[:, None] * G.im[None]).sum(-1).permute(2, 0, 1)
    rank = products.shape[-1]
    if rank == 1:
        return 1 / (1 + 2 * products)
    eye = torch.eye(rank, dtype=products.dtype, device=products.device)
    return torch.linalg.inv_ex(eye + 2 * products).inverse


def _mixed(weights: Tensor, x: _Pair) -> _Pair:
    """``sum_j weights_ij x_j``: (d_model, rank, rank), (rank, d_model, n) -> (rank, d_model, n)."""
    spread = weights.permute(1, 2, 0)[..., None]
    return _Pair((spread * x.re).sum(1), (spread * x.im).sum(1))


def _times(x: Tensor, y: Tensor) -> Tensor:
    """The product of complex numbers as pairs."""
    (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
    return torch.stack((a * c - b * d, a * d + b * c), -1)


def _real_sum(x: Tensor, y: Tensor) -> Tensor:
    """``Re sum_n x_n y_n`` of pairs, (..., n, 2) -> (...)."""
    (a, b), (c, d) = x.unbind(-1), y.unbind(-1)
    return (a * c - b * d).sum(-1)
