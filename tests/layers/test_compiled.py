"""Models under torch.compile: one graph, few compilations, and numbers that are those of the parameters as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from s4_fast import S4DLayer, S4Layer, S4SequenceModel, use_backend
from s4_fast.ssm import opaque
from s4_fast.ssm.powers import row_power
from tests.helpers import needs_cxx, relative_error
from tests.test_purity import WRITES

LAYERS = pytest.mark.parametrize("layer", ["s4d", "s4"])
LENGTHS = (7, 10, 13, 16, 21, 40, 64, 100, 129, 200)


@pytest.fixture(autouse=True)
def fresh(seed: int) -> Iterator[None]:
    torch.manual_seed(seed)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counted:
    """A backend that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        lowered: Callable[..., Any] = torch._dynamo.lookup_backend("aot_eager")(graph, inputs)
        return lowered

    def functions(self) -> set[str]:
        return {str(node.target) for graph in self.graphs for node in graph.graph.nodes if node.op == "call_function"}


def build(layer: str, **options: Any) -> S4SequenceModel:
    return S4SequenceModel(2, 4, 2, d_state=8, layer=layer, **{"n_layers": 2, "task": "regression", **options}).eval()


def assert_same(actual: tuple[Tensor, Any], expected: tuple[Tensor, Any]) -> None:
    for a, b in zip((actual[0], *actual[1].blocks), (expected[0], *expected[1].blocks), strict=True):
        assert torch.equal(a, b)


@LAYERS
@torch.no_grad()
@pytest.mark.sample(1)
def test_a_compiled_step_forms_nothing_anew(layer: str) -> None:
    model, backend = build(layer), Counted()
    step = torch.compile(model.step, fullgraph=True, backend=backend)
    state, u = model.init_state(3), torch.randn(3, 2)
    kind = model.blocks[0].layer.kernel.step_kind()
    make = mock.Mock(wraps=opaque._makers[kind])
    with mock.patch.dict(opaque._makers, {kind: make}):
        for _ in range(5):
            found = step(u, state)
            assert_same(found, model.step(u, state))
            state = found[1]
    assert make.call_count == len(model.blocks)
    functions = backend.functions()
    assert any("remembered_step" in f for f in functions)
    assert not any(name in f for f in functions for name in ("exp", "linalg", "repeat"))


@LAYERS
def test_every_write_is_seen_by_a_compiled_step(layer: str) -> None:
    model = build(layer)
    step = torch.compile(model.step, fullgraph=True, backend="aot_eager")
    state, u = model.init_state(1), torch.randn(1, 2)
    for write in WRITES.values():
        with torch.no_grad():
            before = step(u, state)
        write(model, build(layer))
        with torch.no_grad():
            after = step(u, state)
            assert_same(after, copy.deepcopy(model).step(u, state))
        assert relative_error(after[0], before[0]) > 1e-3


@torch.no_grad()
def test_few_steppers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opaque, "_MOST", 3)
    opaque._memos.clear()
    blocks = [build("s4d").blocks[0] for _ in range(5)]
    compiled = torch.compile(lambda block, x, s: block.step(x, s), fullgraph=True, backend="aot_eager")
    for block in (*blocks, *blocks):
        x = torch.randn(1, 4)
        assert torch.equal(compiled(block, x, block.init_state(1))[0], block.step(x, block.init_state(1))[0])
        assert len(opaque._memos) <= 3


@LAYERS
@torch.no_grad()
def test_one_graph_serves_layers_with_numbers_of_their_own(layer: str) -> None:
    blocks, backend = [build(layer).blocks[0] for _ in range(4)], Counted()
    compiled = torch.compile(lambda block, x, s: block.step(x, s), fullgraph=True, backend=backend)
    x = torch.randn(1, 4)
    for block in (*blocks, *blocks):
        y, _ = compiled(block, x, block.init_state(1))
        assert torch.equal(y, block.step(x, block.init_state(1))[0])
    assert len(backend.graphs) <= 2


