"""What cannot be exported is named in one line, and nothing is written."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from s4_fast import S4DLayer, S4SequenceModel
from s4_fast.export import ExportError, save_model, to_c, to_onnx
from s4_fast.state_spaces import FFTConv


class Mine(nn.Linear):
    pass


class MyModel(S4SequenceModel):
    pass


def small(**options: Any) -> Any:
    return S4SequenceModel(2, 4, 2, 1, 4, task="regression", **options)


def _with(change: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = small()
        change(model)
        return model

    return make


def _split(model: Any) -> None:
    model.blocks[0].layer.time_split = object()


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bidirectional": (lambda: small(bidirectional=True), r"blocks\.0\.layer \(S4DLayer\) is bidirectional"),
    "split": (_with(_split), r"blocks\.0\.layer .* is split over processes"),
    "hooks": (_with(lambda m: m.norm.register_forward_hook(lambda *a: None)), r"norm \(LayerNorm\) has hooks"),
    "pruned": (_with(lambda m: prune.l1_unstructured(m.head, "weight", 0.5)), "head .* has hooks"),
    "parametrized": (
        _with(lambda m: parametrizations.weight_norm(m.encoder)),
        r"encoder \(Linear\) has parametrizations; .*remove_parametrizations",
    ),
    "parametrized kernel": (
        _with(lambda m: parametrize.register_parametrization(m.blocks[0].layer.kernel, "C", nn.Identity())),
        r"blocks\.0\.layer\.kernel .* has parametrizations",
    ),
    "a module of one's own": (_with(lambda m: setattr(m, "encoder", Mine(2, 4))), r"encoder \(Mine\) is of a type"),
    "a model of one's own": (lambda: MyModel(2, 4, 2, 1, 4), "the MyModel is no model that can be exported"),
    "another module": (lambda: nn.Linear(2, 2), "the Linear is no model"),
    "a method of its own": (_with(lambda m: setattr(m.head, "forward", lambda x: x)), "head .* has a forward"),
    "widths": (_with(lambda m: setattr(m, "head", nn.Linear(5, 2))), "head .* takes 5 features, and gets 4"),
    "meta": (lambda: small(device="meta"), "on the meta device"),
    "NaN": (_with(lambda m: m.head.bias.data.fill_(float("nan"))), r"head\.bias has numbers that are not finite"),
    "dss": (lambda: FFTConv(4, mode="s4d", disc="dss", d_state=4), "disc='dss'"),
    "swapped": (lambda: FFTConv(4, channels=2, swap_channels=True, d_state=4), "swap_channels"),
    "approximate activation": (
        _with(lambda m: setattr(m, "head", nn.Sequential(nn.Linear(4, 2), nn.ELU(0.5)))),
        r"head\.1 \(ELU\) is an activation that is not known",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_is_named(name: str, tmp_path: Path) -> None:
    make, said = CASES[name]
    model = make()
    for export in (to_c, to_onnx):
        if export is to_onnx and importlib.util.find_spec("onnx") is None:
            continue
        with pytest.raises(ExportError, match=said) as found:
            export(model, tmp_path / "model.c")
        assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


def test_a_linear_map_with_an_activation_in_its_place_is_exported(tmp_path: Path) -> None:
    model = small()
    model.head = nn.Sequential(nn.Linear(4, 2), nn.Tanh())
    to_c(model, tmp_path / "model.c")


def test_a_compiled_model_is_exported_as_what_it_wraps(tmp_path: Path) -> None:
    model = small()
    to_c(model, tmp_path / "a.c", name="same")
    to_c(torch.compile(model), tmp_path / "b.c", name="same")
    assert (tmp_path / "a.c").read_text() == (tmp_path / "b.c").read_text()


@pytest.mark.parametrize("rate", [0, -1.0, float("inf"), float("nan")])
def test_rate(rate: float, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="rate above 0"):
        to_c(small(), tmp_path / "model.c", rate=rate)


@pytest.mark.parametrize("name", ["1st", "a-b", "", "a b", "é", "a;", "_x"])
def test_names_in_c(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no name in C"):
        to_c(small(), tmp_path / "model.c", name=name)


def test_unknown_graph(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'steps'; expected one of step, prefill"):
        to_onnx(small(), tmp_path / "model.onnx", graph="steps")


@pytest.mark.parametrize("write", [to_c, to_onnx, save_model])
def test_a_file_that_exists_stays(write: Callable[..., Any], tmp_path: Path) -> None:
    if write is to_onnx:
        pytest.importorskip("onnx")
    path = tmp_path / "model"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        write(small(), path)
    assert path.read_text() == "mine"
    write(small(), path, force=True)
    assert path.read_bytes() != b"mine"
    with pytest.raises(IsADirectoryError):
        write(small(), tmp_path, force=True)
    with pytest.raises(FileNotFoundError, match="the folder"):
        write(small(), tmp_path / "no" / "model")
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.c"
    path.write_text("old")

    def stop(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(OSError, match="no space"):
        to_c(small(), path, force=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_without_onnx_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"run: pip install onnx onnxruntime"):
        to_onnx(small(), tmp_path / "model.onnx")


def test_nothing_of_the_model_changes(tmp_path: Path) -> None:
    model = S4DLayer(4, 4)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    to_c(model, tmp_path / "model.c")
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())
