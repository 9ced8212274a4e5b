"""Every fact of torch_private, where it holds and where it does not: a PyTorch that breaks one fails here."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.fsdp import fully_shard
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import s4_fast
from s4_fast import torch_private
from tests.ranks import Ranks

ONES = torch.ones(2)


def has_transform() -> bool:
    return torch_private.innermost_transform() is not None


def answers(fact: Callable[[], Any], run: Callable[[Callable[[Tensor], Tensor]], Any]) -> list[bool]:
    """What ``fact`` says before, during and after ``run`` calls the function it is given."""
    seen: list[bool] = []

    def function(t: Tensor) -> Tensor:
        seen.append(bool(fact()))
        return t

    before = bool(fact())
    run(function)
    return [before, *seen[:1], bool(fact())]


def inside(context: Callable[[], AbstractContextManager[Any]]) -> Callable[[Callable[[Tensor], Tensor]], Any]:
    def run(function: Callable[[Tensor], Tensor]) -> None:
        with context():
            function(ONES)

    return run


@pytest.mark.parametrize(
    ("fact", "run"),
    [
        (torch_private.function_modes, inside(TorchFunctionMode)),
        (torch_private.function_modes, inside(lambda: torch.device("cpu"))),
        (torch_private.dispatch_modes, inside(TorchDispatchMode)),
        (torch_private.dispatch_modes, lambda function: make_fx(function)(ONES)),
        (torch_private.has_dual_level, inside(forward_ad.dual_level)),
        (torch_private.has_dual_level, lambda function: jvp(function, (ONES,), (ONES,))),
        (torch_private.is_jit_tracing, lambda function: torch.jit.trace(function, ONES, check_trace=False)),
        (has_transform, lambda function: vmap(function)(ONES)),
        (has_transform, lambda function: grad(lambda t: function(t).sum())(ONES)),
        (has_transform, lambda function: functionalize(function)(ONES)),
    ],
)
def test_what_sees_operations_is_told_while_it_does(fact: Callable[[], Any], run: Callable[..., Any]) -> None:
    assert answers(fact, run) == [False, True, False]
    assert answers(fact, inside(nullcontext)) == [False, False, False]


class Asked(nn.Module):
    """A linear map that notes the answer of a fact at every call."""

    def __init__(self, fact: Callable[[], bool]) -> None:
        super().__init__()
        self.linear, self.fact, self.seen = nn.Linear(2, 2), fact, [fact()]

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(self.fact())
        return self.linear(x)


def seen_by_wrappers() -> list[bool]:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    sharded = [torch_private.is_sharded(model[0])]
    fully_shard(model[0])
    assert type(model[0]) is not nn.Linear and torch_private.written_class(model[0]) is nn.Linear
    return [*sharded, torch_private.is_sharded(model[0]), torch_private.is_sharded(model[1])]


def test_wrappers_for_several_processes_are_told(groups: dict[int, Ranks]) -> None:
    for sharded in groups[2].run(seen_by_wrappers):
        assert sharded == [False, True, False]


class Doubled(nn.Module):
    """Twice its input where it is exported."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if torch_private.is_exporting() else x.clone()


def test_an_export_is_told_from_a_compilation() -> None:
    x = torch.ones(2)
    assert torch.equal(Doubled()(x), x)
    assert torch.equal(torch.compile(Doubled(), backend="eager")(x), x)
    for strict in (False, True):
        assert torch.equal(torch.export.export(Doubled(), (x,), strict=strict).module()(x), 2 * x)


