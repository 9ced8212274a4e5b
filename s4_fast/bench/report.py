"""Results as a table and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from s4_fast.bench.accuracy import FAIL, KNOWN_LIMIT, PASS, tolerances
from s4_fast.bench.evaluate import is_ours
from s4_fast.bench.measure import Time
from s4_fast.bench.results import Result, at_most, losses
from s4_fast.tables import Paragraph, wrapped

# p80/p20 of the samples above which a time is marked.
_NOISY = 1.5
_STYLES = {PASS: "green", KNOWN_LIMIT: "yellow", FAIL: "bold red"}
_GOALS = {"met": "green", "missed": "yellow"}


class _Column(NamedTuple):
    """A column; ``spare`` says whether what it shows is said below the table as well."""

    heading: tuple[str, str]
    cell: Callable[[Result], Text]
    spare: bool = False


def table(results: Sequence[Result]) -> RenderableType:
    """A readable table; below it the goals, what failed, what was not run, and what is lost."""
    return Group(_Rows(results), *_footnotes(results))


class _Rows:
    """The figures of a row stand beside its name, or where that is too wide on a line below it."""

    def __init__(self, results: Sequence[Result]) -> None:
        self._results = [result for result in results if not result.row.skipped]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = max((len(_name(result)) for result in self._results), default=0) + 1
        columns = list(_COLUMNS)
        widths = self._widths(columns)
        if names + sum(widths) > options.max_width:
            columns = [column for column in columns if not column.spare]
            widths = self._widths(columns)
        below = names + sum(widths) > options.max_width
        indent = 3 if below else names
        for line in (0, 1):
            heading = "".join(c.heading[line].rjust(width) for c, width in zip(columns, widths, strict=True))
            yield _line(Text(" " * indent + heading, style="bold"))
        for group in _by_case(self._results):
            yield from wrapped(Text(group[0].row.case.label, style="bold"), options.max_width)
            for result in group:
                name, figures = _name(result), Text(" " * indent if below else "")
                if result.row.error:
                    yield _line(name + Text(" " * (names - len(name))) + Text("error", style=_STYLES[FAIL]))
                    continue
                for column, width in zip(columns, widths, strict=True):
                    cell = column.cell(result)
                    figures += Text(" " * (width - len(cell))) + cell
                if below:
                    yield _line(name)
                    yield _line(figures)
                else:
                    yield _line(name + Text(" " * (names - len(name))) + figures)

    def _widths(self, columns: Sequence[_Column]) -> list[int]:
        """With a space before each."""
        shown = [result for result in self._results if not result.row.error]
        return [max(*map(len, c.heading), *(len(c.cell(result)) for result in shown)) + 1 for c in columns]


def _line(text: Text) -> Text:
    line = Text(no_wrap=True, overflow="ignore") + text
    line.rstrip()
    return line


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
    verdict = result.row.verdict
    return Text("limit" if verdict == KNOWN_LIMIT else verdict, style=_STYLES.get(verdict, ""))


def _goal(result: Result) -> Text:
    met = result.goals_met.values()
    if not met:
        return Text("")
    verdict = "met" if all(met) else "missed"
    return Text(verdict, style=_GOALS[verdict])


_COLUMNS = (
    _Column(("forward", "ms"), _time("forward")),
    _Column(("", "ratio"), _ratio("forward")),
    _Column(("fwd+bwd", "ms"), _time("forward+backward")),
    _Column(("", "ratio"), _ratio("forward+backward")),
    _Column(("peak", "MiB"), _peak),
    _Column(("of", "direct"), _fraction),
    _Column(("error", "fwd"), _error(0)),
    _Column(("", "bwd"), _error(1)),
    _Column(("", "result"), _accuracy),
    _Column(("", "goal"), _goal, spare=True),
)


def _footnotes(results: Sequence[Result]) -> Iterator[RenderableType]:
    yield _note("ratio: direct / this. peak: of forward and backward. *: the automatic choice.", "dim")
    yield _note(
        "error: norms against float64, of outputs and of the worst gradient; result: whether they keep to the "
        "accuracy contract (limit: of PyKeOps, known).",
        "dim",
    )
    yield _note(f"~: noisy, p80 more than {_NOISY:g} times p20.", "dim")
    for version, names in _versions(results).items():
        yield _note(f"{version}: {', '.join(names)}", "dim")
    for result in results:
        for goal, met in result.goals_met.items():
            verdict = "met" if met else "missed"
            yield _note(f"goal {verdict}: {result.row.case.label}, {_about(result, goal)}", _GOALS[verdict])
    for result in results:
        row = result.row
        where = f"{row.case.label} on {row.backend}: "
        if row.error:
            yield _note(where + row.error, _STYLES[FAIL])
        elif row.verdict == FAIL and row.errors:
            allowed = "output {:.0e}, gradient {:.0e}".format(*tolerances(row.case))
            worst = f", worst gradient: {row.errors.worst}" if row.errors.worst else ""
            yield _note(f"{where}misses the accuracy contract ({allowed}){worst}; not timed", _STYLES[FAIL])
    for result in results:
        yield from map(_note, _beside_the_original(result))
    lost = losses(results)
    if lost:
        yield Text("What s4_fast chooses by itself is slower at:", style="bold")
        yield from (Paragraph(Text(line), hang=4, first=2) for line in lost)
    else:
        yield Text("What s4_fast chooses by itself is slower at none of these.", style="bold")
    yield from (_note(line, "dim") for line in _not_run(results))


def _note(text: str, style: str = "") -> Paragraph:
    return Paragraph(Text(text, style=style))


def _not_run(results: Sequence[Result]) -> Iterator[str]:
    """A line per evaluation and reason, whatever the number of cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.row.skipped:
            cases.setdefault((result.row.backend, result.row.skipped), []).append(result.row.case.label)
    for (name, reason), labels in cases.items():
        where = labels[0] if len(labels) == 1 else f"{len(labels)} cases"
        yield f"{name}, not run in {where}: {reason}"


def _versions(results: Sequence[Result]) -> dict[str, list[str]]:
    """What each version evaluated, in the order of the rows."""
    found: dict[str, list[str]] = {}
    for result in results:
        names = found.setdefault(result.row.version, [])
        if result.row.version and result.row.backend not in names:
            names.append(result.row.backend)
    found.pop("", None)
    return found


def _beside_the_original(result: Result) -> Iterator[str]:
    for goal, ratio in result.ratios.items():
        kind, _, name = goal.partition(" against ")
        if name.startswith("official") and ratio >= 1:
            yield f"{result.row.case.label}, {kind}: {ratio:.2g} times as fast as {name}"


def _about(result: Result, goal: str) -> str:
    wanted, reached = result.row.case.goals[goal], result.reached(goal)
    assert reached is not None
    if goal.endswith(" ms"):
        return f"{goal.removesuffix(' ms')} at most {wanted:g} ms: {reached:.3g} ms"
    if at_most(goal):
        return f"{goal} at most {wanted:.1%}: {reached:.1%}"
    return f"{goal} at least {wanted:.3g}x: {reached:.2f}x"
