"""Exported programs: operations of PyTorch alone, but where a backend is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s4_fast import S4DLayer, S4Layer, use_backend
from tests.helpers import parts, relative_error
from tests.ops import test_library as library


class Calling(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


def exported(function: Callable[..., Any], tensors: list[Tensor], strict: bool = False) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(Calling(function), tuple(tensors), strict=strict)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", library.OPS)
@pytest.mark.sample(1)
def test_an_exported_op_is_made_of_operations_of_pytorch(op: str, strict: bool) -> None:
    tensors = list(library.inputs(op).values())
    program = exported(lambda *args: library.call(op, *args), tensors, strict)
    assert "s4_fast" not in program.graph_module.code
    for actual, expected in zip(parts(program.module()(*tensors)), parts(library.call(op, *tensors)), strict=True):
        assert relative_error(actual, expected) <= 2e-6


@pytest.mark.parametrize("op", library.OPS)
def test_a_requested_backend_is_in_the_program(op: str) -> None:
    tensors = list(library.inputs(op).values())
    assert "s4_fast" in exported(lambda *args: library.call(op, *args, backend="pytorch"), tensors).graph_module.code
    with use_backend("pytorch"):
        assert "s4_fast" in exported(lambda *args: library.call(op, *args), tensors).graph_module.code


@pytest.mark.parametrize("layer", [S4DLayer, S4Layer])
def test_a_step_takes_any_batch(layer: type[nn.Module]) -> None:
    module: Any = layer(3, 4)
    batch = torch.export.Dim("batch", min=2, max=64)
    given = torch.randn(2, 3), torch.randn(2, 3, 2, dtype=torch.complex64)
    with torch.no_grad():
        shapes = ({0: batch}, {0: batch})
        program = torch.export.export(Calling(module.step), given, dynamic_shapes=(shapes,))
        assert "s4_fast" not in program.graph_module.code
        more = torch.randn(5, 3), torch.randn(5, 3, 2, dtype=torch.complex64)
        for actual, expected in zip(program.module()(*more), module.step(*more), strict=True):
            assert relative_error(actual, expected) <= 2e-6


LOADED = """
import sys, torch
program, u, y = torch.export.load(sys.argv[1]), *torch.load(sys.argv[2])
assert torch.allclose(program.module()(u), y, atol=1e-6)
assert "s4_fast" not in sys.modules
"""


@pytest.mark.slow
def test_a_program_runs_where_s4_fast_is_not_imported(tmp_path: Path) -> None:
    module, u = S4Layer(3, 4), torch.randn(2, 20, 3)
    with torch.no_grad():
        torch.export.save(torch.export.export(module, (u,)), tmp_path / "layer.pt2")
        torch.save((u, module(u)), tmp_path / "called.pt")
    files = [str(tmp_path / name) for name in ("layer.pt2", "called.pt")]
    subprocess.run([sys.executable, "-c", LOADED, *files], check=True, timeout=120)
