"""The tables of the README and of the guides, from results files: writes what stands between their marks.

python benchmarks/tables.py          # after a new results file
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
PAGES = (ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md")))
# <!-- table NAME from FILE --> ... <!-- end -->
MARKED = re.compile(
    r"(?P<begin><!-- table (?P<name>[\w-]+) from (?P<file>[\w.-]+) -->\n)(?P<body>.*?)(?P<end><!-- end -->)", re.DOTALL
)


def figure(value: float) -> str:
    """Two digits of a figure, all before the point from 100 on."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:#.2g}".removesuffix(".")


def time(milliseconds: float) -> str:
    """In the unit that fits."""
    if milliseconds < 0.1:
        return f"{figure(1e3 * milliseconds)} us"
    return f"{figure(milliseconds)} ms" if milliseconds < 1e4 else f"{figure(1e-3 * milliseconds)} s"


def ratio(other: Row | None, ours: Row, kind: str) -> str:
    """How many times as long the other takes; empty where it was not measured."""
    if other is None or not other.get(kind) or not ours.get(kind):
        return ""
    return f"{time(other[kind])} ({figure(other[kind] / ours[kind])})"


def table(head: str, lines: Iterator[list[str]]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("op", "H", "n", "L", "batch", "rank", "dtype", "decay", "state"))


def cases(rows: list[Row]) -> Iterator[dict[str, Row]]:
    """The rows of each case by backend; ``"ours"`` is that of the automatic choice."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if row["forward_ms"]:
            found.setdefault(key(row), {})["ours" if row["automatic"] else row["backend"]] = row
    yield from (case for case in found.values() if "ours" in case)


def named(row: Row) -> str:
    """An op or layer with its sizes, the batch first for layers."""
    layer = row["op"][0].isupper()
    if row["op"].endswith(".step"):
        sizes = f"batch {row['batch']}, {row['H']}"
    elif layer:
        sizes = f"{row['batch']}, {row['L']}, {row['H']}"
    else:
        sizes = f"{row['H']}, {row['n']}, {row['L']}"
        sizes = f"batch {row['batch']}, {sizes}" if row["batch"] > 1 else sizes
    if layer:
        sizes += f", N = {2 * row['n']}"
    precision = "" if row["dtype"] == "float32" else f" in {row['dtype']}"
    return f"`{row['op']}` ({sizes}){precision}"


def beside(case: dict[str, Row], other: str) -> list[str]:
    """A case beside one other evaluation: times, ratios, memory."""
    ours, theirs = case["ours"], case.get(other)
    peak = (
        ""
        if not theirs or not theirs["peak_mib"] or ours["peak_mib"] is None
        else f"{100 * ours['peak_mib'] / theirs['peak_mib']:.2g}%"
    )
    return [
        time(ours["forward_ms"]),
        ratio(theirs, ours, "forward_ms"),
        time(ours["forward_backward_ms"]) if ours["forward_backward_ms"] else "",
        ratio(theirs, ours, "forward_backward_ms"),
        peak,
        f"{ours['forward_error']:.0e}" if ours["forward_error"] is not None else "",
    ]


HEAD = "forward | {0} (ratio) | forward + backward | {0} (ratio) | memory | error"


def against(other: str, chosen: Callable[[Row], bool]) -> Callable[[list[Row]], str]:
    """A table of the cases that ``other`` evaluates too; the beginning of its name will do."""

    def made(rows: list[Row]) -> str:
        found = [
            (case, name) for case in cases(rows) for name in case if name.startswith(other) and chosen(case["ours"])
        ]
        name = found[0][1] if found else other
        return table(f" | {HEAD.format(name)}", ([named(case["ours"]), *beside(case, name)] for case, name in found))

    return made


def is_op(row: Row) -> bool:
    return row["op"][0].islower() and not row["op"].endswith("_step")


def is_layer(row: Row) -> bool:
    return row["op"][0].isupper()


def losses(rows: list[Row]) -> str:
    """Where something else is faster by a tenth or more; the backends of one op are no others."""
    lines = []
    for case in cases(rows):
        for name, other in case.items():
            for kind in ("forward", "forward_backward"):
                mine, theirs = case["ours"][f"{kind}_ms"], other[f"{kind}_ms"]
                if mine and theirs and mine > 1.1 * theirs:
                    both = kind.replace("_", " + ")
                    lines.append([named(other), both, name, time(mine), time(theirs), figure(mine / theirs)])
    return table("slower | pass | than | s4_fast | it | ratio", iter(lines))


def peers(rows: list[Row]) -> str:
    """Whole layers beside other layers of equal width: the times of one pass each way."""
    names = ("LSTM", "GRU", "Transformer")
    lines = (
        [
            named(case["ours"]),
            time(case["ours"][kind]),
            *(ratio(case.get(name), case["ours"], kind) for name in names),
        ]
        for case in cases(rows)
        if any(name in case for name in names)
        for kind in [("forward_backward_ms" if case["ours"]["forward_backward_ms"] else "forward_ms")]
    )
    return table(
        " | s4_fast | " + " | ".join(f"`nn.{name}`" for name in ("LSTM", "GRU", "TransformerEncoderLayer")), lines
    )


def h200(rows: list[Row]) -> str:
    """Kernels beside the compiled direct evaluation, H = 1024, n = 32, L = 4096."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if (row["H"], row["L"]) == (1024, 4096) and "batch" not in row and "forward" in row:
            found.setdefault(row["op"], {})[row["implementation"]] = row
    lines = []
    for op, ways in found.items():
        ours, other = ways.get("native") or ways["triton"], ways.get("compiled direct") or ways["fft_conv"]
        way = "" if "native" in ways else " (triton)"
        than = "" if "compiled direct" in ways else ", beside `fft_conv` with its kernel given"
        cells = [f"`{op}`{way}{than}"]
        for kind in ("forward", "forward+backward"):
            mine, theirs = ours[kind]["median"], other[kind]["median"]
            cells += [time(mine), f"{time(theirs)} ({figure(theirs / mine)})"]
        lines.append([*cells, f"{ours['forward+backward_mib'] / other['forward+backward_mib']:.1%}"])
    head = "forward | compiled direct (ratio) | forward + backward | compiled direct (ratio) | memory"
    return table(f"H = 1024, n = 32, L = 4096 | {head}", iter(lines))


