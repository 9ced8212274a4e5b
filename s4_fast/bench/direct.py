"""The direct evaluations that S4 code bases use without compiled kernels: the baselines of the benchmark.

They are baselines, not definitions: textbook formulas in the precision of their inputs, under ordinary PyTorch
autograd, materialising every ``(H, n, L)`` term. They lose digits where the fast paths do not (phases ``x l`` and
nodes near ``omega = -1`` in float32). The definitions are the ``reference`` modules of the ops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.ssm import with_conjugates


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """2 Re sum_n v_n exp(x_n l)."""
    steps = torch.arange(L, dtype=x.real.dtype, device=x.device)
    return 2 * (v[..., None] * torch.exp(x[..., None] * steps)).sum(-2).real


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """sum_l u_l v_n exp(x_n l)."""
    steps = torch.arange(L, dtype=x.real.dtype, device=x.device)
    return v * (u[..., None, :] * torch.exp(x[..., None] * steps)).sum(-1)


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool = True) -> Tensor:
    """sum_n v/(z - w) over the states and, if ``symmetric``, their conjugates."""
    if symmetric:
        v, w = with_conjugates(v), with_conjugates(w)
    return (v[..., None] / (z[..., None, :] - w[..., None])).sum(-2)


def cauchy_bilinear(v: Tensor, w: Tensor, L: int) -> Tensor:
    """2/(1 + omega) sum_n v/(z - w) at z = 2(1 - omega)/(1 + omega), omega the L-th roots of unity."""
    z, factor = _nodes(L, w)
    return cauchy_mult(v, z, w) * factor


def dplr_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """The S4 kernel from (b + r)(c + r) Cauchy sums and the Woodbury correction, without splitting B."""
    rank = P.shape[0]
    right = torch.cat((B, P))
    left = torch.cat((C, Q.conj()))
    z, factor = _nodes(L, w)
    sums = cauchy_mult(right[:, None] * left * dt, z, w)
    plain, left_half, right_half = sums[:-rank, :-rank], sums[-rank:, :-rank], sums[:-rank, -rank:]
    if rank == 1:
        spectrum = plain - left_half * right_half / (1 + sums[-1:, -1:])
    else:
        capacitance = sums[-rank:, -rank:].permute(2, 3, 1, 0)
        inverse = torch.linalg.inv(torch.eye(rank, dtype=w.dtype, device=w.device) + capacitance)
        spectrum = plain - torch.einsum("pchl,hlpq,bqhl->bchl", left_half, inverse, right_half)
    return torch.fft.irfft(spectrum * factor, n=L)


def fft_conv(u: Tensor, k: Tensor, D: Tensor | None = None) -> Tensor:
    """Causal convolution by one FFT of length 2L over the whole batch, plus D u."""
    L = u.shape[-1]
    if k.ndim == 3:
        u = u[:, None]
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * L) * torch.fft.rfft(k, n=2 * L), n=2 * L)[..., :L]
    return y if D is None else y + D[..., None] * u


def ssm_scan(
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The kernel from its (H, n, L) terms, a convolution, and what the initial state adds."""
    L = u.shape[-1]
    y = fft_conv(u, log_vandermonde(C * B, x, L), D)
    if state is not None:
        steps = torch.arange(1, L + 1, dtype=u.dtype, device=u.device)
        y = y + 2 * torch.einsum("bhn,hnl->bhl", C * state, torch.exp(x[..., None] * steps)).real
    if not return_state:
        return y
    final = log_vandermonde_transpose(u.flip(-1), B, x, L)
    return y, final if state is None else final + torch.exp(L * x) * state


def diagonal_ssm(
    u: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Zero-order hold as the official S4D forms it, ``B (exp(dt A) - 1) / A``, and the rest as for ``ssm_scan``."""
    x = dt * A
    return ssm_scan(u, x, B * (torch.exp(x) - 1) / A, C, D, state, return_state)


def dplr_scan(
    u: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As the official S4 runs: a kernel from the truncated ``C (I - A_bar^L)`` and a convolution; where there is a
    state, a dense step for every sample."""
    A_bar, B_bar = dense_bilinear(A, P, B, dt)
    if state is None and not return_state:
        row = truncated(C, A_bar, u.shape[-1])
        return fft_conv(u, dplr_kernel(dt * A, P, P, B[None], row[None], dt, u.shape[-1])[0, 0], D)
    n = A.shape[-1]
    s = torch.zeros(len(u), *A.shape, dtype=A.dtype, device=u.device) if state is None else state
    s, rows = with_conjugates(s), []
    for sample in u.unbind(-1):
        s = torch.einsum("hij,bhj->bhi", A_bar, s) + B_bar * sample[..., None]
        rows.append(2 * (C * s[..., :n]).sum(-1).real)
    y = torch.stack(rows, -1)
    y = y if D is None else y + D[:, None] * u
    return (y, s[..., :n]) if return_state else y


def dense_bilinear(A: Tensor, P: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """A_bar (H, 2n, 2n) and B_bar (H, 2n) of ``A - P P*`` on states and their conjugates."""
    both, low_rank = with_conjugates(dt * A), with_conjugates(P)
    Z = torch.diag_embed(both) - dt[..., None] * torch.einsum("rhi,rhj->hij", low_rank, low_rank.conj())
    eye = torch.eye(both.shape[-1], dtype=Z.dtype, device=Z.device)
    backward = torch.linalg.inv(eye - Z / 2)
    return backward @ (eye + Z / 2), (backward @ with_conjugates(dt * B)[..., None]).squeeze(-1)


def truncated(C: Tensor, A_bar: Tensor, L: int) -> Tensor:
    """``C (I - A_bar^L)``, (H, n)."""
    row = with_conjugates(C)[:, None]
    return (row - row @ torch.linalg.matrix_power(A_bar, L))[:, 0, : C.shape[-1]]


def ssm_step(
    u: Tensor, state: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """exp(x) state + B u, in the precision of the inputs."""
    state = torch.exp(x) * state + B * u[..., None]
    y = 2 * (C * state).sum(-1).real
    return (y if D is None else y + D * u), state


def dplr_step(
    u: Tensor, state: Tensor, increment: Tensor, G: Tensor, V: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """One einsum for each overlap of states."""
    overlaps = 2 * torch.einsum("rhn,bhn->rbh", V, state).real
    state = state + increment * state - torch.einsum("rhn,rbh->bhn", G, overlaps.to(G.dtype)) + B * u[..., None]
    return 2 * torch.einsum("chn,bhn->bch", C, state).real, state


def _nodes(L: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """z and 2/(1 + omega), rounded from float64: in float64 ``1 + omega`` is tiny at omega = -1, not zero."""
    angle = torch.arange(L // 2 + 1, dtype=torch.float64, device=like.device) * (-2 * torch.pi / L)
    omega = torch.polar(torch.ones_like(angle), angle)
    factor = 2 / (1 + omega)
    return ((1 - omega) * factor).to(like.dtype), factor.to(like.dtype)
