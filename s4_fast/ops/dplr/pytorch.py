"""The DPLR kernel and step in pure PyTorch. Kernel: Cauchy sums in the FFT form, then the split Woodbury correction.

The FFT form is accurate in norm, not node by node, and the Woodbury quotient amplifies its error: in float32 by
10^2 for the kernel, by up to 10^6 for the gradient of weakly damped poles (LegT). Everything between the
parameters and the kernel is therefore complex128.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, conj_physical

from s4_fast.ops.cauchy.fft_form import FFTForm, irfft_weight
from s4_fast.ops.dplr.woodbury import Sums, combine, combine_backward, split

_WIDE = torch.complex128


def dplr_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """w (H, n), P, Q (r, H, n), B (b, H, n), C (c, H, n), dt (H, 1 or n) -> (b, c, H, L)."""
    kernel = _Kernel(w, P, Q, B, C, dt, L)
    spectrum = combine(kernel.sums(with_CB=True), kernel.h, kernel.alpha)
    return torch.fft.irfft(spectrum, n=L).to(dt.dtype)


def dplr_kernel_backward(
    grad: Tensor,
    w: Tensor,
    P: Tensor,
    Q: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    L: int,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    kernel = _Kernel(w, P, Q, B, C, dt, L)
    half = conj_physical(torch.fft.rfft(grad.double(), norm="forward"))
    rows = combine_backward(half, kernel.sums(with_CB=False), kernel.h, kernel.alpha)
    return kernel.backward(rows, needs)


def dplr_step(
    u: Tensor, state: Tensor, increment: Tensor, G: Tensor, V: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor, Tensor]:
    """u (Bt, H), state (Bt, H, n), increment (H, n) in complex128, B (H, n), G, V (r, H, n), C (c, H, n), D (H,) ->
    (Bt, c, H), (Bt, H, n)."""
    following = state + increment * state
    for g, v in ((G[r], V[r]) for r in range(G.shape[0])):  # AOTInductor does not run what iterates, unbind
        following = following + g * (-2 * (v * state).sum(-1, keepdim=True).real)
    following = (following + B * u[..., None]).to(state.dtype)
    y = 2 * (C * following[:, None]).sum(-1).real
    return (y if D is None else y + (D * u)[:, None]), following


class _Kernel:
    """One kernel's parameters in complex128, as the left (C, Q*) and right (B', P) factors of its sums."""

    def __init__(self, w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> None:
        self.dtype, self.dt_dtype = w.dtype, dt.dtype
        self.P, self.C, self.Q_conj = P.to(_WIDE), C.to(_WIDE), conj_physical(Q.to(_WIDE))
        self.alpha, self.B = split(self.P, B.to(_WIDE))
        self.dt = dt.double()
        r, b, c = P.shape[0], B.shape[0], C.shape[0]
        self.form = FFTForm(w, L, _WIDE, (c + r) * (b + r))
        theta = math.pi / L * torch.arange(L // 2 + 1, dtype=torch.float64, device=w.device)
        self.h = torch.polar(torch.cos(theta), -theta)

    def _pairs(self, with_CB: bool) -> list[tuple[Tensor, Tensor]]:
        pairs = [(self.C, self.P), (self.Q_conj, self.P), (self.Q_conj, self.B)]
        return [*pairs, (self.C, self.B)] if with_CB else pairs

    def sums(self, with_CB: bool) -> Sums:
        pairs = self._pairs(with_CB)
        rho = self.form.sums(torch.cat([(self.dt * X[:, None] * Y).flatten(0, 1) for X, Y in pairs]))
        parts = rho.split([X.shape[0] * Y.shape[0] for X, Y in pairs])
        return Sums(*(p.unflatten(0, (X.shape[0], Y.shape[0])) for p, (X, Y) in zip(parts, pairs, strict=True)))

    def backward(self, half: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """``half`` (R, H, F): the gradients of the sums, conjugated and without the weights of irfft."""
        pairs = self._pairs(with_CB=True)
        v = torch.cat([(X[:, None] * Y).flatten(0, 1) for X, Y in pairs])
        weight = irfft_weight(self.form.L, half)
        grad_v, grad_w = self.form.paired_backward(half, weight, self.dt * v, needs[0])
        grad_dt = (grad_v * conj_physical(v)).real.sum(0)
        grad_XY = (self.dt * grad_v).split([X.shape[0] * Y.shape[0] for X, Y in pairs])
        grad_X, grad_Y = [], []
        for g, (X, Y) in zip(grad_XY, pairs, strict=True):
            g = g.unflatten(0, (X.shape[0], Y.shape[0]))
            grad_X.append((g * conj_physical(Y)).sum(1))
            grad_Y.append((g * conj_physical(X)[:, None]).sum(0))
        grad_B = grad_Y[2] + grad_Y[3]
        grad_P = grad_Y[0] + grad_Y[1] - torch.einsum("rbh,bhn->rhn", self.alpha.to(_WIDE), grad_B)
        grad_Q = conj_physical(grad_X[1] + grad_X[2])
        grad_C = grad_X[0] + grad_X[3]
        if self.dt.shape[-1] == 1:
            grad_dt = grad_dt.sum(-1, keepdim=True)
        complex_grads = (grad_w, grad_P, grad_Q, grad_B, grad_C)
        return (*(None if g is None else g.to(self.dtype) for g in complex_grads), grad_dt.to(self.dt_dtype))
