from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from s4_fast import __main__ as command
from s4_fast.bench import plot, runner
from s4_fast.bench.cases import Case
from s4_fast.bench.results import Row

TINY = Case("log_vandermonde", 2, 3, 50)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "select", lambda quick: [TINY])


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
    def run(jobs: list[runner.Job], device: str, seconds: float, *, default_allocator: bool):  # type: ignore[no-untyped-def]
        for job in jobs:
            yield Row(job.case, device, job.backend, error="RuntimeError: broken" if job.backend == "pytorch" else "")

    monkeypatch.setattr(runner, "run", run)
    result = _bench("--device=cpu", "--backend=pytorch", "--backend=reference")
    assert result.exit_code == 1
    assert "RuntimeError: broken" in result.stdout
    assert "reference" in result.stdout


def test_an_interrupted_run_shows_what_it_has(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(jobs: list[runner.Job], device: str, seconds: float, *, default_allocator: bool):  # type: ignore[no-untyped-def]
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
    assert result.stdout.splitlines()[0] == "dplr_kernel H=128 n=32 r=1 L=4096 float32  direct"


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
    monkeypatch.setattr(plot, "matplotlib_missing", lambda: "pip install 's4_fast[plot]'")
    result = _bench("--plot=plot.png")
    assert result.exit_code == 2
    assert "pip install 's4_fast[plot]'" in result.output


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


def test_layers_are_measured_in_a_process_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "layers.json"
    result = CliRunner().invoke(command.main, ["bench-layers", "--smoke", f"--json={file}"])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())["rows"]
    kinds = ("forward (2, 20, 4)", "forward + backward (2, 20, 4)", "step (1, 4)", "prefill (1, 50, 1), beside steps")
    passes = (
        "S4DLayer N=4 both ways (1, 16, 4)",
        "S4DLayer N=8 both ways (2, 64, 4)",
        "S4SequenceModel of 4 blocks both ways (1, 16, 1)",
        "S4DLayer both ways (2, 20, 4), beside ssm_scan",
        "S4DLayer in bfloat16 (2, 20, 4), beside float32",
        "S4Block diag both ways (2, 4, 20), beside S4D",
        "S4Layer both ways (1, 16, 4)",
        *(f"S4Layer both ways {shape}, beside an FFT convolution" for shape in ((2, 20, 4), (1, 320, 4), (1, 1280, 2))),
        "dplr_scan forward (2, 4, 20), beside ssm_scan",
    )
    expected = [*(f"{cls} {kind}" for cls in ("S4DLayer", "S4Layer") for kind in kinds), *passes]
    assert sorted(row["name"] for row in rows) == sorted(expected)
    assert all(row["ours"] > 0 and row["name"] in result.stdout for row in rows)
    alone = ("S4SequenceModel of 4 blocks both ways (1, 16, 1)", "S4Layer both ways (1, 16, 4)")
    assert all(row["baseline"] is None if row["name"] in alone else row["baseline"] > 0 for row in rows)
    assert all(row["goal"] and row["met"] is not None for row in rows if row["name"] in passes)
    assert all(row["error"] < 2e-6 for row in rows if "prefill" in row["name"])
