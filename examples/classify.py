"""Train S4D or S4 to classify real sequences, and stand beside the best classifiers that are known for them.

    pip install -e ".[examples]"
    python examples/classify.py --dataset ItalyPowerDemand      # a minute
    python examples/classify.py --dataset all --seeds 5         # stop it whenever you like; the same command goes on
    python examples/classify.py --dataset OSULeaf --held-out 0.3 --lr 0.002     # to choose settings
    python examples/classify.py --dataset all --time            # a training step beside that of the plain formula

The data are the series that the package aeon ships, in the split of their archive; nothing is downloaded. One recipe
serves all datasets. It trains on the whole training set for a fixed number of steps and judges the last weights on the
test set, so nothing is chosen by the test set. Choose by ``--held-out``, which takes its share of the training set and
leaves the test set alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import classify_report
import classify_speed
import s4_fast
from classify_data import DATASETS, load
from classify_model import LAYERS
from classify_training import Recipe, Run, Training, run, smaller
from command_line import COUNT, SEED, make_folder, positive, run_command, usable_device

DEFAULTS = Recipe("")


def fit(recipes: list[Recipe], out: Path, device: str, console: Console) -> list[Run]:
    """The runs of one dataset, their picture, and what they reach."""
    dataset = load(recipes[0].dataset)
    make_folder(out / dataset.name)
    runs = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown: dict[str, Any] = {"console": console, "transient": True, "disable": not console.is_terminal}
    for recipe in recipes:
        with Progress(*columns, TimeRemainingColumn(), **shown) as progress:
            task = progress.add_task(f"{dataset.name} {recipe.name()}", total=recipe.steps)

            def report(training: Training, progress: Progress = progress, task: Any = task) -> None:
                progress.update(task, completed=training.step)

            runs.append(run(recipe, dataset, out / dataset.name, device, report))
        last = runs[-1]
        console.print(
            f"{dataset.name:16} {recipe.name()}  loss {last.history[-1].loss:.3f}  "
            f"{'held out' if recipe.held_out else 'test'} {last.accuracy:6.1%}  {last.seconds:4.0f} s",
            soft_wrap=True,
        )
    both = out / dataset.name / recipes[0].kind()
    classify_report.save(both.with_suffix(".json"), dataset.name, runs)
    classify_report.draw(both.with_suffix(".png"), dataset, runs)
    return runs


def share(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 <= value < 1:  # FloatRange lets NaN pass
        raise click.BadParameter(f"expected a number from 0 to below 1, got {value}")
    return value


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--dataset", type=click.Choice([*DATASETS, "all"]), default="ItalyPowerDemand")
@click.option("--layer", type=click.Choice(LAYERS), default=DEFAULTS.layer, help="official: S4D by the plain formula.")
@click.option("--seeds", type=COUNT, default=1, help="How many runs, each with weights and batches of its own.")
@click.option("--first-seed", type=SEED, default=0)
@click.option("--held-out", callback=share, default=0.0, help="Share of the training set to judge by.")
@click.option("--precision", type=click.Choice(["float32", "bf16"]), default="float32", help="bf16: autocast.")
@click.option("--steps", type=COUNT, default=DEFAULTS.steps)
@click.option("--batch", type=COUNT, default=DEFAULTS.batch)
@click.option("--d-model", type=COUNT, default=DEFAULTS.d_model, help="Features per layer.")
@click.option("--d-state", type=COUNT, default=DEFAULTS.d_state, help="State size per feature, even.")
@click.option("--layers", "n_layers", type=COUNT, default=DEFAULTS.n_layers, help="Number of blocks.")
@click.option("--dt-min", callback=positive, default=DEFAULTS.dt_min, help="Smallest step size at first.")
@click.option("--dt-max", callback=positive, default=DEFAULTS.dt_max, help="Largest step size at first.")
@click.option("--dropout", callback=share, default=DEFAULTS.dropout)
@click.option("--lr", callback=positive, default=DEFAULTS.lr, help="Highest learning rate of the schedule.")
@click.option("--ssm-lr", callback=positive, default=DEFAULTS.ssm_lr, help="The same for dt, A and B.")
@click.option("--augment/--no-augment", default=DEFAULTS.augment, help="Noise and other amplitudes.")
@click.option("--device", default="auto", callback=usable_device, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--threads", type=COUNT, default=min(2, os.cpu_count() or 1), help="Of the CPU. 1 on a busy machine.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="runs/classify")
@click.option("--time", is_flag=True, help="Time a training step by each layer on the CPU; train and write nothing.")
@click.option("--smoke", is_flag=True, help="A tiny model and four steps: does everything work?")
def main(
    dataset: str,
    seeds: int,
    first_seed: int,
    device: str,
    threads: int,
    out: Path,
    time: bool,
    smoke: bool,
    **settings: Any,
) -> None:
    """Train a classifier of real sequences, and compare it with those that are known."""
    torch.set_num_threads(threads)
    s4_fast.keep_pages()  # on the CPU: this program owns its memory, so let it keep what it frees
    console = Console(highlight=False, markup=False)
    names = DATASETS if dataset == "all" else (dataset,)
    if time:
        times = {name: classify_speed.step_times(Recipe(name, **settings)) for name in names}
        console.print(classify_speed.table(times))
        return
    make_folder(out)
    results = {}
    for name in names:
        recipes = [Recipe(name, seed=first_seed + i, **settings) for i in range(seeds)]
        results[name] = fit([smaller(r) for r in recipes] if smoke else recipes, out, device, console)
    console.print(
        classify_report.table(results),
        f"results and pictures: {out / names[0]}{', ...' if len(names) > 1 else ''}",
        sep="\n",
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main)
