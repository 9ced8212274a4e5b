"""python -m benchmarks.cost write: the predictions of all registered calls, for results/predicted-h200.json."""

from __future__ import annotations

import collections
import json
import re
import statistics
from functools import cache
from importlib import metadata
from typing import Any

import click

from benchmarks.cost import kernels, machine, sass
from benchmarks.cost.launches import N, counts, predict
from s4_fast import files

RESULTS = sass.ROOT / "benchmarks/results"
COMMAND = "python -m benchmarks.cost write"


@cache
def recorded() -> dict[str, Any]:
    return json.loads((RESULTS / "nvidia-h200.json").read_text("utf-8"))


def measured(case: kernels.Case, triton: str) -> float | None:
    """Of the code that this version of Triton makes: another one's is other code."""
    if case.implementation == "triton" and recorded()["machine"]["triton"] != triton:
        return None
    for row in recorded()["rows"]:
        size = (row["op"], row["implementation"], row["H"], row["L"], row.get("batch", 1), "float32")
        if size == (case.op, case.implementation, case.H, case.L, case.batch, case.signal):
            return row[case.kind]["median"]
    return case.measured


def copied(case: kernels.Case) -> float:
    """The milliseconds of a copy of the case's signal, or of its nodes' values; measured, where as many bytes were."""
    values = 8 * (case.L // 2 + 1) if case.op in kernels.OF_NODES else kernels.BYTES[case.signal] * case.L
    size = case.batch * case.H * values
    times = [row["forward"]["median"] for row in recorded()["rows"] if row.get("bytes") == size]
    return statistics.median(times) if times else 1e3 * 2 * size / machine.DRAM


def row(case: kernels.Case) -> dict[str, Any]:
    """What is predicted of a call, of each of its launches, and what was measured."""
    launches = [predict(launch) for launch in case.launches(case.H, case.L)]
    ms = sum(launch["ms"] for launch in launches) + 1e3 * case.others * machine.SMALL
    time, longest = measured(case, metadata.version("triton")), max(launches, key=lambda launch: launch["ms"])
    return {
        **{"op": case.op, "H": case.H, "n": N, "L": case.L, "implementation": case.implementation},
        **{"batch": case.batch, "signal": case.signal, "copy_ms": copied(case), "share_of_copy": copied(case) / ms},
        **{"pass": case.kind, "predicted_ms": ms, "measured_ms": time, "ratio": time and ms / time},
        **{"busiest": longest["busiest"], "use": longest["use"][longest["busiest"]], "others": case.others},
        **{"bytes": sum(launch["bytes"] for launch in launches), "launches": launches},
    }


def compilers() -> dict[str, str]:
    nvcc = re.search(r"release ([\d.]+)", sass.run([sass.tool("nvcc"), "--version"]))
    assert nvcc
    return {"nvcc": nvcc[1], "triton": metadata.version("triton")}


def rounded(value: Any) -> Any:
    """To four digits, as more would change with every constant."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


@click.group()
def main() -> None:
    """What the kernels cost on an H200, by a model of one SM. Needs nvcc and Triton, no GPU."""


@main.command()
@click.option("--op", help="One op, printed and not written.")
def write(op: str | None) -> None:
    """Predict the time of every registered call."""
    rows = []
    for case in kernels.cases():
        if op in (None, case.op):
            rows.append(row(case))
            ms, time, ratio = (rows[-1][key] for key in ("predicted_ms", "measured_ms", "ratio"))
            beside = f"measured {time:.4f}, ratio {ratio:.2f}" if ratio else "not measured"
            what = f"{case.op} {case.implementation} {case.signal} ({case.batch}, {case.H}, {case.L}) {case.kind}"
            click.echo(f"{what}: {ms:.4f} ms, {beside}")
    if op is None:
        document = {"compilers": compilers(), "settings": {"command": COMMAND}, "rows": rounded(rows)}
        files.write(RESULTS / "predicted-h200.json", json.dumps(document, indent=1) + "\n")


@main.command()
@click.argument("source")
@click.argument("kernel")
def loops(source: str, kernel: str) -> None:
    """The loops and branches of a kernel in a .cu file, for its trips and shares."""
    code = sass.native(source, kernel)
    click.echo(f"{code.name}: {code.registers} registers")
    for loop in code.loops:
        click.echo(f"loop {loop.start}-{loop.end} {counts(code, loop)}: {loop.line}")
    for i in code.branches:
        click.echo(f"branch {i} to {code.instructions[i].target or 'the end'}: {code.instructions[i].line}")


@main.command()
@click.argument("op")
@click.argument("implementation", default="native")
def lines(op: str, implementation: str) -> None:
    """How often the first and the last warp of a block run each part of the code of a registered op."""
    case = next(case for case in kernels.cases() if (case.op, case.implementation) == (op, implementation))
    for launch in case.launches(case.H, case.L):
        code, ways = launch.code(), launch.ways()
        click.echo(code.name)
        first, last = collections.Counter(ways[0]), collections.Counter(ways[-1])
        before = None
        for i, ins in enumerate(code.instructions):
            if (first[i], last[i]) != before:
                before = first[i], last[i]
                click.echo(f"{i:6} {first[i]:5} {last[i]:5}  {ins.line}")


if __name__ == "__main__":
    main()
