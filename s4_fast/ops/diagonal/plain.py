"""A diagonal SSM by its kernel, in differentiable operations: what transforms and exported programs see.

The FFT is in float64, so that it rounds less than the outputs do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from s4_fast.ops import _finite
from s4_fast.ops._complex import expm1, joined, log_bilinear, parts, plus
from s4_fast.ops.diagonal.discretization import system
from s4_fast.ops.diagonal.form import Form, read
from s4_fast.ops.scan.plain import final_state
from s4_fast.ops.vandermonde.plain import log_vandermonde


def diagonal_ssm(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    flags: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Shapes as in ``reference.py``, but y is (batch, c H, L), or (batch, L, c H)."""
    form, dtype = read(flags, rate), u.dtype
    u = u.mT if form.time_major else u
    u = u.to(C.dtype)
    H, L, n = u.shape[1], u.shape[2], A_real.shape[1]
    step, A, weight = system(dt.view(H, -1), A_real, A_imag, None if B is None else B.view(-1, n, 2), form)
    z = step * A
    x = log_bilinear(z) if form.bilinear else z
    B_bar = step * (1 / plus(-0.5 * z, 1) if form.bilinear else phi(z))
    B_bar = B_bar if weight is None else B_bar * weight
    outputs = torch.view_as_complex(C.reshape(-1, H, n, 2))
    c = form.channels(outputs.shape[0])
    kernels = log_vandermonde((outputs * B_bar).to(outputs.dtype), x, L).double()
    # The kernel that runs from the end meets each sample one later: lags of -1, -2, ... at the end of the circle.
    late = kernels[c:, :, : L - 1].flip(-1) if form.bidirectional else kernels[:c, :, :0]
    around = torch.cat((pad(kernels[:c], (0, L - late.shape[-1])), late), -1)
    signal = torch.fft.rfft(_finite.without(u).double(), n=2 * L)
    y = torch.fft.irfft(signal[:, None] * torch.fft.rfft(around), n=2 * L)[..., :L].to(u.dtype)
    if state is not None:
        y = y + _responses(outputs[:c] * torch.exp(x), state, x, L)
    if ahead is not None:
        y = y + _responses(outputs[c:], ahead, x, L).flip(-1)
    return completed(y, u, D, form).to(dtype), final_state(u, x, B_bar.to(outputs.dtype), state)


def completed(y: Tensor, u: Tensor, D: Tensor | None, form: Form) -> Tensor:
    """y (batch, c, H, L) with NaN where a bad sample of u reaches, and with D u, in the layout of ``form``."""
    spoilt = _finite.spoilt(u)
    if form.bidirectional:
        spoilt = spoilt + pad(_finite.spoilt(u.flip(-1))[..., :-1], (1, 0)).flip(-1)
    y = y + spoilt[:, None]
    if D is not None:
        y = y + D.view(*y.shape[1:3], 1) * u[:, None]
    y = y.flatten(1, 2)
    return y.mT if form.time_major else y


def _responses(C: Tensor, state: Tensor, x: Tensor, L: int) -> Tensor:
    """``2 Re C exp(x l) state``: C (c, H, n), state (batch, H, n) -> (batch, c, H, L)."""
    weights = (C * state[:, None]).to(state.dtype)
    return log_vandermonde(weights.flatten(0, 1), x, L).unflatten(0, weights.shape[:2])


def phi(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z``, and 1 at 0, for z in complex128; autograd's derivatives of any order are accurate too."""
    # In real arithmetic, as AOTInductor does not compile numbers beside complex tensors.
    small = z.abs().detach() < 0.5
    a, b = parts(z)
    near_a, near_b = torch.where(small, a, 0.0), torch.where(small, b, 0.0)
    far = joined(torch.where(small, 1.0, a), torch.where(small, 0.0, b))
    *lower, highest = _series(18)
    real, imag = torch.full_like(a, highest), torch.zeros_like(a)
    for coefficient in reversed(lower):
        real, imag = coefficient + near_a * real - near_b * imag, near_a * imag + near_b * real
    far_real, far_imag = parts(expm1(far) / far)
    return joined(torch.where(small, real, far_real), torch.where(small, imag, far_imag))


def _series(terms: int) -> list[float]:
    return [1 / math.factorial(k + 1) for k in range(terms)]
