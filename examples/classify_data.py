"""The classification datasets that the aeon package ships, as padded batches: no download, ever."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

DATASETS = ("ItalyPowerDemand", "JapaneseVowels", "BasicMotions", "GunPoint", "ArrowHead", "OSULeaf", "ACSF1")
STORED = {"InceptionTime": "InceptionTime", "HIVE-COTE 2": "HC2"}  # the names of aeon's files of results
# Which has none of multivariate series. The nearest neighbour by dependent DTW, as Bagnall et al. 2018
# (arXiv 1811.00075) have it, and as aeon's own KNeighborsTimeSeriesClassifier(distance="dtw") answers.
PUBLISHED = {"JapaneseVowels": {"1-NN DTW": 0.949}, "BasicMotions": {"1-NN DTW": 0.975}}


class Series(NamedTuple):
    """Right-padded series (count, longest, channels), their lengths and their classes, (count,)."""

    x: Tensor
    lengths: Tensor
    y: Tensor

    def rows(self, rows: Tensor) -> Series:
        """These rows, as long as the longest of them."""
        lengths = self.lengths[rows]
        return Series(self.x[rows, : int(lengths.max())], lengths, self.y[rows])

    def to(self, device: str) -> Series:
        return Series(*(t.to(device) for t in self))


class Dataset(NamedTuple):
    name: str
    classes: tuple[str, ...]
    train: Series
    test: Series


def folder() -> Path:
    """Where aeon keeps its data; the package itself is not imported, as that takes a second."""
    spec = find_spec("aeon")
    if spec is None or spec.origin is None:
        raise click.ClickException("the datasets are those of the package aeon: pip install aeon")
    return Path(spec.origin).parent


def load(name: str) -> Dataset:
    """A dataset in the archive's own split, each channel scaled by the training set's mean and spread.

    Raises:
        click.ClickException: aeon is not installed, or this version of it does not ship the dataset.
    """
    files = [folder() / f"datasets/data/{name}/{name}_{part}.ts" for part in ("TRAIN", "TEST")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise click.ClickException(f"{name}: aeon as installed does not ship {missing[0]}, and nothing is downloaded")
    # Its own loader, as the format has many forms; load_classification would go to the network.
    from aeon.datasets import load_from_ts_file

    (train, train_y), (test, test_y) = (load_from_ts_file(str(file)) for file in files)
    classes = tuple(sorted(set(train_y)))
    train, test = ([torch.tensor(series, dtype=torch.float32).mT for series in part] for part in (train, test))
    seen = torch.cat(train)
    mean, spread = seen.mean(0), seen.std(0).clamp(min=1e-6)
    return Dataset(
        name,
        tuple(map(str, classes)),
        *(
            _padded([(series - mean) / spread for series in part], [classes.index(label) for label in labels])
            for part, labels in ((train, train_y), (test, test_y))
        ),
    )


def _padded(series: list[Tensor], labels: list[int]) -> Series:
    longest = max(map(len, series))
    x = torch.stack([pad(one, (0, 0, 0, longest - len(one))) for one in series])
    return Series(x, torch.tensor([len(one) for one in series]), torch.tensor(labels))


def held_out(series: Series, share: float, seed: int) -> tuple[Series, Series]:
    """(the rest, ``share`` of every class, at least one of each)."""
    generator, kept, held = Generator().manual_seed(seed), [], []
    for label in series.y.unique():
        rows = (series.y == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = max(1, min(round(share * len(rows)), len(rows) - 1))
        held.append(rows[:count])
        kept.append(rows[count:])
    return series.rows(torch.cat(kept)), series.rows(torch.cat(held))


def augmented(batch: Series) -> Series:
    """The batch with other amplitudes and a little noise.

    The time axis stays: interpolating between samples blurs series whose neighbouring samples differ, as ACSF1's do.
    """
    x = batch.x * (1 + 0.1 * torch.randn_like(batch.x[:, :1]))
    return batch._replace(x=x + 0.03 * torch.randn_like(x))


def others(name: str) -> dict[str, float]:
    """What other classifiers reach on the default split, as aeon's wheel or a paper says."""
    results = folder() / "testing/example_results_files/classification/accuracy"
    found = dict(PUBLISHED.get(name, {}))
    for classifier, stem in STORED.items():
        path = results / f"{stem}_accuracy.csv"
        if path.is_file():
            with path.open(newline="") as file:
                # A row is a dataset and its accuracy in each resample; the first is the default split.
                first = {row[0]: float(row[1]) for row in csv.reader(file)}
            if name in first:
                found[classifier] = first[name]
    return found