def test_members_of_a_batch_of_cotangents_are_told_and_put_back() -> None:
    """By the vmap of ``torch.autograd``, which is not that of ``torch.func``."""
    seen = []

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, t: Tensor) -> Tensor:
            return 2 * t

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            level = torch_private.batch_level()
            seen.append((level, torch_private.is_in_batch(grad)))
            if not level:
                return 2 * grad
            whole = torch_private.whole_batch(grad, level)
            assert whole.shape == (3, 2) and not torch_private.is_in_batch(whole)
            return torch_private.in_batch(2 * whole, level)

    t = torch.ones(2, requires_grad=True)
    y, cotangents = Twice.apply(t), torch.arange(6.0).view(3, 2)
    (found,) = torch.autograd.grad(y, t, cotangents, is_grads_batched=True, retain_graph=True)
    assert torch.equal(found, 2 * cotangents)
    torch.autograd.grad(y, t, cotangents[0])
    assert seen == [(1, True), (0, False)] and torch_private.batch_level() == 0
    assert not torch_private.is_in_batch(t)


def test_what_transforms_work_on_is_unwrapped() -> None:
    found = []

    def function(t: Tensor) -> Tensor:
        found.append(torch_private.unwrapped(t))
        return t.sum()

    t = torch.arange(6.0).view(3, 2)
    vmap(grad(function))(t)
    assert torch.equal(found[0], t)
    assert torch_private.unwrapped(t) is t


def test_compiled_modules_are_told() -> None:
    module = nn.Linear(2, 2)
    assert not torch_private.is_compiled(module)
    assert torch_private.is_compiled(torch.compile(module)) and not torch_private.is_compiled(module)
    module.compile()
    assert torch_private.is_compiled(module)


class FSDPNamed(nn.Linear):
    """A class whose author called it so."""


def test_a_class_is_told_from_what_is_made_of_it() -> None:
    module = nn.Linear(2, 2)
    assert torch_private.written_class(module) is nn.Linear
    parametrize.register_parametrization(module, "weight", nn.Identity())
    assert type(module) is not nn.Linear and torch_private.written_class(module) is nn.Linear
    assert torch_private.written_class(FSDPNamed(2, 2)) is FSDPNamed


