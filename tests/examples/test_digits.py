"""The digits example, run as a user runs it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.examples.running import ROOT, exit_code, printed_by

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
# An import of it takes seconds.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")

SCRIPT = ROOT / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("digits") / "new" / "folder"
    return out, printed_by(SCRIPT, "--smoke", "--out", str(out))


@pytest.mark.slow
def test_writes_checkpoints_and_picture(smoke: tuple[Path, str]) -> None:
    out, _ = smoke
    assert {path.name for path in out.iterdir()} == {"s4d.safetensors", "s4.safetensors", "learning_curves.png"}


@pytest.mark.slow
def test_says_that_recurrence_and_convolution_agree(smoke: tuple[Path, str]) -> None:
    _, printed = smoke
    assert printed.count("same class for 360 of 360 test images") == 2
    assert "test accuracy" in printed


@pytest.mark.slow
def test_baselines_stand_beside_the_models(digits: ModuleType, smoke: tuple[Path, str]) -> None:
    found = digits.baselines(digits.load_split("cpu"))
    assert all(f"{name} " in smoke[1] and f"{correct:.1%}" in smoke[1] for name, correct in found.items())
    assert all(0.95 < correct < 1 for correct in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["s4d", "s4"])
def test_checkpoint_rebuilds_the_model(digits: ModuleType, smoke: tuple[Path, str], layer: str) -> None:
    out, _ = smoke
    model = digits.load_checkpoint(out / f"{layer}.safetensors")
    x = digits.load_split("cpu").test_x[:20]
    with torch.no_grad():
        whole = model(x)
    steps = digits.recur(model, x)
    assert not model.training
    assert steps.shape == (64, 20, 10)
    assert (steps[-1] - whole).abs().max() < 1e-5


@pytest.mark.slow
def test_interrupted_write_leaves_the_old_checkpoint(
    digits: ModuleType, smoke: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s4d.safetensors"
    path.write_bytes((smoke[0] / path.name).read_bytes())
    model = digits.load_checkpoint(path)
    before = path.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("s4_fast.files.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        digits.save_checkpoint(path, model, {"d_input": 2})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--layer", "lstm", "lstm"),
        ("--epochs", "0", "--epochs"),
        ("--d-state", "3", "even"),
        ("--lr", "nan", "nan"),
        ("--device", "nowhere", "nowhere"),
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
