"""The kernels for a GPU against their yardsticks, as JSON and a plot: python benchmarks/gpu_kernels.py OUT_DIR.

The kernels are those of the native library and of Triton. The yardsticks are the ``pytorch`` backend, ``torch.compile``
of the direct evaluation (for ``ssm_scan``, the convolution with a given kernel), and a copy on the device of as many
bytes as the output has: the least that writing it can cost. Errors are relative to the definition in float64.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from s4_fast import dispatch, files
from s4_fast.bench import accuracy, evaluate, machine, measure, plot
from s4_fast.bench.cases import Case
from s4_fast.bench.inputs import Arguments, arguments

OPS = ("log_vandermonde", "log_vandermonde_transpose", "cauchy_mult", "cauchy_bilinear", "dplr_kernel", "ssm_scan")
FEATURES, STATES, LENGTHS = (128, 1024), 32, (1024, 4096, 16384, 65536)
COPY = "copy"
KERNELS = ("native", "triton")
COLOURS = {
    **{"native": "#1f6fb2", "triton": "#1f8a5b", "pytorch": "#d9622b"},
    **{evaluate.COMPILED: "#9aa5b1", evaluate.KERNEL_GIVEN: "#9aa5b1", COPY: "#1f2933"},
}


def implementations(op: str, compiled: bool) -> dict[str, Callable[..., evaluate.Output]]:
    """What is measured, by name."""
    names = [name for name in (*KERNELS, "pytorch") if name in dispatch.implementations(op)]
    ours = {name: evaluate.implementation(op, name) for name in names}
    if op == "ssm_scan":
        return {**ours, evaluate.KERNEL_GIVEN: evaluate.implementation(op, evaluate.KERNEL_GIVEN)}
    return {**ours, evaluate.COMPILED: evaluate.implementation(op, evaluate.COMPILED)} if compiled else ours


def row(
    case: Case, inputs: Arguments, name: str, function: Callable[..., evaluate.Output], seconds: float
) -> dict[str, Any]:
    """Milliseconds (median, p20, p80), MiB and errors of one implementation; what failed and why where it did.

    Times are those of the GPU alone; ``_with_launches`` are those that a program in Python sees.
    """
    result: dict[str, Any] = {"op": case.op, "H": case.H, "n": case.n, "L": case.L, "implementation": name}
    expected = accuracy.reference(case, inputs) if name in KERNELS else None
    inputs = evaluate.inputs(case.op, name, inputs)
    forward, both = evaluate.forward(function, inputs), evaluate.forward_backward(function, inputs)
    try:
        result["forward"] = measure.timed(forward, "cuda", seconds)._asdict()
        result["forward_with_launches"] = measure.timed_with_launches(forward, "cuda", seconds)._asdict()
        result["forward_mib"] = measure.peak_memory(forward, "cuda")
        if expected is not None:
            result["errors"] = accuracy.errors(both(), expected)._asdict()
            result["verdict"] = accuracy.verdict(case, name, accuracy.Errors(**result["errors"]))
        result["forward+backward"] = measure.timed(both, "cuda", seconds)._asdict()
        result["forward+backward_with_launches"] = measure.timed_with_launches(both, "cuda", seconds)._asdict()
        result["forward+backward_mib"] = measure.peak_memory(both, "cuda")
    except (torch.OutOfMemoryError, RuntimeError) as error:  # the direct evaluation does not fit at the large sizes
        result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        torch.cuda.empty_cache()
    return result


def copy_row(case: Case, inputs: Arguments, seconds: float) -> dict[str, Any]:
    """The time of copying a tensor of the output's size on the device."""
    source = evaluate.forward(evaluate.implementation(case.op, "pytorch"), inputs)()[0]
    target = torch.empty_like(source)
    time = measure.timed(lambda: target.copy_(source), "cuda", seconds)
    return {
        **{"op": case.op, "H": case.H, "n": case.n, "L": case.L, "implementation": COPY},
        **{"forward": time._asdict(), "bytes": source.numel() * source.element_size()},
    }


def write_plot(path: Path, rows: list[dict[str, Any]], gpu: str) -> None:
    """Median times over L, one panel per op and H."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(OPS), 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(FEATURES), len(OPS), squeeze=False)
    for i, H in enumerate(FEATURES):
        for j, op in enumerate(OPS):
            axes = panels[i][j]
            for name, colour in COLOURS.items():
                for kind, style in (("forward", "-o"), ("forward+backward", "--s")):
                    chosen = [r for r in rows if (r["op"], r["H"], r["implementation"]) == (op, H, name) and kind in r]
                    times = [r[kind]["median"] for r in chosen]
                    axes.loglog([r["L"] for r in chosen], times, style, color=colour, label=f"{name}, {kind}", ms=3)
            axes.set_title(f"{op}, H = {H}, n = {STATES}", fontsize=9)
            axes.set_xlabel("L")
            axes.set_ylabel("ms")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(gpu)
    with files.writing(path) as file:
        figure.savefig(file, dpi=130, format=path.suffix[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for gpu_kernels.json and gpu_kernels.png")
    parser.add_argument("--seconds", type=float, default=0.3, help="about how long each timing may take")
    parser.add_argument("--op", choices=OPS, action="append", help="one op; may be repeated")
    parser.add_argument("--features", type=int, choices=FEATURES, action="append", help="one H; may be repeated")
    parser.add_argument("--length", type=int, choices=LENGTHS, action="append", help="one L; may be repeated")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile of the direct evaluation")
    options = parser.parse_args()
    described, rows = machine.describe("cuda"), list[dict[str, Any]]()
    for op in options.op or OPS:
        for H in options.features or FEATURES:
            for L in options.length or LENGTHS:
                case = Case(op, H, STATES, L)
                inputs = arguments(case, "cuda")
                functions = implementations(op, not options.no_compile)
                rows += [row(case, inputs, name, run, options.seconds) for name, run in functions.items()]
                rows.append(copy_row(case, inputs, options.seconds))
                print("\n".join(json.dumps(r) for r in rows[-len(functions) - 1 :]), flush=True)
                text = json.dumps({"machine": described, "rows": rows}, indent=1)
                files.write(options.out / "gpu_kernels.json", text + "\n")
    if not plot.matplotlib_missing():
        write_plot(options.out / "gpu_kernels.png", rows, described["gpu"])
    if any("error" in r or r.get("verdict") == accuracy.FAIL for r in rows if r["implementation"] in KERNELS):
        raise SystemExit("a kernel failed or missed the accuracy contract")


if __name__ == "__main__":
    main()
