"""The types that a user's own mypy sees, and the options that they name."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import s4_fast
from s4_fast import S4DLayer, S4Layer, S4SequenceModel, SSMBlock
from s4_fast.arguments import options_of
from s4_fast.layers.options import LayerOptions
from s4_fast.state_spaces import S4, FFTConv, initialization, older_arguments
from s4_fast.state_spaces.kernels import SSMKernelDiag
from s4_fast.state_spaces.options import BlockOptions, KernelOptions, OlderBlockOptions
from s4_fast.state_spaces.s4 import _IGNORED, _OF_RELEASE, _ONLY

ROOT = Path(__file__).parents[1]

PROGRAM = """
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import s4_fast
from s4_fast import ModelState, S4DLayer, S4SequenceModel, SSMBlock

u, x = torch.randn(2, 100, 8), torch.randn(8, 4, dtype=torch.complex64)
assert_type(s4_fast.log_vandermonde(x, x, 100), Tensor)
assert_type(s4_fast.ssm_scan(u.mT, x, x, x), Tensor)
assert_type(s4_fast.ssm_scan(u.mT, x, x, x, return_state=True), tuple[Tensor, Tensor])

layer = S4DLayer(8, d_state=16, init="lin")
assert_type(layer(u), Tensor)
assert_type(layer(u, return_state=True), tuple[Tensor, Tensor])
y, state = layer.prefill(u)
assert_type(layer.step(u[:, 0], state), tuple[Tensor, Tensor])
assert_type(layer.kernel(100), Tensor)

block = SSMBlock(8, layer="s4", rank=2, bidirectional=True)
assert_type(block(u), Tensor)
model = S4SequenceModel(8, 16, 10, n_layers=2, dropout=0.1, dt_min=0.01, task="regression")
assert_type(model(u), Tensor)
assert_type(model.prefill(u), tuple[Tensor, ModelState])
assert_type(model(u, return_state=True), tuple[Tensor, ModelState])
assert_type(model.generate(u, 3), Tensor)

drop_in = s4_fast.state_spaces.S4Block(8, d_state=16, mode="diag", transposed=False)
assert_type(drop_in(u), tuple[Tensor, Tensor | None])
assert_type(s4_fast.state_spaces.S4D(8, transposed=False)(u), tuple[Tensor, None])
found = s4_fast.state_spaces.replace_layers(nn.Sequential(block))
assert_type([replaced.name for replaced in found], list[str])
assert_type(s4_fast.distributed.split_time(model), S4SequenceModel)
assert_type(s4_fast.explain("fft_conv", u, u).backend, str)
with s4_fast.use_backend("pytorch"):
    s4_fast.export.save_model(model, "model.safetensors")
assert_type(s4_fast.ops.fft_conv(u.mT, u[0].mT), Tensor)
assert_type(s4_fast.layers.S4DLayer(8)(u), Tensor)
assert_type(s4_fast.ssm.initialization.diagonal("lin", 8), tuple[Tensor, Tensor])
assert_type(s4_fast.ssm.hippo.nplr("legs", 8).w, Tensor)
assert_type(s4_fast.ssm.discretization.zoh(x, x, 0.1), tuple[Tensor, Tensor])
assert_type(s4_fast.dispatch.ops(), tuple[str, ...])
optimizer = torch.optim.AdamW(s4_fast.get_ssm_param_groups(model))
"""

# What mypy must not let pass, and what its message names.
WRONG = {
    "S4DLayer(8, rank=2)": '"rank"',
    'S4DLayer(8, d_state="16")': '"d_state"',
    "SSMBlock(8, dropuot=0.1)": '"dropuot"',
    'SSMBlock(8, dt_min="small")': '"dt_min"',
    "s4_fast.log_vandermonde(x, x, 1.5)": "Argument 3",
    "s4_fast.state_spaces.FFTConv(8, d_sate=16)": '"d_sate"',
    "model.stepp(u, u)": '"Tensor" not callable',
    "s4_fast.no_such_name": '"no_such_name"',
}


@pytest.fixture(scope="module")
def mypy(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Callable[[str], Any]:
    """Runs mypy on a program that has s4_fast as an installed package: without py.typed, it would see no types."""
    pytest.importorskip("mypy")
    folder = tmp_path_factory.mktemp("program")
    cache = str(pytestconfig.cache.mkdir("mypy") if pytestconfig.cache else folder / "cache")  # 20 s without

    def run(program: str) -> Any:
        (folder / "program.py").write_text(program)
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": ""}
        return subprocess.run([*command, "program.py"], cwd=folder, env=environment, capture_output=True, text=True)

    return run


def test_a_program_is_clean(mypy: Callable[[str], Any]) -> None:
    result = mypy(PROGRAM)
    assert result.returncode == 0, result.stdout + result.stderr


def test_mistakes_are_found(mypy: Callable[[str], Any]) -> None:
    lines = PROGRAM.splitlines()
    result = mypy("\n".join([*lines, *WRONG]))
    found = {int(line.split(":")[1]): line for line in result.stdout.splitlines() if ": error: " in line}
    for number, (line, named) in enumerate(WRONG.items(), len(lines) + 1):
        assert named in found.get(number, ""), line


@pytest.mark.parametrize("name", [name for name in s4_fast.__all__ if name[0] != "_"])
def test_types_can_be_read_in_a_running_program(name: str) -> None:
    """As command lines and configurations are made of signatures."""
    value = getattr(s4_fast, name)
    typing.get_type_hints(value.__init__ if inspect.isclass(value) else value)


# ----------------------------------------------------------------------------------------------------------- options


def test_options_of_blocks_are_those_of_layers() -> None:
    own = {"d_model", "d_state", "device", "dtype"}
    taken = set(options_of(S4DLayer.__init__, S4Layer.__init__)) - own
    assert set(LayerOptions.__annotations__) == taken


START = {*initialization._MEASURE_ARGS, *initialization._MODE_ARGS}


def test_options_of_drop_ins_are_those_of_what_is_inside() -> None:
    taken = {*SSMKernelDiag._options(), *START} - {"d_model", "channels", "l_max"}
    assert set(KernelOptions.__annotations__) == taken
    own = {"d_model", "transposed", "dropout", "tie_dropout", "device", "dtype"}
    older = set(older_arguments._OWN)
    assert set(BlockOptions.__annotations__) == (set(options_of(FFTConv.__init__)) - own) | taken | older
    of_a_release = {name for names in _OF_RELEASE.values() for name in names} | {*_ONLY, *_IGNORED, "length_correction"}
    own = {*options_of(S4.__init__), "kernel"}
    assert set(OlderBlockOptions.__annotations__) == ((set(BlockOptions.__annotations__) | of_a_release) - own)


@pytest.mark.parametrize("made", [SSMBlock, S4SequenceModel, FFTConv])
def test_docstrings_list_the_options_that_are_handed_on(made: Any) -> None:
    options = KernelOptions if made is FFTConv else LayerOptions
    missing = [name for name in options.__annotations__ if f"``{name}=" not in made.__doc__]
    assert set(missing) <= START  # which is SSMKernel's to say
