"""Results as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s4_fast import files
from s4_fast.bench.measure import Time
from s4_fast.bench.results import Result


def flat(result: Result) -> dict[str, Any]:
    """One level of plain values: the columns of the CSV. None where something was not measured."""
    row, case = result.row, result.row.case
    none = Time(None, None, None)  # type: ignore[arg-type]
    forward, both = row.forward or none, row.forward_backward or none
    forward_error, gradient_error, worst = row.errors or (None, None, "")
    return {
        "op": case.op,
        "H": case.H,
        "n": case.n,
        "L": case.L,
        "batch": case.batch,
        "rank": case.rank,
        "dtype": case.dtype,
        "decay": case.decay,
        "state": case.state,
        "device": row.device,
        "backend": row.backend,
        "version": row.version,
        "automatic": row.automatic,
        "forward_ms": forward.median,
        "forward_ms_p20": forward.p20,
        "forward_ms_p80": forward.p80,
        "forward_backward_ms": both.median,
        "forward_backward_ms_p20": both.p20,
        "forward_backward_ms_p80": both.p80,
        "forward_launched_ms": row.forward_launched,
        "forward_backward_launched_ms": row.forward_backward_launched,
        "peak_mib": row.peak_mib,
        "forward_ratio": result.ratios.get("forward"),
        "forward_backward_ratio": result.ratios.get("forward+backward"),
        "memory_fraction": result.ratios.get("memory"),
        "forward_error": forward_error,
        "gradient_error": gradient_error,
        "worst_gradient": worst,
        "accuracy": row.verdict,
        "goals_missed": ", ".join(goal for goal, met in result.goals_met.items() if not met),
        "skipped": row.skipped,
        "error": row.error,
    }


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One line per row, with a header."""
    lines = [flat(result) for result in results]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    files.write(path, text.getvalue())


def write_json(path: Path, results: Sequence[Result], machine: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """The machine, the settings of the run and the rows, with the same keys as the CSV and the goals."""
    rows = [{**flat(result), "goals": dict(result.row.case.goals), "goals_met": result.goals_met} for result in results]
    document = {"machine": dict(machine), "settings": dict(settings), "rows": rows}
    files.write(path, json.dumps(document, indent=2, allow_nan=False) + "\n")
