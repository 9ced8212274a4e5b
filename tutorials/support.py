"""What the tutorials share: sizes for a quick run, colours, where figures go, and timing."""

from __future__ import annotations

import builtins
import os
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import PIL.Image
import torch

mpl.use("agg")

from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

SMOKE = os.environ.get("S4_FAST_SMOKE", "0") not in ("", "0")  # tiny sizes: does everything run?
# A model has the same colour in every figure, and nothing else has it.
MODEL_COLOURS = {"S4D": "#1f6fb2", "S4": "#3b8f5a", "Transformer": "#d9622b"}
PURPLE, GOLD, ROSE, BROWN, GREY, INK = "#8a5fb0", "#c0a02b", "#c4527a", "#8c6d4f", "#7a828c", "#2b3138"

plt.rcParams.update(
    {
        "figure.dpi": 150,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "axes.prop_cycle": cycler(color=[PURPLE, GOLD, ROSE, BROWN, GREY]),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "grid.color": "#e4e7eb",
        "legend.frameon": False,
    }
)


def show(figure: Figure, name: str) -> None:
    """Display the figure below a notebook's cell; from a script, write runs/tutorials/NAME.png and print that."""
    if hasattr(builtins, "__IPYTHON__"):
        from IPython.display import Image, display

        full, small = BytesIO(), BytesIO()
        figure.savefig(full, format="png")
        # A palette: the same to the eye in a third of a notebook's bytes.
        PIL.Image.open(full).convert("RGB").quantize(96).save(small, format="png", optimize=True)
        display(Image(small.getvalue(), width=round(80 * figure.get_size_inches()[0])))
    else:
        path = Path("runs", "tutorials", f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        print(f"figure: {path}")
    plt.close(figure)


def milliseconds(call: Callable[[], object], repeats: int = 7) -> float:
    """The median processor time of a call on one thread, after one that is not counted.

    Beside other programs a clock on the wall, and threads that wait for each other, say more about those.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call()
        times = []
        for _ in range(1 if SMOKE else repeats):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return 1e3 * statistics.median(times)
