"""Hooks of kernels, layers and all modules run in every pass and in every step, and what they return is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from s4_fast import S4Layer
from s4_fast.layers import SSMBlock
from tests.helpers import relative_error
from tests.modules import KINDS, STEPPING, close, in_parts, kernels, made, over, plain, stepped

L, CUT = 12, 5
LINEAR = ("S4DLayer", "S4Layer", "FFTConv")


def inputs(generator: torch.Generator) -> Tensor:
    return torch.randn(2, L, 4, dtype=torch.float64, generator=generator)


# ------------------------------------------------------------------------------------------------- hooks of kernels


def doubled(module: nn.Module, args: Any, output: Any) -> Any:
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_of_a_kernel_sees_and_changes_its_samples(kind: str, generator: torch.Generator) -> None:
    module, u, seen = made(kind), inputs(generator), []
    kernel = kernels(module)[-1]
    handles = [
        kernel.register_forward_hook(lambda m, args, output: seen.append(output)),
        kernel.register_forward_hook(doubled),
    ]
    y = over(module, u)
    other = plain(kind, module)
    (k,) = (output[0] if isinstance(output, tuple) else output for output in seen)
    own = kernels(other)[-1]
    assert close(k.view(own.channels, 4, L), own.impulse_response(L)), "the samples"
    with torch.no_grad():
        own.C.mul_(2)
    assert close(y, over(other, u))
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        own.C.div_(2)
    assert close(over(module, u), over(other, u))


@pytest.mark.parametrize("kind", STEPPING)
def test_a_hook_before_a_kernel_runs_before_every_step(kind: str, generator: torch.Generator) -> None:
    """It sets a parameter, as weight_norm does; an assignment to ``.data`` alone would leave no trace."""
    module, u = made(kind), inputs(generator)
    kernel = kernels(module)[-1]
    C = kernel.C.detach().clone()
    factor = 1.0

    def sets(module: nn.Module, args: Any) -> None:
        with torch.no_grad():
            kernel.C.copy_(factor * C)

    kernel.register_forward_pre_hook(sets)
    for factor in (2.0, 3.0):
        for context in (torch.no_grad, torch.enable_grad):
            other = made(kind)
            with torch.no_grad():
                kernels(other)[-1].C.mul_(factor)
            with context():
                assert close(stepped(module, u)[0], over(other, u))


# -------------------------------------------------------------------------------------------------- hooks of modules


def modules_in(module: nn.Module) -> dict[str, nn.Module]:
    """Those that a step calls, each with an output that may be doubled."""
    found = {"itself": module}
    found |= {type(m).__name__: m for m in module.modules() if isinstance(m, (SSMBlock, nn.LayerNorm, nn.Linear))}
    layers = [m for name, m in module.named_modules() if name.split(".")[-1] == "layer"]
    return {**found, "layer": layers[-1]} if layers else found


@pytest.mark.parametrize("place", ["itself", "SSMBlock", "layer", "Linear", "LayerNorm"])
@pytest.mark.parametrize("kind", STEPPING)
@pytest.mark.sample(25)
def test_hooks_of_modules_run_in_steps(kind: str, place: str, generator: torch.Generator) -> None:
    u, module = inputs(generator), made(kind)
    hooked = modules_in(module).get(place)
    if hooked is None:
        assert kind.startswith((*LINEAR, "S4 ", "S4Block", "SSMBlock"))
        return
    bare = over(module, u)
    calls: list[str] = []
    handles = [
        hooked.register_forward_pre_hook(lambda m, args: calls.append("before")),
        hooked.register_forward_hook(lambda m, args, output: calls.append("behind")),
        hooked.register_forward_pre_hook(lambda m, args: (3 * args[0], *args[1:])),
        hooked.register_forward_hook(doubled),
    ]
    want = over(module, u)
    assert not close(bare, want, 1e-3)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            calls.clear()
            assert close(stepped(module, u)[0], want)
            assert calls == ["before", "behind"] * L
            assert close(in_parts(module, u, CUT), want)
    for handle in handles:
        handle.remove()
    assert close(over(module, u), bare) and close(stepped(module, u)[0], bare)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # a kernel has no tensor as its input
@pytest.mark.parametrize("kind", KINDS)
def test_backward_hooks_see_gradients(kind: str, generator: torch.Generator) -> None:
    u, module = inputs(generator).requires_grad_(), made(kind)
    want = torch.autograd.grad(over(module, u).square().sum(), u)[0]
    seen: list[Any] = []
    for m in (module, kernels(module)[-1]):
        m.register_full_backward_hook(lambda m, grads, outputs: seen.append((m, outputs)))
    over(module, u).square().sum().backward()
    assert close(u.grad, want)
    assert {m for m, outputs in seen} == {module, kernels(module)[-1]}
    assert all(outputs[0].norm() > 0 for _, outputs in seen)


# ------------------------------------------------------------------------------------------------------ hooks of all


@contextmanager
def hooks_of_all() -> Iterator[list[nn.Module]]:
    calls: list[nn.Module] = []
    handles = [
        nn_module.register_module_forward_hook(lambda m, args, output: calls.append(m)),
        nn_module.register_module_forward_pre_hook(lambda m, args: None),
        nn_module.register_module_full_backward_hook(lambda *args: None),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # a kernel has no tensor as its input
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_all_modules_change_nothing(kind: str, generator: torch.Generator) -> None:
    u, module = inputs(generator).requires_grad_(), made(kind)

    def results() -> list[Tensor]:
        y = over(module, u)
        found = [y, *torch.autograd.grad(y.square().sum(), [u, *module.parameters()])]
        return [*found, *([stepped(module, u)[0], in_parts(module, u, CUT)] if kind in STEPPING else [])]

    want = results()
    with hooks_of_all() as calls:
        got = results()
    assert all(close(g, w, 1e-10) for g, w in zip(got, want, strict=True))
    assert {module, *kernels(module)} <= set(calls)


@pytest.mark.parametrize(
    "kind", [kind for kind in STEPPING if "s4" in kind.split() or kind == "S4Layer" or "dplr" in kind]
)
def test_a_step_with_hooks_sets_no_kernel_up(kind: str, generator: torch.Generator) -> None:
    """C truncated for a kernel of length 1 would have lost digits."""
    torch.manual_seed(0)
    module = KINDS[kind]().double()
    u, before = inputs(generator), {name: t.clone() for name, t in module.state_dict().items()}
    with torch.no_grad():
        want = stepped(module, u)[0]
        with hooks_of_all():
            got = stepped(module, u)[0]
    assert close(got, want)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_steps_with_hooks_are_as_accurate(generator: torch.Generator) -> None:
    layer = S4Layer(4, 64, generator=generator)
    u = torch.randn(2, 40, 4, generator=generator)
    with torch.no_grad():
        want = stepped(widened(layer), u.double())[0]
        layer.kernel.register_forward_hook(lambda *args: None)
        layer.register_forward_hook(lambda *args: None)
        assert relative_error(stepped(layer, u)[0], want) <= 2e-6


def widened(layer: S4Layer) -> S4Layer:
    other = S4Layer(4, 64).double()
    other.load_state_dict(layer.state_dict())
    return other
