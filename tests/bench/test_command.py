from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from s4_fast import __main__ as command
from s4_fast.bench import plot, runner
from s4_fast.bench.cases import Case
from s4_fast.bench.layers import LAYERS
from s4_fast.bench.results import Row

TINY = Case("log_vandermonde", 2, 3, 50)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.registry, "select", lambda ops, **chosen: [TINY])


def _bench(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, ["bench", *arguments])


def test_a_run_prints_the_table_and_writes_the_files(tiny: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("rows.csv", "rows.json", "plot.svg")]
    options = [f"--{name}={file}" for name, file in zip(("csv", "json", "plot"), files, strict=True)]
    result = _bench("--quick", "--device=cpu", "--backend=pytorch", *options)
    assert result.exit_code == 0, result.output
    assert "log_vandermonde" in result.stdout and "pass" in result.stdout
    assert all(file.stat().st_size for file in files)
    document = json.loads(files[1].read_text())
    assert document["machine"]["threads"] == str(torch.get_num_threads())
    assert [row["backend"] for row in document["rows"]] == ["direct", "pytorch"]


def test_one_failing_row_does_not_end_the_run_and_exits_with_1(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(jobs: list[runner.Job], device: str, seconds: float, **settings: object) -> Iterator[Row]:
        for job in jobs:
            yield Row(job.case, device, job.backend, error="RuntimeError: broken" if job.backend == "pytorch" else "")

    monkeypatch.setattr(runner, "run", run)
    result = _bench("--device=cpu", "--backend=pytorch", "--backend=reference")
    assert result.exit_code == 1
    assert "RuntimeError: broken" in result.stdout
    assert "reference" in result.stdout


def test_an_interrupted_run_shows_what_it_has(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(jobs: list[runner.Job], device: str, seconds: float, **settings: object) -> Iterator[Row]:
        yield Row(TINY, device, "direct")
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", run)
    result = _bench("--device=cpu")
    assert result.exit_code == 1
    assert "direct" in result.stdout


def test_list_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(runner, "run")
    result = _bench("--list", "--quick", "--op=dplr_kernel", "--device=cpu")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "dplr_kernel H=128 n=32 r=1 L=4096  direct"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op=vandermonde"], "'log_vandermonde'"),
        (["--backend=numpy"], "'pytorch'"),
        (["--device=tpu"], "tpu"),
        (["--device=cuda:99"], "CUDA devices"),
        (["--plot=plot.doc"], ".png, .svg, .pdf"),
        (["--csv=/no/such/folder/rows.csv"], "does not exist"),
    ],
)
def test_wrong_options_say_what_is_right(arguments: list[str], message: str) -> None:
    result = _bench(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_plot_without_matplotlib_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(runner, "run")
    monkeypatch.setattr(plot, "matplotlib_missing", lambda: "pip install 'matplotlib>=3.7'")
    result = _bench("--plot=plot.png")
    assert result.exit_code == 2
    assert "pip install 'matplotlib>=3.7'" in result.output


def test_an_unusable_backend_is_refused_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    status = command.dispatch.Status(False, (), "no compiler was there", "pip install .")
    monkeypatch.setattr(command.dispatch, "backends", lambda: {"native": status})
    result = _bench("--backend=native")
    assert result.exit_code == 2
    assert "no compiler was there; run: pip install ." in result.output


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["doctor", "--help"]])
def test_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(command.main, arguments)
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_the_layers_are_those_of_the_same_registry() -> None:
    jobs = _bench("--layers", "--list", "--device=cpu").stdout.splitlines()
    assert "S4DLayer B=16 H=128 n=32 L=1024  LSTM" in jobs
    assert "S4DLayer B=16 H=128 n=32 L=1024  s4_fast" in jobs
    assert {job.split()[0] for job in jobs} == set(LAYERS)
    assert _bench("--op=S4DLayer.step", "--backend=pytorch", "--list", "--device=cpu").stdout.endswith("pytorch\n")


@pytest.mark.parametrize("named", ["missing", "empty"])
def test_a_peer_that_is_no_checkout_says_how_to_get_one(named: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = _bench(f"--peer={tmp_path / named}")
    assert result.exit_code == 2
    assert "git clone https://github.com/state-spaces/s4" in " ".join(result.output.split())


def test_the_results_say_which_command_and_how_many_threads_made_them(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, threads = tmp_path / "rows.json", torch.get_num_threads()
    arguments = ["bench", "--device=cpu", "--backend=reference", "--threads=1", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", ["s4_fast", *arguments])
    monkeypatch.setattr(runner, "run", lambda jobs, *settings, **more: (Row(j.case, "cpu", j.backend) for j in jobs))
    try:
        assert CliRunner().invoke(command.main, arguments).exit_code == 0
    finally:
        torch.set_num_threads(threads)
    document = json.loads(file.read_text())
    assert document["settings"]["command"] == f"python -m s4_fast {' '.join(arguments)}"
    assert document["machine"]["threads"] == "1"
