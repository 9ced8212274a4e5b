"""What the tests of properties draw: sizes, options and layouts by hypothesis, numbers by a seed of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from torch import Generator, Tensor

from tests.helpers import DTYPES, Tensors, log_uniform, normal, uniform
from tests.ops import diagonal_inputs

# Terms of a sum over states and samples, of all rows: what keeps an example below a few tenths of a second.
MOST = 50_000

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


@dataclass(frozen=True)
class Plan:
    """A call of an op but for its numbers. Printed where a test fails, it is an example to be kept."""

    op: str
    sizes: dict[str, Any]
    double: bool = False
    decay: str = "weak"
    views: tuple[str, ...] = ("contiguous",)  # of the tensors in turn
    absent: tuple[str, ...] = ()
    half: torch.dtype | None = None  # of the signal
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.double]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute, which needs no backend."""
        leads = self.sizes.get("leads", ((self.sizes.get("batch", 1),),))
        return 0 in torch.broadcast_shapes(*leads)

    def call(self) -> tuple[Tensors, dict[str, Any]]:
        """Its tensors and its other arguments."""
        tensors, scalars = _MAKERS[self.op](self, Generator().manual_seed(self.seed))
        tensors = {name: t for name, t in tensors.items() if name not in self.absent}
        if self.half is not None:
            tensors["u"] = tensors["u"].to(self.half)
        views = {name: VIEWS[self.views[i % len(self.views)]] for i, name in enumerate(tensors)}
        if self.half is not None and views["u"] is _pending:  # there are no half complex numbers to take a sign from
            views["u"] = _strided
        return {name: views[name](t) for name, t in tensors.items()}, scalars


def lengths(most: int = 1047) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from([L for L in (1, 17, 1047) if L <= most]), st.integers(1, min(most, 300)))


def states() -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from([1, 3, 29, 100]), st.integers(1, 40))


def leads(count: int) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    """Leading dimensions that broadcast; seldom an empty one."""

    def shapes(least: int) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
        found = mutually_broadcastable_shapes(num_shapes=count, max_dims=3, min_side=least, max_side=3)
        return found.map(lambda drawn: drawn.input_shapes)

    return st.one_of(shapes(1), shapes(1), shapes(1), shapes(0))


few, batches = st.integers(1, 3), st.sampled_from([1, 2, 3, 3, 0])
_SIZES: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "log_vandermonde": {"leads": leads(2), "n": states(), "L": lengths()},
    "log_vandermonde_transpose": {"leads": leads(3), "n": states(), "L": lengths()},
    "cauchy_mult": {"leads": leads(3), "n": states(), "L": lengths(), "symmetric": st.booleans()},
    "cauchy_bilinear": {"leads": leads(2), "n": states(), "L": lengths()},
    "dplr_kernel": {
        "H": few,
        "n": states(),
        "L": lengths(),
        "rank": few,
        "b": few,
        "c": few,
        "per_state": st.booleans(),
    },
    "dplr_step": {"batch": batches, "H": few, "n": states(), "rank": few, "c": few},
    "fft_conv": {"batch": batches, "H": few, "L": lengths(), "Lk": lengths(), "c": st.integers(0, 3)},
    "ssm_scan": {"batch": batches, "H": few, "n": states(), "L": lengths()},
    "ssm_step": {"batch": batches, "H": st.integers(1, 40), "n": states()},
}
for _op, _most, _rules in (("diagonal_ssm", 1047, ("zoh", "bilinear")), ("dplr_scan", 130, ())):
    _SIZES[_op] = {
        "batch": batches,
        "rows": st.integers(1, 2),
        "copies": st.integers(1, 2),
        "n": states(),
        "L": lengths(_most),
        "channels": st.sampled_from([None, 1, 3]),
        "steps": st.sampled_from(["vector", "column", "per state"]),
        "bidirectional": st.booleans(),
        "time_major": st.booleans(),
        "rate": st.sampled_from([1.0, 0.5, 2.0]),
        **({"discretization": st.sampled_from(_rules)} if _rules else {"rank": few}),
    }
_OPTIONAL = {
    **dict.fromkeys(("diagonal_ssm", "dplr_scan"), ("B", "D", "state", "ahead")),
    "ssm_scan": ("D", "state"),
    **dict.fromkeys(("ssm_step", "dplr_step", "fft_conv"), ("D",)),
}
OPS = tuple(_SIZES)


@st.composite
def plans(draw: st.DrawFn, op: str) -> Plan:
    sizes = {name: draw(strategy) for name, strategy in _SIZES[op].items()}
    rows = math.prod(torch.broadcast_shapes(*sizes["leads"])) if "leads" in sizes else sizes.get("batch", 1)
    rows *= math.prod(sizes.get(name, 1) for name in ("n", "H", "rows", "copies", "rank"))
    if "L" in sizes:
        # A recurrence in dense matrices costs n a state.
        rows *= sizes["n"] if op == "dplr_scan" else 1
        sizes["L"] = max(1, min(sizes["L"], MOST // max(1, rows)))
    double = draw(st.booleans())
    halves = [None, torch.bfloat16, torch.float16] if op in diagonal_inputs.OPS and not double else [None]
    return Plan(
        op,
        sizes,
        double,
        draw(st.sampled_from(sorted(DECAYS))),
        tuple(draw(st.lists(st.sampled_from(sorted(VIEWS)), min_size=1, max_size=4))),
        tuple(name for name in _OPTIONAL.get(op, ()) if draw(st.booleans())),
        draw(st.sampled_from(halves)),
        draw(st.integers(0, 2**31 - 1)),
    )


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


_MAKERS: dict[str, Callable[[Plan, Generator], Made]] = {
    **dict.fromkeys(("log_vandermonde", "log_vandermonde_transpose"), _vandermonde),
    "cauchy_mult": _cauchy_mult,
    "cauchy_bilinear": _cauchy_bilinear,
    "dplr_kernel": _dplr_kernel,
    "dplr_step": _dplr_step,
    "fft_conv": _fft_conv,
    **dict.fromkeys(("ssm_scan", "ssm_step"), _discrete),
    **dict.fromkeys(diagonal_inputs.OPS, _continuous),
}
