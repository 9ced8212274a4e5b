from __future__ import annotations

import argparse
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from s4_fast.__main__ import main
from s4_fast.state_spaces import S4D


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(2, 3, 1), S4D(3, 8), S4D(3, 4, lr=0.0))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "old.ckpt", tmp_path / "new.safetensors"


def run(files: tuple[Path, Path], *options: str) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, files), *options])


def converted(checkpoint: Any, files: tuple[Path, Path], *options: str) -> tuple[dict[str, Tensor], str]:
    torch.save(checkpoint, files[0])
    result = run(files, *options)
    assert result.exit_code == 0, result.output
    return load_file(files[1]), result.stdout


def refused(files: tuple[Path, Path], *options: str) -> str:
    """The one line that says why."""
    before = sorted(files[0].parent.iterdir())
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        result = run(files, *options)
    assert not shown
    assert (result.exit_code, result.stdout) == (2, "")
    assert sorted(files[0].parent.iterdir()) == before
    (line,) = result.stderr.splitlines()
    return line


def under(prefix: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in state_dict.items()}


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        (lambda sd: sd, []),
        (lambda sd: under("module.", sd), []),
        (lambda sd: under("module._orig_mod.", sd), []),
        (lambda sd: {"model": under("module.", sd), "epoch": 3, "optimizer": {"state": {}}}, []),
        (lambda sd: {"model_state_dict": sd, "loss": 0.5}, []),
        (lambda sd: {"state_dict": under("model.", sd), "epoch": 3, "hyper_parameters": {"lr": 0.1}}, []),
        (lambda sd: {"state_dict": under("_orig_mod.model.", sd)}, []),
        (lambda sd: {"state_dict": {**under("net.core.", sd), "loss.weight": torch.ones(2)}}, ["--prefix=net.core"]),
        (lambda sd: {"state_dict": under("model.", sd)}, ["--prefix=model."]),
    ],
)
def test_the_result_loads_strictly_into_the_same_model(wrap, options, model, files):
    state_dict, _ = converted(wrap(model.state_dict()), files, *options)
    with safe_open(files[1], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    other = nn.Sequential(nn.Conv1d(2, 3, 1), S4D(3, 8), S4D(3, 4))
    other.load_state_dict(state_dict)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        ({"model.D": torch.ones(2), "model.b": torch.ones(3)}, []),
        ({"state_dict": {"model.D": torch.ones(2), "decoder.b": torch.ones(3)}}, []),
        ({"state_dict": {"model.model.D": torch.ones(2)}}, ["--prefix="]),
    ],
)
def test_names_that_may_be_the_models_own_stay(checkpoint, options, files):
    state_dict, _ = converted(checkpoint, files, *options)
    assert state_dict.keys() == checkpoint.get("state_dict", checkpoint).keys()


def test_lightnings_own_prefix_is_taken_away_once(files):
    state_dict, _ = converted({"state_dict": {"model.model.D": torch.ones(2)}}, files)
    assert state_dict.keys() == {"model.D"}


def test_the_mapping_is_shown(files):
    kernel = {
        "C": torch.zeros(1, 3, 4, 2),
        "B": torch.zeros(1, 3, 4, 2),
        "omega": torch.zeros(5, 2),
        "z": torch.ones(5, 2),
    }
    checkpoint = {**under("net.layer.kernel.", kernel), "net.vae.z": torch.zeros(4), "loss[bold].w": torch.zeros(2)}
    state_dict, shown = converted(checkpoint, files, "--prefix", "net")
    assert state_dict.keys() == {"layer.kernel.C", "layer.kernel.B", "vae.z"}
    lines = [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]
    assert "net.layer.kernel.C layer.kernel.C (1, 3, 4, 2) float32" in lines
    assert "net.layer.kernel.omega (5, 2) float32 left out: a cache of the kernel" in lines
    assert "net.layer.kernel.z (5, 2) float32 left out: a cache of the kernel" in lines
    assert "net.vae.z vae.z (4,) float32" in lines
    assert "loss[bold].w (2,) float32 left out: not under net." in lines
    assert lines[-1] == f"{files[1]}: 3 tensors written, 3 entries left out"


def test_caches_of_a_kernel_without_a_prefix_are_left_out(files):
    state_dict, _ = converted({name: torch.zeros(2) for name in ("C", "B", "omega", "z")}, files)
    assert state_dict.keys() == {"C", "B"}


def test_a_module_that_is_no_kernel_keeps_its_z(files):
    state_dict, _ = converted({"vae.C": torch.zeros(2), "vae.z": torch.zeros(2)}, files)
    assert state_dict.keys() == {"vae.C", "vae.z"}


