"""The step with its coefficients as constants, exported programs, and states that are saved."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s4_fast import FrozenStep, ModelState, S4SequenceModel
from tests.helpers import needs_cxx, relative_error

MODELS: dict[str, dict[str, Any]] = {
    "s4d": {},
    "s4d bilinear, shared": {"discretization": "bilinear", "n_ssm": 2},
    "s4": {"layer": "s4"},
    "s4 rank 2, shared": {"layer": "s4", "rank": 2, "init": "legt", "n_ssm": 2},
}
EVERY = pytest.mark.parametrize("kind", MODELS)


@pytest.fixture(autouse=True)
def seeded(seed: int) -> None:
    torch.manual_seed(seed)


def build(kind: str, task: str = "regression", dtype: torch.dtype = torch.float64) -> S4SequenceModel:
    return S4SequenceModel(2, 4, 2, 2, 8, task=task, dtype=dtype, **MODELS[kind]).eval()


class Step(nn.Module):
    """A model's step as a program takes it."""

    def __init__(self, model: S4SequenceModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, u: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        return self.model.step(u, state)


def saved(program: Any) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded: nn.Module = torch.export.load(file).module()
    return loaded


def functions(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@EVERY
@pytest.mark.parametrize("task", ["classification", "regression"])
@torch.no_grad()
def test_a_frozen_step_is_the_step(kind: str, task: str) -> None:
    model = build(kind, task)
    frozen, u = FrozenStep(model), torch.randn(3, 30, 2, dtype=torch.float64)
    _, state = model.prefill(u)
    flat = frozen.flatten(state)
    for sample in u.unbind(1):
        want, state = model.step(sample, state)
        y, *flat = frozen(sample, *flat)
        assert relative_error(y, want) <= 1e-12
    pairs = zip(frozen.unflatten(flat).blocks, state.blocks, strict=True)
    assert all(relative_error(*pair) <= 1e-12 for pair in pairs)
    assert torch.equal(frozen.unflatten(flat).steps, state.steps)


@EVERY
@torch.no_grad()
def test_a_frozen_step_in_float32_errs_no_more_than_the_step(kind: str) -> None:
    model = build(kind, dtype=torch.float32)
    frozen, wide = FrozenStep(model), copy.deepcopy(model).double()
    state, exact, flat = model.init_state(3), wide.init_state(3), frozen.init_state(3)
    for sample in torch.randn(30, 3, 2):
        _, state = model.step(sample, state)
        _, exact = wide.step(sample.double(), exact)
        _, *flat = frozen(sample, *flat)
    for got, own, want in zip(frozen.unflatten(flat).blocks, state.blocks, exact.blocks, strict=True):
        assert relative_error(got, want) <= 3 * relative_error(own, want) + 2e-7


@EVERY
@torch.no_grad()
def test_a_frozen_step_starts_from_the_same_state(kind: str) -> None:
    model = build(kind)
    frozen = FrozenStep(model)
    for got, want in zip(frozen.init_state(3), frozen.flatten(model.init_state(3)), strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)


def test_a_frozen_step_keeps_the_numbers_that_it_was_made_of() -> None:
    model, u = build("s4"), torch.ones(1, 2, dtype=torch.float64)
    frozen = FrozenStep(model)
    before = frozen(u, *frozen.init_state(1))[0]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    assert torch.equal(frozen(u, *frozen.init_state(1))[0], before)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_what_cannot_be_frozen_is_said() -> None:
    with pytest.raises(TypeError, match="expected an S4SequenceModel, got Linear"):
        FrozenStep(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="block 0 is bidirectional"):
        FrozenStep(S4SequenceModel(2, 4, 2, 1, 8, bidirectional=True))
    model = build("s4d")
    handle = model.blocks[1].norm.register_forward_hook(lambda *args: None)
    with pytest.raises(RuntimeError, match=r"blocks\.1\.norm has hooks"):
        FrozenStep(model)
    handle.remove()
    nn.utils.parametrize.register_parametrization(model.blocks[0].layer.kernel, "C", nn.Identity())
    with pytest.raises(RuntimeError, match=r"blocks\.0\.layer\.kernel is parametrized"):
        FrozenStep(model)


@EVERY
@torch.no_grad()
@pytest.mark.slow
def test_an_exported_step_is_saved_and_is_the_step(kind: str) -> None:
    model, u = build(kind), torch.randn(3, 2, dtype=torch.float64)
    _, state = model.prefill(torch.randn(3, 9, 2, dtype=torch.float64))
    program = torch.export.export(Step(model), (u, state))
    assert not any("s4_fast" in name for name in functions(program))
    (y, after), (want, expected) = saved(program)(u, state), model.step(u, state)
    pairs = zip((y, *after.blocks), (want, *expected.blocks), strict=True)
    assert isinstance(after, ModelState) and all(relative_error(*pair) <= 1e-13 for pair in pairs)


@torch.no_grad()
def test_an_exported_frozen_step_holds_no_discretisation_and_no_complex_number() -> None:
    frozen = FrozenStep(build("s4"))
    state, u = frozen.init_state(3), torch.randn(3, 2, dtype=torch.float64)
    program = torch.export.export(frozen, (u, *state))
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(isinstance(v, Tensor) and v.is_complex() for v in values)
    assert not any(part in name for name in functions(program) for part in ("s4_fast", "exp", "linalg", "reciprocal"))
    for got, want in zip(saved(program)(u, *state), frozen(u, *state), strict=True):
        assert relative_error(got, want) <= 1e-14


@pytest.mark.parametrize("kind", ["s4d", "s4"])
@torch.no_grad()
@pytest.mark.slow
def test_an_exported_model_takes_any_length_and_is_saved(kind: str) -> None:
    model = S4SequenceModel(2, 4, 2, 1, 8, dtype=torch.float64, **MODELS[kind]).eval()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(model, (torch.randn(2, 20, 2).double(),), dynamic_shapes=({1: length},))
    assert not any("s4_fast" in name for name in functions(program))
    loaded = saved(program)
    for L in (20, 2, 333):
        u = torch.randn(2, L, 2, dtype=torch.float64)
        assert relative_error(loaded(u), model(u)) <= 1e-11


def test_a_saved_state_is_loaded_by_default() -> None:
    _, state = build("s4").prefill(torch.randn(2, 9, 2).double())
    file = io.BytesIO()
    torch.save(state.detach(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert isinstance(loaded, ModelState)
    pairs = zip((*loaded.blocks, *loaded[1:]), (*state.blocks, *state[1:]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


_ALONE = """
import sys
sys.modules["s4_fast"] = None
import torch
run = torch._inductor.aoti_load_package(sys.argv[1])
inputs, want = torch.load(sys.argv[2])
found = run(*inputs)
found = found if isinstance(found, (list, tuple)) else [found]
for a, b in zip(found, want, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
assert not any(name.startswith("s4_fast.") for name in sys.modules)
"""


@pytest.mark.slow
@needs_cxx
@pytest.mark.parametrize("kind", ["s4d", "s4"])
@pytest.mark.parametrize("what", ["model", "frozen step"])
@torch.no_grad()
def test_a_package_runs_where_s4_fast_is_not(kind: str, what: str, tmp_path: Path) -> None:
    model: nn.Module = build(kind, dtype=torch.float32)
    shapes: Any = None
    inputs: tuple[Tensor, ...] = (torch.randn(2, 20, 2),)
    if what == "model":
        shapes = ({1: torch.export.Dim("length", min=2, max=4096)},)
    else:
        model = FrozenStep(model)  # type: ignore[arg-type]
        inputs = (torch.randn(2, 2), *model.init_state(2))  # type: ignore[operator]
    program = torch.export.export(model, inputs, dynamic_shapes=shapes)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"))
    if what == "model":
        inputs = (torch.randn(2, 77, 2),)
    want = model(*inputs)
    torch.save((inputs, want if isinstance(want, tuple) else (want,)), tmp_path / "case.pt")
    command = [sys.executable, "-c", _ALONE, package, str(tmp_path / "case.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
