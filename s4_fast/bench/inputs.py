"""The inputs of every case, and how each op is split for the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s4_fast.bench.cases import Case
from s4_fast.ssm import hippo

# A half type is that of signals alone.
DTYPES = {"float32": torch.complex64, "float64": torch.complex128}


class Arguments(NamedTuple):
    """The keyword arguments of an op: tensors, and what is not a tensor."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


@dataclass(frozen=True)
class Axes:
    """Where a tensor has the features and the states, counted from its end; None where it has none."""

    features: int | None = None
    states: int | None = None


@dataclass(frozen=True)
class Op:
    """How to build an op's inputs (in complex128, on the CPU) and how its definition splits into pieces.

    ``outputs`` has one entry per output. ``additive``: the output is a sum or concatenation over the states, so they
    can be taken in blocks too.
    """

    build: Callable[[Case, torch.Generator], Arguments]
    inputs: Mapping[str, Axes]
    outputs: Sequence[Axes]
    additive: bool


def arguments(case: Case, device: str = "cpu", seed: int = 0) -> Arguments:
    """The inputs of ``case`` on ``device``, the same for the same seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    built = OPS[case.op].build(case, generator)
    of_rest = case.dtype if case.dtype in DTYPES else "float32"
    tensors = {
        name: cast(t, case.dtype if name == "u" else of_rest).to(device).contiguous()
        for name, t in built.tensors.items()
    }
    return Arguments(tensors, built.scalars)


def cast(t: Tensor, dtype: str) -> Tensor:
    """``t`` in the precision ``dtype``, complex where it was complex: complex64 beside a half type."""
    return t.to(DTYPES.get(dtype, torch.complex64) if t.is_complex() else getattr(torch, dtype))


def _normal(generator: torch.Generator, *shape: int, real: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64 if real else torch.complex128, generator=generator)


def _steps(case: Case, generator: torch.Generator) -> Tensor:
    """dt, log-uniform in [1e-3, 1e-1], (H, 1)."""
    uniform = torch.rand(case.H, 1, dtype=torch.float64, generator=generator)
    return torch.exp(math.log(1e-3) + uniform * math.log(1e-1 / 1e-3))


def _poles(case: Case) -> Tensor:
    """A of S4D-Lin, -1/2 + i pi n, (n,)."""
    return torch.complex(torch.full((case.n,), -0.5, dtype=torch.float64), math.pi * torch.arange(case.n).double())


def _s4d(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """S4D-Lin under zero-order hold: x = dt A, and B_bar for B = 1."""
    A = _poles(case)
    x = _steps(case, generator) * A
    if case.decay is not None:
        x.real.fill_(-case.decay)
    return x, (torch.exp(x) - 1) / A


def _log_vandermonde(case: Case, generator: torch.Generator) -> Arguments:
    x, B = _s4d(case, generator)
    return Arguments({"v": _normal(generator, case.H, case.n) * B, "x": x}, {"L": case.L})


def _log_vandermonde_transpose(case: Case, generator: torch.Generator) -> Arguments:
    x, B = _s4d(case, generator)
    u = _normal(generator, case.H, case.L, real=True)
    return Arguments({"u": u, "v": B, "x": x}, {"L": case.L})


def _cauchy_mult(case: Case, generator: torch.Generator) -> Arguments:
    x, _ = _s4d(case, generator)
    # The nodes of a kernel, 2i tan(theta/2), without the infinite one.
    angle = torch.arange(case.L // 2 + 1, dtype=torch.float64) * (math.pi / (case.L + 1))
    z = torch.complex(torch.zeros_like(angle), 2 * torch.tan(angle))
    return Arguments({"v": _normal(generator, case.H, case.n), "z": z, "w": x}, {})


def _cauchy_bilinear(case: Case, generator: torch.Generator) -> Arguments:
    x, _ = _s4d(case, generator)
    return Arguments({"v": _normal(generator, case.H, case.n), "w": x}, {"L": case.L})


def _hippo(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """A HiPPO matrix shared by all features, as S4 starts: Lambda (H, n), P (rank, H, n) and B (H, n)."""
    form = hippo.nplr("legs" if case.rank == 1 else "legt", 2 * case.n, case.rank)
    P = form.P.to(torch.complex128)[:, None].expand(-1, case.H, -1)
    return form.w.expand(case.H, -1), P, form.B.to(torch.complex128).expand(case.H, -1)


def _dplr_kernel(case: Case, generator: torch.Generator) -> Arguments:
    """With a random C-tilde per feature."""
    w, P, B = _hippo(case)
    dt = _steps(case, generator)
    tensors = {"w": dt * w, "P": P, "Q": P, "B": B[None], "C": _normal(generator, 1, case.H, case.n), "dt": dt}
    return Arguments(tensors, {"L": case.L})


def _dplr_scan(case: Case, generator: torch.Generator) -> Arguments:
    """With a random C per feature, which is not truncated."""
    u = _normal(generator, case.batch, case.H, case.L, real=True)
    (A, P, B), dt, C = _hippo(case), _steps(case, generator), _normal(generator, case.H, case.n)
    tensors = {"u": u, "A": A, "P": P, "B": B, "C": C, "dt": dt, "D": _normal(generator, case.H, real=True)}
    if case.state:
        tensors["state"] = _normal(generator, case.batch, case.H, case.n)
    return Arguments(tensors, {"return_state": case.state})


def _fft_conv(case: Case, generator: torch.Generator) -> Arguments:
    u = _normal(generator, case.batch, case.H, case.L, real=True)
    decay = torch.exp(-_steps(case, generator) * torch.arange(case.L))
    k = _normal(generator, case.H, case.L, real=True) * decay
    return Arguments({"u": u, "k": k, "D": _normal(generator, case.H, real=True)}, {})


def _discrete(case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    x, B = _s4d(case, generator)
    C, D = _normal(generator, case.H, case.n), _normal(generator, case.H, real=True)
    return {"x": x, "B": B, "C": C, "D": D}


def _ssm_scan(case: Case, generator: torch.Generator) -> Arguments:
    u = _normal(generator, case.batch, case.H, case.L, real=True)
    tensors = {"u": u, **_discrete(case, generator)}
    if case.state:
        tensors["state"] = _normal(generator, case.batch, case.H, case.n)
    return Arguments(tensors, {"return_state": case.state})


def _diagonal_ssm(case: Case, generator: torch.Generator) -> Arguments:
    """S4D-Lin with its steps apart: A is what gives the x of the other ops."""
    u = _normal(generator, case.batch, case.H, case.L, real=True)
    dt = _steps(case, generator)
    A = _poles(case).expand(case.H, -1)
    if case.decay is not None:
        A = torch.complex(-case.decay / dt.expand_as(A), A.imag)
    B, C = (_normal(generator, case.H, case.n) for _ in range(2))
    tensors = {"u": u, "A": A, "B": B, "C": C, "dt": dt, "D": _normal(generator, case.H, real=True)}
    if case.state:
        tensors["state"] = _normal(generator, case.batch, case.H, case.n)
    return Arguments(tensors, {"return_state": case.state})


def _ssm_step(case: Case, generator: torch.Generator) -> Arguments:
    u = _normal(generator, case.batch, case.H, real=True)
    state = _normal(generator, case.batch, case.H, case.n)
    return Arguments({"u": u, "state": state, **_discrete(case, generator)}, {})


def _dplr_step(case: Case, generator: torch.Generator) -> Arguments:
    """Factors of about the size that the bilinear step of a HiPPO matrix has."""
    x, B = _s4d(case, generator)
    u = _normal(generator, case.batch, case.H, real=True)
    state, C = _normal(generator, case.batch, case.H, case.n), _normal(generator, 1, case.H, case.n)
    G, V = (_normal(generator, case.rank, case.H, case.n) / case.n for _ in range(2))
    tensors = {"u": u, "state": state, "increment": torch.expm1(x.real) + 1j * x.imag, "G": G, "V": V, "B": B, "C": C}
    return Arguments(tensors, {})


_SCALAR_PER_FEATURE = Axes(features=-1)
_PER_FEATURE = Axes(features=-2)
_PER_STATE = Axes(features=-2, states=-1)
_DISCRETE = {"x": _PER_STATE, "B": _PER_STATE, "C": _PER_STATE, "D": _SCALAR_PER_FEATURE}
_CONTINUOUS = {
    **dict.fromkeys(("A", "B", "C", "state"), _PER_STATE),
    **dict.fromkeys(("u", "dt"), _PER_FEATURE),
    "D": _SCALAR_PER_FEATURE,
}

OPS = {
    "log_vandermonde": Op(_log_vandermonde, {"v": _PER_STATE, "x": _PER_STATE}, (_PER_FEATURE,), additive=True),
    "log_vandermonde_transpose": Op(
        _log_vandermonde_transpose, {"u": _PER_FEATURE, "v": _PER_STATE, "x": _PER_STATE}, (_PER_STATE,), additive=True
    ),
    "cauchy_mult": Op(_cauchy_mult, {"v": _PER_STATE, "z": Axes(), "w": _PER_STATE}, (_PER_FEATURE,), additive=True),
    "cauchy_bilinear": Op(_cauchy_bilinear, {"v": _PER_STATE, "w": _PER_STATE}, (_PER_FEATURE,), additive=True),
    "dplr_kernel": Op(
        _dplr_kernel,
        {"w": _PER_STATE, "P": _PER_STATE, "Q": _PER_STATE, "B": _PER_STATE, "C": _PER_STATE, "dt": _PER_FEATURE},
        (_PER_FEATURE,),
        additive=False,
    ),
    "fft_conv": Op(
        _fft_conv,
        {"u": _PER_FEATURE, "k": _PER_FEATURE, "D": _SCALAR_PER_FEATURE},
        (_PER_FEATURE,),
        additive=False,
    ),
    "ssm_scan": Op(
        _ssm_scan,
        {"u": _PER_FEATURE, **_DISCRETE, "state": _PER_STATE},
        (_PER_FEATURE, _PER_STATE),
        additive=False,
    ),
    "diagonal_ssm": Op(_diagonal_ssm, _CONTINUOUS, (_PER_FEATURE, _PER_STATE), additive=False),
    "dplr_scan": Op(_dplr_scan, {**_CONTINUOUS, "P": _PER_STATE}, (_PER_FEATURE, _PER_STATE), additive=False),
    "ssm_step": Op(
        _ssm_step,
        {"u": _SCALAR_PER_FEATURE, "state": _PER_STATE, **_DISCRETE},
        (_SCALAR_PER_FEATURE, _PER_STATE),
        additive=False,
    ),
    "dplr_step": Op(
        _dplr_step,
        {"u": _SCALAR_PER_FEATURE, **dict.fromkeys(("state", "increment", "G", "V", "B", "C"), _PER_STATE)},
        (_SCALAR_PER_FEATURE, _PER_STATE),
        additive=False,
    ),
}
