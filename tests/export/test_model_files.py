"""Models from files of weights, and the command that exports them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from s4_fast import S4DLayer, S4Layer, S4SequenceModel, SSMBlock
from s4_fast.__main__ import main
from s4_fast.export import ExportError, load_model, save_model, to_c

MODELS: dict[str, Callable[[], nn.Module]] = {
    "s4d": lambda: S4SequenceModel(2, 6, 3, 12, 4, task="regression", discretization="bilinear"),
    "s4": lambda: S4SequenceModel(2, 6, 3, 1, 4, layer="s4", rank=2, n_ssm=3),
    "double": lambda: S4SequenceModel(1, 4, 1, 1, 4, dtype=torch.float64),
    "bidirectional": lambda: S4SequenceModel(1, 4, 1, 1, 4, bidirectional=True),
    "SSMBlock": lambda: SSMBlock(4, 6, discretization="bilinear"),
    "SSMBlock of s4": lambda: SSMBlock(4, 6, layer="s4"),
    "S4DLayer": lambda: S4DLayer(4, 6),
    "S4Layer": lambda: S4Layer(4, 6, n_ssm=2),
}


@pytest.mark.parametrize("name", MODELS)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    model = MODELS[name]().eval()
    save_model(model, tmp_path / "model.safetensors")
    found = load_model(tmp_path / "model.safetensors")
    assert type(found) is type(model) and not found.training
    assert str(found) == str(model)
    dtype = next(model.parameters()).dtype
    u = torch.randn(2, 9, getattr(model, "d_input", None) or 4 if name != "double" else 1, dtype=dtype)
    assert torch.equal(found(u), model(u))


def test_a_state_dict_alone(tmp_path: Path) -> None:
    model = S4SequenceModel(2, 6, 3, 1, 4, discretization="bilinear").eval()
    path, u = tmp_path / "model.pt", torch.randn(1, 9, 2)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
    with pytest.raises(ExportError, match="one of classification, regression, got None"):
        load_model(path)
    assert torch.equal(load_model(path, task="classification", discretization="bilinear")(u), model(u))
    assert not torch.equal(load_model(path, task="classification")(u), model(u))


def test_what_is_said_wins_over_the_metadata(tmp_path: Path) -> None:
    save_model(S4SequenceModel(2, 6, 3, 1, 4), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors").task == "classification"
    assert load_model(tmp_path / "a.safetensors", task="regression").task == "regression"


def test_metadata_is_the_constructors_arguments(tmp_path: Path) -> None:
    model = MODELS["s4"]()
    save_model(model, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        again = S4SequenceModel(**json.loads(file.metadata()["model"]))
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a": torch.ones(2)}, "holds no S4SequenceModel"),
        ({"encoder.weight": torch.ones(4, 2), "head.weight": torch.ones(2, 4)}, "missing or of other shapes"),
        ({"kernel.inv_dt": torch.ones(2, 1), "kernel.C": torch.ones(3)}, "missing or of other shapes"),
        ({**S4DLayer(4, 6).state_dict(), "kernel.inv_dt": torch.ones(3)}, "expected shape"),
        ({**S4DLayer(4, 6).state_dict(), "kernel.C": torch.ones(1, 4, 0, 2)}, "A_real|d_state"),
        ({**S4DLayer(4, 6).state_dict(), "more": torch.ones(3)}, "more: not a key"),
    ],
)
def test_other_files_are_named(weights: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=said) as found:
        load_model(tmp_path / "a.safetensors", task="regression")
    assert "\n" not in str(found.value)


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    for text, said in (("{", "no JSON"), ('{"task": "sorting"}', "'sorting'"), ("[]", "got None")):
        save_file(S4SequenceModel(2, 6, 3, 1, 4).state_dict(), tmp_path / "a.safetensors", metadata={"model": text})
        with pytest.raises(ExportError, match=said):
            load_model(tmp_path / "a.safetensors")


def test_models_of_other_types_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Linear"):
        save_model(nn.Linear(2, 2), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def _export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_command_needs_an_ending_or_a_target(tmp_path: Path) -> None:
    save_model(MODELS["s4d"](), tmp_path / "a.safetensors")
    result = _export(tmp_path / "a.safetensors", tmp_path / "out.bin")
    assert result.exit_code == 2 and "unknown target 'bin'; expected --to onnx or c" in result.output


def test_command_writes_c(tmp_path: Path) -> None:
    model = MODELS["s4"]()
    save_model(model, tmp_path / "a.safetensors")
    result = _export(tmp_path / "a.safetensors", "--to", "c", tmp_path / "net.c", "--name", "effect", "--rate", "0.5")
    assert result.exit_code == 0, result.output
    assert "S4SequenceModel, classification, 2 inputs, 3 outputs" in result.output
    to_c(model, tmp_path / "same.c", name="effect", rate=0.5)
    assert (tmp_path / "net.c").read_text() == (tmp_path / "same.c").read_text()


@pytest.mark.parametrize("graph", ["step", "prefill"])
def test_command_writes_onnx(graph: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    torch.save(MODELS["s4d"]().state_dict(), tmp_path / "a.pt")
    out = tmp_path / "a.onnx"
    result = _export(tmp_path / "a.pt", out, "--graph", graph, "--task", "regression")
    assert result.exit_code == 0, result.output
    assert {entry.key: entry.value for entry in onnx.load(out).metadata_props}["graph"] == graph


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "tflite"], "unknown target 'tflite'; expected --to onnx or c"),
        (["--to", "c", "--graph", "step"], "--to c takes no --graph"),
        (["--to", "onnx", "--name", "a"], "--to onnx takes no --name"),
        (["--to", "onnx", "--graph", "steps"], "unknown graph 'steps'"),
        (["--to", "c", "--name", "a b"], "'a b' is no name in C"),
        (["--to", "c", "--rate", "0"], "rate above 0"),
        (["--to", "c", "--task", "sorting"], "sorting"),
        (["--to", "c", "--discretization", "euler"], "euler"),
    ],
)
def test_command_refuses_in_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    save_model(MODELS["s4d"](), tmp_path / "a.safetensors")
    result = _export(tmp_path / "a.safetensors", tmp_path / "out.c", *options)
    assert result.exit_code == 2
    assert said in result.output and result.output.count("\n") == 1
    assert not (tmp_path / "out.c").exists()


def test_command_keeps_a_file_that_exists(tmp_path: Path) -> None:
    save_model(MODELS["s4"](), tmp_path / "a.safetensors")
    (tmp_path / "a.c").write_text("mine")
    result = _export(tmp_path / "a.safetensors", tmp_path / "a.c", "--to", "c")
    assert result.exit_code == 2 and "--force" in result.output
    assert (tmp_path / "a.c").read_text() == "mine"
    assert _export(tmp_path / "a.safetensors", tmp_path / "a.c", "--to", "c", "--force").exit_code == 0
    weights = (tmp_path / "a.safetensors").read_bytes()
    same = tmp_path / "a.safetensors"
    result = _export(same, same, "--to", "c", "--name", "a", "--force")
    assert result.exit_code == 2 and "itself" in result.output
    assert same.read_bytes() == weights


def test_command_names_what_the_model_cannot(tmp_path: Path) -> None:
    save_model(MODELS["bidirectional"](), tmp_path / "a.safetensors")
    result = _export(tmp_path / "a.safetensors", tmp_path / "a.c", "--to", "c")
    assert result.exit_code == 2 and "bidirectional" in result.output and result.output.count("\n") == 1
    result = _export(tmp_path / "nowhere", tmp_path / "a.c", "--to", "c")
    assert result.exit_code == 2 and "nowhere" in result.output and result.output.count("\n") == 1
