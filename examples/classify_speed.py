"""What a training step of classify.py costs by each layer: before and after."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
from rich.table import Table

from classify_data import load
from classify_model import LAYERS
from classify_training import Recipe, Training

SAMPLES = 5


def step_times(recipe: Recipe) -> dict[str, float]:
    """Milliseconds of processor time that a step takes by each layer, medians.

    The layers take turns, so that what slows the machine for a while slows all of them.
    """
    dataset = load(recipe.dataset)
    trainings = {layer: Training(replace(recipe, layer=layer), dataset, "cpu") for layer in LAYERS}
    batch = dataset.train.rows(torch.arange(min(recipe.batch, len(dataset.train.y))))
    samples: dict[str, list[float]] = {layer: [] for layer in LAYERS}
    for turn in range(1 + SAMPLES):
        for layer, training in trainings.items():
            start = time.process_time()
            training.learn(batch)
            if turn:  # the first is a warm-up
                samples[layer].append(1e3 * (time.process_time() - start))
    return {layer: statistics.median(times) for layer, times in samples.items()}


def table(times: dict[str, dict[str, float]]) -> Table:
    out = Table("dataset", *LAYERS, "official / s4d", caption="milliseconds of processor time a training step")
    for name, found in times.items():
        out.add_row(name, *(f"{found[layer]:.0f}" for layer in LAYERS), f"{found['official'] / found['s4d']:.1f}")
    return out
