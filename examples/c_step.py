"""A model's exported C, compiled by the system's compiler and run over a signal, sample by sample."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s4_fast.export import to_c

# Times every step by itself, as an audio callback of one sample would take it.
DRIVER = """
#define _POSIX_C_SOURCE 199309L
#include <time.h>
#include "%s"
int state_bytes(void) { return (int)sizeof(effect_state); }
void run(const float *u, float *y, double *seconds, long samples)
{
    static effect_state state;
    struct timespec before, after;
    long l;
    effect_init(&state);
    for (l = 0; l < samples; l++) {
        clock_gettime(CLOCK_MONOTONIC, &before);
        effect_step(&state, u + l, y + l);
        clock_gettime(CLOCK_MONOTONIC, &after);
        seconds[l] = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
    }
}
"""


class RunInC(NamedTuple):
    """What came out, how long each step took, and how large the state is."""

    output: Tensor  # (samples,)
    seconds: Tensor  # (samples,)
    state_bytes: int


def run_in_c(model: nn.Module, signal: Tensor, source: Path) -> RunInC | None:
    """Write the step of a model of one input and output to ``source``, and run it over the signal (samples,).

    None without a C compiler that knows POSIX's clock; the file is written all the same.
    """
    to_c(model, source, name="effect", force=True)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        driver, library = Path(folder, "run.c"), Path(folder, "run.so")
        driver.write_text(DRIVER % source.absolute().as_posix())
        command = [compiler, "-std=c99", "-O3", "-fPIC", "-shared", str(driver), "-o", str(library), "-lm"]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return None
        loaded = ctypes.CDLL(str(library))
        u = signal.float().contiguous()
        y, seconds = torch.empty_like(u), torch.empty(len(u), dtype=torch.float64)
        loaded.run(*(ctypes.c_void_p(t.data_ptr()) for t in (u, y, seconds)), ctypes.c_long(len(u)))
        return RunInC(y, seconds, loaded.state_bytes())
