"""What a benchmark yields: rows, and what comparing them with the direct evaluation and the contracts says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from s4_fast.bench.accuracy import FAIL, Errors, verdict
from s4_fast.bench.cases import Case
from s4_fast.bench.evaluate import BASELINES, DIRECT, KERNEL_GIVEN
from s4_fast.bench.measure import Time


@dataclass
class Row:
    """One case on one backend. What was not measured is None; ``skipped`` and ``error`` say why.

    ``peak_mib`` belongs to forward and backward together, or to forward where the backend has no gradients.
    """

    case: Case
    device: str
    backend: str
    automatic: bool = False
    forward: Time | None = None
    forward_backward: Time | None = None
    peak_mib: float | None = None
    errors: Errors | None = None
    skipped: str = ""
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """The inverse of :meth:`to_dict`."""
        tuples = {"forward": Time, "forward_backward": Time, "errors": Errors}
        read = {name: tuples[name](*v) if name in tuples and v is not None else v for name, v in values.items()}
        return cls(**{**read, "case": Case(**values["case"])})


@dataclass
class Result:
    """A row beside the baselines of the same case.

    ``ratios``: direct/ours for "forward" and "forward+backward", ours/direct for "memory", and fft_conv/ours for
    "forward against fft_conv" and "forward+backward against fft_conv", where both are known.
    ``goals_met``: per goal of the case, for the backend that the automatic choice takes, on a CPU.
    ``accuracy``: against the accuracy contract; empty for a baseline, which is not bound by it.
    """

    row: Row
    ratios: dict[str, float] = field(default_factory=dict)
    goals_met: dict[str, bool] = field(default_factory=dict)
    accuracy: str = ""

    @property
    def failed(self) -> bool:
        """Whether the row broke or misses the accuracy contract. A missed goal is no failure: machines differ."""
        return bool(self.row.error) or self.accuracy == FAIL


def compare(rows: Iterable[Row]) -> list[Result]:
    """Every row beside the baselines of its case, in the given order."""
    rows = list(rows)
    baselines = {(row.case, row.device, row.backend): row for row in rows if row.backend in BASELINES}
    return [
        _compare(row, *(baselines.get((row.case, row.device, name)) for name in (DIRECT, KERNEL_GIVEN))) for row in rows
    ]


def _compare(row: Row, direct: Row | None, convolution: Row | None) -> Result:
    result = Result(row)
    if row.backend == DIRECT:
        return result
    if row.errors is not None and row.backend not in BASELINES:
        result.accuracy = verdict(row.case, row.backend, row.errors)
    if direct is not None:
        result.ratios.update(_speedups(direct, row))
        if direct.peak_mib and row.peak_mib is not None:
            result.ratios["memory"] = row.peak_mib / direct.peak_mib
    if convolution is not None and row.backend != KERNEL_GIVEN:
        speedups = _speedups(convolution, row)
        result.ratios.update({f"{kind} against {KERNEL_GIVEN}": ratio for kind, ratio in speedups.items()})
    if row.automatic and row.device == "cpu":
        for goal, wanted in row.case.goals.items():
            reached = result.ratios.get(goal, math.nan)
            if not math.isnan(reached):
                result.goals_met[goal] = reached <= wanted if goal == "memory" else reached >= wanted
    return result


def _speedups(baseline: Row, row: Row) -> dict[str, float]:
    pairs = {
        "forward": (baseline.forward, row.forward),
        "forward+backward": (baseline.forward_backward, row.forward_backward),
    }
    return {kind: a.median / b.median for kind, (a, b) in pairs.items() if a and b}
