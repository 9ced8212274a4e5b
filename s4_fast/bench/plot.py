"""Results as a picture: the gain over the direct evaluation, and the memory of both."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s4_fast import files
from s4_fast.bench.evaluate import DIRECT
from s4_fast.bench.results import Result

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")

_INK, _MUTED, _BASELINE = "#1f2933", "#7b8794", "#b8c2cc"
# Per backend: forward, forward+backward.
_COLOURS = {
    "pytorch": ("#f2a65a", "#d9622b"),
    "s4_fast": ("#6fb1e0", "#1f6fb2"),
    "native": ("#6fb1e0", "#1f6fb2"),
    "triton": ("#7cc9a0", "#1f8a5b"),
    "tensor_cores": ("#e8a0b4", "#b8325c"),
    "keops": ("#c3a6e0", "#7b4fb3"),
    "reference": ("#d5d9dd", "#9aa5b1"),
}


def matplotlib_missing() -> str:
    """One line that says what to install where a plot cannot be drawn, else the empty string."""
    if importlib.util.find_spec("matplotlib") is None:
        return "a plot needs matplotlib: pip install 'matplotlib>=3.7'"
    return ""


def write_plot(path: Path, results: Sequence[Result], machine: Mapping[str, str]) -> None:
    """Draw ``results`` to ``path``; its ending says the format (png, svg, pdf)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    measured = [result for result in results if result.row.forward is not None]
    cases = list(dict.fromkeys((result.row.case, result.row.device) for result in measured))
    ours = [name for name in _COLOURS if any(result.row.backend == name for result in measured)]
    figure = Figure(figsize=(13, 1.9 + 0.36 * len(cases) * (1 + len(ours))), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    gain, memory = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (3, 2)})
    height = 0.8 / (2 * max(1, len(ours)))
    for position, key in enumerate(cases):
        rows = {result.row.backend: result for result in measured if (result.row.case, result.row.device) == key}
        for index, name in enumerate(ours):
            if name in rows:
                _gains(gain, rows[name], position - 0.4 + height * (2 * index + 0.5), height)
        peaks = {name: rows[name].row.peak_mib for name in (DIRECT, *ours) if name in rows}
        for index, (name, peak) in enumerate(peaks.items()):
            thick = 0.8 / (1 + len(ours))
            colour = _BASELINE if name == DIRECT else _COLOURS[name][1]
            if peak is not None and peak > 0:
                _bar(
                    memory,
                    position - 0.4 + thick * (index + 0.5),
                    peak,
                    thick,
                    colour,
                    f"{peak:,.0f}" if peak >= 10 else f"{peak:.1f}",
                )
    labels = [f"{case.op}\n{case.sizes} {case.dtype}".removesuffix(" float32") for case, _ in cases]
    gain.set_yticks(range(len(cases)), labels)
    gain.invert_yaxis()
    gain.axvline(1, color=_MUTED, linewidth=1)
    _style(gain, "Times faster than the direct evaluation")
    _style(memory, "Peak memory of forward + backward, MiB")
    gain.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    memory.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    handles: list[Artist] = [Patch(color=_BASELINE, label="direct")]
    for name in ours:
        handles += [
            Patch(color=colour, label=f"{name}, {what}")
            for colour, what in zip(_COLOURS[name], ("forward", "forward + backward"), strict=True)
        ]
    if any(result.goals_met for result in measured):
        handles.append(Line2D([], [], color=_INK, linewidth=2, label="goal"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, labelcolor=_INK)
    where = machine.get("gpu", f"{machine['cpu']}, {machine['threads']} threads")
    figure.suptitle(f"s4_fast on {where}, PyTorch {machine['torch']}", color=_INK, fontsize=13, fontweight="bold")
    with files.writing(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix[1:])


def _gains(axes: Axes, result: Result, centre: float, height: float) -> None:
    """The two bars of a backend, each with a mark at its goal."""
    for offset, kind in enumerate(("forward", "forward+backward")):
        y = centre + offset * height
        ratio = result.ratios.get(kind)
        if ratio is not None:
            _bar(
                axes,
                y,
                ratio,
                height,
                _COLOURS[result.row.backend][offset],
                f"{ratio:.1f}x" if ratio < 100 else f"{ratio:.0f}x",
            )
            if kind in result.goals_met:
                goal = result.row.case.goals[kind]
                axes.plot([goal, goal], [y - height / 2, y + height / 2], color=_INK, linewidth=2)
            continue
        time = result.row.forward if kind == "forward" else result.row.forward_backward
        if time is not None:
            axes.text(1.05, y, f"{time.median:.3g} ms, nothing to compare", va="center", fontsize=8, color=_MUTED)


def _bar(axes: Axes, y: float, value: float, height: float, colour: str, label: str) -> None:
    # From 1 on, so that on the logarithmic axis a loss grows to the left; a bar from 0 has no length there.
    axes.barh(y, value - 1, left=1, height=height * 0.92, color=colour)
    axes.annotate(label, (max(value, 1), y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=_INK)


def _style(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=11, color=_INK, loc="left")
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=_INK)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