EXPORTED = ("model.step", "ONNX step", "ONNX prefill", "C", "C, single")


def exported(row: Row) -> str:
    return "{}, {d_model} features, N = {d_state}, {n_layers} layers".format(row["model"].partition(",")[0], **row)


def export(rows: list[Row]) -> str:
    """Exported models beside ``model.step``: time of a step, error against float64."""
    lines = (
        [exported(row), *(f"{figure(row[f'{way}, us'])} us, {row[f'{way}, error']:.0e}" for way in EXPORTED)]
        for row in rows
    )
    return table("`S4SequenceModel` | " + " | ".join(EXPORTED), lines)


def export_sizes(rows: list[Row]) -> str:
    """What the C of these models takes of memory."""
    parts = [f"{way}, {part}" for way in ("C", "C, single") for part in ("code", "state")]
    lines = ([exported(row), *(f"{row[part] / 1024:.0f} KiB" for part in parts)] for row in rows)
    return table("`S4SequenceModel` | " + " | ".join(parts).replace("code", "code and constants"), lines)


def batch(row: Row) -> str:
    return f", batch {row['batch']}, {row['signal']}" if row["batch"] > 1 else ""


def predicted(rows: list[Row]) -> str:
    """The model of cost beside the H200."""
    lines = (
        [
            f"`{row['op']}` ({row['H']}, {row['n']}, {row['L']})" + batch(row),
            row["pass"].replace("+", " + "),
            row["implementation"],
            time(row["predicted_ms"]),
            *((time(row["measured_ms"]), f"{row['ratio']:.2f}") if row["measured_ms"] else ("", "")),
            f"{row['share_of_copy']:.0%}",
            f"{row['busiest']} {row['use']:.0%}",
        ]
        for row in rows
    )
    return table("(H, n, L) | pass | kernels | predicted | measured | ratio | a copy's share | busiest", lines)


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "ops": against("direct", is_op),
    "layers": against("direct", is_layer),
    "peers": peers,
    "official": against("official", is_layer),
    "losses": losses,
    "h200": h200,
    "export": export,
    "export-sizes": export_sizes,
    "predicted": predicted,
}


def caption(document: dict[str, Any]) -> str:
    if "compilers" in document:
        versions = ", ".join(f"{name} {version}" for name, version in document["compilers"].items())
        return f"`{document['settings']['command']}` with {versions}.\n"
    machine = document["machine"]
    if "gpu" in machine:
        versions = f"PyTorch {machine['torch']}, Triton {machine['triton']}"
        return f"`{document['settings']['command']}` on one {machine['gpu']}, {versions}.\n"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != '1' else ''}"
    return f"`{document['settings']['command']}` on {machine['cpu']}, {threads}, PyTorch {machine['torch']}.\n"


def filled(text: str) -> str:
    """``text`` with every marked table as its results file has it."""

    def made(found: re.Match[str]) -> str:
        document = json.loads((RESULTS / found["file"]).read_text("utf-8"))
        return f"{found['begin']}{TABLES[found['name']](document['rows'])}\n{caption(document)}{found['end']}"

    return MARKED.sub(made, text)


@click.command()
def main() -> None:
    """Write the tables again, from the files in benchmarks/results."""
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
