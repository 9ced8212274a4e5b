"""The streaming example, run as a user runs it."""

from __future__ import annotations

import importlib
import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Generator, Tensor

import s4_fast
from s4_fast import S4SequenceModel
from tests.examples.running import ROOT, printed_by

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

SCRIPT = ROOT / "examples" / "stream.py"


@pytest.fixture(scope="module")
def stream() -> ModuleType:
    return importlib.import_module("stream")


@pytest.fixture(scope="module", params=["s4d", "s4"])
def smoke(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The checkpoint and what was printed."""
    out = tmp_path_factory.mktemp("stream") / "new" / "folder"
    printed = printed_by(SCRIPT, "--smoke", "--layer", request.param, "--out", str(out), cwd=out.parents[1])
    assert {path.name for path in out.iterdir()} == {f"{request.param}.safetensors", "stream.png", "effect.c"}
    return out / f"{request.param}.safetensors", printed


def small_model(task: str = "regression") -> S4SequenceModel:
    torch.manual_seed(0)
    return S4SequenceModel(1, 4, 1, 2, 4, task=task, dt_min=3e-4, dt_max=0.3)


@pytest.mark.slow
def test_prints_what_it_measured(smoke: tuple[Path, str]) -> None:
    for said in (
        "with the state carried on",
        "by the best linear filter of",
        "from the same in float64",
        "the state between two blocks",
        "by step",
        "p99",
        "its step in C",
    ):
        assert said in smoke[1]


@pytest.mark.slow
def test_stream_equals_one_pass(stream: ModuleType, smoke: tuple[Path, str]) -> None:
    model, exact = stream.load_checkpoint(smoke[0]), stream.load_checkpoint(smoke[0]).double()
    generator = Generator().manual_seed(3)
    signal = stream.dry_audio(1, 9_000, generator)[0]
    blocks = stream.uneven_blocks(len(signal), generator)
    played = stream.play(model, signal, blocks)
    with torch.no_grad():
        offline = exact(signal.double()[None, :, None])[0, :, 0]
    assert not model.training
    assert (played.output - offline).norm() < 5e-6 * offline.norm()
    assert played.seconds.isfinite().all()


@pytest.mark.parametrize("samples", [1, 2, 17, 30_000])
def test_blocks_fill_the_stream(stream: ModuleType, samples: int) -> None:
    blocks = stream.uneven_blocks(samples, Generator().manual_seed(0))
    assert sum(block.size for block in blocks) == samples
    assert all(1 <= block.size <= stream.MAX_BLOCK for block in blocks)
    assert sum(block.by_step for block in blocks) == min(4000, samples // 4)
    played = stream.play(small_model(), torch.randn(samples), blocks)
    assert stream.latency_table(blocks, played.seconds).row_count >= 1
    assert played.samples[-1] == samples


@pytest.mark.parametrize("carry", [True, False])
def test_chunks_carry_the_state_and_stop_the_gradient(stream: ModuleType, carry: bool) -> None:
    model, chunk = small_model().double(), 50
    dry, wet = torch.randn(2, 3, 175, 1, dtype=torch.float64)
    gradients: list[Tensor] = []

    def keep_gradient(loss: Tensor) -> None:
        model.zero_grad()
        loss.backward()
        gradients.append(model.encoder.weight.grad.clone())

    error = stream.learn(model, dry, wet, chunk, carry, keep_gradient)

    whole = model(dry)
    parts = [slice(l, min(l + chunk, 175)) for l in range(0, 175, chunk)]
    outputs = [whole[:, part] if carry else model(dry[:, part]) for part in parts]
    losses = [
        (y - wet[:, part]).square().mean() / wet[:, part].square().mean()
        for y, part in zip(outputs, parts, strict=True)
    ]
    assert error == pytest.approx(torch.stack(losses).mean().item(), rel=1e-9)
    (full,) = torch.autograd.grad(losses[-1], model.encoder.weight)
    assert torch.allclose(gradients[-1], full, rtol=1e-8) != carry


def test_diverging_training_is_one_line(
    stream: ModuleType, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: self.param_groups[0]["params"][0].data.fill_(math.nan))
    assert "diverged" in run("--smoke", code=1)


def test_effect_is_its_recurrence(stream: ModuleType) -> None:
    dry = stream.dry_audio(2, 3000, Generator().manual_seed(1))
    assert dry.square().mean() > 1e-4
    damping, angle = math.pi * 500 / stream.RATE, 2 * math.pi * 1200 / stream.RATE
    b1, b2 = 2 * math.exp(-damping) * math.cos(angle), -math.exp(-2 * damping)
    for row, wet in zip(dry.double().tolist(), stream.effect(dry).double(), strict=True):
        # The same resonance as a difference equation: x_l = b1 x_{l-1} + b2 x_{l-2} + (1 - b1 - b2) u_{l-1}.
        x, previous, before, power, expected = 0.0, 0.0, 0.0, 0.0, []
        for u in row:
            x, previous = b1 * x + b2 * previous + (1 - b1 - b2) * before, x
            before = u
            driven = math.tanh(3 * x)
            power = math.exp(-4 / stream.RATE) * power + 4 / stream.RATE * driven**2
            expected.append(driven / math.sqrt(1 + 40 * power))
        reference = torch.tensor(expected, dtype=torch.float64)
        assert (wet - reference).norm() <= 1e-6 * reference.norm()


def test_best_filter_finds_a_filter(stream: ModuleType, generator: Generator) -> None:
    dry, taps = torch.randn(3, 400, generator=generator), torch.tensor([0.5, -2.0, 0.25])
    target = torch.nn.functional.conv1d(torch.nn.functional.pad(dry[:, None], (2, 0)), taps.flip(0)[None, None])[:, 0]
    found = stream.best_filter(dry, target, 3)
    assert stream.error_to_signal(found, target.double()) < 1e-9
    assert stream.error_to_signal(stream.best_filter(dry, target, 1), target.double()) > 0.01
    assert stream.best_filter(torch.zeros(1, 9), torch.zeros(1, 9), 4).abs().max() == 0


def test_memory_without_proc(stream: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resource")

    def absent(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(stream.Path, "read_text", absent)
    assert stream.resident_memory() > 2**20
    monkeypatch.setitem(sys.modules, "resource", None)
    assert stream.resident_memory() is None


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program in this process and return the one line of its error."""

    def fail(*options: str, code: int = 2) -> str:
        # Not in the process of all other tests.
        monkeypatch.setattr(s4_fast, "keep_pages", lambda: True)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(tmp_path), *options])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert stop.value.code == code
        message = capsys.readouterr().err
        assert message.startswith("stream.py: ")
        assert message.count("\n") == 1
        return message

    return fail


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--layer", "lstm", "lstm"),
        ("--passes", "0", "--passes"),
        ("--d-state", "3", "even"),
        ("--lr", "nan", "nan"),
        ("--samples", "0", "--samples"),
        ("--checkpoint", "nowhere", "nowhere"),
        ("--out", __file__, "--out"),
    ],
)
def test_bad_option_is_one_line(run: Callable[..., str], option: str, value: str, named: str) -> None:
    assert named in run(option, value)


def test_checkpoint_of_something_else_is_one_line(stream: ModuleType, run: Callable[..., str], tmp_path: Path) -> None:
    assert "no audio effect" in run("--checkpoint", __file__)
    arguments = {"d_input": 1, "d_model": 4, "d_output": 1, "n_layers": 2, "d_state": 4}
    stream.save_checkpoint(tmp_path / "classes.safetensors", small_model("classification"), arguments)
    assert "classification" in run("--checkpoint", str(tmp_path / "classes.safetensors"))
    arguments = {**arguments, "task": "regression", "d_model": 5}
    stream.save_checkpoint(tmp_path / "other.safetensors", small_model(), arguments)
    assert "no audio effect" in run("--checkpoint", str(tmp_path / "other.safetensors"))
