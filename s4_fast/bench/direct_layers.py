"""Whole layers by direct evaluation: the formulas of :mod:`.direct`, with a layer's parameters and its skip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from s4_fast.bench import direct
from s4_fast.layers import S4DLayer, S4Layer
from s4_fast.state_spaces import S4D

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MinimalS4D(nn.Module):
    """The layer of the official minimal S4D, without its output map, on (batch, L, H), with the numbers of ``layer``.

    It has poles for every feature, and B is in its C. ``log_vandermonde`` evaluates its kernel.
    """

    def __init__(
        self, layer: S4DLayer, log_vandermonde: Callable[[Tensor, Tensor, int], Tensor] = direct.log_vandermonde
    ) -> None:
        super().__init__()
        ssm = layer.kernel
        with torch.no_grad():
            A, dt = ssm.A().expand(layer.d_model, -1), ssm.dt()
            C = torch.view_as_complex(ssm.C)[0] * ssm.B_vector()
        self.D = nn.Parameter(layer.D.detach().clone())
        self.C = nn.Parameter(torch.view_as_real(C).clone())
        self.log_dt = nn.Parameter(dt.squeeze(-1).log())
        self.log_A_real = nn.Parameter((-A.real).log())
        self.A_imag = nn.Parameter(A.imag.clone())
        self.log_vandermonde = log_vandermonde

    def forward(self, u: Tensor) -> Tensor:
        return direct.fft_conv(u.mT, self.log_vandermonde(*_terms(self), u.shape[1]), self.D).mT


def s4d(layer: S4D) -> Callable[[Tensor], Tensor]:
    """The official minimal S4D on (batch, H, L), output map included."""

    def run(u: Tensor) -> Tensor:
        y = direct.fft_conv(u, direct.log_vandermonde(*_terms(layer.kernel), u.shape[-1]), layer.D)
        return layer.output_linear(layer.activation(y))

    return run


def _terms(kernel: Any) -> tuple[Tensor, Tensor]:
    """Factors and exponents of the kernel's sum, as the official minimal S4D forms them."""
    A = -torch.exp(kernel.log_A_real) + 1j * kernel.A_imag
    dtA = A * torch.exp(kernel.log_dt)[:, None]
    return torch.view_as_complex(kernel.C) * (torch.exp(dtA) - 1) / A, dtA


def s4_layer(layer: S4Layer, L: int) -> Callable[[Tensor], Tensor]:
    """An S4 layer on L samples by its direct kernel and one FFT of length 2L.

    Its C is truncated once, beforehand, as the parameter of the official layer is.
    """
    ssm = layer.kernel
    with torch.no_grad():
        wide = torch.complex128
        P, B, C = (torch.view_as_complex(t).to(wide) for t in (ssm.P, ssm.B, ssm.C))
        A_bar, _ = direct.dense_bilinear(ssm.A().to(wide), P, B[0], ssm.dt().double())
        late = (C[0] - direct.truncated(C[0], A_bar, L)).to(ssm.state_dtype())

    def run(u: Tensor) -> Tensor:
        dt, P, B, C = ssm.dt(), *(torch.view_as_complex(t) for t in (ssm.P, ssm.B, ssm.C))
        k = direct.dplr_kernel(dt * ssm.A(), P, P, B, C - late, dt, L)[0, 0]
        return direct.fft_conv(u.mT, k, layer.D).mT

    return run


def s4d_step(layer: S4DLayer) -> Step:
    """The step of an S4D layer in complex arithmetic, discretised once."""
    x, B, C = layer.kernel.discretize()
    lam = torch.exp(x)

    def step(u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = lam * state + B * u[..., None]
        return 2 * (C[0] * state).sum(-1).real + layer.D * u, state

    return step


def s4_step(layer: S4Layer) -> Step:
    """The exact step of an S4 layer by its dense transition matrix on (Re s, Im s), discretised once."""
    recurrence = layer.kernel.discretize()
    n, H, device = layer.d_state // 2, layer.d_model, layer.D.device
    eye = torch.eye(2 * n, device=device)
    basis = torch.complex(eye[:, None, :n], eye[:, None, n:]).expand(-1, H, -1)
    A_bar = real_state(layer.kernel.propagator()(basis, 1)).permute(1, 2, 0)
    B, C = real_state(recurrence.B), real_state(2 * recurrence.C[0].conj())

    def step(u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.einsum("hij,bhj->bhi", A_bar, state) + B * u[..., None]
        return (C * state).sum(-1) + layer.D * u, state

    return step


def real_state(state: Tensor) -> Tensor:
    """(Re s, Im s), as :func:`s4_step` takes a state."""
    return torch.cat((state.real, state.imag), -1)