HOOKS = {
    "forward": lambda m: m.register_forward_hook(lambda *args: None),
    "pre-forward": lambda m: m.register_forward_pre_hook(lambda *args: None),
    "with keywords": lambda m: m.register_forward_pre_hook(lambda *args: None, with_kwargs=True),
    "backward": lambda m: m.register_full_backward_hook(lambda *args: None),
    "pre-backward": lambda m: m.register_full_backward_pre_hook(lambda *args: None),
    "forward of all": lambda m: nn_module.register_module_forward_hook(lambda *args: None),
    "pre-forward of all": lambda m: nn_module.register_module_forward_pre_hook(lambda *args: None),
    "backward of all": lambda m: nn_module.register_module_full_backward_hook(lambda *args: None),
    "pre-backward of all": lambda m: nn_module.register_module_full_backward_pre_hook(lambda *args: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_told_until_they_are_removed(kind: str) -> None:
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert not torch_private.has_hooks(module)
    handle = HOOKS[kind](module)
    try:
        assert torch_private.has_hooks(module)
        assert torch_private.has_hooks(other) == kind.endswith("of all")
        own = [name for name in torch_private.HOOKS if getattr(module, name)]
        assert len(own) == (0 if kind.endswith("of all") else 1)
    finally:
        handle.remove()
    assert not torch_private.has_hooks(module)


def test_hooks_of_parts_and_of_states_are_not_run_by_a_call() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_forward_hook(lambda *args: None)
    module.register_state_dict_post_hook(lambda *args: None)
    module.register_load_state_dict_post_hook(lambda *args: None)
    assert not torch_private.has_hooks(module) and torch_private.has_hooks(module[0])


class Parted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.part = nn.Parameter(torch.ones(2)), nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("nothing", None)


def test_own_parts_are_those_of_no_submodule() -> None:
    module = Parted()
    assert list(torch_private.own_parameters(module)) == ["weight"]
    assert list(torch_private.own_modules(module)) == ["part"]
    weight, count, nothing = torch_private.own_tensors(module)
    assert weight is module.weight and count is module.count and nothing is None
    parametrize.register_parametrization(module, "weight", nn.Identity())
    assert list(torch_private.own_parameters(module)) == []
    assert list(torch_private.own_modules(module)) == ["part", "parametrizations"]


@pytest.fixture
def compiled() -> Iterator[Callable[..., Any]]:
    torch.compiler.reset()
    yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.compiler.reset()


def test_an_assertion_holds_or_fails_eagerly_and_compiled(compiled: Callable[..., Any]) -> None:
    def function(t: Tensor) -> Tensor:
        torch_private.assert_when_computed((t > 0).all(), "expected what is above 0")
        return t + 1

    for run in (function, compiled(function)):
        assert torch.equal(run(ONES), ONES + 1)
        with pytest.raises(RuntimeError, match="expected what is above 0"):
            run(-ONES)


def test_compiled_code_asks_for_hooks_modules_and_shards(compiled: Callable[..., Any]) -> None:
    module = Parted()

    def function(t: Tensor) -> Tensor:
        for fact in (torch_private.has_hooks(module), torch_private.is_sharded(module)):
            t = t + (10 if fact else 1)
        for part in (*torch_private.own_parameters(module).values(), *torch_private.own_modules(module)):
            t = t + (0 if part is None else 1)
        return t

    assert torch.equal(compiled(function)(ONES), ONES + 4)
    module.register_forward_hook(lambda *args: None)
    torch.compiler.reset()
    assert torch.equal(compiled(function)(ONES), ONES + 13)


class Point(NamedTuple):
    at: Tensor


class Moved(nn.Module):
    def forward(self, point: Point) -> Point:
        return Point(point.at + 1)


def test_programs_of_registered_namedtuples_are_saved() -> None:
    program = torch.export.export(Moved(), (Point(ONES),))
    with pytest.raises(NotImplementedError, match="Point"):
        torch.export.save(program, io.BytesIO())
    torch_private.register_namedtuple(Point, "tests.Point")
    torch.export.save(program, io.BytesIO())


def test_tensors_without_numbers_are_told() -> None:
    with FakeTensorMode():
        fake = torch.ones(2)
    assert [torch_private.has_numbers(t) for t in (ONES, nn.Parameter(ONES), ONES.to("meta"), fake)] == [
        True,
        True,
        False,
        False,
    ]


def test_sizes_that_are_symbols_are_told(compiled: Callable[..., Any]) -> None:
    def function(t: Tensor) -> Tensor:
        return t + (10 if torch_private.is_number(len(t)) else 1)

    known = hasattr(symbolic_shapes, "has_static_value")
    assert torch.equal(function(ONES), ONES + 10)
    assert torch.equal(compiled(function)(ONES), ONES + (10 if known else 1))
    torch.compiler.reset()
    several = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(several(torch.ones(5)), torch.ones(5) + 1)
    traced = make_fx(lambda t: t + (10 if torch_private.is_number(t.shape[0]) else 1), tracing_mode="symbolic")(ONES)
    assert torch.equal(traced(ONES), ONES + 1)


def test_what_is_constant_in_graphs_is_marked_as_pytorch_marks_it() -> None:
    def fact() -> bool:
        return True

    def same() -> bool:
        return True

    assert vars(torch_private.constant_in_graphs(fact)) == vars(torch.compiler.assume_constant_result(same)) != {}


def test_no_other_module_uses_private_names_of_pytorch() -> None:
    package = Path(s4_fast.__file__).parent
    private = re.compile(
        r"\b(torch|forward_ad|nn|dist)(\.\w+)*\._[A-Za-z]|\._version\b|_forward_hooks|_global_\w+hooks"
    )
    found = [
        f"{file.relative_to(package)}: {line.strip()}"
        for file in package.rglob("*.py")
        if file.name != "torch_private.py"
        for line in file.read_text("utf-8").splitlines()
        if private.search(line) and "s4_fast._version" not in line
    ]
    assert not found
