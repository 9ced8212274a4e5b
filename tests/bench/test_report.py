from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest
from rich.console import Console

from s4_fast.bench import files, plot, report
from s4_fast.bench.accuracy import Errors
from s4_fast.bench.cases import Case
from s4_fast.bench.measure import Time
from s4_fast.bench.results import Result, Row, compare, losses

GOALS = {"forward": 50, "forward+backward": 5, "memory": 1 / 8}
CASE = Case("log_vandermonde", 2, 3, 50, goals=GOALS)
MACHINE = {"cpu": "a CPU", "threads": "2", "torch": "2.6"}


def _row(backend: str, ms: float, peak: float | None, *, automatic: bool = False, device: str = "cpu") -> Row:
    times = Time(ms, ms * 0.9, ms * 2), Time(2 * ms, 2 * ms, 2 * ms)
    return Row(CASE, device, backend, "torch 2", automatic, *times, peak, Errors(1e-7, 2e-7, "x"))


def _results() -> list[Result]:
    rows = [_row("direct", 100.0, 200.0), _row("pytorch", 4.0, 10.0, automatic=True), _row("keops", 8.0, None)]
    rows += [Row(CASE, "cpu", "native", error="RuntimeError: broken"), Row(CASE, "cpu", "triton", skipped="no GPU")]
    return compare(rows)


def _shown(results: list[Result], width: int = 160) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(report.table(results))
    return capture.get()


def test_ratios_and_goals_of_the_automatic_choice() -> None:
    direct, ours, other, broken, skipped = _results()
    assert direct.ratios == {} and direct.row.verdict == ""
    assert ours.ratios == pytest.approx({"forward": 25, "forward+backward": 25, "memory": 0.05})
    assert ours.goals_met == {"forward": False, "forward+backward": True, "memory": True}
    assert other.goals_met == {}
    assert "memory" not in other.ratios
    assert [result.failed for result in (direct, ours, other, broken, skipped)] == [False, False, False, True, False]


def test_goals_against_a_convolution_with_its_kernel_given() -> None:
    case = Case("ssm_scan", 2, 3, 50, goals={"forward against fft_conv": 4, "forward+backward against fft_conv": 2})
    rows = [_row("direct", 100.0, 200.0), _row("fft_conv", 9.0, 50.0), _row("native", 3.0, 10.0, automatic=True)]
    for row in rows:
        row.case = case
    results = compare(rows)
    assert results[1].ratios["forward"] == pytest.approx(100 / 9)
    assert results[1].goals_met == {}
    assert results[2].ratios["forward against fft_conv"] == pytest.approx(3)
    assert results[2].goals_met == {"forward against fft_conv": False, "forward+backward against fft_conv": True}
    assert "goal missed: ssm_scan B=1 H=2 n=3 L=50, forward against fft_conv at least 4x: 3.00x" in _shown(results)


def test_a_baseline_that_breaks_is_shown_and_fails_nothing() -> None:
    results = compare([Row(CASE, "cpu", "compiled direct", error="RuntimeError: no compiler")])
    assert not results[0].failed
    assert "on compiled direct: RuntimeError: no compiler" in _shown(results)


def test_goals_are_judged_on_a_cpu_alone() -> None:
    rows = [_row("direct", 100.0, 200.0, device="cuda"), _row("pytorch", 4.0, 10.0, automatic=True, device="cuda")]
    assert compare(rows)[1].goals_met == {}


def test_table_shows_figures_verdicts_and_causes() -> None:
    text = _shown(_results())
    for expected in (
        "log_vandermonde",
        "H=2 n=3 L=50",
        "pytorch *",
        "~4.00",
        "25x",
        "5.0%",
        "1e-7",
        "pass",
        "n/a",
    ):
        assert expected in text
    assert "goal missed: log_vandermonde H=2 n=3 L=50, forward at least 50x: 25.00x" in text
    assert "goal met: log_vandermonde H=2 n=3 L=50, memory at most 12.5%: 5.0%" in text
    assert "on native: RuntimeError: broken" in text
    assert "triton, not run in log_vandermonde H=2 n=3 L=50: no GPU" in text


def test_table_names_what_misses_the_contract() -> None:
    row = _row("pytorch", 4.0, 10.0)
    row.errors = Errors(1e-3, 1e-7, "x")
    text = _shown(compare([row]))
    assert "FAIL" in text
    assert "misses the accuracy contract (output 2e-06, gradient 1e-05)" in text


