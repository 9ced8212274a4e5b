"""Cauchy sums at arbitrary nodes by KeOps, which evaluates every 1/(z - w) and stores none."""

from __future__ import annotations

import torch
from torch import Tensor, conj_physical

from s4_fast.ops._keops import pairs, sum_over_j

_FIRST = "ComplexDivide(v, z - w)"
_SECOND = f"ComplexDivide({_FIRST}, z - w)"


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool) -> Tensor:
    """v (c, H, n), z (1 or H, Lz), w (H, n) -> (c, H, Lz)."""
    v, w = _with_conjugates(v, w, symmetric)
    return _sums(_FIRST, v, z, w)


def cauchy_mult_backward(
    grad: Tensor, v: Tensor, z: Tensor, w: Tensor, symmetric: bool, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With r = 1/(z - w): grad_v = sum_z g r*, grad_w = v* sum_z g r*^2, grad_z = -g sum_n v* r*^2.

    The first two are Cauchy sums with the roles of z* and w* exchanged: r* = -1/(w* - z*).
    """
    n = w.shape[-1]
    v, w = _with_conjugates(v, w, symmetric)
    v, z, w = conj_physical(v), conj_physical(z), conj_physical(w)
    nodes = z.expand(w.shape[0], -1)
    grad_v = grad_w = grad_z = None
    if needs[0]:
        grad_v = -_sums(_FIRST, grad, w, nodes)
    if needs[1]:
        by_node = -(grad * _sums(_SECOND, v, z, w)).sum(0)
        grad_z = by_node if z.shape[0] > 1 else by_node.sum(0, keepdim=True)
    if needs[2]:
        grad_w = (v * _sums(_SECOND, grad, w, nodes)).sum(0)
    if symmetric:
        grad_v = None if grad_v is None else grad_v[..., :n] + conj_physical(grad_v[..., n:])
        grad_w = None if grad_w is None else grad_w[..., :n] + conj_physical(grad_w[..., n:])
    return grad_v, grad_z, grad_w


def _with_conjugates(v: Tensor, w: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    if not symmetric:
        return v, w
    return torch.cat((v, conj_physical(v)), -1), torch.cat((w, conj_physical(w)), -1)


def _sums(formula: str, v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """The formula summed over the last dimension of v (c, H, n) and w (H, n) at z (1 or H, m), (c, H, m)."""
    out = sum_over_j(formula, {"z": pairs(z)[None]}, {"v": pairs(v), "w": pairs(w)[None]})
    return torch.view_as_complex(out)
