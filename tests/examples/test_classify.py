"""The classification example: its data, runs that are stopped and go on, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import s4_fast
from tests.examples.running import ROOT, exit_code, printed_by
from tests.helpers import relative_error

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="aeon is not installed")

import classify_data  # noqa: E402
import classify_report  # noqa: E402
import classify_training  # noqa: E402
from classify_data import DATASETS, Dataset, Series  # noqa: E402
from classify_model import Classifier, OfficialS4D  # noqa: E402
from classify_training import Recipe, Training  # noqa: E402

SCRIPT = ROOT / "examples" / "classify.py"
SMALL = Recipe("made", steps=12, batch=4, d_model=8, n_layers=2, d_state=4)


@pytest.fixture
def made() -> Dataset:
    """Rising and falling lines of different lengths, in noise."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 12, (20,), generator=generator)
    y = torch.arange(20) % 2
    x = torch.linspace(-1, 1, 11)[:, None] * (1 - 2 * y)[:, None, None]
    x = x + 0.1 * torch.randn(20, 11, 1, generator=generator)
    x = x * (torch.arange(11) < lengths[:, None])[..., None]
    series = Series(x, lengths, y)
    return Dataset("made", ("up", "down"), series, series)


# Series, longest, channels and classes; the archive's own figures.
SIZES = {
    "ItalyPowerDemand": (67, 1029, 24, 1, 2),
    "JapaneseVowels": (270, 370, 29, 12, 9),
    "BasicMotions": (40, 40, 100, 6, 4),
    "GunPoint": (50, 150, 150, 1, 2),
    "ArrowHead": (36, 175, 251, 1, 3),
    "OSULeaf": (200, 242, 427, 1, 6),
    "ACSF1": (100, 100, 1460, 1, 10),
}


@pytest.mark.parametrize("name", ["ItalyPowerDemand", "JapaneseVowels"])
def test_the_data_are_those_of_the_archive(name: str) -> None:
    check_sizes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_all_data_are_those_of_the_archive(name: str) -> None:
    check_sizes(name)


