"""The pictures of the README, from results that ``python -m s4_fast bench --sweep --json`` wrote.

    python benchmarks/plots.py benchmarks/results/cpu-sweep.json

Each is drawn for light and for dark pages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import click
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Row = dict[str, Any]
IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 8.6, 3.7  # inches, at the width of a README


class Theme(NamedTuple):
    """Colours of what is no curve."""

    page: str
    ink: str
    grid: str


THEMES = {"light": Theme("#ffffff", "#1f2328", "#d8dee4"), "dark": Theme("#0d1117", "#e6edf3", "#30363d")}
# One colour, one mark and one place in legends per name, in every picture, readable on both pages.
STYLES = {
    "S4DLayer": ("#2f81f7", "o"),
    "S4Layer": ("#8957e5", "s"),
    "S4D, direct": ("#db6d28", "^"),
    "S4, direct": ("#bf4b8a", "v"),
    "S4D, direct, compiled": ("#c69026", "<"),
    "Transformer layer": ("#57ab5a", "D"),
    "LSTM": ("#8b949e", "P"),
    "GRU": ("#768390", "X"),
}


class Curve(NamedTuple):
    """Which rows a curve joins; ``"ours"`` are those of the automatic choice."""

    label: str
    op: str
    backend: str


LAYERS = (
    Curve("S4DLayer", "S4DLayer", "ours"),
    Curve("S4Layer", "S4Layer", "ours"),
    Curve("S4D, direct", "S4DLayer", "direct"),
    Curve("S4D, direct, compiled", "S4DLayer", "compiled direct"),
    Curve("S4, direct", "S4Layer", "direct"),
    Curve("Transformer layer", "S4DLayer", "Transformer"),
    Curve("LSTM", "S4DLayer", "LSTM"),
)
STEPS = (
    Curve("S4DLayer", "S4DLayer.step", "ours"),
    Curve("S4Layer", "S4Layer.step", "ours"),
    Curve("S4D, direct", "S4DLayer.step", "direct"),
    Curve("S4, direct", "S4Layer.step", "direct"),
    Curve("LSTM", "S4DLayer.step", "LSTM"),
    Curve("GRU", "S4DLayer.step", "GRU"),
)
ERRORS = (
    Curve("S4DLayer", "log_vandermonde", "ours"),
    Curve("S4D, direct", "log_vandermonde", "direct"),
)


def points(
    rows: Iterable[Row], curve: Curve, x: str, y: str, chosen: Callable[[Row], bool]
) -> list[tuple[float, float]]:
    """What ``y`` is at every ``x``, where it was measured."""
    return sorted(
        (row[x], row[y])
        for row in rows
        if (row["op"], "ours" if row["automatic"] else row["backend"]) == (curve.op, curve.backend)
        if row[y] and chosen(row)
    )


def draw(axes: Axes, rows: list[Row], curves: Iterable[Curve], x: str, y: str, chosen: Callable[[Row], bool]) -> None:
    """The curves, on logarithmic axes."""
    for curve in curves:
        if found := points(rows, curve, x, y, chosen):
            colour, mark = STYLES[curve.label]
            ours = curve.backend == "ours"
            axes.plot(
                *zip(*found, strict=True), label=curve.label, color=colour, marker=mark,
                markersize=4.5, linewidth=2.2 if ours else 1.3, linestyle="-" if ours else "--",
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")


def finish(axes: Axes, theme: Theme, title: str, x: str) -> None:
    """Words, ticks and grid."""
    axes.set_title(title, color=theme.ink, fontsize=10.5, loc="left")
    axes.set_xlabel(x, color=theme.ink, fontsize=9.5)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    if axes.get_ylim()[0] > 1e-4:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_facecolor(theme.page)
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.tick_params(colors=theme.ink, labelsize=9)
    axes.minorticks_off()
    axes.spines[:].set_color(theme.grid)


def short(size: float) -> str:
    """A power of two in few letters."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if size >= unit:
            return f"{size / unit:.0f}{name}"
    return f"{size:.0f}"


def picture(name: str, theme: str, panels: Callable[[Axes, Axes, Theme], None]) -> None:
    """Two panels beside each other and one legend below, in a file of this name and theme."""
    colours = THEMES[theme]
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor=colours.page)
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    panels(left, right, colours)
    entries = dict(
        entry for axes in (right, left) for entry in zip(*reversed(axes.get_legend_handles_labels()), strict=True)
    )
    labels = [label for label in STYLES if label in entries]
    figure.legend(
        [entries[label] for label in labels], labels, loc="outside lower center", ncols=math.ceil(len(labels) / 2),
        frameon=False, labelcolor=colours.ink, fontsize=9,
    )  # fmt: skip
    IMAGES.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(IMAGES / f"{name}-{theme}.svg", metadata={"Date": None}, facecolor=colours.page)


@click.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(results: Path) -> None:
    """Draw the pictures of RESULTS into benchmarks/images."""
    rows = [row for row in json.loads(results.read_text("utf-8"))["rows"] if row["dtype"] == "float32"]

    def speed(left: Axes, right: Axes, theme: Theme) -> None:
        draw(left, rows, LAYERS, "L", "forward_backward_ms", is_training)
        finish(left, theme, "forward + backward, ms", "length")
        draw(right, rows, LAYERS, "L", "peak_mib", is_training)
        finish(right, theme, "peak memory of it, MiB", "length")

    def accuracy(left: Axes, right: Axes, theme: Theme) -> None:
        draw(left, rows, ERRORS, "L", "forward_error", lambda row: row["decay"] is not None)
        left.axhline(2e-6, color=theme.ink, linewidth=0.8, linestyle=":")
        left.annotate("our contract", (0.02, 2.3e-6), xycoords=("axes fraction", "data"), color=theme.ink, fontsize=8.5)
        finish(left, theme, "error of the S4D kernel, weak decay", "length")
        draw(right, rows, STEPS, "H", "forward_ms", lambda row: row["batch"] == 1)
        finish(right, theme, "one step, ms, batch 1", "features")

    for theme in THEMES:
        picture("speed", theme, speed)
        picture("accuracy", theme, accuracy)


def is_training(row: Row) -> bool:
    """Whether a row belongs to the sweep of whole layers over lengths."""
    return bool(row["batch"] == 8 and row["H"] == 64 and row["decay"] is None)


if __name__ == "__main__":
    main()
