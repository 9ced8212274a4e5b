"""The adding problem: two of a thousand numbers are marked, and their sum is asked for.

    pip install matplotlib
    python examples/adding_problem.py
    python examples/adding_problem.py --eval_only --ckpt runs/adding/s4d_adding_best.pt

Every step of a sequence is a number in [0, 1) and a mark, which is 1 at two steps and else 0 (Hochreiter, Schmidhuber
1997). A linear encoder and one S4D block, MiniS4D, learn the sum. The data of training, validation and test are the
same in every run, whatever the seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss
from train_mini_s4d import MiniS4D

import s4_fast
from command_line import COUNT, SEED, make_folder, positive, run_command, usable_device
from result_files import load_tensors, save_figure, save_tensors
from s4_fast import BackendUnavailableError

TRAIN_SEED, VALIDATION_SEED, TEST_SEED = 42, 43, 44
HELD_OUT = 1000  # sequences for validation, and as many for the test
BEST = "s4d_adding_best.pt"
CURVES = "s4d_adding_curves.png"
CHANCE = 1 / 6  # the mean squared error of always answering 1
WEIGHT_DECAY = 0.01
WARM_UP = 0.2


class Data(NamedTuple):
    """Sequences of (value, mark), (count, seq_len, 2), and the sums, (count, 1)."""

    x: Tensor
    y: Tensor


def adding_data(count: int, seq_len: int, seed: int) -> Data:
    """``count`` problems; every pair of different steps is as likely as any other.

    Raises:
        ValueError: seq_len < 2.
    """
    if seq_len < 2:
        raise ValueError(f"two steps are marked, so seq_len must be at least 2, got {seq_len}")
    generator = Generator().manual_seed(seed)
    values = torch.rand(count, seq_len, generator=generator)
    first = torch.randint(seq_len, (count, 1), generator=generator)
    second = (first + torch.randint(1, seq_len, (count, 1), generator=generator)) % seq_len
    marks = torch.zeros(count, seq_len).scatter(1, torch.cat([first, second], 1), 1)
    return Data(torch.stack([values, marks], -1), (values * marks).sum(1, keepdim=True))


class AddingModel(nn.Module):
    """A linear map of (value, mark) to the features of a MiniS4D: (B, seq_len, 2) -> (B, 1)."""

    def __init__(self, d_model: int = 64, d_state: int = 64, seq_len: int = 1000) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, d_model)
        # Two marks among a thousand steps are next to nothing beside the values: with weights as they come, training
        # stays at chance for hundreds of steps. These are for inputs brought to mean 0 and variance 1.
        share = 2 / seq_len
        mean, variance = torch.tensor([1 / 2, share]), torch.tensor([1 / 12, share * (1 - share) or 1.0])
        with torch.no_grad():
            self.encoder.weight /= variance.sqrt()
            self.encoder.bias -= self.encoder.weight @ mean
        self.s4d = MiniS4D(d_model, d_state, seq_len)

    def forward(self, x: Tensor) -> Tensor:
        return self.s4d(self.encoder(x).mT)


def load(model: AddingModel, path: Path) -> str:
    """Load a checkpoint of the whole model or of a MiniS4D, which leaves the encoder as it is; say which it was.

    Raises:
        ValueError: the file is no such checkpoint, or its sizes are not the model's.
    """
    state = load_tensors(path)
    whole = any(key.startswith("encoder.") for key in state)
    part: nn.Module = model if whole else model.s4d
    modes = state.get("s4d.kernel_gen.log_A_real" if whole else "kernel_gen.log_A_real")
    own = tuple(model.s4d.kernel_gen.log_A_real.shape)
    if modes is not None and tuple(modes.shape) != own and modes.ndim == 2:
        sizes = [f"--d_model {shape[0]} --d_state {shape[1]}" for shape in (modes.shape, own)]
        raise ValueError(f"it was made with {sizes[0]}, and this model has {sizes[1]}")
    try:
        part.load_state_dict(state)
    except RuntimeError as error:
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(f"it does not fit {type(part).__name__}: {problems[0]}") from error
    return "the full model" if whole else "a MiniS4D into model.s4d; the encoder is as it was"


class Score(NamedTuple):
    mse: float
    accuracy: float  # the share with |error| < tolerance

    def __str__(self) -> str:
        return f"MSE {self.mse:.6f}   accuracy {self.accuracy:7.2%}"


def score(error: Tensor, tolerance: float) -> Score:
    error = error.double()
    return Score(error.square().mean().item(), (error.abs() < tolerance).double().mean().item())


@torch.no_grad()
def evaluate(model: AddingModel, data: Data, batch: int, tolerance: float) -> Score:
    model.eval()
    return score(torch.cat([model(x) - y for x, y in zip(*(t.split(batch) for t in data), strict=True)]), tolerance)


def too_small(seq_len: int, d_model: int, d_state: int, samples: int, steps: int) -> list[str]:
    """Why training from scratch cannot be expected to leave chance; the README has the measurements behind it."""
    found = []
    if d_model < 2 or d_model * d_state < 4:
        found.append(f"--d_model {d_model} --d_state {d_state} cannot hold the sum; take at least 4 features")
    if samples < 20:
        found.append(f"{samples} sequences are learnt by heart; raise --train_samples")
    if steps < (needed := 35 + 9 * seq_len // 20):
        found.append(
            f"{steps:,} steps are too few: sequences of {seq_len:,} take at least some {needed:,}; "
            "raise --epochs or --train_samples"
        )
    return found


class Epoch(NamedTuple):
    loss: float
    validation: Score


def train(model: AddingModel, data: Data, epochs: int, batch: int, lr: float, ssm_lr: float) -> Iterator[float]:
    """Train, yielding the loss of every step."""
    groups = s4_fast.get_ssm_param_groups(model, lr=lr, ssm_lr=ssm_lr, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in groups],
        total_steps=epochs * steps_per_epoch(data, batch),
        pct_start=WARM_UP,
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(data.x)).split(batch):
            model.train()
            loss = mse_loss(model(data.x[rows]), data.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield loss.item()


def steps_per_epoch(data: Data, batch: int) -> int:
    return -(-len(data.x) // batch)


def fit(
    model: AddingModel,
    data: Data,
    validation: Data,
    best: Path,
    tolerance: float,
    lowest: float,
    console: Console,
    **settings: Any,
) -> list[Epoch]:
    """Train, show the progress, and keep the weights of the lowest validation error, if it is below ``lowest``."""
    steps, history, losses = steps_per_epoch(data, settings["batch"]), [], []
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training", total=settings["epochs"] * steps, epoch=1)
        for loss in train(model, data, **settings):
            if not math.isfinite(loss):
                raise click.ClickException(f"the model diverged in epoch {len(history) + 1}; try a lower --lr")
            losses.append(loss)
            progress.advance(task)
            if len(losses) == steps:
                epoch = Epoch(sum(losses) / steps, evaluate(model, validation, settings["batch"], tolerance))
                history.append(epoch)
                losses = []
                if epoch.validation.mse < lowest:
                    save_tensors(best, model.state_dict())
                    lowest = epoch.validation.mse
                progress.print(f"epoch {len(history):3}   loss {epoch.loss:.6f}   validation {epoch.validation}")
                progress.update(task, epoch=len(history) + 1)
    return history


def draw(path: Path, history: list[Epoch], tolerance: float, seq_len: int) -> None:
    """Errors and accuracy by epoch."""
    blue, orange = "#1f6fb2", "#d9622b"
    figure = Figure(figsize=(10, 4), layout="constrained", facecolor="white")
    errors, share = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    errors.plot(epochs, [epoch.loss for epoch in history], color=orange, linewidth=2, label="training")
    errors.plot(epochs, [epoch.validation.mse for epoch in history], color=blue, linewidth=2, label="validation")
    errors.axhline(CHANCE, color="black", linewidth=1, linestyle=":", label="always 1")
    errors.set_yscale("log")
    errors.set_title("Mean squared error", loc="left")
    errors.legend(frameon=False)
    share.plot(epochs, [epoch.validation.accuracy for epoch in history], color=blue, linewidth=2)
    share.set_ylim(0, 1.02)
    share.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    share.set_title(f"Validation: share with an error below {tolerance:g}", loc="left")
    for axes in (errors, share):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e4e7eb")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"The adding problem over {seq_len} steps", fontweight="bold")
    save_figure(path, figure, dpi=120)


def use_backend(model: AddingModel, backend: str, device: str) -> None:
    """Make the kernel run with this backend, or say in one line why it cannot."""
    if backend == "auto":
        return
    kernel = model.s4d.kernel_gen
    v = torch.zeros(kernel.A_imag.shape, dtype=torch.complex64, device=device, requires_grad=True)
    try:
        s4_fast.explain("log_vandermonde", v, v, model.s4d.L, backend=backend)
    except BackendUnavailableError as error:
        raise click.BadParameter(str(error).splitlines()[0], param_hint="--backend") from error
    kernel.backend = backend


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--seq_len", "--seq-len", type=click.IntRange(min=2), default=1000, help="Length of the sequences.")
@click.option("--d_model", "--d-model", type=COUNT, default=64, help="Features.")
@click.option("--d_state", "--d-state", type=COUNT, default=64, help="Complex modes per feature.")
@click.option("--train_samples", "--train-samples", type=COUNT, default=5000, help="Sequences to learn from.")
@click.option("--batch_size", "--batch-size", type=COUNT, default=50)
@click.option("--epochs", type=COUNT, default=20)
@click.option("--lr", callback=positive, default=0.03, help="Highest learning rate of the schedule.")
@click.option("--ssm_lr", "--ssm-lr", callback=positive, default=0.005, help="The same for dt, A and B.")
@click.option("--tolerance", callback=positive, default=0.04, help="An error below it counts as right.")
@click.option(
    "--ckpt",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Start from this checkpoint of the full model or of a MiniS4D.",
)
@click.option("--eval_only", "--eval-only", is_flag=True, help="Test the checkpoint; train and write nothing.")
@click.option("--device", default="auto", callback=usable_device, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--seed", type=SEED, default=42, help="Of the weights and the order of the training data.")
@click.option(
    "--backend", type=click.Choice(["auto", *s4_fast.backends()]), default="auto", help="Of the kernel's sum."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs/adding",
    help=f"Where {BEST} and {CURVES} go.",
)
def main(
    seq_len: int,
    d_model: int,
    d_state: int,
    train_samples: int,
    batch_size: int,
    epochs: int,
    lr: float,
    ssm_lr: float,
    tolerance: float,
    ckpt: Path | None,
    eval_only: bool,
    device: str,
    seed: int,
    backend: str,
    out: Path,
) -> None:
    """Learn to add two marked numbers of a long sequence."""
    if eval_only and ckpt is None:
        raise click.UsageError("--eval_only tests a checkpoint: name it with --ckpt")
    console = Console(highlight=False, markup=False)
    torch.manual_seed(seed)
    model = AddingModel(d_model, d_state, seq_len)
    loaded = None
    if ckpt is not None:
        try:
            loaded = load(model, ckpt)
        except ValueError as error:
            raise click.BadParameter(f"{ckpt}: {error}", param_hint="--ckpt") from error
        console.print(f"loaded {ckpt}: {loaded}", soft_wrap=True)
    model.to(device)
    use_backend(model, backend, device)
    s4_fast.keep_pages()  # on the CPU: this program owns its memory, so let it keep what it frees

    def data(count: int, data_seed: int) -> Data:
        return Data(*(t.to(device) for t in adding_data(count, seq_len, data_seed)))

    test = data(HELD_OUT, TEST_SEED)
    if not eval_only:
        make_folder(out)
        validation, best = data(HELD_OUT, VALIDATION_SEED), out / BEST
        lowest = math.inf
        if loaded is not None:
            # What training does not improve is the best there is.
            before = evaluate(model, validation, batch_size, tolerance)
            console.print(f"before training        validation {before}")
            save_tensors(best, model.state_dict())
            lowest = before.mse
        start, processor = time.perf_counter(), time.process_time()
        training = data(train_samples, TRAIN_SEED)
        if loaded is None:
            steps = epochs * steps_per_epoch(training, batch_size)
            for reason in too_small(seq_len, d_model, d_state, train_samples, steps):
                console.print(f"this will not learn to add: {reason}", soft_wrap=True)
        settings = {"epochs": epochs, "batch": batch_size, "lr": lr, "ssm_lr": ssm_lr}
        history = fit(model, training, validation, best, tolerance, lowest, console, **settings)
        elapsed, busy = time.perf_counter() - start, time.process_time() - processor
        console.print(f"trained in {elapsed:.0f} s, {busy:.0f} s of processor time; best model: {best}", soft_wrap=True)
        draw(out / CURVES, history, tolerance, seq_len)
        console.print(f"learning curves: {out / CURVES}", soft_wrap=True)
        load(model, best)
    tested, chance = evaluate(model, test, batch_size, tolerance), score(1 - test.y, tolerance)
    if tested.mse > chance.mse / 2:
        console.print("the model has not learnt to add: it is little better than always answering 1")
    console.print(f"always 1     {chance}")
    console.print(f"test         {tested}   (tolerance {tolerance:g})")


if __name__ == "__main__":
    run_command(main)
