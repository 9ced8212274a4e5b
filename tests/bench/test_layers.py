"""Whole layers in the benchmark, and what they stand beside."""

from __future__ import annotations

import pytest
import torch

from s4_fast.bench import runner, worker
from s4_fast.bench.accuracy import PASS
from s4_fast.bench.cases import Case
from s4_fast.bench.evaluate import COMPILED, OURS
from s4_fast.bench.layers import LAYERS
from s4_fast.bench.results import Row


@pytest.mark.parametrize("op", LAYERS)
def test_every_layer_is_its_definition_and_so_is_what_computes_the_same(op: str) -> None:
    case = Case(op, 4, 4, 24, batch=2)
    for job in runner.plan([case]):
        if job.backend == COMPILED:
            continue
        row = Row(case, "cpu", job.backend)
        evaluation = worker.checked(row)
        assert row.version.partition(" ")[0] in ("s4_fast", "torch") and row.automatic == (job.backend == OURS)
        assert (evaluation.both is not None) == LAYERS[op].differentiable
        assert (row.verdict == PASS) == (job.backend == OURS)
        if row.errors is not None:
            assert row.errors.forward < 2e-6 and (row.errors.gradient or 0) < 1e-4
        else:
            assert not evaluation.compared


def test_other_layers_and_half_types_are_planned_where_they_belong() -> None:
    case = Case("S4DLayer", 4, 4, 24)
    names = [job.backend for job in runner.plan([case])]
    assert names == ["direct", COMPILED, "ssm_scan", "torch.fft", "LSTM", "GRU", "Transformer", OURS]
    assert [job.backend for job in runner.plan([case], quick=True)] == ["direct", "ssm_scan", "torch.fft", OURS]
    half = Case("S4DLayer", 4, 4, 24, dtype="bfloat16")
    assert [job.backend for job in runner.plan([half])] == ["float32", OURS]
    row = Row(half, "cpu", OURS)
    worker.checked(row)
    assert row.verdict == PASS and row.errors and row.errors.forward > 1e-4


def test_attention_over_long_sequences_is_skipped_with_its_cost() -> None:
    row = worker.measure_row(Case("S4DLayer", 4, 4, 20_000), "Transformer", "cpu", 0.01)
    assert "4.0e+08" in row.skipped and not row.error


def test_a_layer_on_a_backend_that_does_not_serve_it_is_skipped() -> None:
    row = worker.measure_row(Case("S4DLayer", 4, 4, 24), "keops", "cpu", 0.01)
    assert row.skipped and row.forward is None


def test_slow_decay_shows_the_rounded_phase_of_the_direct_form() -> None:
    case = Case("S4DLayer", 2, 4, 2**14, decay=1e-6)
    direct, ours = (worker.measure_row(case, name, "cpu", 0.01) for name in ("direct", OURS))
    assert direct.errors and ours.errors and direct.errors.forward > 30 * ours.errors.forward
    assert torch.isfinite(torch.tensor(ours.errors.forward))
