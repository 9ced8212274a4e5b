"""The registry of ``python -m s4_fast bench`` under pytest-benchmark, on the CPU: ``pytest benchmarks/``."""

from __future__ import annotations

from functools import lru_cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from s4_fast.bench import accuracy, measure, runner, worker
from s4_fast.bench.cases import Case
from s4_fast.bench.checkouts import Checkout
from s4_fast.bench.evaluate import Evaluation, Refused
from s4_fast.bench.results import Row


def test_case(job: runner.Job, kind: str, benchmark: BenchmarkFixture, checkout: Checkout | None) -> None:
    try:
        row, evaluation = checked(job.case, job.backend, checkout)
    except Refused as reason:
        pytest.skip(str(reason))
    benchmark.extra_info.update(version=row.version, automatic=row.automatic)
    if row.errors is not None:
        benchmark.extra_info.update(forward_error=row.errors.forward, gradient_error=row.errors.gradient)
    if row.verdict == accuracy.FAIL:
        pytest.fail(f"misses the accuracy contract, not timed: {row.errors}")
    evaluate = evaluation.forward if kind == "forward" else evaluation.both
    if evaluate is None:
        pytest.skip("has no gradients")
    benchmark.name = job.backend
    benchmark(evaluate)
    benchmark.extra_info["peak_mib"] = measure.peak_memory(evaluate, "cpu")


# The kinds of one job follow each other.
@lru_cache(maxsize=1)
def checked(case: Case, backend: str, checkout: Checkout | None) -> tuple[Row, Evaluation]:
    row = Row(case, "cpu", backend)
    return row, worker.checked(row, checkout)