@LAYERS
@pytest.mark.sample(1)
def test_a_compiled_step_has_its_gradients(layer: str) -> None:
    model = build(layer, n_layers=1).double()
    state, u = model.init_state(2), torch.randn(2, 2, dtype=torch.float64)
    step = torch.compile(model.step, fullgraph=True, backend="aot_eager")
    results = []
    for run in (model.step, step):
        model.zero_grad()
        y, after = run(u, state)
        (y.square().sum() + after.blocks[0].abs().sum()).backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert all(relative_error(*pair) < 1e-11 for pair in zip(*results, strict=True))


@pytest.mark.parametrize("cls", [S4DLayer, S4Layer])
@torch.no_grad()
@pytest.mark.slow
def test_transforms_inside_a_compiled_function_are_followed(cls: type[nn.Module]) -> None:
    layer: Any = cls(4, 8).double()
    u, state = torch.randn(3, 4, dtype=torch.float64), layer.init_state(3)

    def mapped(u: Tensor) -> Tensor:
        found: Tensor = torch.func.vmap(lambda a, s: layer.step(a[None], s[None])[0][0])(u, state)
        return found

    def tangent(u: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(lambda a: layer.step(a, state)[0], (u,), (u,))[1]
        return found

    y = layer.step(u, state)[0]  # linear in u, as the state is 0
    for function in (mapped, tangent):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(u), y) < 1e-12


@LAYERS
@pytest.mark.parametrize("backend", ["auto", pytest.param("pytorch", marks=pytest.mark.slow)])
@pytest.mark.sample(1)
def test_training_at_ten_lengths_takes_two_compilations(layer: str, backend: str) -> None:
    model, counted = build(layer, task="classification", n_layers=1).double(), Counted()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counted)
    with use_backend(backend):
        for L in LENGTHS:
            u, results = torch.randn(2, L, 2, dtype=torch.float64), []
            for run in (model, compiled):
                model.zero_grad()
                y = run(u)
                y.square().sum().backward()
                results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
            assert all(relative_error(*pair) < 1e-10 for pair in zip(*results, strict=True))
    assert len(counted.graphs) <= 2


@LAYERS
@torch.no_grad()
@pytest.mark.slow
def test_prefill_and_generation_are_one_graph_each(layer: str) -> None:
    model, prefilled, generated = build(layer, n_layers=1), Counted(), Counted()
    prefill = torch.compile(model.prefill, fullgraph=True, dynamic=True, backend=prefilled)
    for L in LENGTHS:
        u = torch.randn(2, L, 2)
        y, state = prefill(u)
        want, after = model.prefill(u)
        pairs = zip((y, *state.blocks), (want, *after.blocks), strict=True)
        assert all(relative_error(*pair) < 1e-6 for pair in pairs)
    assert len(prefilled.graphs) <= 2
    generate = torch.compile(model.generate, fullgraph=True, backend=generated)
    assert relative_error(generate(u, 6), model.generate(u, 6)) < 1e-6
    assert len(generated.graphs) == 1


@pytest.mark.parametrize("length", [0, 1, 2, 5, 8, 13])
def test_powers_in_graphs_have_the_derivatives_of_the_loop(length: int) -> None:
    row = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    A = (0.4 * torch.randn(3, 4, 4, dtype=torch.float64)).requires_grad_()
    cotangent = torch.randn_like(row)
    results = []
    for run in (row_power, torch.compile(row_power, fullgraph=True, backend="aot_eager")):
        y = run(row, A, length)
        found = torch.autograd.grad(y, (row, A), cotangent, materialize_grads=True)
        results.append([y.detach(), *found])
    assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-14) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@needs_cxx
@LAYERS
@torch.no_grad()
def test_a_step_by_inductor(layer: str) -> None:
    model = build(layer)
    state, u = model.init_state(3), torch.randn(3, 2)
    y, after = torch.compile(model.step, fullgraph=True)(u, state)
    want, expected = model.step(u, state)
    pairs = zip((y, *after.blocks), (want, *expected.blocks), strict=True)
    assert all(relative_error(*pair) < 1e-6 for pair in pairs)
