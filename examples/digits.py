"""Handwritten digits, one pixel at a time: train S4D and S4, save them, classify with the recurrence.

    pip install scikit-learn safetensors matplotlib rich click
    python examples/digits.py --layer both

The data are the 1797 real 8x8 images that scikit-learn ships, read row by row as sequences of 64 grey values. The model
never sees where a row ends: it has to remember. It is trained as a convolution over whole sequences, then reloaded and
run as a recurrence that takes one pixel at a time and can name a class after each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import cross_entropy

import s4_fast
from command_line import COUNT, SEED, build, make_folder, positive, run_command, usable_device
from result_files import load_checkpoint, save_checkpoint, save_figure
from s4_fast import S4SequenceModel

SIDE = 8
COLOURS = {"s4d": "#1f6fb2", "s4": "#3b8f5a"}  # of the layers
BATCH = 64
WEIGHT_DECAY = 0.05


class Split(NamedTuple):
    """Images as sequences (count, 64, 1) in [-1, 1], and their classes."""

    train_x: Tensor
    test_x: Tensor
    train_y: Tensor
    test_y: Tensor


def load_split(device: str) -> Split:
    """The digits, a fifth of each class held out. Always the same split, whatever the seed of the training."""
    images, classes = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32)[..., None] / 8 - 1
    y = torch.tensor(classes)
    parts = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    return Split(*(part.to(device) for part in parts))


class Epoch(NamedTuple):
    loss: float
    accuracy: float


def train(model: S4SequenceModel, data: Split, epochs: int, lr: float, ssm_lr: float) -> Iterator[Epoch]:
    """Train, yielding after every epoch the mean training loss and the accuracy on the test images."""
    # dt, A and B decide how far the model remembers: they learn more slowly than the rest, and never decay.
    groups = s4_fast.get_ssm_param_groups(model, lr=lr, ssm_lr=ssm_lr, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups)
    steps = -(-len(data.train_x) // BATCH) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[group["lr"] for group in groups], total_steps=steps, pct_start=0.2
    )
    for _ in range(epochs):
        model.train()
        total = torch.zeros((), device=data.train_x.device)
        for rows in torch.randperm(len(data.train_x), device=data.train_x.device).split(BATCH):
            loss = cross_entropy(model(data.train_x[rows]), data.train_y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(rows)
        yield Epoch(total.item() / len(data.train_x), accuracy(model, data.test_x, data.test_y))


@torch.no_grad()
def accuracy(model: S4SequenceModel, x: Tensor, y: Tensor) -> float:
    model.eval()
    return (model(x).argmax(-1) == y).float().mean().item()


@torch.no_grad()
def recur(model: S4SequenceModel, x: Tensor) -> Tensor:
    """Logits after each pixel, (length, count, classes): the model as a recurrence with a state of fixed size."""
    state = model.init_state(len(x))
    logits = []
    for pixel in x.unbind(1):
        y, state = model.step(pixel, state)
        logits.append(y)
    return torch.stack(logits)


@dataclass(frozen=True)
class Run:
    """A finished training: what the table and the figure show."""

    layer: str
    history: list[Epoch]
    seconds: float  # of processor time
    checkpoint: Path


def fit(layer: str, arguments: dict[str, Any], data: Split, out: Path, console: Console, **settings: Any) -> Run:
    """Train one model, show its progress, and keep the checkpoint of the epoch with the lowest training loss."""
    checkpoint = out / f"{layer}.safetensors"
    model = build(arguments).to(data.train_x.device)
    history: list[Epoch] = []
    start = time.process_time()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(layer, total=settings["epochs"])
        for epoch in train(model, data, **settings):
            if not math.isfinite(epoch.loss):
                raise click.ClickException(f"{layer} diverged in epoch {len(history) + 1}; try a lower --lr")
            # Not by test accuracy: the best of many test results would be flattered.
            if not history or epoch.loss < min(past.loss for past in history):
                save_checkpoint(checkpoint, model, arguments)
            history.append(epoch)
            progress.print(f"{layer:3} epoch {len(history):3}   loss {epoch.loss:.4f}   test {epoch.accuracy:6.1%}")
            progress.advance(task)
    return Run(layer, history, time.process_time() - start, checkpoint)


def show_recurrence(model: S4SequenceModel, data: Split, console: Console) -> None:
    """Compare the recurrence with the convolution on all test images, and watch it read the first one."""
    with torch.no_grad():
        whole = model(data.test_x)
    steps = recur(model, data.test_x)
    difference = (steps[-1] - whole).abs().max().item()
    agree = (steps[-1].argmax(-1) == whole.argmax(-1)).sum().item()
    console.print(f"the first test image, a {data.test_y[0]}, and the class after each row:")
    for row in range(SIDE):
        pixels = data.test_x[0, row * SIDE : (row + 1) * SIDE, 0]
        chance, guess = steps[(row + 1) * SIDE - 1, 0].softmax(-1).max(-1)
        shades = "".join(2 * " .:*#"[round(2 * level + 2)] for level in pixels.tolist())
        console.print(f"    {shades}   {guess}  {chance:4.0%}")
    console.print(f"by convolution: {whole[0].argmax()}   by recurrence: {steps[-1, 0].argmax()}")
    console.print(f"same class for {agree} of {len(whole)} test images; the logits differ by at most {difference:.1e}")


def draw(path: Path, runs: list[Run]) -> None:
    """Training loss and test accuracy of all runs, side by side."""
    figure = Figure(figsize=(10, 4), layout="constrained", facecolor="white")
    loss, correct = figure.subplots(1, 2)
    for run in runs:
        epochs, colour = range(1, len(run.history) + 1), COLOURS[run.layer]
        loss.plot(epochs, [epoch.loss for epoch in run.history], color=colour, linewidth=2)
        name = run.layer.upper()
        correct.plot(epochs, [epoch.accuracy for epoch in run.history], color=colour, linewidth=2, label=name)
    loss.set_yscale("log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.set_title("Training loss", loc="left")
    # The first epochs are guesses; showing them in full would flatten all that follows.
    correct.set_ylim(min(run.history[len(run.history) // 5].accuracy for run in runs), 1)
    correct.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    correct.set_title("Test accuracy", loc="left")
    correct.legend(frameon=False, loc="lower right")
    for axes in (loss, correct):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e4e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Handwritten digits as sequences of 64 pixels", fontweight="bold")
    save_figure(path, figure, dpi=120)


def baselines(data: Split) -> dict[str, float]:
    """Test accuracy of classifiers that see all pixels at once, in scikit-learn's default setting."""
    pixels, unseen = (x[..., 0].cpu().numpy() for x in (data.train_x, data.test_x))
    models = {"logistic regression": LogisticRegression(max_iter=1000), "SVM": SVC()}
    classes, right = data.train_y.cpu().numpy(), data.test_y.cpu().numpy()
    return {name: model.fit(pixels, classes).score(unseen, right) for name, model in models.items()}


