"""Derivatives of any order and the transforms of torch.func through layers, models and the official layers' ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from s4_fast import S4DLayer, S4Layer, S4SequenceModel, state_spaces, use_backend
from tests.helpers import backends, relative_error

# PyTorch has no rule for Hessians of a GLU over batches and goes through them one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

FEATURES, LENGTH = 3, 7
MAKE: dict[str, Callable[[], nn.Module]] = {
    "S4DLayer": lambda: S4DLayer(FEATURES, 4),
    "S4DLayer, both ways": lambda: S4DLayer(FEATURES, 4, bidirectional=True, discretization="bilinear"),
    "S4DLayer, convolution": lambda: S4DLayer(FEATURES, 4, path="convolution"),
    "S4Layer": lambda: S4Layer(FEATURES, 4),
    "S4Layer, both ways": lambda: S4Layer(FEATURES, 4, bidirectional=True, rank=2),
    "S4Layer, convolution": lambda: S4Layer(FEATURES, 4, path="convolution"),
    "S4D model": lambda: S4SequenceModel(FEATURES, 2, 4, n_layers=2, d_state=4),
    "S4 model": lambda: S4SequenceModel(FEATURES, 2, 4, n_layers=1, d_state=4, layer="s4"),
    "S4Block": lambda: state_spaces.S4Block(FEATURES, d_state=4, transposed=False),
    "S4Block, set up": lambda: set_up(state_spaces.S4Block(FEATURES, d_state=4, transposed=False)),
    "S4Block, diagonal": lambda: state_spaces.S4Block(FEATURES, d_state=4, transposed=False, mode="diag"),
    "S4D": lambda: state_spaces.S4D(FEATURES, d_state=4, transposed=False),
}


def set_up(block: Any) -> Any:
    block.layer.kernel.setup(LENGTH)
    return block


def make(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MAKE[kind]().double().eval()


def signal(batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, LENGTH, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(module: nn.Module, parameters: dict[str, Tensor], u: Tensor) -> Tensor:
    found = functional_call(module, parameters, (u,))
    y: Tensor = found[0] if isinstance(found, tuple) else found
    return y


def loss(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda parameters, u: (run(module, parameters, u).square() + run(module, parameters, u).sin()).sum()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in module.named_parameters()}


def tangents(tensors: Any) -> Any:
    generator = torch.Generator().manual_seed(2)
    return torch.utils._pytree.tree_map(
        lambda t: torch.randn(t.shape, dtype=t.dtype, generator=generator) if t.is_floating_point() else t, tensors
    )


def per_sample_gradients(kind: str) -> Any:
    module = make(kind)
    return vmap(grad(lambda p, u: loss(module)(p, u[None])), (None, 0))(state_of(module), signal())


def ensemble(kind: str) -> Any:
    modules = [make(kind, seed) for seed in range(3)]
    parameters, buffers = stack_module_state(modules)
    module = make(kind)
    members = vmap(lambda p, b, u: run(module, {**p, **b}, u), (0, 0, None))(parameters, buffers, signal())
    each = vmap(grad(lambda p, b, u: loss(module)({**p, **b}, u)), (0, 0, 0))(
        {name: t.detach() for name, t in parameters.items()}, buffers, torch.stack([signal(seed=i) for i in range(3)])
    )
    return members, each


def jacobians(kind: str) -> Any:
    module, u = make(kind), signal(1)
    function = lambda u: run(module, {}, u)[:, -1]  # noqa: E731
    found = [jacrev(function)(u), jacfwd(function)(u)]
    return found, torch.autograd.functional.jacobian(function, u, vectorize=True)


def hessians(kind: str) -> Any:
    module, u = make(kind), signal(1)
    function = lambda u: loss(module)({}, u)  # noqa: E731
    found = torch.autograd.functional.hessian(function, u, vectorize=True)
    return found, jacfwd(jacrev(function))(u)


def products(kind: str) -> Any:
    """Forward over reverse, reverse over reverse, and forward alone, in parameters and signals."""
    module, u = make(kind), signal()
    primals = (state_of(module), u)
    pushed = jvp(loss(module), primals, tangents(primals))
    twice = jvp(grad(loss(module), (0, 1)), primals, tangents(primals))
    value, pull = vjp(loss(module), *primals)
    return pushed, twice, pull(torch.ones_like(value))


def gradient_penalty(kind: str) -> Any:
    """The gradients of a penalty in the module's own parameters, as they are trained."""
    module, u = make(kind), signal().requires_grad_()
    y = module(u)
    y = y[0] if isinstance(y, tuple) else y
    (gradient,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
    (y.sum() + gradient.square().sum()).backward()
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters()], u.grad


