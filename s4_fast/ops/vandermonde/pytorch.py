"""Vandermonde products in pure PyTorch: two-level GEMMs, forward and backward."""

from __future__ import annotations

from torch import Tensor, conj_physical

from s4_fast.ops.vandermonde.two_level import TwoLevelTables, log_powers


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """v (c, H, n), x (H, n) -> (c, H, L)."""
    return _tables(x, L, v.shape[0]).synthesize(2 * v)


def log_vandermonde_backward(
    grad: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """grad_v = 2 (sum_l g_l lambda^l)*, grad_x = sum_c 2 v* (sum_l l g_l lambda^l)*."""
    zeroth, first = _tables(x, L, v.shape[0]).moments(grad, first=needs[1])
    grad_x = None if first is None else conj_physical((2 * v * first).sum(0))
    return conj_physical(2 * zeroth), grad_x


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """u (c, H, L), v (c, H, n), x (H, n) -> (c, H, n)."""
    zeroth, _ = _tables(x, L, v.shape[0]).moments(u, first=False)
    return v * zeroth


def log_vandermonde_transpose_backward(
    grad: Tensor, u: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """grad_u = Re sum_n g* v lambda^l, grad_v = g (sum_l u_l lambda^l)*, grad_x = sum_c g (v sum_l l u_l lambda^l)*."""
    tables = _tables(x, L, v.shape[0])
    grad_u = tables.synthesize(conj_physical(grad) * v) if needs[0] else None
    if not (needs[1] or needs[2]):
        return grad_u, None, None
    zeroth, first = tables.moments(u, first=needs[2])
    grad_x = None if first is None else (grad * conj_physical(v * first)).sum(0)
    return grad_u, grad * conj_physical(zeroth), grad_x


def _tables(x: Tensor, L: int, rows: int) -> TwoLevelTables:
    return TwoLevelTables(log_powers(x, L), L, x.dtype, rows)