def test_unusual_tensors_are_written_as_they_read(files):
    C = torch.randn(3, 4, dtype=torch.complex128)
    weight = torch.randn(4, 6)
    checkpoint = {
        "complex": C, "conjugate": C.conj(), "negated": C.clone().conj().imag,
        "parameter": nn.Parameter(weight.clone()), "tied": weight, "transposed": weight.mT,
        "slice": weight[1:, ::2], "l_kernel": torch.tensor(64),
        "half": weight.bfloat16(), "flags": weight > 0, "empty": torch.zeros(0, 3), "norm._extra_state": {"step": 3},
    }  # fmt: skip
    state_dict, shown = converted(checkpoint, files)
    expected = {name: t for name, t in checkpoint.items() if name != "norm._extra_state"}
    expected |= {name: torch.view_as_real(checkpoint[name].resolve_conj()) for name in ("complex", "conjugate")}
    assert state_dict.keys() == expected.keys()
    for name, t in expected.items():
        assert state_dict[name].dtype == t.dtype
        assert torch.equal(state_dict[name], t.detach()), name
    assert "left out: no tensor" in shown
    assert "complex, as pairs of real numbers" in shown


class Executes:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_in_a_pickle_is_executed(save, files, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    executed = files[0].parent / "executed"
    save({"state_dict": {"D": torch.ones(2)}, "hook": Executes(executed)}, files[0])
    assert f"Error: {files[0]} is no plain PyTorch checkpoint: " in refused(files)
    assert not executed.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {}, "hyper_parameters": argparse.Namespace(lr=1)},
            "it holds argparse.Namespace; where you trust",
        ),
        (nn.Linear(1, 1), r"it holds torch.nn.modules.linear.Linear"),
        ([torch.ones(2)], "holds no state_dict, but an object of type list"),
        (torch.ones(2), "holds no state_dict, but an object of type Tensor"),
        ({0: torch.ones(2)}, "the keys of a state_dict are names, got 0"),
        (
            {"state_dict": {0: torch.ones(2)}},
            "the keys of a state_dict are names, got 0",
        ),
        ({}, "the state_dict is empty"),
        ({"D": torch.ones(2), "epoch": 3}, "expected tensors, epoch is of type int"),
        ({"D": torch.ones(2), "more": {"b": torch.ones(2)}}, "expected tensors, more is of type dict"),
        ({"D": torch.ones(2).to_sparse()}, "D is not a plain tensor: layout torch.sparse_coo"),
    ],
)
def test_other_contents_are_refused_in_one_line(content, message, files):
    torch.save(content, files[0])
    assert message in refused(files)


def test_a_prefix_that_nothing_has_is_refused(files):
    torch.save({"net.D": torch.ones(2), "loss.w": torch.ones(2), "net.b": torch.ones(1)}, files[0])
    assert refused(files, "--prefix=ne") == "Error: nothing is under the prefix 'ne.'; names begin with loss, net"


def test_damaged_and_missing_files_are_refused(files, generator):
    assert "No such file" in refused(files)
    torch.save({"D": torch.ones(200)}, files[0])
    whole = files[0].read_bytes()
    noise = bytes(torch.randint(256, (100,), generator=generator).tolist())
    for content in (b"", whole[: len(whole) // 2], b"\x80\x02" + noise, noise, b"PK" + noise):
        files[0].write_bytes(content)
        assert "is no plain PyTorch checkpoint: damaged, or of another kind" in refused(files)
    assert "Is a directory" in refused((files[0].parent, files[1]))


def test_the_folder_must_exist(files):
    torch.save({"D": torch.ones(2)}, files[0])
    assert "does not exist" in refused((files[0], files[1].parent / "missing" / "new.safetensors"))


def test_a_file_that_cannot_be_written_leaves_nothing_behind(files, monkeypatch):
    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    torch.save({"D": torch.ones(2)}, files[0])
    monkeypatch.setattr(os, "replace", full)
    assert refused(files) == "Error: [Errno 28] No space left on device"


def test_an_existing_file_is_overwritten_only_with_force(files):
    torch.save({"D": torch.ones(2)}, files[0])
    files[1].write_text("precious")
    assert refused(files) == f"Error: {files[1]} exists"
    assert files[1].read_text() == "precious"
    assert refused((files[0], files[0]), "--force") == f"Error: {files[0]} is the checkpoint itself"
    assert run(files, "--force").exit_code == 0
    assert load_file(files[1]).keys() == {"D"}
