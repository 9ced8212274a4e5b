"""Microseconds per step of exported models beside ``model.step``, and the sizes of the C.

    python benchmarks/export_latency.py --json benchmarks/results/export.json

On one thread: the least processor time of several runs over white noise, which other programs on the machine disturb
least, and errors of the outputs as relative norms against float64. Needs a C compiler and the extra ``onnx``.
"""

from __future__ import annotations

import copy
import ctypes
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from torch import Tensor

from s4_fast import S4SequenceModel
from s4_fast.bench import machine
from s4_fast.export import to_c, to_onnx

MODELS: dict[str, dict[str, Any]] = {
    "S4D": {"layer": "s4d", "d_model": 32, "d_state": 8, "n_layers": 2},
    "S4": {"layer": "s4", "d_model": 32, "d_state": 8, "n_layers": 2},
    "S4D, wider": {"layer": "s4d", "d_model": 128, "d_state": 64, "n_layers": 4},
    "S4, wider": {"layer": "s4", "d_model": 128, "d_state": 64, "n_layers": 4},
}
DRIVER = """
#include "model.c"
long state_bytes(void) { return (long)sizeof(model_state); }
void run(const float *u, float *y, long samples)
{
    static model_state state;
    long l;
    model_init(&state);
    for (l = 0; l < samples; l++) model_step(&state, u + l, y + l);
}
"""


def compiled(folder: Path, *flags: str) -> tuple[ctypes.CDLL, int]:
    """The C of a model with its loop, and the bytes of its code and constants."""
    compiler = shutil.which("cc") or "gcc"
    (folder / "run.c").write_text(DRIVER)
    library, part = folder / f"run{len(flags)}.so", folder / "model.o"
    options = [compiler, "-std=c99", "-O3", *flags]
    subprocess.run([*options, "-fPIC", "-shared", str(folder / "run.c"), "-o", str(library), "-lm"], check=True)
    subprocess.run([*options, "-c", str(folder / "model.c"), "-o", str(part)], check=True)
    sizes = subprocess.run(["size", str(part)], check=True, capture_output=True, text=True).stdout.splitlines()[1]
    return ctypes.CDLL(str(library)), int(sizes.split()[0])


def per_step(run: Callable[[], Tensor], steps: int, repeats: int) -> tuple[Tensor, float]:
    """What ``run`` returns, and the least of its microseconds per step."""
    taken, y = [], run()
    for _ in range(repeats):
        start = time.process_time()
        y = run()
        taken.append(time.process_time() - start)
    return y, 1e6 * min(taken) / steps


def row(name: str, options: dict[str, Any], steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """The sizes of a model, and by way of running it the microseconds of a step and the error; bytes of the C."""
    torch.manual_seed(0)
    model = S4SequenceModel(1, d_output=1, task="regression", **options).eval()
    u = torch.randn(steps, 1)
    exact = copy.deepcopy(model).double()(u.double()[None])[0]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    sessions = {}
    for graph in ("step", "prefill"):
        to_onnx(model, folder / "model.onnx", graph=graph, force=True)
        sessions[graph] = onnxruntime.InferenceSession(str(folder / "model.onnx"), settings)
    zero = np.zeros((1, sessions["step"].get_inputs()[1].shape[1]))
    samples = u.numpy()

    def in_pytorch() -> Tensor:
        state, outputs = model.init_state(1), []
        for sample in u:
            y, state = model.step(sample[None], state)
            outputs.append(y[0])
        return torch.stack(outputs)

    def in_onnx() -> Tensor:
        state, outputs = zero, []
        for sample in samples[:, None]:
            y, state = sessions["step"].run(None, {"u": sample, "state": state})
            outputs.append(y[0])
        return torch.from_numpy(np.stack(outputs))

    def whole() -> Tensor:
        return torch.from_numpy(sessions["prefill"].run(None, {"u": samples[None], "state": zero})[0][0])

    to_c(model, folder / "model.c", force=True)
    ways: dict[str, Callable[[], Tensor]] = {"model.step": in_pytorch, "ONNX step": in_onnx, "ONNX prefill": whole}
    sizes = []
    for kind, flags in (("C", ()), ("C, single", ("-DMODEL_SINGLE",))):
        library, code = compiled(folder, *flags)
        sizes.append((code, library.state_bytes()))

        def in_c(library: ctypes.CDLL = library) -> Tensor:
            y = torch.empty_like(u)
            library.run(ctypes.c_void_p(u.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_long(steps))
            return y

        ways[kind] = in_c
    measured: dict[str, Any] = {"model": name, **options}
    for way, run in ways.items():
        y, measured[f"{way}, us"] = per_step(run, steps, repeats)
        measured[f"{way}, error"] = ((y - exact).norm() / exact.norm()).item()
    for kind, (code, state) in zip(("C", "C, single"), sizes, strict=True):
        measured |= {f"{kind}, code": code, f"{kind}, state": state}
    return measured


@click.command()
@click.option("--steps", default=1000, show_default=True, help="Steps of a run.")
@click.option("--repeats", default=15, show_default=True, help="Runs, of which the fastest counts.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write machine and rows as JSON.")
@torch.inference_mode()
def main(steps: int, repeats: int, json_file: Path | None) -> None:
    """Measure the exports."""
    torch.set_num_threads(1)
    rows = []
    for name, options in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, options, steps, repeats, Path(folder)))
        click.echo(
            "; ".join(
                f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}"
                for key, value in rows[-1].items()
            )
        )
    if json_file:
        settings = {"command": f"python benchmarks/export_latency.py --json {json_file}"}
        document = {"machine": machine.describe(), "settings": settings, "rows": rows}
        json_file.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
