"""The process that measures: reads jobs as JSON from its input, writes one row as a JSON line per job.

It is a process of its own because the C allocator takes its settings from the environment at the start, and so
that a job that is killed costs one row.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from s4_fast import dispatch
from s4_fast.bench import accuracy, evaluate, measure, whole
from s4_fast.bench.cases import Case
from s4_fast.bench.checkouts import Checkout, load
from s4_fast.bench.evaluate import Evaluation, Outcome, Refused
from s4_fast.bench.inputs import OPS, Arguments, arguments
from s4_fast.bench.results import Row


def measure_row(case: Case, backend: str, device: str, seconds: float, checkout: Checkout | None = None) -> Row:
    """Measure one case by one evaluation, about ``seconds`` per timing. Never raises for a failing op."""
    row = Row(case, device, backend)
    try:
        evaluation = checked(row, checkout)
        if row.verdict != accuracy.FAIL:
            _time(row, evaluation, seconds)
    except Refused as reason:
        row.skipped = str(reason)
    except Exception as error:  # whatever an op does wrong belongs in its row, not in the way of the other rows
        row.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return row


def checked(row: Row, checkout: Checkout | None = None) -> Evaluation:
    """The evaluation of a row, whose errors against float64 it fills in.

    Raises:
        Refused: it does not serve the case.
        FloatingPointError: it returns something that is not finite.
    """
    case, device = row.case, row.device
    if case.op in OPS:
        evaluation = evaluate.of_op(case.op, row.backend, _inputs(case, device))
    else:
        evaluation = whole.evaluation(case, row.backend, device, checkout)
    row.version, row.automatic = evaluation.version, evaluation.automatic
    found = evaluation.outcome()
    if not all(bool(t.isfinite().all()) for t in (*found.outputs, *found.gradients.values())):
        raise FloatingPointError("the output or a gradient is not finite")
    if evaluation.compared:
        row.errors = accuracy.errors(found, _reference(case, device, checkout))
    return evaluation


def _time(row: Row, evaluation: Evaluation, seconds: float) -> None:
    row.forward = measure.timed(evaluation.forward, row.device, seconds)
    if evaluation.both:
        row.forward_backward = measure.timed(evaluation.both, row.device, seconds)
    if row.device.startswith("cuda") and row.case.op in OPS and row.backend in dispatch.BACKENDS:
        row.forward_launched = _launched(evaluation.forward, row.device, seconds)
        if evaluation.both:
            row.forward_backward_launched = _launched(evaluation.both, row.device, seconds)
    row.peak_mib = measure.peak_memory(evaluation.both or evaluation.forward, row.device)


def _launched(run: Callable[[], Any], device: str, seconds: float) -> float:
    # It decides between backends alone, for which a rough figure will do.
    return measure.timed_with_launches(run, device, seconds / 4).median


# The jobs of one case follow each other.
@lru_cache(maxsize=1)
def _inputs(case: Case, device: str) -> Arguments:
    return arguments(case, device)


@lru_cache(maxsize=1)
def _reference(case: Case, device: str, checkout: Checkout | None) -> Outcome:
    if case.op in OPS:
        return accuracy.reference(case, _inputs(case, device))
    return whole.definition(case, device, checkout)


def main() -> None:
    """Serve the jobs on standard input."""
    # Libraries print to standard output (compilers, PyKeOps): keep that away from the rows.
    rows = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request: dict[str, Any] = json.load(sys.stdin)
    device, checkout = request["device"], load(Path(request["peer"])) if request["peer"] else None
    torch.set_num_threads(request["threads"])
    # Events, peaks and kernels launched without a device argument belong to the current device.
    with torch.cuda.device(device) if device.startswith("cuda") else nullcontext():
        for job in request["jobs"]:
            row = measure_row(Case(**job["case"]), job["backend"], device, request["seconds"], checkout)
            print(json.dumps(row.to_dict()), file=rows, flush=True)


if __name__ == "__main__":
    main()