def check_sizes(name: str) -> None:
    data = classify_data.load(name)
    train, test, longest, channels, classes = SIZES[name]
    assert (len(data.train.y), len(data.test.y), len(data.classes)) == (train, test, classes)
    assert int(max(data.train.lengths.max(), data.test.lengths.max())) == longest
    assert data.train.x.shape[2] == channels
    assert sorted(data.train.y.unique().tolist()) == list(range(classes))
    seen = torch.cat([x[:length] for x, length in zip(data.train.x, data.train.lengths, strict=True)])
    torch.testing.assert_close(seen.mean(0), torch.zeros(channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(channels), atol=1e-4, rtol=0)


def test_vowels_keep_their_lengths() -> None:
    data = classify_data.load("JapaneseVowels")
    assert int(data.train.lengths.min()) == 7
    assert int(data.test.lengths.max()) == 29
    padding = torch.arange(data.train.x.shape[1]) >= data.train.lengths[:, None]
    assert bool((data.train.x[padding] == 0).all())
    few = data.train.rows(torch.tensor([0, 1]))
    assert few.x.shape[1] == int(few.lengths.max())


def test_other_classifiers_are_those_of_the_default_split() -> None:
    assert classify_data.others("ACSF1") == {"InceptionTime": 0.91, "HIVE-COTE 2": 0.91}
    assert classify_data.others("JapaneseVowels") == {"1-NN DTW": 0.949}


def test_what_is_held_out_is_a_share_of_every_class(made: Dataset) -> None:
    kept, held = classify_data.held_out(made.train, 0.3, seed=1)
    assert held.y.tolist().count(0) == held.y.tolist().count(1) == 3
    rows = {tuple(x[:5, 0].tolist()) for x in made.train.x}
    parts = [tuple(x[:5, 0].tolist()) for part in (kept, held) for x in part.x]
    assert len(parts) == 20
    assert set(parts) == rows


def test_the_test_set_takes_no_part_where_something_is_held_out(made: Dataset, tmp_path: Path) -> None:
    unseen = made._replace(test=made.test._replace(x=torch.full_like(made.test.x, torch.nan)))
    run = classify_training.run(replace(SMALL, held_out=0.3), unseen, tmp_path, "cpu", lambda _: None)
    assert run.logits.isfinite().all()
    assert len(run.y) == 6
    assert [epoch.held_out for epoch in run.history][-1] == run.accuracy


def test_augmentation_changes_a_little(made: Dataset) -> None:
    batch = classify_data.augmented(made.train)
    assert 0.01 < relative_error(batch.x, made.train.x) < 0.5
    assert torch.equal(batch.y, made.train.y)


@pytest.mark.parametrize("layer", ["s4d", "s4", "official"])
def test_padding_is_not_read(made: Dataset, layer: str) -> None:
    torch.manual_seed(0)
    model = Classifier(1, 2, 8, 2, 4, 0.0, layer)
    model.scale_differences(made.train)
    torch.nn.init.normal_(model.norm.bias)  # which makes something of the padding's zeros
    together = model(made.train.x, made.train.lengths)
    spoilt = made.train.x + 100 * (torch.arange(11) >= made.train.lengths[:, None])[..., None]
    torch.testing.assert_close(model(spoilt, made.train.lengths), together)
    length = int(made.train.lengths[3])
    alone = model(made.train.x[3:4, :length], made.train.lengths[3:4])
    torch.testing.assert_close(alone, together[3:4], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("equal", [False, True])
def test_official_is_s4d_by_another_formula(made: Dataset, equal: bool) -> None:
    models = []
    for layer in ("s4d", "official"):
        torch.manual_seed(0)
        models.append(Classifier(1, 2, 8, 2, 4, 0.0, layer))
    assert isinstance(models[1].blocks[0].layer, OfficialS4D)
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    lengths = torch.full_like(made.train.lengths, 11) if equal else made.train.lengths
    outputs = [model(made.train.x, lengths) for model in models]
    assert relative_error(outputs[1].detach(), outputs[0].detach()) < 1e-5
    weights = torch.randn(outputs[0].shape)
    for y in outputs:
        (y * weights).sum().backward()
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert relative_error(theirs.grad, ours.grad) < 1e-4, name
    groups = [s4_fast.get_ssm_param_groups(model) for model in models]
    assert [len(group["params"]) for group in groups[0]] == [len(group["params"]) for group in groups[1]]


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"held_out": 0.3}, {"layer": "s4"}])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    made: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    recipe = replace(SMALL, **settings)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = classify_training.run(recipe, made, whole, "cpu", lambda _: None)
    monkeypatch.setattr(classify_training, "SAVE_EVERY", -1.0)

    def stop(training: Training) -> None:
        if training.step >= recipe.steps // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classify_training.run(recipe, made, parts, "cpu", stop)
    torch.manual_seed(99)  # of another process
    steps: list[int] = []
    resumed = classify_training.run(recipe, made, parts, "cpu", lambda training: steps.append(training.step))
    assert steps[0] >= recipe.steps // 2
    assert resumed.history == expected.history
    assert torch.equal(resumed.logits, expected.logits)
    files = [torch.load(folder / f"{recipe.name()}.pt", weights_only=True) for folder in (whole, parts)]
    for name, t in files[0]["model"].items():
        assert torch.equal(t, files[1]["model"][name]), name
    finished = classify_training.run(recipe, made, parts, "cpu", lambda training: steps.append(training.step))
    assert steps[-1] == recipe.steps
    assert torch.equal(finished.logits, expected.logits)


def test_autocast_reaches_the_layers(made: Dataset) -> None:
    seen: list[torch.dtype] = []
    training = Training(replace(SMALL, precision="bf16"), made, "cpu")
    training.model.blocks[0].layer.register_forward_hook(lambda _, __, y: seen.append(y.dtype))
    assert training.judge().dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_it_learns_beyond_chance(tmp_path: Path) -> None:
    """Always the commoner class is right for 50.1 % of the test."""
    recipe = Recipe("ItalyPowerDemand", steps=80, batch=16, d_model=16, n_layers=2, lr=0.01)
    run = classify_training.run(recipe, classify_data.load(recipe.dataset), tmp_path, "cpu", lambda _: None)
    assert run.accuracy > 0.85
    assert run.history[-1].loss < run.history[0].loss


