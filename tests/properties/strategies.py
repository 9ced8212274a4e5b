"""What the tests of properties draw: sizes, options and layouts by hypothesis, numbers by a seed of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from torch import Generator

from tests.helpers import DTYPES, Tensors
from tests.ops import diagonal_inputs
from tests.properties.inputs import DECAYS, MAKERS, VIEWS

# Terms of a sum over states and samples, of all rows: what keeps an example below a few tenths of a second.
MOST = 50_000


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
        tensors, scalars = MAKERS[self.op](self, Generator().manual_seed(self.seed))
        tensors = {name: t for name, t in tensors.items() if name not in self.absent}
        if self.half is not None:
            tensors["u"] = tensors["u"].to(self.half)
        views = {name: VIEWS[self.views[i % len(self.views)]] for i, name in enumerate(tensors)}
        if (
            self.half is not None and views["u"] is VIEWS["pending"]
        ):  # there are no half complex numbers to take a sign from
            views["u"] = VIEWS["strided"]
        return {name: views[name](t) for name, t in tensors.items()}, scalars


def lengths(most: int = 1047) -> st.SearchStrategy[int]:
    return st.one_of(st.sampled_from([L for L in (1, 17, 1047, 2112) if L <= most]), st.integers(1, 300))


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
    "ssm_scan": {"batch": batches, "H": few, "n": states(), "L": lengths(2112)},
    "ssm_step": {"batch": batches, "H": st.integers(1, 40), "n": states()},
}
for _op, _most, _rules in (("diagonal_ssm", 2112, ("zoh", "bilinear")), ("dplr_scan", 1047, ())):
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
    rows *= math.prod(sizes.get(name, 1) for name in ("n", "H", "rows", "copies"))
    if "L" in sizes:
        rows *= 3 if op == "dplr_scan" else 1  # whose definition goes step by step
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
