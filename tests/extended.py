"""The definitions at roots of unity in extended precision: the yardstick where float64 itself loses too many digits.

With hardly any decay a sum next to a resonance is a quotient of rounded differences, in the reference too, and the
DPLR kernel is the difference of such sums.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from numpy.linalg import norm
from torch import Tensor

Array = np.ndarray

needs_extended = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 2e-19, reason="long double is no wider than double on this machine"
)


def widened(t: Tensor) -> Array:
    return t.resolve_conj().numpy().astype(np.clongdouble if t.is_complex() else np.longdouble)


def half_angles(L: int) -> tuple[Array, Array]:
    """sin and cos of theta/2 = pi k/L, 0 <= k <= L/2."""
    k = np.arange(L // 2 + 1, dtype=np.longdouble)
    pi = 4 * np.arctan(np.longdouble(1))
    return np.sin(pi * k / L), np.sin(pi * (L - 2 * k) / (2 * L))


def cauchy_bilinear(v: Array, w: Array, L: int) -> Array:
    """v, w (..., n) -> (..., L//2 + 1)."""
    sin, cos = half_angles(L)
    out = np.zeros((), np.clongdouble)
    for i in range(w.shape[-1]):
        for a, b in ((v[..., i, None], w[..., i, None]), (v[..., i, None].conj(), w[..., i, None].conj())):
            out = out + a / (2j * sin - b * cos)
    return (cos + 1j * sin) * out


def assert_as_good_as_its_poles(output: Tensor, v: Tensor, w: Tensor, L: int, seed: int) -> None:
    """``output`` is off from ``cauchy_bilinear(v, w, L)``, n states, by what a few roundings of w do to it."""
    wide_v, wide_w = widened(v), widened(w)
    truth = cauchy_bilinear(wide_v, wide_w, L)
    neighbours = neighbour(np.stack([wide_w] * 5), np.random.default_rng(seed))
    one_rounding = np.median(norm(cauchy_bilinear(wide_v, neighbours, L) - truth, axis=-1))
    assert norm(output.numpy() - truth) <= 20 * one_rounding + 1e-14 * norm(truth)


def neighbour(t: Array, draw: np.random.Generator) -> Array:
    """``t`` with every entry moved by what rounding it to float64 may move it."""
    return t * (1 + draw.choice([-1, 1], t.shape) * np.longdouble(2) ** -53)


def dplr_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """One input and one output, any rank; rounded to float64."""
    w, P, Q, B, C, dt = (widened(t) for t in (w, P, Q, B, C, dt))
    left, right = np.concatenate((C, Q.conj())), np.concatenate((B, P))
    sin, cos = half_angles(L)
    M = np.stack([[cauchy_bilinear(dt * x * y, w, L) for y in right] for x in left])
    M[1:] *= (cos - 1j * sin) * cos
    for i in range(1, len(M)):
        M[i, i] += 1
    # By elimination: next to a pole the determinant of the rank x rank matrix is a difference of squares of large sums.
    for p in reversed(range(1, len(M))):
        M[:p, :p] -= M[:p, p : p + 1] / M[p, p] * M[p : p + 1, :p]
    kernel = scipy.fft.irfft(M[0, 0], n=L)
    return torch.from_numpy(kernel.astype(np.float64))[None, None]
