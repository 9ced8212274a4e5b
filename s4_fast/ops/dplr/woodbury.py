"""The Woodbury correction of the DPLR spectrum in the form that does not cancel, and its adjoint.

The spectrum k = rho_CB - h rho_CP (I + h rho_QP)^-1 rho_QB is linear in B. Writing B = P alpha + B' with the
least-squares alpha removes the part of rho_CB that the correction nearly cancels:

    k = rho_CB' + rho_CP Y,   Y = S^-1 (alpha - h rho_QB'),   S = I + h rho_QP.

The identity holds for every alpha, so alpha is a constant of the differentiation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, conj_physical

from s4_fast.ops._layout import sum_over


class Sums(NamedTuple):
    """The Cauchy sums rho at F nodes; CB is not needed by the adjoint."""

    CP: Tensor  # (c, r, H, F)
    QP: Tensor  # (r, r, H, F)
    QB: Tensor  # (r, b, H, F)
    CB: Tensor | None = None  # (c, b, H, F)


def split(P: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """alpha (r, b, H) real and B' = B - P alpha (b, H, n), for P (r, H, n) and B (b, H, n).

    The ridge makes dependent rows of P solvable. A decomposition would stop a GPU to see whether it converged.
    """
    gram = torch.einsum("ihn,jhn->ijh", conj_physical(P), P).real
    overlap = torch.einsum("ihn,bhn->ibh", conj_physical(P), B).real
    ridge = 1e-12 * gram.diagonal().sum(-1) + torch.finfo(gram.dtype).tiny
    gram.diagonal().add_(ridge[:, None])
    alpha = torch.stack(_solve([list(row) for row in gram], list(overlap)))
    return alpha, B - torch.einsum("rbh,rhn->bhn", alpha.to(P.dtype), P)


def combine(rho: Sums, h: Tensor, alpha: Tensor) -> Tensor:
    """The spectrum, (b, c, H, F), for h (F,) and alpha (r, b, H)."""
    assert rho.CB is not None
    Y, _ = _correction(rho, h, alpha)
    out = rho.CB.transpose(0, 1)
    for j, y in enumerate(Y):
        out = torch.addcmul(out, y[:, None], rho.CP[None, :, j])
    return out


def combine_backward(grad: Tensor, rho: Sums, h: Tensor, alpha: Tensor) -> Tensor:
    """The gradients of all sums, conjugated, for the gradient (b, c, H, F) of the spectrum, conjugated.

    Returned as rows (R, H, F) in the order of ``Sums``, stored as (H, R, F). Without conjugation: dCB = g,
    dCP = g Y*, Z = S^-H (CP* g), dQB = -h* Z, dQP = -h* Z Y*.
    """
    b, c, H, F = grad.shape
    r = len(rho.QP)
    rows = grad.new_empty(H, (c + r) * (b + r), F).transpose(0, 1)
    parts = rows.split((c * r, r * r, r * b, c * b))
    dCP, dQP, dQB, dCB = (t.unflatten(0, s) for t, s in zip(parts, ((c, r), (r, r), (r, b), (c, b)), strict=True))
    Y, S = _correction(rho, h, alpha)
    transposed = [list(row) for row in zip(*S, strict=True)]
    Z = _solve(transposed, [sum_over(grad * rho.CP[None, :, j], 1) for j in range(r)])
    dCB.copy_(grad.transpose(0, 1))
    for i in range(r):
        dCP[:, i] = sum_over(grad * Y[i][:, None], 0)
        torch.mul(Z[i], -h, out=dQB[i])
        for j in range(r):
            dQP[i, j] = sum_over(dQB[i] * Y[j], 0)
    return rows


def _correction(rho: Sums, h: Tensor, alpha: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Y as r tensors (b, H, F), and S as r x r tensors (H, F)."""
    ranks = range(alpha.shape[0])
    S = [[h * rho.QP[i, j] for j in ranks] for i in ranks]
    for i in ranks:
        S[i][i] += 1
    rhs = [torch.addcmul(alpha[i][..., None].to(h.dtype), h, rho.QB[i], value=-1) for i in ranks]
    return _solve([list(row) for row in S], rhs), S


def _solve(matrix: list[list[Tensor]], rhs: list[Tensor]) -> list[Tensor]:
    """Gaussian elimination at every node at once, without pivoting. Overwrites the lists and ``rhs``.

    For Q = P the matrix is I plus one with positive semidefinite Hermitian part, so no pivot is small.
    """
    r = len(rhs)
    for p in range(r):
        for i in range(p + 1, r):
            factor = matrix[i][p] / matrix[p][p]
            for j in range(p + 1, r):
                matrix[i][j] = torch.addcmul(matrix[i][j], factor, matrix[p][j], value=-1)
            rhs[i].addcmul_(factor, rhs[p], value=-1)
    for p in reversed(range(r)):
        for j in range(p + 1, r):
            rhs[p].addcmul_(matrix[p][j], rhs[j], value=-1)
        rhs[p].div_(matrix[p][p])
    return rhs
