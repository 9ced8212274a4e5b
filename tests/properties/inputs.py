"""The numbers of a plan: tensors from its seed, hard in a known way, and the layouts in which an op is given them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from tests.helpers import Tensors, log_uniform, normal, uniform
from tests.ops import diagonal_inputs

if TYPE_CHECKING:
    from tests.properties.strategies import Plan

# -Re x by name. Beyond 30, float32 does not hold what is left after two samples.
DECAYS: dict[str, Callable[..., Tensor]] = {
    "none": lambda generator, *shape: torch.zeros(*shape, dtype=torch.float64),
    "weak": lambda generator, *shape: log_uniform(generator, 1e-7, 1e-3, *shape),
    "strong": lambda generator, *shape: log_uniform(generator, 1e-1, 30, *shape),
    "mixed": lambda generator, *shape: log_uniform(generator, 1e-7, 30, *shape),
}


def _strided(t: Tensor) -> Tensor:
    return torch.stack((t, t + 1), -1).flatten(-2)[..., ::2]


def _sliced(t: Tensor) -> Tensor:
    """Rows with a gap, none of which is aligned."""
    wide = torch.cat((t[..., :1], t, t[..., :1]), -1) if t.ndim else t
    return wide[..., 1:-1] if t.ndim else t


def _transposed(t: Tensor) -> Tensor:
    return t.mT.contiguous().mT if t.ndim > 1 else t


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand_as(t) if t.ndim > 1 else t


def _pending(t: Tensor) -> Tensor:
    """With a conjugation or a sign that is still to be applied."""
    return t.conj().resolve_conj().conj() if t.is_complex() else torch.complex(t, -t).conj().imag


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "strided": _strided,
    "sliced": _sliced,
    "transposed": _transposed,
    "expanded": _expanded,
    "pending": _pending,
}


Made = tuple[Tensors, dict[str, Any]]


def _nodes(plan: Plan, generator: Generator, *shape: int) -> Tensor:
    phase = uniform(generator, -math.pi, math.pi, *shape)
    return torch.complex(-DECAYS[plan.decay](generator, *shape), phase).to(plan.dtype)


def _vandermonde(plan: Plan, generator: Generator) -> Made:
    *of_u, of_v, of_x = plan.sizes["leads"]
    n, L = plan.sizes["n"], plan.sizes["L"]
    u = dict(zip("u", (normal(generator, *lead, L, dtype=plan.dtype.to_real()) for lead in of_u), strict=False))
    v = normal(generator, *of_v, n, dtype=plan.dtype)
    return {**u, "v": v, "x": _nodes(plan, generator, *of_x, n)}, {"L": L}


def _poles(plan: Plan, generator: Generator, *shape: int) -> Tensor:
    return torch.complex(-log_uniform(generator, 1e-3, 1, *shape), uniform(generator, -8, 8, *shape)).to(plan.dtype)


def _cauchy_mult(plan: Plan, generator: Generator) -> Made:
    of_v, of_z, of_w = plan.sizes["leads"]
    n = plan.sizes["n"]
    v, w = normal(generator, *of_v, n, dtype=plan.dtype), _poles(plan, generator, *of_w, n)
    z = 4 * normal(generator, *of_z, plan.sizes["L"], dtype=plan.dtype)
    return {"v": v, "z": z, "w": w}, {"symmetric": plan.sizes["symmetric"]}


def _cauchy_bilinear(plan: Plan, generator: Generator) -> Made:
    of_v, of_w = plan.sizes["leads"]
    n = plan.sizes["n"]
    v = normal(generator, *of_v, n, dtype=plan.dtype)
    return {"v": v, "w": _poles(plan, generator, *of_w, n)}, {"L": plan.sizes["L"]}


def _dplr_kernel(plan: Plan, generator: Generator) -> Made:
    """Q != P, and poles that the definition in float64 serves to 1e-12."""
    H, n, L, rank, b, c, per_state = plan.sizes.values()
    dt = log_uniform(generator, 1e-2, 1e-1, H, n if per_state else 1)
    A = torch.complex(-uniform(generator, 0.1, 2, H, n), uniform(generator, -20, 20, H, n))
    P, noise = (normal(generator, rank, H, n, dtype=torch.complex128) for _ in range(2))
    B, C = (normal(generator, k, H, n, dtype=torch.complex128) for k in (b, c))
    tensors = {"w": dt * A, "P": P, "Q": P + 0.3 * noise, "B": B, "C": C}
    return {name: t.to(plan.dtype) for name, t in tensors.items()} | {"dt": dt.to(plan.dtype.to_real())}, {"L": L}


def _dplr_step(plan: Plan, generator: Generator) -> Made:
    batch, H, n, rank, c = plan.sizes.values()
    shapes = {"state": (batch, H, n), "increment": (H, n), "G": (rank, H, n), "V": (rank, H, n)}
    shapes |= {"B": (H, n), "C": (c, H, n)}
    u, D = (normal(generator, *shape, dtype=plan.dtype.to_real()) for shape in ((batch, H), (H,)))
    made = {name: normal(generator, *shape, dtype=plan.dtype) for name, shape in shapes.items()}
    return {"u": u, **made, "D": D}, {}


def _fft_conv(plan: Plan, generator: Generator) -> Made:
    batch, H, L, Lk, c = plan.sizes.values()
    lead, real = ((c, H) if c else (H,)), plan.dtype.to_real()
    shapes = {"u": (batch, H, L), "k": (*lead, Lk), "D": lead}
    return {name: normal(generator, *shape, dtype=real) for name, shape in shapes.items()}, {}


def _discrete(plan: Plan, generator: Generator) -> Made:
    batch, H, n, *L = plan.sizes.values()
    u, D = (normal(generator, *shape, dtype=plan.dtype.to_real()) for shape in ((batch, H, *L), (H,)))
    B, C = (normal(generator, H, n, dtype=plan.dtype) for _ in range(2))
    weights = {"x": _nodes(plan, generator, H, n), "B": B, "C": C, "D": D}
    state = {"state": normal(generator, batch, H, n, dtype=plan.dtype)}
    return {"u": u, **weights, **state}, {"return_state": True} if L else {}


def _continuous(plan: Plan, generator: Generator) -> Made:
    sizes = dict(plan.sizes)
    shape = sizes.pop("batch"), sizes["rows"] * sizes.pop("copies"), sizes.pop("n"), sizes.pop("L")
    options = {name: sizes.pop(name) for name in ("rate", "discretization") if name in sizes}
    both = {name: sizes[name] for name in ("bidirectional", "time_major")}
    decay = "weak" if plan.decay == "mixed" else plan.decay
    tensors = diagonal_inputs.inputs(plan.op, generator, shape, decay=decay, dtype=plan.dtype, **sizes)
    no_weight = {"B": None} if "B" in plan.absent else {}
    return tensors, {"return_state": True, **both, **options, **no_weight}


MAKERS: dict[str, Callable[[Plan, Generator], Made]] = {
    **dict.fromkeys(("log_vandermonde", "log_vandermonde_transpose"), _vandermonde),
    "cauchy_mult": _cauchy_mult,
    "cauchy_bilinear": _cauchy_bilinear,
    "dplr_kernel": _dplr_kernel,
    "dplr_step": _dplr_step,
    "fft_conv": _fft_conv,
    **dict.fromkeys(("ssm_scan", "ssm_step"), _discrete),
    **dict.fromkeys(diagonal_inputs.OPS, _continuous),
}
