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

_CONTINUOUS = {
    **{"batch": 3, "rows": 1, "copies": 1, "n": 1, "L": 1, "channels": 3, "steps": "vector"},
    **{"bidirectional": True, "time_major": False, "rate": 1.0},
}
# What has failed once, and what is seldom drawn.
EXAMPLES = {
    "diagonal_ssm": [
        # The definition lost the gradient of a step over which nothing is left of the state.
        Plan("diagonal_ssm", {**_CONTINUOUS, "discretization": "zoh"}, double=True, decay="strong", seed=1237),
    ],
    # Carries over so many chunks that there are carries over groups of them.
    "dplr_scan": [Plan("dplr_scan", {**_CONTINUOUS, "n": 3, "L": 1100, "rank": 1})],
    "ssm_scan": [Plan("ssm_scan", {"batch": 2, "H": 2, "n": 3, "L": 2112})],
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
