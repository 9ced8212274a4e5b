"""What the tests of diagonal_ssm and dplr_scan share: their inputs, and how they are called."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator

import s4_fast
from tests.helpers import DECAYS, Tensors, assert_contract, backends, log_uniform, normal, uniform

OPS = ("diagonal_ssm", "dplr_scan")
EACH = pytest.mark.parametrize("op", OPS)


def _pairs(*more: str) -> Any:
    """An op and one of its backends."""
    found = [(op, name) for op in OPS for name in (*backends(op), *more)]
    return pytest.mark.parametrize(
        ("op", "backend"),
        [pytest.param(op, *getattr(b, "values", (b,)), marks=getattr(b, "marks", ())) for op, b in found],
    )


BACKENDS, EVERY = _pairs(), _pairs("reference")
BOTH = pytest.mark.parametrize("bidirectional", [False, True])
ORDERS = pytest.mark.parametrize("time_major", [False, True])
# The further options of an op.
RULES: dict[str, list[dict[str, Any]]] = {
    "diagonal_ssm": [{"discretization": "zoh"}, {"discretization": "bilinear"}],
    "dplr_scan": [{}],
}


def inputs(
    op: str,
    generator: Generator,
    sizes: tuple[int, int, int, int] = (2, 4, 3, 100),
    *,
    rank: int = 1,
    channels: int | None = None,
    rows: int | None = None,
    steps: str = "column",
    decay: str = "weak",
    bidirectional: bool = False,
    time_major: bool = False,
    dtype: torch.dtype = torch.complex64,
) -> Tensors:
    """Every tensor argument, in the order of the op. Phases of a step are up to pi, ``rows`` is S, ``steps`` says which
    shape dt has."""
    batch, H, n, L = sizes
    rows, real = rows or H, dtype.to_real()
    of_dt = {"vector": (H,), "column": (H, 1), "per state": (H, n)}[steps]
    outputs = (channels or 1) * (1 + bidirectional)
    made = {
        "u": normal(generator, batch, *((L, H) if time_major else (H, L)), dtype=real),
        "A": torch.complex(-DECAYS[decay](generator, rows, n), uniform(generator, -math.pi, math.pi, rows, n)) * 10,
        **({"P": normal(generator, rank, rows, n, dtype=dtype)} if op == "dplr_scan" else {}),
        "B": normal(generator, rows, n, dtype=dtype),
        "C": normal(generator, *(() if channels is None and outputs == 1 else (outputs,)), H, n, dtype=dtype),
        "dt": log_uniform(generator, 0.01, 0.1, *of_dt),
        "D": normal(generator, *(() if channels is None else (channels,)), H, dtype=real),
        "state": normal(generator, batch, H, n, dtype=dtype),
    }
    if bidirectional:
        made["ahead"] = normal(generator, batch, H, n, dtype=dtype)
    return {name: t.to(dtype if t.is_complex() else real) for name, t in made.items()}


def run(op: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(s4_fast, op)(*args, **kwargs)


def contract(op: str, tensors: Tensors, backend: str, **options: Any) -> None:
    assert_contract(op, tensors, backend, return_state=True, bidirectional="ahead" in tensors, **options)


def on(device: str, tensors: Tensors) -> Tensors:
    return {name: t.to(device) for name, t in tensors.items()}
