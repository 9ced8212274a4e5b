"""What a benchmark yields: rows, and what comparing those of one case with each other and the contracts says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from s4_fast.bench.accuracy import FAIL, Errors, verdict
from s4_fast.bench.cases import Case
from s4_fast.bench.evaluate import DIRECT, is_ours
from s4_fast.bench.measure import Time


@dataclass
class Row:
    """One case by one evaluation. What was not measured is None; ``skipped`` and ``error`` say why.

    ``backend`` names the evaluation: a backend of an op, "s4_fast" for a whole layer as it is called, or what they are
    compared with; ``version`` is that of its library. ``peak_mib`` belongs to forward and backward together, or to
    forward where there are no gradients. ``errors`` are None where the evaluation computes something else.
    ``forward_launched`` and ``forward_backward_launched`` are the median milliseconds on a CUDA device with what Python
    takes to launch, of backends of ops alone.
    """

    case: Case
    device: str
    backend: str
    version: str = ""
    automatic: bool = False
    forward: Time | None = None
    forward_backward: Time | None = None
    peak_mib: float | None = None
    errors: Errors | None = None
    skipped: str = ""
    error: str = ""
    forward_launched: float | None = None
    forward_backward_launched: float | None = None

    @property
    def verdict(self) -> str:
        """Against the accuracy contract; empty for a baseline, which is not bound by it."""
        bound = self.errors is not None and is_ours(self.backend)
        return verdict(self.case, self.backend, self.errors) if bound and self.errors else ""

    @property
    def times(self) -> dict[str, Time]:
        """What was timed, by its name in goals."""
        both = {"forward": self.forward, "forward+backward": self.forward_backward}
        return {kind: time for kind, time in both.items() if time is not None}

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
    """A row beside the others of the same case.

    ``ratios``: direct/ours for "forward" and "forward+backward" and ours/direct for "memory"; for ours also
    NAME/ours for "forward against NAME" and "forward+backward against NAME", of every other baseline NAME.
    ``goals_met``: per goal of the case, for the automatic choice, on a CPU.
    """

    row: Row
    ratios: dict[str, float] = field(default_factory=dict)
    goals_met: dict[str, bool] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether a row of ours broke or misses the accuracy contract. A missed goal is no failure: machines differ."""
        return is_ours(self.row.backend) and (bool(self.row.error) or self.row.verdict == FAIL)

    def reached(self, goal: str) -> float | None:
        """The figure that a goal of the case is about."""
        if goal.endswith(" ms"):
            time = self.row.times.get(goal.removesuffix(" ms"))
            return None if time is None else time.median
        return self.ratios.get(goal)


def at_most(goal: str) -> bool:
    """Whether a goal is an upper limit."""
    return goal == "memory" or goal.endswith(" ms")


def compare(rows: Iterable[Row]) -> list[Result]:
    """Every row beside the baselines of its case, in the given order."""
    rows = list(rows)
    baselines: dict[tuple[Case, str], dict[str, Row]] = {}
    for row in rows:
        if not is_ours(row.backend):
            baselines.setdefault((row.case, row.device), {})[row.backend] = row
    return [_compare(row, baselines.get((row.case, row.device), {})) for row in rows]


def _compare(row: Row, baselines: Mapping[str, Row]) -> Result:
    result = Result(row)
    for name, other in baselines.items():
        if name == DIRECT and row is not other:
            result.ratios.update(_speedups(other, row))
            if other.peak_mib and row.peak_mib is not None:
                result.ratios["memory"] = row.peak_mib / other.peak_mib
        elif is_ours(row.backend):
            result.ratios.update({f"{kind} against {name}": r for kind, r in _speedups(other, row).items()})
    if row.automatic and row.device == "cpu":
        for goal, wanted in row.case.goals.items():
            reached = result.reached(goal)
            if reached is not None and not math.isnan(reached):
                result.goals_met[goal] = reached <= wanted if at_most(goal) else reached >= wanted
    return result


def _speedups(baseline: Row, row: Row) -> dict[str, float]:
    return {
        kind: baseline.times[kind].median / time.median for kind, time in row.times.items() if kind in baseline.times
    }


def losses(results: Iterable[Result]) -> list[str]:
    """In words, where the automatic choice takes longer than something that it was measured beside."""
    found = []
    for result in results:
        if not result.row.automatic:
            continue
        for kind, ratio in result.ratios.items():
            kind, _, name = kind.partition(" against ")
            if kind != "memory" and ratio < 1:
                found.append(f"{result.row.case.label}, {kind}: {1 / ratio:.2f} times the time of {name or DIRECT}")
    return found
