"""The options of ``pytest benchmarks/``, which cases they choose, and what its JSON says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import s4_fast
from s4_fast.bench import checkouts, machine, registry, runner
from s4_fast.bench.layers import LAYERS

CHECKOUT = pytest.StashKey[checkouts.Checkout | None]()
KINDS = ("forward", "forward+backward")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("s4_fast")
    group.addoption(
        "--full", action="store_true", help="All cases, and other layers and compiled formulas beside them."
    )
    group.addoption("--sweep", action="store_true", help="The cases over lengths instead.")
    group.addoption("--peer", type=Path, help="A checkout of state-spaces/s4, for its layers beside the drop-ins.")
    group.addoption("--threads", type=int, help="Of PyTorch and the native library.")


def pytest_configure(config: pytest.Config) -> None:
    peer = config.getoption("--peer")
    try:
        config.stash[CHECKOUT] = None if peer is None else checkouts.load(peer)
    except ValueError as error:
        raise pytest.UsageError(f"--peer: {error}") from error
    if threads := config.getoption("--threads"):
        torch.set_num_threads(threads)
    s4_fast.keep_pages()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    full, sweep = config.getoption("--full"), config.getoption("--sweep")
    cases = registry.select(quick=not full, sweep=sweep)
    jobs = runner.plan(cases, quick=not full, checkout=config.stash[CHECKOUT])
    least = {"min_rounds": 3, "max_time": 2.0 if full else 0.5}
    parameters = [
        pytest.param(
            job,
            kind,
            id=f"{job.case.label} {kind} {job.backend}",
            marks=pytest.mark.benchmark(group=f"{job.case.label}, {kind}", **least),
        )
        for job in jobs
        for kind in KINDS
        if kind == "forward" or job.case.op not in LAYERS or LAYERS[job.case.op].differentiable
    ]
    metafunc.parametrize(("job", "kind"), parameters)


@pytest.fixture
def checkout(request: pytest.FixtureRequest) -> checkouts.Checkout | None:
    return request.config.stash[CHECKOUT]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine.describe())


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Without the samples and what says nothing, which make 99 % of the file."""
    commit = output_json["commit_info"]
    output_json["commit_info"] = {name: commit.get(name) for name in ("id", "time", "dirty")}
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
        benchmark.update(params=None, param=None, options={})
        for part in ("stats", "extra_info"):
            benchmark[part] = {name: _rounded(value) for name, value in benchmark[part].items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
