"""The kernels for a GPU against their yardsticks, as JSON and a plot: python benchmarks/gpu_kernels.py OUT_DIR.

The kernels are those of the native library, those for tensor cores among them, and of Triton. The yardsticks are the
``pytorch`` backend, ``torch.compile`` of the direct evaluation (for ``ssm_scan``, the convolution with a given kernel),
and a copy on the device of as many bytes as the output has: the least that writing it can cost. Errors are relative to
the definition in float64. A block of S4D stands beside other layers of equal width. What matters most comes first.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from s4_fast import SSMBlock, dispatch, files, use_backend
from s4_fast.bench import accuracy, evaluate, machine, measure, peers, plot
from s4_fast.bench.cases import Case
from s4_fast.bench.inputs import Arguments, arguments

OPS = ("log_vandermonde", "log_vandermonde_transpose", "cauchy_mult", "cauchy_bilinear", "dplr_kernel", "ssm_scan")
LAYERS = ("diagonal_ssm",)
FEATURES, STATES, LENGTHS = (128, 1024), 32, (1024, 4096, 16384, 65536)
BLOCK = Case("SSMBlock", 256, 32, 4096, batch=16, dtype="bfloat16")
FIRST = (
    Case("ssm_scan", 1024, STATES, 4096),
    *(Case("diagonal_ssm", 1024, STATES, 4096, batch=16, dtype=dtype) for dtype in ("bfloat16", "float32")),
    *(Case("log_vandermonde", 1024, STATES, L) for L in (4096, 16384, 65536)),
)
CASES = tuple(dict.fromkeys((*FIRST, *(Case(op, H, STATES, L) for op in OPS for H in FEATURES for L in LENGTHS))))
COPY = "copy"
KERNELS = ("native", "tensor_cores", "triton")
COLOURS = {
    **{"native": "#1f6fb2", "tensor_cores": "#b8325c", "triton": "#1f8a5b", "pytorch": "#d9622b"},
    **{evaluate.COMPILED: "#9aa5b1", evaluate.KERNEL_GIVEN: "#9aa5b1", COPY: "#1f2933"},
}


def implementations(op: str, compiled: bool) -> dict[str, Callable[..., evaluate.Output]]:
    """What is measured, by name."""
    names = [name for name in (*KERNELS, "pytorch") if name in dispatch.implementations(op)]
    ours = {name: evaluate.implementation(op, name) for name in names}
    if op == "ssm_scan":
        return {**ours, evaluate.KERNEL_GIVEN: evaluate.implementation(op, evaluate.KERNEL_GIVEN)}
    if op in LAYERS or not compiled:
        return ours
    return {**ours, evaluate.COMPILED: evaluate.implementation(op, evaluate.COMPILED)}


def described(case: Case, name: str) -> dict[str, Any]:
    """What tells a row of the others."""
    row = {"op": case.op, "H": case.H, "n": case.n, "L": case.L, "implementation": name}
    return row | {k: v for k, v in (("batch", case.batch), ("dtype", case.dtype)) if v not in (1, "float32")}


def row(
    case: Case,
    inputs: Arguments,
    name: str,
    function: Callable[..., evaluate.Output],
    seconds: float,
    reference: Callable[[], evaluate.Outcome],
) -> dict[str, Any]:
    """Milliseconds (median, p20, p80), MiB and errors of one implementation; what failed or was refused, and why.

    Times are those of the GPU alone; ``_with_launches`` are those that a program in Python sees.
    """
    result = described(case, name)
    if name in KERNELS and (refusal := evaluate.refusal(case.op, name, inputs, grads=True)):
        return result | {"skipped": refusal}
    inputs = evaluate.inputs(case.op, name, inputs)
    forward, both = evaluate.forward(function, inputs), evaluate.forward_backward(function, inputs)
    try:
        if name in KERNELS:
            result["errors"] = accuracy.errors(both(), reference())._asdict()
            result["verdict"] = accuracy.verdict(case, name, accuracy.Errors(**result["errors"]))
        result |= passes(forward, both, seconds)
    except (torch.OutOfMemoryError, RuntimeError) as error:  # the direct evaluation does not fit at the large sizes
        result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        torch.cuda.empty_cache()
    return result


def passes(forward: Callable[[], Any], both: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """The times and the memory of one pass and of both."""
    found: dict[str, Any] = {}
    for kind, run in (("forward", forward), ("forward+backward", both)):
        found[kind] = measure.timed(run, "cuda", seconds)._asdict()
        found[f"{kind}_with_launches"] = measure.timed_with_launches(run, "cuda", seconds)._asdict()
        found[f"{kind}_mib"] = measure.peak_memory(run, "cuda")
    return found


def case_rows(case: Case, compiled: bool, seconds: float) -> list[dict[str, Any]]:
    """An op at one size by all implementations, and the copy."""
    inputs = arguments(case, "cuda")
    reference = functools.cache(lambda: accuracy.reference(case, inputs))
    functions = implementations(case.op, compiled)
    rows = [row(case, inputs, name, run, seconds, reference) for name, run in functions.items()]
    return [*rows, copy_row(case, inputs, seconds)]


def block_rows(seconds: float) -> Iterator[dict[str, Any]]:
    """A block of S4D by what scans, with parameters and signals in bfloat16, and the other layers."""
    case, dtype = BLOCK, getattr(torch, BLOCK.dtype)
    with torch.device("cuda"):
        torch.manual_seed(0)
        block, u = SSMBlock(case.H, 2 * case.n).to(dtype), torch.randn(case.batch, case.L, case.H).to(dtype)
        runs = {name: (block, peers.parameters(block)) for name in ("native", "tensor_cores")}
        others = {name: peers.PEERS[name](block, case) for name in (peers.TRANSFORMER, peers.LSTM)}
    runs |= {name: (whole.run, whole.parameters) for name, whole in others.items()}
    leaf = u.detach().requires_grad_()
    for name, (run, parameters) in runs.items():
        result = described(case, name)
        both = evaluate.differentiated(functools.partial(run, leaf), {"u": leaf, **parameters})
        try:
            with use_backend(name if name in dispatch.BACKENDS else "auto", strict=name in dispatch.BACKENDS):
                result |= passes(torch.no_grad()(functools.partial(run, u)), both, seconds)
        except RuntimeError as error:
            result["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        yield result


def copy_row(case: Case, inputs: Arguments, seconds: float) -> dict[str, Any]:
    """The time of copying a tensor of the output's size on the device."""
    source = evaluate.forward(evaluate.implementation(case.op, "pytorch"), inputs)()[0]
    target = torch.empty_like(source)
    taken = measure.timed(lambda: target.copy_(source), "cuda", seconds)
    return {**described(case, COPY), "forward": taken._asdict(), "bytes": source.numel() * source.element_size()}


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
    parser.add_argument("--op", choices=(*OPS, *LAYERS), action="append", help="one op; may be repeated")
    parser.add_argument("--features", type=int, choices=FEATURES, action="append", help="one H; may be repeated")
    parser.add_argument("--length", type=int, choices=LENGTHS, action="append", help="one L; may be repeated")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile of the direct evaluation")
    parser.add_argument("--budget", type=float, help="seconds after which no further size is begun")
    options = parser.parse_args()
    start, of_machine, rows = time.monotonic(), machine.describe("cuda"), list[dict[str, Any]]()
    chosen = [
        case
        for case in CASES
        if case.op in (options.op or (*OPS, *LAYERS))
        and case.H in (options.features or FEATURES)
        and case.L in (options.length or LENGTHS)
    ]
    steps = [functools.partial(case_rows, case, not options.no_compile, options.seconds) for case in chosen]
    if not options.op:
        steps.insert(len(FIRST), functools.partial(block_rows, options.seconds))
    for i, step in enumerate(steps):
        if options.budget is not None and time.monotonic() - start > options.budget:
            print(f"{len(steps) - i} of {len(steps)} sizes left out after {options.budget:.0f} s")
            break
        found = list(step())
        rows += found
        print("\n".join(json.dumps(r) for r in found), flush=True)
        text = json.dumps({"machine": of_machine, "rows": rows}, indent=1)
        files.write(options.out / "gpu_kernels.json", text + "\n")
    if not plot.matplotlib_missing():
        write_plot(options.out / "gpu_kernels.png", rows, of_machine["gpu"])
    if any("error" in r or r.get("verdict") == accuracy.FAIL for r in rows if r["implementation"] in KERNELS):
        raise SystemExit("a kernel failed or missed the accuracy contract")


if __name__ == "__main__":
    main()
