"""The parameters of a DPLR kernel as what its fused kernels take, and the way back of their gradients.

The spectrum (woodbury.py) is the Schur complement, k = M_00 - M_01 M_11^-1 M_10, of the sums at a node with

    M = [ rho_CB'            rho_CP      ]
        [ h rho_QB' - alpha  I + h rho_QP ],

which Gaussian elimination leaves in place of M_00.
"""

from __future__ import annotations

import torch
from torch import Tensor, conj_physical

from s4_fast.ops.dplr.woodbury import split

_WIDE = torch.complex128


class Factors:
    """The left (C, Q*) and right (B', P) factors of the sums in complex128, their products, and M - h rho.

    ``v`` ((c + rank) (b + rank), H, n) are the coefficients of the sums, row by row of M; ``shift`` is M without them,
    (c + rank, b + rank, H), in float64.
    """

    def __init__(self, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor) -> None:
        self.dtype, self.dt = P.dtype, dt
        self.b, self.c, self.rank = B.shape[0], C.shape[0], P.shape[0]
        P = P.to(_WIDE)
        self.alpha, rest = split(P, B.to(_WIDE))
        self.left = torch.cat((C.to(_WIDE), conj_physical(Q.to(_WIDE))))
        self.right = torch.cat((rest, P))
        self.products = (self.left[:, None] * self.right).flatten(0, 1)
        self.v = dt.double() * self.products
        self.shift = self.alpha.new_zeros(self.c + self.rank, self.b + self.rank, P.shape[1])
        self.shift[self.c :, : self.b] = -self.alpha
        self.shift[self.c :, self.b :].diagonal(dim1=0, dim2=1).fill_(1)

    def backward(self, grad_v: Tensor) -> tuple[Tensor, ...]:
        """The gradients of P, Q, B, C and dt. alpha is a constant: the kernel does not depend on it."""
        grad_dt = (grad_v * conj_physical(self.products)).real.sum(0)
        if self.dt.shape[-1] == 1:
            grad_dt = grad_dt.sum(-1, keepdim=True)
        grad = (self.dt.double() * grad_v).unflatten(0, (self.c + self.rank, self.b + self.rank))
        left = (grad * conj_physical(self.right)).sum(1)
        right = (grad * conj_physical(self.left)[:, None]).sum(0)
        grad_B = right[: self.b]
        grad_P = right[self.b :] - torch.einsum("rbh,bhn->rhn", self.alpha.to(_WIDE), grad_B)
        complex_grads = (grad_P, conj_physical(left[self.c :]), grad_B, left[: self.c])
        return (*(g.to(self.dtype) for g in complex_grads), grad_dt.to(self.dt.dtype))
