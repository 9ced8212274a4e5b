"""Results as a table and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from s4_fast.bench.accuracy import FAIL, KNOWN_LIMIT, PASS, tolerances
from s4_fast.bench.evaluate import is_ours
from s4_fast.bench.measure import Time
from s4_fast.bench.results import Result, at_most, losses

# p80/p20 of the samples above which a time is marked.
_NOISY = 1.5
_STYLES = {PASS: "green", KNOWN_LIMIT: "yellow", FAIL: "bold red"}
_NAME = 24


class _Column(NamedTuple):
    """A column; ``width`` without the space around it, ``room`` the width of a table that has it."""

    heading: str
    width: int
    cell: Callable[[Result], Text]
    room: int = 0


def table(results: Sequence[Result]) -> RenderableType:
    """A readable table of as many columns as there is room for; below it the goals, what failed, and what is lost."""
    return Group(_Rows(results), *_footnotes(results))


class _Rows:
    def __init__(self, results: Sequence[Result]) -> None:
        self._results = results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = [column for column in _COLUMNS if options.max_width >= column.room]
        grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        grid.add_column("", width=_NAME, no_wrap=True)
        for column in columns:
            grid.add_column(column.heading, width=column.width, justify="right", no_wrap=True)
        yield grid
        for group in _by_case(self._results):
            yield Text(group[0].row.case.label, style="bold")
            rows = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
            rows.add_column(width=_NAME, no_wrap=True)
            for column in columns:
                rows.add_column(width=column.width, justify="right", no_wrap=True)
            for result in group:
                row = result.row
                if row.error or row.skipped:
                    note = Text("error" if row.error else "skipped", style=_STYLES[FAIL] if row.error else "dim")
                    rows.add_row(_name(result), note)
                else:
                    rows.add_row(_name(result), *(column.cell(result) for column in columns))
            yield rows


def _by_case(results: Sequence[Result]) -> Iterator[list[Result]]:
    for _, group in groupby(results, key=lambda result: (result.row.case, result.row.device)):
        yield list(group)


def _name(result: Result) -> Text:
    row = result.row
    return Text(f"  {row.backend}{' *' * row.automatic}", style="" if is_ours(row.backend) else "dim")


def _time(kind: str) -> Callable[[Result], Text]:
    return lambda result: Text(_milliseconds(result.row.times.get(kind)))


def _milliseconds(time: Time | None) -> str:
    if time is None:
        return ""
    noisy = "~" if time.p80 > _NOISY * time.p20 else ""
    digits = 4 if time.median < 1 else 2 if time.median < 100 else 0
    return f"{noisy}{time.median:.{digits}f}"


def _ratio(kind: str) -> Callable[[Result], Text]:
    def cell(result: Result) -> Text:
        value = result.ratios.get(kind)
        return Text("" if value is None else _times(value), style="bold")

    return cell


def _times(value: float) -> str:
    return f"{value:.2g}x" if value < 0.1 else f"{value:.2f}x" if value < 1 else f"{value:.{int(value < 10)}f}x"


def _peak(result: Result) -> Text:
    peak = result.row.peak_mib
    return Text("n/a" if peak is None else f"{peak:.1f}" if peak < 1000 else f"{peak:.0f}")


def _fraction(result: Result) -> Text:
    fraction = result.ratios.get("memory")
    return Text("" if fraction is None else f"{fraction:.1%}" if fraction < 1 else f"{fraction:.0%}")


def _error(index: int) -> Callable[[Result], Text]:
    def cell(result: Result) -> Text:
        errors = result.row.errors
        if errors is None:
            return Text("n/a")
        value = errors[:2][index]
        return Text("" if value is None else f"{value:.0e}".replace("e-0", "e-"))

    return cell


def _accuracy(result: Result) -> Text:
    return Text(result.row.verdict, style=_STYLES.get(result.row.verdict, ""))


def _goal(result: Result) -> Text:
    met = result.goals_met.values()
    return Text("") if not met else Text("met", style="green") if all(met) else Text("missed", style="yellow")


_COLUMNS = (
    _Column("forward\nms", 8, _time("forward")),
    _Column("\nratio", 6, _ratio("forward")),
    _Column("fwd+bwd\nms", 8, _time("forward+backward")),
    _Column("\nratio", 6, _ratio("forward+backward")),
    _Column("peak\nMiB", 7, _peak),
    _Column("of\ndirect", 7, _fraction, room=100),
    _Column("error\nforward", 8, _error(0)),
    _Column("error\ngradient", 9, _error(1), room=100),
    _Column("accuracy", 12, _accuracy, room=110),
    _Column("goal", 7, _goal, room=110),
)


def _footnotes(results: Sequence[Result]) -> Iterator[Text]:
    yield Text("ratio: direct / this. peak: of forward and backward. *: the automatic choice.", style="dim")
    yield Text(f"Errors: norms against float64. ~: noisy, p80 more than {_NOISY:g} times p20.", style="dim")
    for version, names in _versions(results).items():
        yield Text(f"{version}: {', '.join(names)}", style="dim")
    for result in results:
        for goal, met in result.goals_met.items():
            verdict = ("met", "green") if met else ("missed", "yellow")
            yield Text.assemble(f"goal  {result.row.case.label}  {_about(result, goal)}  ", verdict)
    for result in results:
        row = result.row
        where = f"{row.case.label} on {row.backend}: "
        if row.error or row.skipped:
            yield Text(where + (row.error or row.skipped), style=_STYLES[FAIL] if row.error else "dim")
        elif row.verdict == FAIL and row.errors:
            allowed = "output {:.0e}, gradient {:.0e}".format(*tolerances(row.case))
            worst = f", worst gradient: {row.errors.worst}" if row.errors.worst else ""
            text = f"{where}misses the accuracy contract ({allowed}){worst}; not timed"
            yield Text(text, style=_STYLES[FAIL])
    for result in results:
        yield from _beside_the_original(result)
    lost = losses(results)
    if lost:
        yield Text("s4_fast is slower at:", style="bold")
        for line in lost:
            yield Text(f"  {line}")
    else:
        yield Text("s4_fast is slower at: none of these.", style="bold")


def _versions(results: Sequence[Result]) -> dict[str, list[str]]:
    """What each version evaluated, in the order of the rows."""
    found: dict[str, list[str]] = {}
    for result in results:
        names = found.setdefault(result.row.version, [])
        if result.row.version and result.row.backend not in names:
            names.append(result.row.backend)
    found.pop("", None)
    return found


def _beside_the_original(result: Result) -> Iterator[Text]:
    for goal, ratio in result.ratios.items():
        kind, _, name = goal.partition(" against ")
        if name.startswith("official") and ratio >= 1:
            yield Text(f"{result.row.case.label}, {kind}: {ratio:.2g} times as fast as {name}")


def _about(result: Result, goal: str) -> str:
    wanted, reached = result.row.case.goals[goal], result.reached(goal)
    assert reached is not None
    if goal.endswith(" ms"):
        return f"{goal.removesuffix(' ms')} at most {wanted:g} ms: {reached:.3g} ms"
    if at_most(goal):
        return f"{goal} at most {wanted:.1%}: {reached:.1%}"
    return f"{goal} at least {wanted:.3g}x: {reached:.2f}x"
