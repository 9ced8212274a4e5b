"""The smallest S4D, run as a user runs it; what it computes is in test_verification.py."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import click
import pytest
import torch
from rich.console import Console
from torch import Generator, Tensor

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

from safetensors.torch import load_file
from train_mini_s4d import MiniS4D, S4DKernel, neighbours_correlation, smooth_sequences, train

import s4_fast
from tests.examples.running import ROOT, printed_by

SCRIPT = ROOT / "examples" / "train_mini_s4d.py"


@pytest.fixture(scope="module")
def minimal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a short run of the minimal variant, and what was printed."""
    out = tmp_path_factory.mktemp("mini") / "new" / "folder"
    options = {"variant": "minimal", "d_model": 3, "d_state": 5, "seq_len": 21, "steps": 10, "out": out}
    return out, printed_by(SCRIPT, *(f"--{name}={value}" for name, value in options.items()))


@pytest.mark.slow
def test_minimal_run_writes_what_it_says(minimal: tuple[Path, str]) -> None:
    out, printed = minimal
    assert {path.name for path in out.iterdir()} == {"minimal.pt", "minimal.png", "minimal.safetensors"}
    assert "(1000, 3, 21) -> (1000, 1)" in printed
    assert "M is 63 x 63" in printed


@pytest.mark.slow
def test_exported_arrays_are_the_saved_model(minimal: tuple[Path, str], generator: Generator) -> None:
    out, _ = minimal
    model = MiniS4D(3, 5, 21, variant="minimal")
    model.load_state_dict(torch.load(out / "minimal.pt", weights_only=True))
    arrays, u = load_file(out / "minimal.safetensors"), torch.randn(7, 3, 21, generator=generator)
    hidden = torch.nn.functional.gelu(u.flatten(1) @ arrays["M"])
    torch.testing.assert_close(hidden @ arrays["W"] + arrays["b"], model(u).detach(), rtol=1e-5, atol=1e-5)


def test_variants_do_not_overwrite_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(s4_fast, "keep_pages", lambda: True)  # not in the process of all other tests
    for variant in ("full", "minimal"):
        options = ["--variant", variant, "--steps", "1", "--seq_len", "5", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        printed = capsys.readouterr().out
        assert "always the mean" in printed and "the sample correlation" in printed
    suffixes = {"full": {"pt", "png"}, "minimal": {"pt", "png", "safetensors"}}
    expected = {f"{variant}.{suffix}" for variant, each in suffixes.items() for suffix in each}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_sample_correlation_is_that_of_neighbours(generator: Generator) -> None:
    x, rho = smooth_sequences(50, 4, 2000, generator)
    assert (neighbours_correlation(x) - rho).abs().max() < 0.08
    assert neighbours_correlation(x).shape == rho.shape


def test_training_beats_the_mean() -> None:
    torch.manual_seed(0)
    model, generator = MiniS4D(), Generator().manual_seed(0)
    train(model, 200, 0.02, 64, generator, Console(quiet=True))
    u, rho = smooth_sequences(500, 4, 64, generator)
    assert torch.nn.functional.mse_loss(model(u), rho) < 0.6 * rho.var()


def test_diverging_training_is_one_line(generator: Generator) -> None:
    with pytest.raises(click.ClickException, match="diverged in step 2"):
        train(MiniS4D(), 5, 1e30, 4, generator, Console(quiet=True))


def test_smooth_sequences_have_the_correlation_they_say(generator: Generator) -> None:
    x, rho = smooth_sequences(400, 3, 500, generator)
    assert x.shape == (400, 3, 500)
    assert rho.shape == (400, 1)
    measured = (x[..., 1:] * x[..., :-1]).mean((1, 2)) / x.square().mean((1, 2))
    assert (measured - rho[:, 0]).abs().mean() < 0.04
    assert 0.9 < x.square().mean() < 1.1


@pytest.mark.parametrize("variant", ["full", "minimal"])
def test_gradients_are_those_of_differences(variant: str, generator: Generator, seed: int) -> None:
    torch.manual_seed(seed)
    model = MiniS4D(2, 3, 7, variant=variant).double()
    u = torch.randn(2, 2, 7, dtype=torch.float64, generator=generator)
    parameters = [parameter.detach().requires_grad_() for parameter in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def output(*values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (u,))

    assert torch.autograd.gradcheck(output, tuple(parameters))


def test_a_compiled_model_has_one_graph() -> None:
    model, u = MiniS4D(), torch.randn(2, 4, 64)
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(u), model(u))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "tiny"}, "unknown variant 'tiny'; expected one of full, minimal"),
        ({"L": 0}, "L must be at least 1, got 0"),
        ({"d_state": 0}, "d_model and d_state must be at least 1, got 4 and 0"),
        ({"dropout": 1.0}, "dropout probability"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiniS4D(**options)


def test_step_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="dt_min <= dt_max"):
        S4DKernel(2, dt_min=0.2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--variant", "tiny"), "tiny"),
        (("--seq_len", "0"), "--seq_len"),
        (("--dropout", "1"), "--dropout"),
        (("--dropout", "0.1", "--variant", "minimal"), "no dropout"),
        (("--device", "nowhere"), "nowhere"),
        (("--out", __file__), "--out"),
    ],
)
def test_bad_option_is_one_line(
    options: tuple[str, ...], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(s4_fast, "keep_pages", lambda: True)  # not in the process of all other tests
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1
