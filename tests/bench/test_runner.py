from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

import s4_fast
from s4_fast import dispatch
from s4_fast.bench import accuracy, evaluate, runner, worker
from s4_fast.bench.cases import Case
from s4_fast.bench.inputs import OPS, arguments
from s4_fast.bench.layers import LAYERS
from s4_fast.bench.registry import CASES, select
from s4_fast.bench.results import Row, compare
from s4_fast.bench.runner import Job

TINY = Case("log_vandermonde", 2, 3, 50)


def test_the_direct_evaluation_comes_first_and_the_reference_not_at_all() -> None:
    jobs = runner.plan(select(["log_vandermonde"]))
    assert jobs[0] == Job(CASES[0], "direct")
    assert "reference" not in {job.backend for job in jobs}
    assert not any(job.backend == "direct" and job.case.L == 2**20 for job in jobs)


@pytest.mark.slow
def test_a_scan_is_compared_with_the_convolution_whose_kernel_is_given() -> None:
    case = Case("ssm_scan", 2, 3, 50, direct=False)
    jobs = [Job(case, "fft_conv"), Job(case, "pytorch")]
    assert runner.plan([case], ["pytorch"]) == jobs
    assert runner.plan([dataclasses.replace(case, state=True)], ["pytorch"])[0].backend == "pytorch"
    convolution, ours = rows = list(runner.run(jobs, "cpu", 0.01))
    assert not convolution.error and not ours.error and not convolution.automatic
    assert convolution.errors is not None and convolution.errors.forward < 2e-6
    given, compared = compare(rows)
    assert given.ratios == {} and given.row.verdict == ""
    assert compared.ratios.keys() == {"forward against fft_conv", "forward+backward against fft_conv"}


def test_a_backend_that_is_asked_for_runs_beside_the_direct_evaluation() -> None:
    assert [job.backend for job in runner.plan([TINY], ["reference"], quick=True)] == ["direct", "reference"]


def test_the_quick_run_has_every_op_once_at_least() -> None:
    assert {case.op for case in select(quick=True)} >= set(dispatch.ops())


def test_cases_are_of_known_ops_and_layers_and_every_one_has_some() -> None:
    assert {case.op for case in CASES} == {*OPS, *LAYERS}
    assert len(set(CASES)) == len(CASES)
    assert {case.L for case in select(["S4DLayer"], sweep=True)} >= {256, 65536, 2**20}
    assert not any(case.sweep for case in select())


def test_rows_come_back_from_the_worker_in_order() -> None:
    chosen = evaluate.automatic(TINY.op, arguments(TINY))
    jobs = [Job(TINY, "direct"), Job(TINY, chosen), Job(Case("no_such_op", 1, 1, 1), "pytorch")]
    direct, ours, broken = runner.run(jobs, "cpu", 0.01)
    assert (direct.backend, ours.backend) == ("direct", chosen)
    assert direct.case == ours.case == TINY
    assert ours.automatic and not direct.automatic
    for row in (direct, ours):
        assert row.forward and row.forward_backward and row.errors and not row.error
        assert row.forward.p20 <= row.forward.median <= row.forward.p80
    assert "KeyError" in broken.error


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands for the worker")
def test_a_worker_that_is_killed_costs_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho out of luck >&2\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    jobs = [Job(TINY, "direct"), Job(TINY, "pytorch")]
    rows = list(runner.run(jobs, "cpu", 0.01))
    assert [row.backend for row in rows] == ["direct", "pytorch"]
    assert {row.error for row in rows} == {"the worker was killed by SIGKILL: out of luck"}


def test_a_failing_op_is_a_row_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no\n  luck")

    monkeypatch.setattr(s4_fast, "log_vandermonde", broken)
    assert worker.measure_row(TINY, "pytorch", "cpu", 0.01).error == "RuntimeError: no luck"


def test_an_output_that_is_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = s4_fast.log_vandermonde

    def broken(*args: object, backend: str, **kwargs: object) -> object:
        out = right(*args, backend=backend, **kwargs)
        return out if backend == "reference" else out * float("nan")

    monkeypatch.setattr(s4_fast, "log_vandermonde", broken)
    row = worker.measure_row(TINY, "pytorch", "cpu", 0.01)
    assert "not finite" in row.error
    assert compare([row])[0].failed


def test_a_refusal_is_skipped_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    implementation = dispatch.Implementation("nowhere", lambda call: "it is Sunday", lambda call: False)
    monkeypatch.setitem(dispatch._implementations["log_vandermonde"], "pytorch", implementation)
    row = worker.measure_row(TINY, "pytorch", "cpu", 0.01)
    assert "it is Sunday" in row.skipped
    assert not compare([row])[0].failed


@pytest.mark.parametrize("case", [TINY, Case("S4D", 2, 2, 8)], ids=str)
def test_rows_survive_json_with_the_version_of_what_they_measured(case: Case) -> None:
    row = worker.measure_row(case, "direct", "cpu", 0.01)
    assert row.version.startswith("torch 2") and row.forward
    assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row


@pytest.mark.parametrize("case", [TINY, Case("S4DLayer", 2, 2, 8)], ids=str)
def test_what_misses_the_accuracy_contract_is_not_timed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "FORWARD", {"float32": 0.0})
    row = worker.measure_row(case, "pytorch", "cpu", 0.01)
    assert row.verdict == accuracy.FAIL and row.errors and not row.error
    assert row.forward is None and row.forward_backward is None and row.peak_mib is None
    assert compare([row])[0].failed


def test_the_allocator_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Stop(Exception):
        pass

    def popen(*args: object, env: dict[str, str], **kwargs: object) -> None:
        seen.append(env.get("MALLOC_MMAP_MAX_"))
        raise Stop

    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    for default in (False, True):
        with pytest.raises(Stop):
            list(runner.run([Job(TINY, "direct")], "cpu", 0.01, default_allocator=default))
    assert seen == ["0", None]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_by_events_and_its_allocator() -> None:
    case = Case("log_vandermonde", 16, 8, 4096)
    direct, ours = runner.run([Job(case, "direct"), Job(case, "pytorch")], "cuda:0", 0.05)
    assert not direct.error and not ours.error
    assert direct.forward and direct.forward.median > 0
    # The terms alone, complex64.
    assert direct.peak_mib is not None and direct.peak_mib >= 16 * 8 * 4096 * 8 / 2**20
