from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from s4_fast import S4DLayer, S4Layer, state_spaces
from s4_fast.__main__ import main
from s4_fast.state_spaces import S4D, FFTConv, S4Block, SSMKernelDiag, inspect
from tests.state_spaces import lookalikes, older


class Model(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


PARTS: dict[str, tuple[nn.Module, str, str]] = {
    "a": (older.S4(1), "S4: S4", "1"),
    "b": (older.S4(2, hurwitz=True, n_ssm=2), "S4: S4", "2"),
    "c": (older.S4(3, gate=2, bottleneck=2, postact="glu"), "S4: S4", "3"),
    "d": (older.S4(3, mode="diag", channels=2, bidirectional=True), "S4D: S4", "3"),
    "e": (S4Block(6, d_state=8, gate=2, bottleneck=2), "S4: S4Block", "4"),
    "f": (S4Block(6, d_state=8, mode="diag", final_act=None), "S4D: S4Block", "4"),
    "l": (older.S4(1, hyper_act="gelu", input_linear=True), "S4: S4", "1"),
    "m": (older.S4(2, hyper_act="gelu", channels=2, bidirectional=True), "S4: S4", "2"),
    "g": (FFTConv(6, d_state=8, rank=2, init="legt"), "S4: FFTConv", "4"),
    "h": (SSMKernelDiag(6, d_state=8), "S4D: SSMKernelDiag", "4"),
    "i": (S4D(6, 8), "S4D: S4D", "3, 4"),
    "j": (S4Layer(6, 8), "S4: S4Layer", "s4_fast"),
    "k": (S4DLayer(6, 8), "S4D: S4DLayer", "s4_fast"),
}


def saved(model: nn.Module, folder: Path, **around: Any) -> Path:
    path = folder / "model.pt"
    torch.save({"state_dict": model.state_dict(), **around} if around else model.state_dict(), path)
    return path


def test_every_layer_of_a_checkpoint_is_found(tmp_path):
    model = Model(**{name: part for name, (part, *_) in PARTS.items()}, head=nn.Linear(2, 3))
    found = inspect(saved(model, tmp_path, epoch=3), time=False)
    assert {layer.name: (layer.what, layer.release) for layer in found} == {k: (w, r) for k, (_, w, r) in PARTS.items()}


@pytest.mark.parametrize("name", [name for name, (_, _, release) in PARTS.items() if release != "s4_fast"])
def test_the_route_takes_the_checkpoint(name, tmp_path):
    path = saved(PARTS[name][0], tmp_path)
    (found,) = inspect(str(path), time=False)
    assert found.name == ""
    call, _, rest = found.route.partition(", whose load_state_dict takes these entries")
    assert not rest
    layer = eval(call, {"state_spaces": state_spaces})
    layer.load_state_dict(torch.load(path, weights_only=True))
    assert found.sizes["d_model"] in (3, 6)


@pytest.mark.parametrize("name", ["c", "d", "g", "i"])
@pytest.mark.sample(1)
def test_what_a_layer_gains_is_measured(name, tmp_path):
    (found,) = inspect(saved(PARTS[name][0], tmp_path))
    assert found.speedup > 0
    assert found.shape == (4, 1024, found.sizes["d_model"])


def test_layers_of_a_model():
    model = Model(
        old=older.S4(3, mode="diag"),
        changed=older.S4(3, scale=2.0),
        official=lookalikes.s4_block(6),
        ours=S4Block(6, d_state=8),
        layer=S4DLayer(6, 8),
        odd=lookalikes.made("HippoSSKernel"),
        head=nn.Linear(2, 3),
    )
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = {layer.name: layer for layer in inspect(model, time=False)}
    assert set(found) == {"old", "changed", "official", "ours", "layer", "odd"}
    assert found["old"].route == found["official"].route == "state_spaces.replace_layers(model)"
    assert (found["old"].what, found["old"].release, found["official"].release) == ("S4D: S4", "3", "4")
    assert "patch" in found["changed"].route and "computes something else" in found["changed"].route
    assert "patch" in found["odd"].route
    assert {found[name].release for name in ("ours", "layer")} == {"s4_fast"}
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_layer_by_itself_is_timed_beside_its_replacement():
    (found,) = inspect(older.S4(3, mode="diag", transposed=False))
    assert found.route == "state_spaces.replacement(layer)"
    assert found.speedup > 0


def test_a_layer_that_does_not_run_is_timed_beside_its_formula(monkeypatch):
    old = older.S4(3)
    calls = []

    def fails_later(self: nn.Module, L: int) -> torch.Tensor:
        calls.append(L)
        if L > 100:
            raise RuntimeError("needs a GPU")
        return original(self, L)

    original = older.SSKernelNPLR.forward
    monkeypatch.setattr(older.SSKernelNPLR, "forward", fails_later)
    (found,) = inspect(old)
    assert max(calls) > 100
    assert found.speedup > 0


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert inspect(nn.Linear(2, 3)) == []
    assert inspect(saved(nn.LSTM(2, 3), tmp_path)) == []


@pytest.mark.parametrize(
    ("subject", "error", "message"),
    [
        (3, TypeError, "expected a model, or the name of a checkpoint's file, got int"),
        ("nowhere.pt", OSError, "nowhere.pt"),
    ],
)
def test_what_cannot_be_inspected(subject, error, message):
    with pytest.raises(error, match=message):
        inspect(subject)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["inspect", *arguments])


def test_the_command(tmp_path):
    result = run(str(saved(Model(a=PARTS["a"][0], d=PARTS["d"][0]), tmp_path)))
    assert result.exit_code == 0
    assert "speed-up" in result.stdout
    assert " x at (4, 1024, 6)" in result.stdout
    assert "state_spaces.S4(6, d_state=8, release=1), whose load_state_dict takes these entries" in result.stdout
    assert "bilinear" in result.stdout
    again = run(str(tmp_path / "model.pt"), "--no-time")
    assert " x at " not in again.stdout


def test_the_command_refuses_in_one_line(tmp_path):
    (tmp_path / "cut.pt").write_bytes(saved(PARTS["a"][0], tmp_path).read_bytes()[:1000])
    (tmp_path / "half.pt").write_bytes(b"")
    state_dict = PARTS["c"][0].state_dict()
    state_dict.pop("kernel.kernel.L")
    torch.save(state_dict, tmp_path / "half.pt")
    for name, message in (("cut.pt", "damaged"), ("half.pt", "kernel.kernel.L"), ("none.pt", "No such file")):
        result = run(str(tmp_path / name))
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    nothing = run(str(saved(nn.Linear(2, 3), tmp_path)))
    assert (nothing.exit_code, "no S4 or S4D layer" in nothing.stdout) == (0, True)


def test_a_converted_file_is_read_too(tmp_path):
    state_spaces.convert.convert(saved(PARTS["a"][0], tmp_path), tmp_path / "new.safetensors")
    assert set(load_file(tmp_path / "new.safetensors")) >= {"layer.kernel.inv_dt"}
    (found,) = inspect(tmp_path / "new.safetensors", time=False)
    assert (found.what, found.release) == ("S4: S4Block", "4")