def test_csv_and_json_have_the_same_columns(tmp_path: Path) -> None:
    results = _results()
    files.write_csv(tmp_path / "rows.csv", results)
    files.write_json(tmp_path / "rows.json", results, MACHINE, {"device": "cpu"})
    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    document = json.loads((tmp_path / "rows.json").read_text())
    assert document["machine"] == MACHINE
    assert document["settings"] == {"device": "cpu"}
    assert set(document["rows"][0]) == {*lines[0], "goals", "goals_met"}
    assert [line["backend"] for line in lines] == ["direct", "pytorch", "keops", "native", "triton"]
    assert float(lines[1]["forward_ms"]) == 4.0
    assert lines[1]["goals_missed"] == "forward"
    assert lines[2]["peak_mib"] == ""
    assert document["rows"][3]["error"] == "RuntimeError: broken"
    assert document["rows"][3]["forward_ms"] is None


@pytest.mark.parametrize("name", ["direct", "official 4.1 with a long name of its own"])
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_cuts_nothing(width: int, name: str) -> None:
    row = _row("pytorch", 4.0, 10.0)
    row.errors = Errors(1e-3, 1e-7, "x")
    lines = _shown([*_results(), *compare([_row(name, 12345.0, 98765.0), row])], width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    headings = " ".join(lines[:2]).split()
    assert headings[:3] == ["forward", "fwd+bwd", "peak"] and {"ratio", "result", "direct", "bwd"} <= set(headings)
    # The verdict stands beside the backend, or below it where names are long.
    failed = next(index for index, line in enumerate(lines) if line.endswith("FAIL"))
    assert "pytorch" in lines[failed] or lines[failed - 1].strip() == "pytorch"


def test_what_is_not_run_is_one_line_for_all_cases() -> None:
    cases = [Case("log_vandermonde", 2, 3, L) for L in (50, 60)]
    rows = [Row(case, "cpu", name, skipped=f"no {name}") for case in cases for name in ("triton", "keops")]
    lines = _shown(compare([*rows, Row(cases[0], "cpu", "native", skipped="it is Sunday")])).splitlines()
    assert lines[-3:] == [
        "triton, not run in 2 cases: no triton",
        "keops, not run in 2 cases: no keops",
        "native, not run in log_vandermonde H=2 n=3 L=50: it is Sunday",
    ]


def test_what_is_slower_is_named_in_words() -> None:
    results = _results()
    assert losses(results) == [] and "is slower at none of these" in _shown(results)
    case = Case("S4DLayer", 2, 3, 50, batch=4)
    rows = [_row("LSTM", 1.0, None), _row("s4_fast", 4.0, None, automatic=True), _row("pytorch", 9.0, None)]
    for row in rows:
        row.case = case
    assert losses(compare(rows))[0] == "S4DLayer B=4 H=2 n=3 L=50, forward: 4.00 times the time of LSTM"
    assert len(losses(compare(rows))) == 2
    assert "slower at:\n  S4DLayer B=4 H=2 n=3 L=50, forward: 4.00 times the time of LSTM" in _shown(compare(rows))


def test_the_gain_over_the_original_is_a_sentence() -> None:
    rows = [_row("official 4.1 naive", 6.0, None), _row("s4_fast", 4.0, None, automatic=True)]
    assert "forward: 1.5 times as fast as official 4.1 naive" in _shown(compare(rows))


def test_a_goal_may_be_a_time_or_against_another_evaluation() -> None:
    case = Case("S4DLayer", 2, 3, 50, goals={"forward ms": 5, "forward+backward ms": 5, "forward against GRU": 0.5})
    rows = [_row("GRU", 3.0, None), _row("s4_fast", 4.0, None, automatic=True)]
    for row in rows:
        row.case = case
    assert compare(rows)[1].goals_met == {"forward ms": True, "forward+backward ms": False, "forward against GRU": True}
    assert "goal missed: S4DLayer B=1 H=2 n=3 L=50, forward+backward at most 5 ms: 8 ms" in _shown(compare(rows))


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot.write_plot(tmp_path / "plot.png", _results(), MACHINE)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert plot.matplotlib_missing() == "a plot needs matplotlib: pip install 'matplotlib>=3.7'"