def dual_numbers(kind: str) -> Any:
    module, u = make(kind), signal()
    with forward_ad.dual_level():
        parameters = {name: forward_ad.make_dual(t, tangents(t)) for name, t in state_of(module).items()}
        y = run(module, parameters, forward_ad.make_dual(u, tangents(u)))
        return forward_ad.unpack_dual(y).tangent


TRANSFORMS = (
    per_sample_gradients,
    ensemble,
    jacobians,
    hessians,
    products,
    gradient_penalty,
    dual_numbers,
)


def assert_close(actual: Any, expected: Any) -> None:
    actual, expected = (torch.utils._pytree.tree_leaves(found) for found in (actual, expected))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a.detach(), e.detach()) <= 1e-8 or (a - e).abs().max() <= 1e-10


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.sample(12)
def test_transforms_are_the_definitions(kind: str, transform: Callable[[str], Any]) -> None:
    check(kind, transform, None)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backends("dplr_scan"))
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", MAKE)
def test_transforms_are_the_definitions_by_backend(kind: str, transform: Callable[[str], Any], backend: str) -> None:
    check(kind, transform, backend)


@pytest.mark.parametrize("transform", [per_sample_gradients, products])
@pytest.mark.parametrize("kind", ["S4DLayer", pytest.param("S4Layer", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_compiled_transform_is_the_eager_one(kind: str, transform: Callable[[str], Any]) -> None:
    torch.compiler.reset()
    module = make(kind)
    parameters, u = state_of(module), signal()

    def function(p: dict[str, Tensor], u: Tensor) -> Any:
        if transform is products:
            return jvp(loss(module), (p, u), (p, u))
        return vmap(grad(lambda p, u: loss(module)(p, u[None])), (None, 0))(p, u)

    assert_close(torch.compile(function, backend="aot_eager")(parameters, u), function(parameters, u))


def test_members_set_up_for_different_lengths_are_refused() -> None:
    modules = [make("S4Block, set up", seed) for seed in range(2)]
    kernel: Any = modules[1].layer.kernel  # type: ignore[union-attr]
    kernel.setup(3 * LENGTH)
    parameters, buffers = stack_module_state(modules)
    with pytest.raises(RuntimeError, match=r"different lengths, l_kernel from 7 to 28: call setup\(28\)"):
        vmap(lambda p, b, u: run(modules[0], {**p, **b}, u), (0, 0, None))(parameters, buffers, signal())


@pytest.mark.parametrize("kind", ["S4DLayer", "S4Layer"])
def test_tangents_of_a_step(kind: str) -> None:
    module: Any = make(kind)
    state, u = module.init_state(2), signal()[:, 0]

    def step(parameters: dict[str, Tensor], u: Tensor) -> Any:
        return functional_call(Step(module), {f"layer.{name}": t for name, t in parameters.items()}, (u, state))

    primals = (state_of(module), u)
    found = jvp(step, primals, tangents(primals))
    with use_backend("reference"):
        assert_close(found, jvp(step, primals, tangents(primals)))


def test_lengths_that_vmap_goes_over() -> None:
    module, u, lengths = make("S4DLayer"), signal(), torch.tensor([[3, 7], [5, 1]])
    found = vmap(lambda n: module(u, lengths=n))(lengths)
    assert_close(found, torch.stack([module(u, lengths=n) for n in lengths]))
    with pytest.raises(ValueError, match="expected lengths from 1 to 7"):
        vmap(lambda n: module(u, lengths=n))(lengths + 1)


class Step(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self, u: Tensor, state: Tensor) -> Any:
        return self.layer.step(u, state)


def check(kind: str, transform: Callable[[str], Any], backend: str | None) -> None:
    with use_backend("reference"):
        expected = transform(kind)
    with use_backend("auto" if backend is None else backend):
        assert_close(transform(kind), expected)