def table(runs: list[Run], data: Split) -> Table:
    """What the saved checkpoints reach, not what was best on the way, and the baselines."""
    out = Table("model", "test accuracy", "parameters", "training, CPU s")
    for run in runs:
        model = load_checkpoint(run.checkpoint, str(data.test_x.device))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        correct = accuracy(model, data.test_x, data.test_y)
        out.add_row(run.layer.upper(), f"{correct:.1%}", f"{parameters:,}", f"{run.seconds:.0f}")
    for name, correct in baselines(data).items():
        out.add_row(name, f"{correct:.1%}")
    return out


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--layer", type=click.Choice([*COLOURS, "both"]), default="both", help="Which model to train.")
@click.option("--epochs", type=COUNT, default=30)
@click.option("--d-model", type=COUNT, default=64, help="Features per layer.")
@click.option("--d-state", type=COUNT, default=16, help="State size per feature, even.")
@click.option("--layers", type=COUNT, default=3, help="Number of blocks.")
@click.option("--lr", callback=positive, default=0.01, help="Highest learning rate of the schedule.")
@click.option("--ssm-lr", callback=positive, default=0.002, help="The same for dt, A and B.")
@click.option("--seed", type=SEED, default=0, help="Of the weights and the order of images.")
@click.option("--device", default="cpu", callback=usable_device, help="cpu, cuda, cuda:1, ...")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="runs/digits", help="Where the results go."
)
@click.option("--smoke", is_flag=True, help="A tiny model and two epochs: does everything work? Takes seconds.")
def main(
    layer: str,
    epochs: int,
    d_model: int,
    d_state: int,
    layers: int,
    lr: float,
    ssm_lr: float,
    seed: int,
    device: str,
    out: Path,
    smoke: bool,
) -> None:
    """Train S4D and S4 on handwritten digits read pixel by pixel, then classify with the recurrence."""
    if smoke:
        epochs, d_model, d_state, layers = 2, 8, 4, 1
    s4_fast.keep_pages()  # on the CPU: this program owns its memory, so let it keep what it frees
    make_folder(out)
    console = Console(highlight=False, markup=False)
    data = load_split(device)
    runs = []
    for name in COLOURS if layer == "both" else (layer,):
        arguments = {
            "d_input": 1,
            "d_model": d_model,
            "d_output": 10,
            "n_layers": layers,
            "d_state": d_state,
            "dropout": 0.1,
            "layer": name,
            # A feature remembers for about 2 / dt steps: here from 4 pixels to more than the whole image.
            "dt_min": 0.01,
            "dt_max": 0.5,
        }
        torch.manual_seed(seed)
        runs.append(fit(name, arguments, data, out, console, epochs=epochs, lr=lr, ssm_lr=ssm_lr))
    for run in runs:
        console.print(f"\n{run.layer.upper()}, reloaded from {run.checkpoint}", style="bold")
        show_recurrence(load_checkpoint(run.checkpoint, device), data, console)
    draw(out / "learning_curves.png", runs)
    console.print(table(runs, data), "logistic regression and SVM see all pixels at once", sep="\n")
    console.print(f"learning curves: {out / 'learning_curves.png'}")


if __name__ == "__main__":
    run_command(main)
