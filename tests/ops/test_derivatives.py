"""Derivatives of any order and the transforms of torch.func, of every op and backend, against the definition's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functionalize, grad, jacfwd, jacrev, jvp, vjp, vmap

import s4_fast
from s4_fast.ops.diagonal.plain import phi
from tests.helpers import Tensors, backends, normal, parts, relative_error
from tests.ops import test_library as library

OPS = (*library.OPS, "dplr_step")
EXACT = 1e-9
# Those whose backends have a part in it. KeOps compiles a formula for minutes, and has the same route here.
EACH = [
    pytest.param(op, getattr(backend, "values", (backend,))[0], marks=getattr(backend, "marks", ()))
    for op in OPS
    for backend in (None, *backends(op))
]
# No backend has a part in what is slow here.
ALL = [
    case if case.values[1] is None else pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow])
    for case in EACH
]
NUMERICAL = [
    pytest.param(op, None, marks=pytest.mark.slow if op in ("ssm_scan", "diagonal_ssm", "dplr_scan") else ())
    for op in OPS
]


def inputs(op: str, dtype: torch.dtype = torch.complex128) -> Tensors:
    """Tiny, of sizes that nothing shares."""
    if op != "dplr_step":
        return library.inputs(op, dtype)
    generator = torch.Generator().manual_seed(0)
    batch, H, n, rank, c = 2, 3, 2, 2, 2
    sizes = {"state": (batch, H, n), "increment": (H, n), "G": (rank, H, n), "V": (rank, H, n)}
    sizes |= {"B": (H, n), "C": (c, H, n)}
    u, D = (normal(generator, *shape, dtype=dtype.to_real()) for shape in ((batch, H), (H,)))
    return {"u": u, **{name: normal(generator, *shape, dtype=dtype) for name, shape in sizes.items()}, "D": D}


def call(op: str, *tensors: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
    if op == "dplr_step":
        return parts(s4_fast.dplr_step(*tensors, backend=backend))
    return parts(library.call(op, *tensors, backend=backend))


def loss(op: str, backend: str | None) -> Callable[..., Tensor]:
    """A number that every output, and every derivative, has a part in."""

    def function(*tensors: Tensor) -> Tensor:
        outputs = [torch.view_as_real(t) if t.is_complex() else t for t in call(op, *tensors, backend=backend)]
        return sum(((i + 1) * t + t.square() * t / 3).sum() for i, t in enumerate(outputs))  # type: ignore[return-value]

    return function


def like(tensors: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [normal(generator, *t.shape, dtype=t.dtype) for t in tensors]


def assert_close(actual: Any, expected: Any) -> None:
    actual, expected = (torch.utils._pytree.tree_leaves(found) for found in (actual, expected))
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        assert relative_error(a.detach(), e.detach()) <= EXACT


def leaves(op: str) -> list[Tensor]:
    return [t.requires_grad_() for t in inputs(op).values()]


@pytest.mark.parametrize(("op", "backend"), NUMERICAL)
@pytest.mark.sample(3)
def test_numerical_derivatives(op: str, backend: str | None) -> None:
    """Of first order in both modes, of second order in both orders, and by batches of cotangents."""

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return call(op, *tensors, backend=backend)

    options = {"check_batched_grad": True, "fast_mode": True}
    assert gradcheck(function, leaves(op), check_forward_ad=True, check_batched_forward_grad=False, **options)
    assert gradgradcheck(function, leaves(op), check_fwd_over_rev=True, **options)


def hessian_vector_products(op: str, backend: str | None) -> Any:
    tensors = leaves(op)
    first = torch.autograd.grad(loss(op, backend)(*tensors), tensors, create_graph=True)
    mixed = sum((g * v.conj()).real.sum() for g, v in zip(first, like(tensors, 1), strict=True))
    second = torch.autograd.grad(mixed, tensors, create_graph=True)
    penalty = sum(g.abs().square().sum() for g in second)
    return first, second, torch.autograd.grad(penalty, tensors)


def dual_numbers(op: str, backend: str | None) -> Any:
    tensors = list(inputs(op).values())
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(tensors, like(tensors, 2), strict=True)]
        return [forward_ad.unpack_dual(t).tangent for t in call(op, *duals, backend=backend)]


def one_dual_number(op: str, backend: str | None) -> Any:
    first, *rest = leaves(op)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(first, like([first], 2)[0])
        gradient = torch.autograd.grad(loss(op, backend)(dual, *rest), rest, create_graph=True)
        return [forward_ad.unpack_dual(g).tangent for g in gradient]


def batched_cotangents(op: str, backend: str | None) -> Any:
    tensors = leaves(op)
    outputs = call(op, *tensors, backend=backend)
    cotangents = [torch.stack(like([t], seed) + like([t], seed + 9)) for seed, t in enumerate(outputs)]
    first = torch.autograd.grad(outputs, tensors, cotangents, is_grads_batched=True, create_graph=True)
    return first, torch.autograd.grad(sum(g.abs().square().sum() for g in first), tensors)


def jacobians(op: str, backend: str | None) -> Any:
    tensors = tuple(inputs(op).values())
    index = next(i for i in reversed(range(len(tensors))) if not tensors[i].is_complex() or i == 0)

    def function(t: Tensor) -> Tensor:
        t = torch.complex(t[0], t[1]) if tensors[index].is_complex() else t
        return loss(op, backend)(*tensors[:index], t, *tensors[index + 1 :])

    t = tensors[index]
    t = torch.stack((t.real, t.imag)) if t.is_complex() else t
    return (
        [transform(function)(t) for transform in (jacrev, jacfwd)],
        jacfwd(jacrev(function))(t),
        torch.autograd.functional.jacobian(function, t, vectorize=True),
        torch.autograd.functional.hessian(function, t, vectorize=True),
    )


def pushed_and_pulled(op: str, backend: str | None) -> Any:
    tensors = tuple(inputs(op).values())
    function = loss(op, backend)
    pushed = jvp(function, tensors, tuple(like(list(tensors), 3)))
    twice = jvp(grad(function, tuple(range(len(tensors)))), tensors, tuple(like(list(tensors), 4)))
    value, pull = vjp(function, *tensors)
    return pushed, twice, value, pull(torch.ones_like(value))


def ensembles(op: str, backend: str | None) -> Any:
    """Over all tensors, over one, and the gradient for each member."""
    tensors = list(inputs(op).values())
    stacked = [torch.stack((t, 0.9 * t, 1.1 * t), 1) for t in tensors]
    found = vmap(lambda *args: call(op, *args, backend=backend), in_dims=1)(*stacked)
    of_one = vmap(loss(op, backend), in_dims=(1, *(None for _ in tensors[1:])))(stacked[0], *tensors[1:])
    gradients = vmap(grad(loss(op, backend), tuple(range(len(tensors)))), in_dims=1)(*stacked)
    return found, of_one, gradients


def functional(op: str, backend: str | None) -> Any:
    return functionalize(lambda *args: call(op, *args, backend=backend))(*inputs(op).values())


@pytest.mark.parametrize("transform", [hessian_vector_products, batched_cotangents])
@pytest.mark.parametrize(("op", "backend"), EACH)
def test_derivatives_of_a_backend(op: str, backend: str | None, transform: Callable[..., Any]) -> None:
    assert_close(transform(op, backend), transform(op, "reference"))


@pytest.mark.parametrize(
    "transform", [dual_numbers, one_dual_number, jacobians, pushed_and_pulled, ensembles, functional]
)
@pytest.mark.parametrize(("op", "backend"), ALL)
@pytest.mark.sample(30)
def test_transforms_are_the_definitions(op: str, backend: str | None, transform: Callable[..., Any]) -> None:
    assert_close(transform(op, backend), transform(op, "reference"))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("op", OPS)
def test_accuracy_under_a_transform(op: str, dtype: torch.dtype) -> None:
    tensors = list(inputs(op, dtype).values())
    wide = [t.to(torch.complex128 if t.is_complex() else torch.float64) for t in tensors]
    found = vmap(lambda *args: call(op, *args))(*(t[None] for t in tensors))
    for actual, expected in zip(found, call(op, *wide, backend="reference"), strict=True):
        assert actual.dtype.to_real() == dtype.to_real()
        assert relative_error(actual[0], expected) <= (5e-7 if dtype == torch.complex64 else 1e-12)


def test_derivatives_of_the_hold_are_accurate_near_zero() -> None:
    """``(exp(z) - 1) / z = int_0^1 exp(s z) ds``, of which a quotient would lose a factor z of accuracy each time."""
    z = torch.tensor([0, 1e-9, 1e-4j, -1e-2 + 1e-3j, 0.4j, -0.49, -0.51, 0.7j, -3 + 2j], dtype=torch.complex128)
    one, function = torch.ones_like(z), phi
    nodes, weights = (torch.from_numpy(t) for t in numpy.polynomial.legendre.leggauss(40))
    s = (1 + nodes) / 2
    for order in range(4):
        expected = (torch.exp(s * z[:, None]) * s**order) @ (weights / 2).to(z.dtype)
        assert ((function(z) - expected) / expected).abs().max() <= 1e-12
        function = (lambda f: lambda z: jvp(f, (z,), (one,))[1])(function)


@pytest.mark.parametrize("init", ["legs", "legt", "fout", "lagt"])
def test_a_long_dplr_scan_under_a_transform(init: str) -> None:
    """The circle on which feedback is solved for: what comes around it is below rounding."""
    torch.manual_seed(0)
    model = s4_fast.ssm.DPLRSSM(2, 16, init=init, rank=2, dtype=torch.float64)
    u, C = torch.randn(1, 2, 2000, dtype=torch.float64), model.C.detach()
    state = torch.randn(1, 2, 8, dtype=torch.complex128)

    def run(u: Tensor, state: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
        A, P, B = (t.detach() for t in (model._A(), model._P(), model._B()))
        outputs, dt = torch.view_as_complex(C), model.dt().detach()[:, 0]
        return s4_fast.dplr_scan(u, A, P, B, outputs, dt, None, state, True, backend=backend)

    found = vmap(run)(u[None], state[None])
    for actual, expected in zip(found, run(u, state, "pytorch"), strict=True):
        assert relative_error(actual[0], expected) <= 5e-12


@pytest.mark.parametrize("op", ["fft_conv", "ssm_scan"])
def test_a_bad_sample_leaves_earlier_outputs_alone_under_a_transform(op: str) -> None:
    u, *rest = inputs(op).values()
    bad = u.clone()
    bad[0, 0, 5] = torch.nan
    spoilt, clean = vmap(lambda u: call(op, u, *rest)[0])(torch.stack((bad, u)))
    before = (..., slice(0, 5))
    assert torch.allclose(spoilt[before], clean[before], rtol=1e-12)
    assert spoilt[0, ..., 0, 5:].isnan().all() and not spoilt[1].isnan().any()


@pytest.mark.parametrize("op", ["fft_conv", "ssm_scan", "ssm_step", "diagonal_ssm", "dplr_scan", "dplr_step"])
def test_an_empty_batch_under_a_transform(op: str) -> None:
    tensors = inputs(op)
    empty = [t[:0] if name in ("u", "state", "ahead") else t for name, t in tensors.items()]
    found = vmap(lambda u: call(op, u, *empty[1:]))(empty[0][None])
    assert [t.shape[1:] for t in found] == [(0, *t.shape[1:]) for t in call(op, *tensors.values())]
