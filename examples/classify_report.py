"""What classify.py says of finished runs: a table beside other classifiers, a picture, and a file of results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table
from torch import Tensor

from classify_data import Dataset, others
from classify_training import Run
from result_files import save_figure
from s4_fast import files

BLUE, ORANGE = "#1f6fb2", "#d9622b"


def ensemble(runs: Sequence[Run]) -> Tensor:
    """The classes by the mean of the runs' probabilities."""
    return torch.stack([run.logits.softmax(-1) for run in runs]).mean(0).argmax(-1)


def together(runs: Sequence[Run]) -> float | None:
    """The accuracy of the ensemble; None where it would have one member, or its members judge different series."""
    if len(runs) < 2 or runs[0].recipe.held_out:
        return None
    return (ensemble(runs) == runs[0].y).double().mean().item()


def mean_and_spread(runs: Sequence[Run]) -> tuple[float, float]:
    accuracies = [run.accuracy for run in runs]
    return statistics.fmean(accuracies), statistics.stdev(accuracies) if len(runs) > 1 else 0.0


def table(results: dict[str, list[Run]]) -> Table:
    out = Table("dataset", "accuracy", "ensemble", "others", "s a run")
    for name, runs in results.items():
        mean, spread = mean_and_spread(runs)
        joint = together(runs)
        beside = {} if runs[0].recipe.held_out else others(name)
        out.add_row(
            name,
            f"{mean:.3f}" + (f" ± {spread:.3f}" if len(runs) > 1 else ""),
            "" if joint is None else f"{joint:.3f}",
            "\n".join(f"{who} {value:.3f}" for who, value in beside.items()),
            f"{statistics.fmean(run.seconds for run in runs):.0f}",
        )
    return out


def save(path: Path, name: str, runs: Sequence[Run]) -> None:
    """Write all that is known of the runs of one dataset as JSON."""
    mean, spread = mean_and_spread(runs)
    found = {
        "dataset": name,
        "judged": "held out" if runs[0].recipe.held_out else "test",
        "mean": mean,
        "spread": spread,
        "ensemble": together(runs),
        "others": others(name),
        "runs": [
            {
                "recipe": asdict(run.recipe),
                "accuracy": run.accuracy,
                "parameters": run.parameters,
                "seconds": run.seconds,
                "processor_seconds": run.processor_seconds,
                "history": [epoch._asdict() for epoch in run.history],
            }
            for run in runs
        ],
    }
    files.write(path, json.dumps(found, indent=1) + "\n")


def confusion(truth: Tensor, found: Tensor, classes: int) -> Tensor:
    """How often a class (row) was taken for another (column)."""
    return torch.bincount(truth * classes + found, minlength=classes**2).view(classes, classes)


def draw(path: Path, dataset: Dataset, runs: list[Run]) -> None:
    """Learning curves of all runs, and what the ensemble of them takes for what."""
    figure = Figure(figsize=(10, 3.4), layout="constrained", facecolor="white")
    loss, share, matrix = figure.subplots(1, 3)
    for i, run in enumerate(runs):
        steps = [epoch.step for epoch in run.history]
        faint = {"linewidth": 1.5, "alpha": 1 if i == 0 else 0.35}
        loss.plot(steps, [epoch.loss for epoch in run.history], color=BLUE, **faint)
        share.plot(steps, [epoch.accuracy for epoch in run.history], color=BLUE, label="" if i else "training", **faint)
        held = [(epoch.step, epoch.held_out) for epoch in run.history if epoch.held_out is not None]
        if held:
            share.plot(*zip(*held, strict=True), color=ORANGE, label="" if i else "held out", **faint)
    loss.set_title("Training loss, with smoothed labels", loc="left", fontsize=10)
    loss.set_ylim(bottom=0)
    share.set_title("Accuracy", loc="left", fontsize=10)
    share.set_ylim(0, 1.02)
    share.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    share.legend(frameon=False, loc="lower right")
    for axes in (loss, share):
        axes.set_xlabel("step")
        axes.grid(color="#e4e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    truth = torch.cat([run.y for run in runs])
    found = torch.cat([run.logits.argmax(-1) for run in runs])
    counts = confusion(truth, found, len(dataset.classes))
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    matrix.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(counts)):
        for column in range(len(counts)):
            if counts[row, column]:
                dark = shares[row, column] > 0.5
                text = str(counts[row, column].item())
                matrix.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    for axis in (matrix.xaxis, matrix.yaxis):
        axis.set_ticks(range(len(dataset.classes)), dataset.classes, fontsize=7)
    long = max(map(len, dataset.classes)) > 3
    matrix.xaxis.set_tick_params(rotation=45 if long else 0)
    matrix.set_xlabel("found")
    matrix.set_ylabel("true")
    judged = "held-out" if runs[0].recipe.held_out else "test"
    matrix.set_title(f"The {judged} series, all seeds", loc="left", fontsize=10)
    figure.suptitle(f"{dataset.name}: {mean_and_spread(runs)[0]:.1%} of the {judged} series", fontweight="bold")
    save_figure(path, figure, dpi=150)
