"""The bilinear step of a DPLR SSM in diagonal-plus-low-rank form, and its adjoint, in complex128."""

from __future__ import annotations

import torch
from torch import Tensor, conj_physical

from s4_fast.ops._complex import conjugate, plus
from s4_fast.ops.diagonal.discretization import of_copies, of_stored, system
from s4_fast.ops.diagonal.form import Form


class Discretized:
    """``A_bar s = a s - sum_r G_r (2 Re V_r s)`` and ``B_bar``, of dt (H, 1) or (H, n), A_real, A_imag (S, n), P (rank,
    S, n, 2), B (S, n, 2) or None for 1. Feature h takes the copy h % S of A, P and B.

    With h half a step, M = 1 / (1 - h A) and Q = P* M, the Woodbury identity gives (S4, appendix C.2)

        a = 2 M - 1,   G = h P M,   K = (I + 2 Re P* G)^{-1},   E = K Q,   V = 2 E,
        B_bar = 2 h M B - sum_r G_r (2 Re E_r 2 h B)
    """

    def __init__(self, dt: Tensor, A_real: Tensor, A_imag: Tensor, P: Tensor, B: Tensor | None, form: Form) -> None:
        self.form, self.copies = form, len(dt) // len(A_real)
        self.step, self.A, self.B = system(dt, A_real, A_imag, B, form)
        self.P = torch.view_as_complex(P).to(self.A.dtype).repeat(1, self.copies, 1)
        self.half = self.step / 2
        self.M = 1 / plus(-self.half * self.A, 1)
        self.a, self.G = plus(2 * self.M, -1), self.half * self.P * self.M
        self.Q = conjugate(self.P) * self.M
        capacitance = 2 * _real_products(self.P, self.G)
        eye = torch.eye(len(P), dtype=capacitance.dtype, device=P.device)
        self.K = torch.linalg.inv_ex(eye + capacitance).inverse  # (H, rank, rank); A is stable, so this is regular
        self.E = _mix(self.K, self.Q)
        self.V = 2 * self.E
        self.input = (self.step if self.B is None else self.step * self.B).to(self.A.dtype).expand_as(self.A)
        self.overlap = 2 * (self.E * self.input).sum(-1, keepdim=True).real
        self.B_bar = self.M * self.input + (self.G * -self.overlap).sum(0)

    def gradients(
        self, grad_a: Tensor, grad_G: Tensor, grad_V: Tensor, grad_B_bar: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The gradients of dt, A_real, A_imag, P and B, float64 (P and B as pairs), for those of a, G, V and B_bar."""
        half, M, P, K, E = self.half, self.M, self.P, self.K, self.E
        of_overlap = -2 * (conj_physical(self.G) * grad_B_bar).sum(-1, keepdim=True).real
        grad_E = 2 * grad_V + of_overlap * conj_physical(self.input)
        grad_G = grad_G - self.overlap * grad_B_bar
        of_input = conj_physical(M) * grad_B_bar + (of_overlap * conj_physical(E)).sum(0)
        # K is the inverse of I + 2 Re P* G.
        of_inverse = -2 * K.mT @ _real_products(E, grad_E).mT
        grad_G = grad_G + _mix(of_inverse.mT, P)
        grad_Q = _mix(K.mT, grad_E)
        grad_P = _mix(of_inverse, self.G) + half * conj_physical(M) * grad_G + M * conj_physical(grad_Q)
        grad_M = 2 * grad_a + conj_physical(self.input) * grad_B_bar
        grad_M = grad_M + (half * conj_physical(P) * grad_G + P * grad_Q).sum(0)
        of_square = conj_physical(M.square()) * grad_M
        grad_half = (conj_physical(P * M) * grad_G).sum(0) + conj_physical(self.A) * of_square
        held = of_input if self.B is None else of_input * conj_physical(self.B)
        stored = of_stored(self.form, self.step, self.A, self.copies, grad_half.real / 2 + held.real, half * of_square)
        return (
            *stored,
            torch.view_as_real(of_copies(grad_P, self.copies)),
            torch.view_as_real(of_copies(self.step * of_input, self.copies)),
        )


def _real_products(x: Tensor, y: Tensor) -> Tensor:
    """``Re sum_n x_i* y_j``: (rank, H, n) twice -> (H, rank, rank)."""
    left, right = (torch.view_as_real(t).flatten(-2).transpose(0, 1) for t in (x, y))
    return left @ right.mT


def _mix(weights: Tensor, x: Tensor) -> Tensor:
    """``sum_j weights_ij x_j``: (H, rank, rank), (rank, H, n) -> (rank, H, n)."""
    return (weights.permute(1, 2, 0)[..., None] * x).sum(1)
