"""What the options of state-spaces/s4 mean: the convolution of an FFTConv from its parameters, in dense complex128."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TRANSFORMS = {
    "none": lambda p: p,
    "exp": torch.exp,
    "relu": lambda p: p.clamp(min=0) + 1e-4,
    "sigmoid": torch.sigmoid,
    "softplus": lambda p: torch.log1p(torch.exp(p)),
}


class System(NamedTuple):
    """``s_l = A s_(l-1) + B u_l, y_l = factor Re(C s_l)``: A (H, m, m), B (H, m), C (channels, H, m)."""

    A: Tensor
    B: Tensor
    C: Tensor
    factor: int


def system(kernel: nn.Module, options: dict[str, Any], rate: float = 1.0, length: int | None = None) -> System:
    """The discrete system of a kernel that has not been set up for a length.

    What has been set up for ``length`` holds ``C (I - A^length)``, A that at rate 1, of which a limited band leaves out
    modes.
    """
    p = {name: t.detach().double() for name, t in kernel.state_dict().items()}
    real = options.get("is_real", False)

    def transformed(name: str, option: str, default: str) -> Tensor:
        return TRANSFORMS[options.get(option, default)](p[name])

    def pairs(t: Tensor) -> Tensor:
        return t.to(torch.complex128) if real else torch.view_as_complex(t)

    decay = transformed("A_real", "real_transform", "exp")
    A = torch.complex(-decay, torch.zeros_like(decay) if real else -transformed("A_imag", "imag_transform", "none"))
    inv_dt = p["inv_dt"].sinh() if options.get("dt_fast") else p["inv_dt"]
    dt = TRANSFORMS[options.get("dt_transform", "exp")](inv_dt)
    B, C = pairs(p["B"])[0], pairs(p["C"])
    copies = C.shape[1] // A.shape[0]
    A, B = A.repeat(copies, 1), B.repeat(copies, 1)
    limit = options.get("bandlimit")
    mask = torch.ones_like(A.real) if limit is None else (dt * A.imag.abs() / (2 * math.pi) < limit / 2).double()
    base, dt = dt, dt * rate
    if "P" not in p:
        lam, B = {
            "zoh": (torch.exp(dt * A), B * (torch.exp(dt * A) - 1) / A),
            "bilinear": ((1 + dt * A / 2) / (1 - dt * A / 2), B * dt / (1 - dt * A / 2)),
        }[options.get("disc", "zoh")]
        return System(torch.diag_embed(lam), B, C * mask, 2)
    P = torch.view_as_complex(p["P"]).repeat(1, copies, 1)
    A, B, C, P, mask = (torch.cat((t, t.conj()), -1) for t in (A, B, C, P, mask))
    dense = torch.diag_embed(A) - torch.einsum("rhm,rhn->hmn", P, P.conj())
    identity = torch.eye(A.shape[-1], dtype=A.dtype)

    def bilinear(dt: Tensor) -> tuple[Tensor, Tensor]:
        # With a step size of each state, the matrix of step sizes stands where the number stood.
        dt = torch.cat((dt, dt), -1) if dt.shape[-1] > 1 else dt.expand_as(A)
        left = torch.linalg.inv(identity - dt[..., None] / 2 * dense)
        return left @ (identity + dt[..., None] / 2 * dense), (left @ (dt * B)[..., None])[..., 0]

    A_bar, B_bar = bilinear(dt)
    if length is None:
        return System(A_bar, B_bar, C * mask, 1)
    power = torch.linalg.matrix_power
    stored = mask * torch.einsum("chm,hmn->chn", C, identity - power(bilinear(base)[0], length))
    truncation = identity - power(bilinear(base)[0], length)
    return System(A_bar, B_bar, torch.linalg.solve(truncation, stored[..., None, :], left=False)[..., 0, :], 1)


def response(of: System, s: Tensor, L: int) -> Tensor:
    """``factor Re C A^l s``, 0 <= l < L, for s (..., H, m): (..., channels, H, L)."""
    outputs = []
    for _ in range(L):
        outputs.append(of.factor * torch.einsum("chm,...hm->...ch", of.C, s).real)
        s = torch.einsum("hmn,...hn->...hm", of.A, s)
    return torch.stack(outputs, -1)


def last_state(of: System, x: Tensor, s: Tensor) -> Tensor:
    """The state (batch, H, m) after x (batch, H, L) from s."""
    for position in range(x.shape[-1]):
        s = torch.einsum("hmn,bhn->bhm", of.A, s) + of.B * x[..., position, None]
    return s


def convolution(
    of: System, D: Tensor, x: Tensor, options: dict[str, Any], rate: float = 1.0, s: Tensor | None = None
) -> Tensor:
    """The outputs (batch, features, L) for x (batch, H, L), from the state s before it."""
    L, limit = x.shape[-1], options.get("l_max")
    k = response(of, of.B, L if limit is None else min(L, round(limit / rate)))
    k = torch.nn.functional.pad(k, (0, L - k.shape[-1]))
    # Lags l - j: the kernel itself at 0 and above, in two-sided ones the second from -1 downwards.
    lag = torch.arange(L)[:, None] - torch.arange(L)
    if options.get("bidirectional"):
        k, behind = k.chunk(2)
        toeplitz = torch.where(lag >= 0, k[..., lag.clamp(min=0)], behind[..., (-lag - 1).clamp(min=0)])
    else:
        toeplitz = torch.where(lag >= 0, k[..., lag.clamp(min=0)], 0)
    y = torch.einsum("chlj,bhj->bchl", toeplitz, x) + D.detach()[None, :, :, None] * x[:, None]
    if s is not None:
        y = y + response(of, torch.einsum("hmn,bhn->bhm", of.A, s), L)
    return (y.transpose(1, 2) if options.get("swap_channels") else y).flatten(1, 2)
