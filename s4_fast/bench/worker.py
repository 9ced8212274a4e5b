"""The process that measures: reads jobs as JSON from its input, writes one row as a JSON line per job.

It is a process of its own because the C allocator takes its settings from the environment at the start, and so
that a job that is killed costs one row.
"""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch

from s4_fast.bench import evaluate, measure
from s4_fast.bench.accuracy import errors, reference
from s4_fast.bench.cases import Case
from s4_fast.bench.evaluate import Outcome
from s4_fast.bench.inputs import Arguments, arguments
from s4_fast.bench.results import Row


def measure_row(case: Case, backend: str, device: str, seconds: float) -> Row:
    """Measure one case on one backend, about ``seconds`` per timing. Never raises for a failing op."""
    row = Row(case, device, backend)
    try:
        _fill(row, seconds)
    except Exception as error:  # whatever an op does wrong belongs in its row, not in the way of the other rows
        row.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return row


def _fill(row: Row, seconds: float) -> None:
    op, backend = row.case.op, row.backend
    arguments = _inputs(row.case, row.device)
    row.skipped = evaluate.refusal(op, backend, arguments, grads=False)
    if row.skipped:
        return
    row.automatic = evaluate.automatic(op, arguments) == backend
    inputs = evaluate.inputs(backend, arguments)
    function = evaluate.implementation(op, backend)
    forward = evaluate.forward(function, inputs)
    differentiable = not evaluate.refusal(op, backend, arguments, grads=True)
    both = evaluate.forward_backward(function, inputs) if differentiable else None
    row.errors = errors(both() if both else Outcome(forward(), {}), _reference(row.case, row.device))
    if not all(math.isfinite(e) for e in row.errors[:2] if e is not None):
        row.errors = None
        raise FloatingPointError("the output or a gradient is not finite")
    row.forward = measure.timed(forward, row.device, seconds)
    if both:
        row.forward_backward = measure.timed(both, row.device, seconds)
    row.peak_mib = measure.peak_memory(both or forward, row.device)


# The jobs of one case follow each other.
@lru_cache(maxsize=1)
def _inputs(case: Case, device: str) -> Arguments:
    return arguments(case, device)


@lru_cache(maxsize=1)
def _reference(case: Case, device: str) -> Outcome:
    return reference(case, _inputs(case, device))


def main() -> None:
    """Serve the jobs on standard input."""
    # Libraries print to standard output (compilers, PyKeOps): keep that away from the rows.
    rows = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request: dict[str, Any] = json.load(sys.stdin)
    device = request["device"]
    # Events, peaks and kernels launched without a device argument belong to the current device.
    with torch.cuda.device(device) if device.startswith("cuda") else nullcontext():
        for job in request["jobs"]:
            row = measure_row(Case(**job["case"]), job["backend"], device, request["seconds"])
            print(json.dumps(row.to_dict()), file=rows, flush=True)


if __name__ == "__main__":
    main()
