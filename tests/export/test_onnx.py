"""The exported ONNX graphs in onnxruntime, beside the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from s4_fast import S4SequenceModel, __version__
from tests.export.exported import MODELS, error, expected, inputs, made, session, stepped, zero_state

onnx = pytest.importorskip("onnx")


def steps(run: Any, u: Tensor) -> tuple[Tensor, Any]:
    """The outputs at every step of u (length, features), and the last state."""
    state, outputs = zero_state(run), []
    for sample in u.numpy()[:, None]:
        y, state = run.run(["y", "next_state"], {"u": sample, "state": state})
        outputs.append(y[0])
    return torch.from_numpy(np.stack(outputs)), state


@pytest.mark.parametrize("name", MODELS)
def test_step_and_prefill_equal_the_model(name: str, tmp_path: Path) -> None:
    model = made(name)
    u = inputs(model, 300)
    reference = expected(model, u)
    found, after = steps(session(model, tmp_path / "step.onnx"), u)
    assert error(found, reference) <= 1e-6
    run = session(model, tmp_path / "prefill.onnx", graph="prefill")
    y, state = run.run(None, {"u": u.numpy()[None], "state": zero_state(run)})
    classifies = isinstance(model, S4SequenceModel) and model.task == "classification"
    assert error(torch.from_numpy(y[0]), reference[-1] if classifies else reference) <= 1e-6
    assert error(torch.from_numpy(state), torch.from_numpy(after)) <= 1e-6


@pytest.mark.parametrize("name", ["s4d regression", "s4 regression", "s4d classification"])
def test_prefill_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    """Any lengths, 0 and those around the chunk included, and several rows."""
    model = made(name)
    u = torch.stack([inputs(model, 131) for _ in range(3)])
    run = session(model, tmp_path / "prefill.onnx", graph="prefill")
    state, outputs, done = zero_state(run, 3), [], 0
    for length in (1, 0, 31, 32, 33, 34):
        y, state = run.run(None, {"u": u[:, done : done + length].numpy(), "state": state})
        outputs.append(torch.from_numpy(y))
        done += length
    reference = torch.stack([expected(model, row) for row in u])
    if name == "s4d classification":
        assert error(outputs[-1], reference[:, -1]) <= 1e-6
    else:
        assert error(torch.cat(outputs, 1), reference) <= 1e-6


def test_step_takes_a_batch(tmp_path: Path) -> None:
    model = made("s4 classification")
    u = torch.stack([inputs(model, 20) for _ in range(3)])
    run = session(model, tmp_path / "step.onnx")
    state = zero_state(run, 3)
    for l in range(20):
        y, state = run.run(None, {"u": u[:, l].numpy(), "state": state})
    assert error(torch.from_numpy(y), torch.stack([expected(model, row)[-1] for row in u])) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["s4d regression", "s4 regression"])
def test_ten_thousand_steps(name: str, tmp_path: Path) -> None:
    model = made(name)
    u = inputs(model, 10_000)
    found, _ = steps(session(model, tmp_path / "step.onnx"), u)
    assert error(found, expected(model, u)) <= 1e-6
    assert error(found, stepped(model, u)) <= 1e-6


def test_metadata(tmp_path: Path) -> None:
    model = made("s4d classification")
    session(model, tmp_path / "step.onnx", rate=0.5)
    file = onnx.load(tmp_path / "step.onnx")
    onnx.checker.check_model(file, full_check=True)
    found = {entry.key: entry.value for entry in file.metadata_props}
    assert found["model"] == "S4SequenceModel" and found["task"] == "classification"
    assert (found["s4_fast"], found["graph"], found["rate"]) == (__version__, "step", "0.5")
    assert [entry.version for entry in file.opset_import if entry.domain == ""] == [17]
    parts = json.loads(found["state"])
    assert sum(np.prod(part["shape"]) for part in parts) == zero_state(session(model, tmp_path / "a.onnx")).size
    names = [value.name for value in (*file.graph.input, *file.graph.output)]
    assert names == ["u", "state", "y", "next_state"]


def test_rate(tmp_path: Path) -> None:
    model = made("S4Layer")
    u = inputs(model, 100)
    found, _ = steps(session(model, tmp_path / "step.onnx", rate=2), u)
    with torch.no_grad():
        model.kernel.inv_dt += torch.tensor(2.0).log()
    assert error(found, expected(model, u)) <= 1e-6
