"""What the tutorials share: sizes for a quick run, where figures go, and timing."""

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

mpl.use("agg")

from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#1f6fb2", "#d9622b", "#3b8f5a", "#7a828c"
SMOKE = os.environ.get("S4_FAST_SMOKE", "0") not in ("", "0")  # tiny sizes: does everything run?

plt.rcParams.update(
    {
        "figure.dpi": 80,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, "#8a5fb0", "#c0a02b", GREY]),
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
        display(Image(small.getvalue()))
    else:
        path = Path("runs", "tutorials", f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        print(f"figure: {path}")
    plt.close(figure)


def milliseconds(call: Callable[[], object], repeats: int = 7) -> float:
    """The median wall-clock time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(1 if SMOKE else repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)
