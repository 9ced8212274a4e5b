"""Layers of releases 1 to 3 by dense matrices: class names, attributes, entries and meaning of the originals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape)


def pairs(t: Tensor) -> Tensor:
    return torch.stack((t.real, t.imag), -1)


def both(t: Tensor) -> Tensor:
    return torch.cat((t, t.conj().resolve_conj()), -1)


def spread(t: Tensor, H: int) -> Tensor:
    """(..., copies, n) -> (..., H, n)."""
    return t.repeat(*[1] * (t.ndim - 2), H // t.shape[-2], 1)


def dense_kernel(w: Tensor, P: Tensor, B: Tensor, C: Tensor, log_dt: Tensor, length: int, L: int) -> Tensor:
    """The kernel (c, H, L) of A = diag(w) - P P*, by the bilinear transform, of C truncated for ``length``."""
    H = len(log_dt)
    w, P, B = (both(spread(t.to(torch.complex128), H)) for t in (w, P, B))
    half = log_dt.double().exp()[:, None, None] / 2
    A = torch.diag_embed(w) - torch.einsum("rhn,rhm->hnm", P, P.conj())
    eye = torch.eye(w.shape[-1], dtype=A.dtype)
    back = torch.linalg.inv(eye - half * A)
    A_bar, B_bar = back @ (eye + half * A), (2 * half * back) @ B[0, ..., None]
    row = both(C.to(torch.complex128)).transpose(0, 1)
    row = row @ torch.linalg.inv(eye - torch.linalg.matrix_power(A_bar, length))
    out = []
    for _ in range(L):
        out.append((row @ B_bar)[..., 0].real)
        row = row @ A_bar
    return torch.stack(out, -1).transpose(0, 1)


class TransposedLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(normal(outputs, inputs) / 3), nn.Parameter(normal(outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x + self.bias


ACTIVATIONS = {"gelu": nn.GELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, None: nn.Identity}


def mapped(release: int, transposed: bool, inputs: int, outputs: int, activation: str | None) -> nn.Module:
    outputs *= 2 if activation == "glu" else 1
    linear: nn.Module = nn.Linear(inputs, outputs)
    if transposed:
        linear = nn.Conv1d(inputs, outputs, 1) if release == 3 else TransposedLinear(inputs, outputs)
    if activation is None:
        return linear
    last = nn.GLU(-2 if transposed else -1) if activation == "glu" else ACTIVATIONS[activation]()
    return nn.Sequential(linear, last)


class SSKernelNPLR(nn.Module):
    """The kernel of releases 2 and 3, and of 1, which stacks B over P and C over Q and means conj(C)."""

    def __init__(
        self, release: int, H: int, n: int, c: int, length: int, rank: int, copies: int, hurwitz: bool, real_type: str
    ) -> None:
        super().__init__()
        self.H, self.N, self.rank, self.n_ssm = H, n, rank, copies
        self.L_max, self.real_type, self.bandlimit = length, real_type, None
        self.log_dt = nn.Parameter(-4 + normal(H))
        decay, frequency = 0.3 + torch.rand(copies, n), 3 * normal(copies, n)
        P, B, C = (torch.complex(normal(*s, n), normal(*s, n)) for s in ((rank, copies), (1, copies), (c, H)))
        roots = torch.exp(-2j * torch.pi * torch.arange(length // 2 + 1) / length)
        if release == 1:
            self.w = nn.Parameter(pairs(torch.complex(-decay, frequency)[0]))
            self.B = nn.Parameter(pairs(torch.cat((B, P)).transpose(0, 1)))
            self.C = nn.Parameter(pairs(torch.cat((C, P.expand(-1, H, -1))).transpose(0, 1)))
            self.register_buffer("nodes", pairs(roots))
            return
        self.P, self.B, self.C = (nn.Parameter(pairs(t)) for t in (P, B, C))
        if release == 2 and not hurwitz:
            self.w, self.Q = nn.Parameter(pairs(torch.complex(-decay, frequency))), nn.Parameter(pairs(P.conj()))
        else:
            stored = {"exp": decay.log(), "none": decay, "softplus": decay.expm1().log()}[real_type]
            self.register_parameter("inv_w_real" if release == 3 else "log_w_real", nn.Parameter(stored))
            self.w_imag = nn.Parameter(frequency)
        if release == 3:
            self.register_buffer("L", torch.tensor(length))
        else:
            self.register_buffer("omega", pairs(roots))

    def poles(self) -> Tensor:
        if hasattr(self, "w"):
            return torch.view_as_complex(self.w)
        stored = self.inv_w_real if hasattr(self, "inv_w_real") else self.log_w_real
        transform = {"exp": torch.exp, "none": lambda x: x, "softplus": functional.softplus}[self.real_type]
        return torch.complex(-transform(stored), self.w_imag)

    def forward(self, L: int) -> Tensor:
        w, B, C = self.poles(), torch.view_as_complex(self.B), torch.view_as_complex(self.C)
        if hasattr(self, "P"):
            P, w = torch.view_as_complex(self.P), w if w.ndim == 2 else w[None]
        else:
            B, P, C, w = B[:, 0][None], B[:, 1:].transpose(0, 1), C[:, 0].conj()[None], w[None]
        return dense_kernel(w, P, B, C, self.log_dt, self.L_max, L).to(self.log_dt)


class SSKernelDiag(nn.Module):
    """The S4D kernel of releases 2 (B is in C) and 3."""

    def __init__(self, release: int, H: int, n: int, c: int, copies: int, disc: str) -> None:
        super().__init__()
        self.H, self.N, self.n_ssm, self.disc, self.bandlimit, self.real_type = H, n, copies, disc, None, "exp"
        self.log_dt = nn.Parameter(-4 + normal(H))
        A = torch.complex(-0.3 - torch.rand(copies, n), 3 * normal(copies, n))
        self.C = nn.Parameter(normal(c, H, n, 2))
        if release == 3:
            self.A = nn.Parameter(pairs(A))
            self.B = nn.Parameter(normal(copies, n, 2))
        names = ("inv_A_real", "A_imag") if release == 3 else ("log_w_real", "w_imag")
        for name, value in zip(names, ((-A.real).log(), A.imag), strict=True):
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, L: int) -> Tensor:
        old = hasattr(self, "log_w_real")
        real, imag = (self.log_w_real, self.w_imag) if old else (self.inv_A_real, self.A_imag)
        A = spread(torch.complex(-real.double().exp(), imag.double()), self.H)
        B = torch.ones_like(A) if old else spread(torch.view_as_complex(self.B.double()), self.H)
        step = self.log_dt.double().exp()[:, None]
        A_bar, B_bar = (step * A).exp(), ((step * A).exp() - 1) / A * B
        if self.disc == "bilinear":
            A_bar, B_bar = (1 + step * A / 2) / (1 - step * A / 2), step / (1 - step * A / 2) * B
        powers = A_bar[..., None] ** torch.arange(L)
        C = torch.view_as_complex(self.C.double())
        return 2 * torch.einsum("chn,hn,hnl->chl", C, B_bar, powers).real.to(self.C)


class HippoSSKernel(nn.Module):
    def __init__(self, name: str, kernel: nn.Module, N: int) -> None:
        super().__init__()
        self.add_module(name, kernel)
        self.N, self.H, self.rate, self.n_ssm = N, kernel.H, 1.0, kernel.n_ssm

    def forward(self, L: int) -> Tensor:
        (kernel,) = self.children()
        return kernel(L)


class SSKernel(HippoSSKernel):
    mode = "nplr"

    def forward(self, L: int, rate: float = 1.0, state: Tensor | None = None) -> Any:
        return self.kernel(L), None


class S4(nn.Module):
    """The layer of a release; attributes are those that it has there."""

    def __init__(
        self,
        release: int,
        H: int = 6,
        d_state: int = 8,
        l_max: int = 40,
        channels: int = 1,
        bidirectional: bool = False,
        activation: str | None = "gelu",
        postact: str | None = None,
        hyper_act: str | None = None,
        input_linear: bool = False,
        dropout: float = 0.0,
        bottleneck: int | None = None,
        gate: int | None = None,
        transposed: bool = True,
        mode: str = "nplr",
        disc: str = "bilinear",
        rank: int = 1,
        n_ssm: int | None = None,
        hurwitz: bool = False,
        real_type: str = "exp",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.release_, self.scale, self.transposed, self.hyper = release, scale, transposed, hyper_act is not None
        inner, n = H // (bottleneck or 1), d_state // 2
        args = (release, transposed)
        twice = 2 if self.hyper and release > 1 else 1
        if release == 1:
            self.h, self.n, self.stride, self.cache, self.weight_decay, self.resample = H, d_state, 1, False, 0.0, False
            self.input_linear = mapped(*args, H, H, postact) if input_linear else nn.Identity()
            if self.hyper:
                self.hyper_linear = mapped(1, True, H, H, hyper_act)
        else:
            self.bidirectional, self.channels = bidirectional, channels
            if self.hyper:
                self.hyper_activation = ACTIVATIONS[hyper_act]()
        if release == 2:
            self.h, self.n = H, d_state
        if release == 3:
            self.d_model, self.H, self.N, self.L = H, inner, d_state, l_max
            self.gate, self.bottleneck = gate, bottleneck
            if bottleneck is not None:
                self.input_linear = mapped(*args, H, inner, activation)
            if gate is not None:
                self.input_gate = mapped(*args, H, H * gate, activation)
                self.output_gate = mapped(*args, H * gate, H, None)
        self.D = nn.Parameter(normal(inner) if release == 1 else normal(channels * twice, inner))
        c = channels * twice * (2 if bidirectional else 1)
        copies = n_ssm or inner
        if mode == "diag":
            kernel: nn.Module = SSKernelDiag(release, inner, n, c, copies, disc)
        else:
            kernel = SSKernelNPLR(release, inner, n, c, l_max, rank, copies, hurwitz, real_type)
        wrapper = SSKernel if release == 3 else HippoSSKernel
        self.kernel = wrapper("krylov" if release == 1 else "kernel", kernel, d_state)
        if release == 3:
            self.kernel.mode = mode
        self.activation = ACTIVATIONS[activation]()
        drop = nn.Dropout2d if release < 3 and transposed else nn.Dropout
        self.dropout = drop(dropout) if dropout else nn.Identity()
        self.output_linear = mapped(*args, inner * channels, H * (gate or 1), postact)

    def forward(self, u: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        if self.release_ == 1:
            u = self.input_linear(u)
        x = u if self.transposed else u.mT
        L = x.shape[-1]
        gate = getattr(self, "gate", None)
        if gate is not None:
            factor = self.input_gate(x)
        if getattr(self, "bottleneck", None) is not None:
            x = self.input_linear(x)
        k = self.kernel(L=L)
        k = k[0] if isinstance(k, tuple) else k
        if getattr(self, "bidirectional", False):
            forwards, backwards = k.chunk(2)
            k = functional.pad(forwards, (0, L)) + functional.pad(backwards.flip(-1), (L, 0))
        spectrum = torch.fft.rfft(k, n=2 * L) * torch.fft.rfft(x, n=2 * L)[:, None]
        y = torch.fft.irfft(spectrum, n=2 * L)[..., :L] + self.D.view(-1, x.shape[1], 1) * x[:, None]
        if self.hyper and self.release_ == 1:
            y = y * self.hyper_linear(x)[:, None]
        elif self.hyper:
            y, factors = y.chunk(2, 1)
            y = self.hyper_activation(factors) * y
        y = self.dropout(self.activation(self.scale * y.flatten(1, 2)))
        y = self.output_linear(y if self.transposed else y.mT)
        return (y if gate is None else self.output_gate(y * factor)), None