@pytest.mark.slow
def test_it_is_near_the_best_that_are_known(tmp_path: Path) -> None:
    recipe = Recipe("GunPoint")
    run = classify_training.run(recipe, classify_data.load(recipe.dataset), tmp_path, "cpu", lambda _: None)
    assert run.accuracy > 0.95


def test_an_ensemble_goes_by_the_mean_of_probabilities(made: Dataset, tmp_path: Path) -> None:
    run = classify_training.run(replace(SMALL, steps=1), made, tmp_path, "cpu", lambda _: None)
    votes = [[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]]
    runs = [replace(run, logits=torch.tensor([vote]).log(), y=torch.tensor([1])) for vote in votes]
    assert classify_report.ensemble(runs).tolist() == [1]
    assert classify_report.together(runs) == 1.0
    assert classify_report.mean_and_spread(runs) == pytest.approx((1 / 3, 0.577), abs=1e-3)
    assert classify_report.together(runs[:1]) is None


def test_confusion_has_the_truth_in_rows() -> None:
    counts = classify_report.confusion(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 1]), 3)
    assert counts.tolist() == [[0, 2, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.slow
def test_it_runs_as_a_user_runs_it(tmp_path: Path) -> None:
    options = ["--smoke", "--seeds", "2", "--dataset", "JapaneseVowels", "--threads", "1", "--out", str(tmp_path)]
    printed = printed_by(SCRIPT, *options)
    assert "1-NN DTW 0.949" in printed
    found = json.loads((tmp_path / "JapaneseVowels" / "s4d-float32.json").read_text())
    assert [run["recipe"]["seed"] for run in found["runs"]] == [0, 1]
    assert found["mean"] == pytest.approx(sum(run["accuracy"] for run in found["runs"]) / 2)
    assert {path.name for path in (tmp_path / "JapaneseVowels").iterdir()} == {
        "s4d-float32.json",
        "s4d-float32.png",
        "s4d-float32-seed0.pt",
        "s4d-float32-seed1.pt",
    }
    assert printed_by(SCRIPT, *options) == printed


def test_steps_are_timed_by_each_layer_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(s4_fast, "keep_pages", lambda: True)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    small = ["--d-model", "8", "--layers", "1", "--d-state", "4", "--out", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--time", *small])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("s4d", "s4", "official", "ItalyPowerDemand"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--dataset", "FordA", "FordA"),
        ("--layer", "lstm", "lstm"),
        ("--precision", "int8", "int8"),
        ("--seeds", "0", "--seeds"),
        ("--held-out", "1", "--held-out"),
        ("--held-out", "nan", "nan"),
        ("--dt-max", "0.001", "dt_max"),
        ("--d-state", "3", "even"),
        ("--lr", "nan", "nan"),
    ],
)
def test_bad_option_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    named: str,
) -> None:
    assert exit_code(SCRIPT, monkeypatch, "--out", str(tmp_path), option, value) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1


def test_a_dataset_that_is_not_shipped_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(classify_data, "folder", lambda: tmp_path)
    with pytest.raises(classify_data.click.ClickException, match=r"does not ship GunPoint_TRAIN\.ts"):
        classify_data.load("GunPoint")


@pytest.mark.parametrize("damage", ["other settings", "cut"])
def test_a_run_that_does_not_fit_is_refused(made: Dataset, tmp_path: Path, damage: str) -> None:
    recipe = replace(SMALL, steps=1)
    classify_training.run(recipe, made, tmp_path, "cpu", lambda _: None)
    path = tmp_path / f"{recipe.name()}.pt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
        message = "cannot be read"
    else:
        recipe, message = replace(recipe, steps=3), "has steps 1 instead of 3"
    with pytest.raises(classify_training.click.ClickException, match=message):
        classify_training.run(recipe, made, tmp_path, "cpu", lambda _: None)
