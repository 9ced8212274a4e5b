"""Whole layers beside the same layers by direct evaluation: training, prefill, one step, and passes with a goal.

Run as a module this is the process that measures, which writes one row as a JSON line per case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from s4_fast.bench import direct, measure
from s4_fast.bench.layer_passes import measure_passes
from s4_fast.bench.layer_rows import SMOKE, Pair, Row, Sizes, both_ways, forward, timed
from s4_fast.bench.runner import KEEP_PAGES
from s4_fast.layers import S4DLayer, S4Layer


def measure_all(sizes: Sizes) -> Iterator[Row]:
    """The rows, one by one. The goals are those of the full sizes."""
    for kind, cls, reference in (("S4DLayer", S4DLayer, direct.s4d_layer), ("S4Layer", S4Layer, direct.s4_layer)):
        yield from _training(kind, cls(sizes.features), reference, sizes)
    yield from _stepping(sizes)
    yield from _prefill(sizes)
    yield from measure_passes(sizes)


def _training(
    kind: str, layer: Any, reference: Callable[[Any, int], Callable[[Tensor], Tensor]], sizes: Sizes
) -> Iterator[Row]:
    shape = sizes.batch, sizes.length, sizes.features
    u, parameters = torch.randn(shape), list(layer.parameters())
    evaluations: tuple[Callable[[Tensor], Tensor], ...] = layer, reference(layer, sizes.length)
    alone = Pair(*(forward(evaluate, u) for evaluate in evaluations))
    both = Pair(*(both_ways(evaluate, u, parameters) for evaluate in evaluations))
    for what, pair in (("forward", alone), ("forward + backward", both)):
        row = timed(f"{kind} {what} {shape}", pair, sizes)
        row.peak, row.baseline_peak = (measure.peak_memory(run, "cpu") for run in pair)
        if kind == "S4DLayer" and pair is both:
            assert row.baseline is not None
            row.goal, row.met = "6x faster, a third of the memory", row.baseline >= 6 * row.ours
            if row.peak is not None and row.baseline_peak is not None:
                row.met = row.met and 3 * row.peak <= row.baseline_peak
        yield row


def _stepping(sizes: Sizes) -> Iterator[Row]:
    """Batch 1."""
    u = torch.randn(1, sizes.features)
    for kind, cls, reference, most in (
        ("S4DLayer", S4DLayer, direct.s4d_step, 0.030),
        ("S4Layer", S4Layer, direct.s4_step, 0.060),
    ):
        layer: Any = cls(sizes.features)
        with torch.no_grad():
            step, state = reference(layer), layer.init_state(1)
            dense = torch.zeros(1, sizes.features, layer.d_state) if cls is S4Layer else state
            pair = Pair(lambda: layer.step(u, state), lambda: step(u, dense))  # noqa: B023
            row = timed(f"{kind} step {tuple(u.shape)}", pair, sizes)
        row.goal, row.met = f"{1e3 * most:.0f} us", row.ours <= most
        yield row


def _prefill(sizes: Sizes) -> Iterator[Row]:
    """Beside as many steps: the time, and how far apart the states are."""
    features = max(1, sizes.features // 8)
    u = torch.randn(1, sizes.steps, features)
    for kind, cls in (("S4DLayer", S4DLayer), ("S4Layer", S4Layer)):
        layer: Any = cls(features)
        with torch.no_grad():
            _, state = layer.prefill(u)
            time = measure.timed(lambda: layer.prefill(u), "cpu", sizes.seconds).median  # noqa: B023
            begin, stepped = perf_counter(), layer.init_state(1)
            for sample in u.unbind(1):
                _, stepped = layer.step(sample, stepped)
            one_by_one = 1e3 * (perf_counter() - begin)
        error = float(torch.linalg.vector_norm(state - stepped) / torch.linalg.vector_norm(stepped))
        name = f"{kind} prefill {tuple(u.shape)}, beside steps"
        yield Row(name, time, one_by_one, error=error, goal="the same state to 2e-6", met=error <= 2e-6)


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    grid.add_column("layer, float32", no_wrap=True)
    for heading in ("ms", "other\nms", "ratio", "peak\nMiB", "of\nother", "difference"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("goal", no_wrap=True)
    for row in rows:
        verdict = "" if row.met is None else ": met" if row.met else ": missed"
        grid.add_row(
            row.name,
            f"{row.ours:.3g}",
            "" if row.baseline is None else f"{row.baseline:.3g}",
            "" if row.baseline is None else f"{row.baseline / row.ours:.3g}x",
            "" if row.peak is None else f"{row.peak:.1f}",
            "" if row.peak is None or not row.baseline_peak else f"{row.peak / row.baseline_peak:.1%}",
            "" if row.error is None else f"{row.error:.1e}",
            row.goal + verdict,
        )
    return grid


def run(smoke: bool = False) -> Iterator[Row]:
    """The rows, measured in a process of their own, in which the C allocator keeps what is freed.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "s4_fast.bench.layers", *(["smoke"] if smoke else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **KEEP_PAGES}) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            yield Row(**json.loads(line))
    if worker.returncode:
        raise RuntimeError(f"the measuring process ended with exit code {worker.returncode}")


if __name__ == "__main__":
    torch.manual_seed(0)
    for measured in measure_all(SMOKE if "smoke" in sys.argv else Sizes()):
        print(json.dumps(asdict(measured)), flush=True)
