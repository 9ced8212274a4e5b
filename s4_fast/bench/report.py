"""Results as a table, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from s4_fast import files
from s4_fast.bench.accuracy import FAIL, KNOWN_LIMIT, PASS, tolerances
from s4_fast.bench.evaluate import BASELINES
from s4_fast.bench.measure import Time
from s4_fast.bench.results import Result

# p80/p20 of the samples above which a time is marked.
_NOISY = 1.5
_STYLES = {PASS: "green", KNOWN_LIMIT: "yellow", FAIL: "bold red"}


def table(results: Sequence[Result]) -> RenderableType:
    """A readable table, the goals below it, and what failed."""
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    grid.add_column("case", no_wrap=True)
    grid.add_column("backend", no_wrap=True)
    for heading in ("forward\nms", "\nratio", "fwd+bwd\nms", "\nratio", "peak\nMiB", "of\ndirect", "error\nforward"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("error\ngradient", justify="right", no_wrap=True)
    grid.add_column("accuracy", no_wrap=True)
    grid.add_column("goal", no_wrap=True)
    for group in _by_case(results):
        captions = _captions(group)
        for index, (result, caption) in enumerate(zip(group, captions, strict=True)):
            grid.add_row(Text(caption), *_cells(result), end_section=index == len(group) - 1)
    return Group(grid, *_footnotes(results))


def _by_case(results: Sequence[Result]) -> Iterator[list[Result]]:
    for _, group in groupby(results, key=lambda result: (result.row.case, result.row.device)):
        yield list(group)


def _captions(group: Sequence[Result]) -> list[str]:
    """The first cells of a case's rows: its op, then its sizes."""
    case = group[0].row.case
    lines = [case.op, f"{case.sizes} {case.dtype}".removesuffix(" float32")]
    if len(group) == 1:
        return ["\n".join(lines)]
    return lines + [""] * (len(group) - 2)


def _cells(result: Result) -> list[Text]:
    row = result.row
    name = Text(f"{row.backend} *" if row.automatic else row.backend, style="dim" if row.backend in BASELINES else "")
    if row.error or row.skipped:
        note = Text("error" if row.error else "skipped", style=_STYLES[FAIL] if row.error else "dim")
        return [name, note, *[Text("")] * 9]
    forward_error, gradient_error = row.errors[:2] if row.errors else (None, None)
    fraction = result.ratios.get("memory")
    met = result.goals_met.values()
    goal = Text("") if not met else Text("met", style="green") if all(met) else Text("missed", style="yellow")
    return [
        name,
        Text(_milliseconds(row.forward)),
        Text(_ratio(result.ratios.get("forward")), style="bold"),
        Text(_milliseconds(row.forward_backward)),
        Text(_ratio(result.ratios.get("forward+backward")), style="bold"),
        Text("n/a" if row.peak_mib is None else f"{row.peak_mib:.1f}"),
        Text("" if fraction is None else f"{fraction:.1%}"),
        Text("" if forward_error is None else f"{forward_error:.1e}"),
        Text("" if gradient_error is None else f"{gradient_error:.1e}"),
        Text(result.accuracy, style=_STYLES.get(result.accuracy, "")),
        goal,
    ]


def _milliseconds(time: Time | None) -> str:
    if time is None:
        return ""
    noisy = "~" if time.p80 > _NOISY * time.p20 else ""
    return noisy + (f"{time.median:.3f}" if time.median < 10 else f"{time.median:.1f}")


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def _footnotes(results: Sequence[Result]) -> Iterator[Text]:
    legend = "ratio: direct / this. peak: forward and backward. *: the automatic choice. Errors: norms against float64."
    yield Text(f"{legend} ~: noisy, p80 more than {_NOISY:g} times p20.", style="dim")
    for result in results:
        row = result.row
        for goal, met in result.goals_met.items():
            wanted, reached = row.case.goals[goal], result.ratios[goal]
            text = (
                f"at most {wanted:.1%}: {reached:.1%}" if goal == "memory" else f"at least {wanted:g}x: {reached:.1f}x"
            )
            verdict = ("met", "green") if met else ("missed", "yellow")
            line = f"goal  {row.case.op} {row.case.sizes}  {goal} {text}  "
            yield Text.assemble(line, verdict)
    for result in results:
        row = result.row
        where = f"{row.case.op} {row.case.sizes} {row.case.dtype} on {row.backend}: "
        if row.error or row.skipped:
            yield Text(where + (row.error or row.skipped), style=_STYLES[FAIL] if row.error else "dim")
        elif result.accuracy == FAIL and row.errors:
            allowed = "output {:.0e}, gradient {:.0e}".format(*tolerances(row.case))
            worst = f", worst gradient: {row.errors.worst}" if row.errors.worst else ""
            yield Text(f"{where}misses the accuracy contract ({allowed}){worst}", style=_STYLES[FAIL])


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
        "device": row.device,
        "backend": row.backend,
        "automatic": row.automatic,
        "forward_ms": forward.median,
        "forward_ms_p20": forward.p20,
        "forward_ms_p80": forward.p80,
        "forward_backward_ms": both.median,
        "forward_backward_ms_p20": both.p20,
        "forward_backward_ms_p80": both.p80,
        "peak_mib": row.peak_mib,
        "forward_ratio": result.ratios.get("forward"),
        "forward_backward_ratio": result.ratios.get("forward+backward"),
        "memory_fraction": result.ratios.get("memory"),
        "forward_error": forward_error,
        "gradient_error": gradient_error,
        "worst_gradient": worst,
        "accuracy": result.accuracy,
        "goals_missed": " ".join(goal for goal, met in result.goals_met.items() if not met),
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
