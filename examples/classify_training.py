"""How classify.py trains: the recipe, one run of it, and going on where a run was stopped."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import s4_fast
from classify_data import Dataset, Series, augmented, held_out
from classify_model import Classifier
from s4_fast import files

SAVE_EVERY = 10.0  # seconds
MEASURE = 40  # how often a run measures the held-out accuracy


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes."""

    dataset: str
    layer: str = "s4d"
    precision: str = "float32"
    seed: int = 0
    held_out: float = 0.0
    steps: int = 400
    batch: int = 16
    d_model: int = 64
    n_layers: int = 3
    d_state: int = 16
    dt_min: float = 0.01
    dt_max: float = 0.5
    dropout: float = 0.1
    lr: float = 1e-2
    ssm_lr: float = 1e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    augment: bool = True

    def kind(self) -> str:
        """What seeds have in common."""
        return f"{self.layer}-{self.precision}" + ("-held-out" if self.held_out else "")

    def name(self) -> str:
        return f"{self.kind()}-seed{self.seed}"


class Epoch(NamedTuple):
    """The accuracy in training is that under dropout and augmentation."""

    step: int
    loss: float
    accuracy: float
    held_out: float | None


@dataclass
class Run:
    """A run that is finished: what the table and the picture show."""

    recipe: Recipe
    history: list[Epoch]
    logits: Tensor
    y: Tensor
    seconds: float
    processor_seconds: float
    parameters: int

    @property
    def accuracy(self) -> float:
        return (self.logits.argmax(-1) == self.y).double().mean().item()


class Training:
    """A model, its optimiser, and how far they are; ``state`` and ``load`` are all that a resumed run needs."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: str) -> None:
        self.recipe, self.device = recipe, torch.device(device)
        train, judged = dataset.train, dataset.test
        if recipe.held_out:
            # The test set takes no part where something is chosen.
            train, judged = held_out(train, recipe.held_out, recipe.seed)
        self.train, self.judged = train.to(device), judged.to(device)
        torch.manual_seed(recipe.seed)
        sizes = (
            recipe.d_model,
            recipe.n_layers,
            recipe.d_state,
            recipe.dropout,
            recipe.layer,
            recipe.dt_min,
            recipe.dt_max,
        )
        try:
            self.model = Classifier(train.x.shape[-1], len(dataset.classes), *sizes).to(device)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        self.model.scale_differences(self.train)
        # dt, A and B decide how far the model remembers: they learn more slowly than the rest, and never decay.
        groups = s4_fast.get_ssm_param_groups(self.model, recipe.lr, recipe.ssm_lr, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, [group["lr"] for group in groups], total_steps=recipe.steps, pct_start=0.1
        )
        self.history: list[Epoch] = []
        self.seconds = self.processor_seconds = 0.0

    @property
    def step(self) -> int:
        return self.history[-1].step if self.history else 0

    def epoch(self) -> None:
        """Once through the training set, or as far as the steps go."""
        start, processor = time.perf_counter(), time.process_time()
        self.model.train()
        batches = torch.randperm(len(self.train.y)).to(self.device).split(self.recipe.batch)
        batches = batches[: self.recipe.steps - self.step]
        loss_sum = right = seen = 0.0
        for rows in batches:
            batch = self.train.rows(rows)
            if self.recipe.augment:
                batch = augmented(batch)
            loss, logits = self.learn(batch)
            loss_sum += loss.item() * len(rows)
            right += (logits.argmax(-1) == batch.y).sum().item()
            seen += len(rows)
        if not math.isfinite(loss_sum):
            raise click.ClickException(f"{self.recipe.dataset}: the model diverged; try a lower --lr")
        self.seconds += time.perf_counter() - start
        self.processor_seconds += time.process_time() - processor
        step = self.step + len(batches)
        due = step * MEASURE // self.recipe.steps > self.step * MEASURE // self.recipe.steps
        accuracy = None
        if self.recipe.held_out and due:
            accuracy = (self.judge().argmax(-1) == self.judged.y).double().mean().item()
        self.history.append(Epoch(step, loss_sum / seen, right / seen, accuracy))

    def learn(self, batch: Series) -> tuple[Tensor, Tensor]:
        """One step: the loss and the logits before it."""
        logits = self.forward(batch)
        loss = cross_entropy(logits, batch.y, label_smoothing=self.recipe.smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach(), logits.detach()

    def forward(self, batch: Series) -> Tensor:
        half = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return self.model(batch.x, batch.lengths).float()

    @torch.no_grad()
    def judge(self) -> Tensor:
        """Logits of the test set, or of what is held out."""
        self.model.eval()
        rows = torch.arange(len(self.judged.y), device=self.device)
        return torch.cat([self.forward(self.judged.rows(part)) for part in rows.split(128)])

    def state(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": (torch.get_rng_state(), cuda),
            "history": [tuple(epoch) for epoch in self.history],
            "seconds": (self.seconds, self.processor_seconds),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        random, cuda = state["random"]
        torch.set_rng_state(random)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        self.history = [Epoch(*epoch) for epoch in state["history"]]
        self.seconds, self.processor_seconds = state["seconds"]


def run(recipe: Recipe, dataset: Dataset, folder: Path, device: str, report: Callable[[Training], None]) -> Run:
    """Train, or go on with what ``folder`` holds of this run, or return at once what it holds of it finished.

    Raises:
        click.ClickException: the run there had other settings, its file is damaged, or the model diverged.
    """
    path = folder / f"{recipe.name()}.pt"
    training = Training(recipe, dataset, device)
    if path.exists():
        training.load(_read(path, recipe))
    saved = time.monotonic()
    report(training)
    while training.step < recipe.steps:
        training.epoch()
        if time.monotonic() - saved > SAVE_EVERY or training.step == recipe.steps:
            with files.writing(path) as file:
                torch.save(training.state(), file)
            saved = time.monotonic()
        report(training)
    parameters = sum(p.numel() for p in training.model.parameters())
    times = training.seconds, training.processor_seconds
    return Run(recipe, training.history, training.judge().cpu(), training.judged.y.cpu(), *times, parameters)


def _read(path: Path, recipe: Recipe) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before = Recipe(**state["recipe"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, OSError) as error:
        raise click.ClickException(f"{path} cannot be read: remove it, or name another folder with --out") from error
    if before != recipe:
        other = [f"{k} {v} instead of {asdict(recipe)[k]}" for k, v in asdict(before).items() if v != asdict(recipe)[k]]
        raise click.ClickException(f"{path} has {', '.join(other)}: remove it, or name another folder with --out")
    return state


def smaller(recipe: Recipe) -> Recipe:
    """A tiny model and a few steps."""
    return replace(recipe, steps=4, d_model=8, n_layers=1, d_state=4)
