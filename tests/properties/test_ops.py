"""Every op and backend against the op's definition in float64, values and gradients, for what hypothesis draws."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from s4_fast import dispatch
from tests.helpers import KEOPS_FLOAT64, backends
from tests.properties import strategies
from tests.properties.holding import PROFILES, assert_contract, hold
from tests.properties.strategies import Plan, plans

_DIAGONAL = {
    **{"batch": 3, "rows": 1, "copies": 1, "n": 1, "L": 1, "channels": 3, "steps": "vector"},
    **{"bidirectional": True, "time_major": False, "rate": 1.0, "discretization": "zoh"},
}
# What has failed once.
EXAMPLES: dict[str, list[Plan]] = {
    # The definition lost the gradient of a step over which nothing is left of the state.
    "diagonal_ssm": [Plan("diagonal_ssm", _DIAGONAL, double=True, decay="strong", seed=1237)],
}


def _pairs() -> list[Any]:
    found = [(op, backend) for op in strategies.OPS for backend in backends(op)] + [("cauchy_mult", KEOPS_FLOAT64)]
    return [pytest.param(op, *getattr(b, "values", (b,)), marks=getattr(b, "marks", ())) for op, b in found]


def test_every_op_has_properties() -> None:
    assert set(strategies.OPS) == set(dispatch.ops())


@pytest.mark.usefixtures("poisoned_memory")
@PROFILES
@pytest.mark.parametrize(("op", "backend"), _pairs())
def test_contract(op: str, backend: str, profile: str) -> None:
    hold(partial(assert_contract, backend=backend), plans(op), profile, EXAMPLES.get(op, ()))
