"""The adding problem, run as a user runs it."""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Generator

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

from adding_problem import BEST, CURVES, TEST_SEED, AddingModel, adding_data, evaluate, load, score, too_small
from train_mini_s4d import MiniS4D

import s4_fast
from result_files import save_tensors
from tests.examples.running import ROOT, printed_by

SCRIPT = ROOT / "examples" / "adding_problem.py"
SMALL = ("--seq_len=30", "--d_model=6", "--d_state=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a short run with the default output folder, and what was printed."""
    folder = tmp_path_factory.mktemp("adding")
    options = (*SMALL, "--train_samples=110", "--epochs=3", "--batch_size=50")
    printed = printed_by(SCRIPT, *options, cwd=folder)
    assert [path.name for path in folder.iterdir()] == ["runs"]
    return folder / "runs" / "adding", printed


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program in this process and return what it printed, or the one line of its error for ``code`` > 0."""

    def run(*options: str, code: int = 0) -> str:
        monkeypatch.setattr(s4_fast, "keep_pages", lambda: True)  # not in the process of all other tests
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(tmp_path), *options])
        if code == 0:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert stop.value.code == code
        message = capsys.readouterr().err
        assert message.startswith("adding_problem.py: ")
        assert message.count("\n") == 1
        return message

    return run


def last_line(printed: str) -> str:
    return printed.strip().splitlines()[-1]


def test_data_are_the_adding_problem(seed: int) -> None:
    x, y = adding_data(6000, 6, seed)
    assert x.shape == (6000, 6, 2)
    assert y.shape == (6000, 1)
    values, marks = x.unbind(-1)
    assert ((marks == 0) | (marks == 1)).all() and (marks.sum(1) == 2).all()
    assert ((values >= 0) & (values < 1)).all()
    assert torch.equal(y[:, 0], torch.stack([v[m == 1].sum() for v, m in zip(values, marks, strict=True)]))
    pairs = torch.stack([m.nonzero()[:, 0] for m in marks])
    counts = torch.unique(6 * pairs[:, 0] + pairs[:, 1], return_counts=True)[1]
    assert len(counts) == 15 and (counts - 400).abs().max() < 6 * 20  # six deviations


def test_data_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = adding_data(10, 7, 3)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, adding_data(10, 7, 3), strict=True))
    assert not torch.equal(first.x, adding_data(10, 7, 4).x)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        adding_data(10, 1, 3)


def test_encoder_starts_from_standardised_inputs(seed: int) -> None:
    torch.manual_seed(seed)
    encoded = AddingModel(200, 1, 50).encoder(adding_data(2000, 50, seed).x).detach()
    # Weights of nn.Linear(2, ...) have variance 1/6: two inputs of variance 1 make 1/3, and the bias 1/6.
    assert 0.25 < encoded.var((0, 1)).mean() < 0.42
    assert encoded.mean((0, 1)).square().mean() < 0.25


def test_accuracy_is_the_share_within_tolerance(generator: Generator) -> None:
    model, data = AddingModel(4, 2, 9), adding_data(23, 9, 5)
    with torch.no_grad():
        error = (model(data.x) - data.y).double()
    tolerance = error.abs().median().item()
    score = evaluate(model, data, 5, tolerance)
    assert score.mse == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert score.accuracy == pytest.approx((error.abs() < tolerance).double().mean().item(), abs=1 / 23 + 1e-9)
    assert 0.3 < score.accuracy < 0.7


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ((10, 32, 64, 1250, 25), ["25 steps"]),
        ((10, 32, 64, 2500, 50), []),
        ((100, 32, 64, 3750, 75), ["75 steps"]),
        ((100, 32, 64, 5000, 100), []),
        ((300, 32, 64, 7500, 150), ["150 steps"]),
        ((300, 32, 64, 10000, 200), []),
        ((1000, 64, 64, 5000, 400), ["400 steps"]),
        ((1000, 64, 64, 5000, 2000), []),
        ((100, 1, 64, 5000, 1000), ["--d_model 1"]),
        ((100, 2, 1, 5000, 1000), ["--d_model 2 --d_state 1"]),
        ((100, 2, 2, 5000, 1000), []),
        ((100, 32, 64, 10, 400), ["10 sequences"]),
        ((100, 32, 64, 20, 400), []),
        ((100, 1, 1, 1, 1), ["--d_model 1", "1 sequences", "1 steps"]),
    ],
)
def test_sizes_that_did_not_learn_are_named(sizes: tuple[int, ...], named: list[str]) -> None:
    """Measured, a step being a batch of 50 sequences; the README has the errors."""
    found = too_small(*sizes)
    assert len(found) == len(named)
    assert all(name in reason for name, reason in zip(named, found, strict=True))


def test_what_will_not_learn_is_said_before_and_what_has_not_behind(
    program: Callable[..., str], tmp_path: Path
) -> None:
    printed = program(*SMALL, "--train_samples=20", "--epochs=1").splitlines()
    assert printed[0].startswith("this will not learn to add: 1 steps are too few")
    assert printed[-3].startswith("the model has not learnt to add")
    tested = adding_data(1000, 30, TEST_SEED).y
    assert f"{score(1 - tested, 0.04)}" in printed[-2]
    # Nothing is known of weights that were trained before.
    again = program(*SMALL, "--train_samples=20", "--epochs=1", "--ckpt", str(tmp_path / BEST))
    assert "will not learn" not in again
    assert "has not learnt" in again


@pytest.mark.slow
def test_a_size_that_learns_is_not_called_too_small(program: Callable[..., str]) -> None:
    printed = program("--seq_len=20", "--d_model=16", "--d_state=16", "--train_samples=5000", "--epochs=3")
    assert "this will not learn" not in printed
    assert "has not learnt" not in printed
    assert float(last_line(printed).split()[2]) < 0.01


@pytest.mark.slow
def test_run_writes_the_best_model_and_curves(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    assert {path.name for path in folder.iterdir()} == {BEST, CURVES}
    assert printed.count("validation MSE") == 3
    assert f"best model: {Path('runs', 'adding', BEST)}" in printed


@pytest.mark.slow
def test_evaluation_alone_repeats_the_result_and_writes_nothing(
    trained: tuple[Path, str], program: Callable[..., str], tmp_path: Path
) -> None:
    folder, printed = trained
    again = program(*SMALL, "--eval_only", "--ckpt", str(folder / BEST), "--seed=7")
    assert "the full model" in again
    assert last_line(again) == last_line(printed)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_best_model_is_that_of_the_lowest_validation_error(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    model = AddingModel(6, 4, 30)
    assert load(model, folder / BEST) == "the full model"
    errors = [float(line.split("MSE")[1].split()[0]) for line in printed.splitlines() if "validation" in line]
    assert evaluate(model, adding_data(1000, 30, 43), 50, 0.04).mse == pytest.approx(min(errors), abs=1e-6)
    assert f"{evaluate(model, adding_data(1000, 30, TEST_SEED), 50, 0.04)}" in last_line(printed)


def test_a_bare_mini_s4d_leaves_the_encoder(program: Callable[..., str], tmp_path: Path) -> None:
    mini, path = MiniS4D(6, 4, 30), tmp_path / "mini.pt"
    save_tensors(path, mini.state_dict())
    model = AddingModel(6, 4, 30)
    encoder = model.encoder.weight.clone()
    assert "MiniS4D into model.s4d" in load(model, path)
    assert torch.equal(model.encoder.weight, encoder)
    assert all(torch.equal(t, mini.state_dict()[key]) for key, t in model.s4d.state_dict().items())
    assert "the encoder is as it was" in program(*SMALL, "--eval_only", "--ckpt", str(path))


def test_complex_checkpoint_under_a_key_loads(tmp_path: Path) -> None:
    source, model = AddingModel(6, 4, 30), AddingModel(6, 4, 30)
    pairs = ("s4d.kernel_gen.B", "s4d.kernel_gen.C")
    state = {key: torch.view_as_complex(t) if key in pairs else t for key, t in source.state_dict().items()}
    torch.save({"model": state}, tmp_path / "old.pt")
    assert load(model, tmp_path / "old.pt") == "the full model"
    assert all(torch.equal(t, source.state_dict()[key]) for key, t in model.state_dict().items())


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint_and_keeps_the_better(
    trained: tuple[Path, str], program: Callable[..., str], tmp_path: Path
) -> None:
    folder, printed = trained
    # Steps this small change nothing that matters, and steps this large ruin the model.
    for lr in ("1e-9", "1e3"):
        again = program(*SMALL, "--train_samples=300", "--epochs=1", f"--lr={lr}", "--ckpt", str(folder / BEST))
        before, after = (float(text.split("MSE")[1].split()[0]) for text in (last_line(printed), last_line(again)))
        assert after <= before + 1e-5
        assert (tmp_path / BEST).exists()


@pytest.mark.slow
def test_interrupted_run_leaves_the_last_best(
    trained: tuple[Path, str], program: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (trained[0] / BEST).read_bytes()
    (tmp_path / BEST).write_bytes(whole)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("s4_fast.files.os.replace", stop)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(tmp_path), *SMALL, "--train_samples=10"])
    monkeypatch.setattr(s4_fast, "keep_pages", lambda: True)
    with pytest.raises(SystemExit, match="interrupted; what was saved before is whole"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert (tmp_path / BEST).read_bytes() == whole


@pytest.mark.slow
def test_diverging_training_is_one_line_and_keeps_the_best(
    trained: tuple[Path, str], program: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / BEST).write_bytes(whole := (trained[0] / BEST).read_bytes())
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: self.param_groups[0]["params"][0].data.fill_(math.nan))
    assert "diverged in epoch 1" in program(*SMALL, "--train_samples=100", code=1)
    assert (tmp_path / BEST).read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "pytorch"])
def test_backend_is_the_kernels(trained: tuple[Path, str], program: Callable[..., str], backend: str) -> None:
    options = (*SMALL, "--eval_only", "--ckpt", str(trained[0] / BEST))
    automatic = program(*options)
    with mock.patch("train_mini_s4d.log_vandermonde", wraps=s4_fast.log_vandermonde) as kernel:
        chosen = program(*options, f"--backend={backend}")
    assert {call.kwargs["backend"] for call in kernel.call_args_list} == {backend}
    mse = [float(last_line(printed).split()[2]) for printed in (automatic, chosen)]
    assert mse[0] == pytest.approx(mse[1], abs=2e-6)


def test_missing_backend_is_one_line(program: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s4_fast.dispatch._missing", lambda backend: "it is not here")
    message = program(*SMALL, "--backend=triton", code=2)
    assert "--backend" in message and "it is not here" in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--eval_only",), "name it with --ckpt"),
        (("--ckpt", "nowhere.pt"), "nowhere.pt"),
        (("--ckpt", __file__), "no file of torch.save"),
        (("--seq_len=1",), "--seq_len"),
        (("--epochs=0",), "--epochs"),
        (("--tolerance=nan",), "nan"),
        (("--backend=fast",), "fast"),
        (("--device=nowhere",), "nowhere"),
        (("--out", __file__), "--out"),
    ],
)
def test_bad_option_is_one_line(
    program: Callable[..., str], tmp_path: Path, options: tuple[str, ...], named: str
) -> None:
    (tmp_path / BEST).write_bytes(b"an earlier best")
    assert named in program(*options, code=2)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"an earlier best"]


@pytest.mark.slow
def test_checkpoint_that_does_not_fit_is_one_line(
    trained: tuple[Path, str], program: Callable[..., str], tmp_path: Path
) -> None:
    whole = (trained[0] / BEST).read_bytes()
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "bad.pt"
    (tmp_path / BEST).write_bytes(whole)

    def refused(*sizes: str) -> str:
        message = program(*(sizes or SMALL), "--ckpt", str(path), code=2)
        assert "--ckpt" in message
        assert (tmp_path / BEST).read_bytes() == whole
        assert {file.name for file in tmp_path.iterdir()} == {"folder", BEST}
        return message

    path.write_bytes(whole)
    message = refused("--d_model=6", "--d_state=8")
    assert "made with --d_model 6 --d_state 4, and this model has --d_model 6 --d_state 8" in message
    number = torch.load(trained[0] / BEST, weights_only=True)["s4d.D"].numpy().tobytes()
    assert whole.count(number) == 1
    for damaged in (whole[: len(whole) // 2], b"", whole.replace(number, number[::-1]), whole[300:]):
        path.write_bytes(damaged)
        assert "bad.pt" in refused()
    for content in ({}, {"encoder.weight": 1}, [1, 2], {"something": torch.ones(2)}, torch.ones(3)):
        torch.save(content, path)
        assert "bad.pt" in refused()
    save_tensors(path, MiniS4D(6, 4, 30, variant="minimal").state_dict())
    assert "MiniS4D" in refused()
