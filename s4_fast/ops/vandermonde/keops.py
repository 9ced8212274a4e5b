"""Vandermonde products by KeOps, which evaluates every exp(x l) and stores none.

The phase x l is formed in the precision of x, so in float32 its error grows with l: 1e-3 at l = 2^20.
"""

from __future__ import annotations

import torch
from torch import Tensor, conj_physical

from s4_fast.ops._keops import pairs, sum_over_j

_POWER = "ComplexExp(ComplexRealScal(l, x))"


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """v (c, H, n), x (H, n) -> (c, H, L)."""
    return _synthesize(2 * v, x, L)


def log_vandermonde_backward(
    grad: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor, Tensor]:
    """grad_v = 2 (sum_l g_l lambda^l)*, grad_x = sum_c 2 v* (sum_l l g_l lambda^l)*."""
    zeroth, first = _moments(grad, x)
    return conj_physical(2 * zeroth), conj_physical((2 * v * first).sum(0))


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """u (c, H, L), v (c, H, n), x (H, n) -> (c, H, n)."""
    return v * _moments(u, x)[0]


def log_vandermonde_transpose_backward(
    grad: Tensor, u: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor, Tensor]:
    """grad_u = Re sum_n g* v lambda^l, grad_v = g (sum_l u_l lambda^l)*, grad_x = sum_c g (v sum_l l u_l lambda^l)*."""
    grad_u = _synthesize(conj_physical(grad) * v, x, L) if needs[0] else None
    zeroth, first = _moments(u, x)
    return grad_u, grad * conj_physical(zeroth), (grad * conj_physical(v * first)).sum(0)


def _synthesize(v: Tensor, x: Tensor, L: int) -> Tensor:
    """Re sum_n v_n exp(x_n l), (c, H, L)."""
    nodes = {"v": pairs(v), "x": pairs(x)[None]}
    return sum_over_j(f"ComplexReal(ComplexMult(v, {_POWER}))", {"l": _indices(L, x)}, nodes)[..., 0]


def _moments(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """sum_l u_l exp(x_n l) and sum_l l u_l exp(x_n l), (c, H, n)."""
    signal = {"u": u[..., None], "l": _indices(u.shape[-1], x)}
    out = sum_over_j(f"TensorProd(Concat(u, u * l), {_POWER})", {"x": pairs(x)[None]}, signal)
    zeroth, first = torch.view_as_complex(out.unflatten(-1, (2, 2))).unbind(-1)
    return zeroth, first


def _indices(L: int, x: Tensor) -> Tensor:
    return torch.arange(L, dtype=x.real.dtype, device=x.device).view(1, 1, L, 1)
