"""diagonal_ssm as it is called: gradients, memory, what backends refuse, and what every error says."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck

from s4_fast import diagonal_ssm, dispatch, explain, use_backend
from tests.helpers import (
    assert_gradients_one_by_one,
    cotangents,
    evaluate,
    parts,
    relative_error,
    unusual_views,
)
from tests.ops.diagonal_inputs import BACKENDS, BOTH, EVERY, ORDERS, RULES, contract, inputs, on

pytestmark = pytest.mark.usefixtures("poisoned_memory")


# ---------------------------------------------------------------------------------------------- gradients and layouts


@EVERY
@BOTH
@RULES
def test_gradcheck(discretization: str, bidirectional: bool, backend: str, generator: Generator) -> None:
    tensors = inputs(generator, (2, 2, 2, 5), channels=2, rows=1, bidirectional=bidirectional, dtype=torch.complex128)
    names = list(tensors)

    def function(*args: Tensor) -> Any:
        given = dict(zip(names, args, strict=True))
        return diagonal_ssm(
            **given, return_state=True, bidirectional=bidirectional, discretization=discretization, backend=backend
        )

    assert gradcheck(function, [t.requires_grad_() for t in tensors.values()], fast_mode=True)


@BACKENDS
@BOTH
def test_gradients_one_by_one(bidirectional: bool, backend: str, generator: Generator) -> None:
    tensors = inputs(generator, channels=2, rows=2, bidirectional=bidirectional, dtype=torch.complex128)
    assert_gradients_one_by_one("diagonal_ssm", tensors, backend, return_state=True, bidirectional=bidirectional)


@BACKENDS
@BOTH
@ORDERS
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
def test_memory_layout_does_not_matter(
    view: str, time_major: bool, bidirectional: bool, backend: str, device: str, generator: Generator
) -> None:
    for channels in (None, 2):
        tensors = inputs(generator, channels=channels, rows=2, bidirectional=bidirectional, time_major=time_major)
        contract(unusual_views(on(device, tensors))[view], backend, time_major=time_major)


@BACKENDS
@BOTH
def test_expanded_inputs(bidirectional: bool, backend: str, generator: Generator) -> None:
    tensors = inputs(generator, (1, 1, 1, 50), bidirectional=bidirectional)
    shapes = {"u": (3, 4, 50), "A": (4, 5), "B": (4, 5), "C": (1 + bidirectional, 4, 5), "dt": (4, 5), "D": (4,)}
    contract({name: t.expand(shapes.get(name, (3, 4, 5))) for name, t in tensors.items()}, backend)


@EVERY
@BOTH
def test_inputs_are_left_as_they_are(bidirectional: bool, backend: str, generator: Generator) -> None:
    tensors = inputs(generator, channels=2, rows=2, bidirectional=bidirectional, dtype=torch.complex128)
    before = {name: t.clone() for name, t in tensors.items()}
    outcome = evaluate("diagonal_ssm", tensors, backend, return_state=True, bidirectional=bidirectional)
    with torch.no_grad():
        outputs = parts(diagonal_ssm(**tensors, return_state=True, bidirectional=bidirectional, backend=backend))
    assert all(torch.equal(t, before[name]) for name, t in tensors.items())
    for made in (*outputs, *outcome.grads.values()):
        assert all(made.data_ptr() != t.data_ptr() for t in tensors.values())


@BACKENDS
@BOTH
@pytest.mark.parametrize("channels", [None, 2])
@pytest.mark.parametrize("sizes", [(2, 4, 3, 100), (1, 5, 3, 1), (3, 1, 3, 70)])
def test_an_output_lies_in_memory_as_its_signal(
    sizes: tuple[int, int, int, int], channels: int | None, bidirectional: bool, backend: str, generator: Generator
) -> None:
    """In either order, said by ``time_major`` or seen in strides; a gradient may come in the other one."""
    tensors = inputs(generator, sizes, channels=channels, bidirectional=bidirectional)
    u, options = tensors.pop("u"), {"bidirectional": bidirectional, "backend": backend}
    found = []
    for signal, time_major in ((u, False), (u.mT.contiguous(), True), (u.mT.contiguous().mT, False), (u.mT, True)):
        leaf = signal.detach().requires_grad_()
        y = diagonal_ssm(leaf, **tensors, time_major=time_major, **options)
        if y.ndim == 3:
            assert y.stride() == signal.stride()
        else:
            y = y.flatten(2, 3) if time_major else y.flatten(1, 2)
        y = y.mT if time_major else y
        cotangent = cotangents(y)[0].contiguous()
        for g in (cotangent, cotangent.mT.contiguous().mT):
            (grad,) = torch.autograd.grad(y, leaf, g, retain_graph=True)
            found.append((y.detach(), grad.mT if time_major else grad))
    for y, grad in found[1:]:
        assert relative_error(y, found[0][0]) <= 1e-6
        assert relative_error(grad, found[0][1]) <= 1e-6


@BACKENDS
@BOTH
@pytest.mark.parametrize(("batch", "H"), [(0, 3), (2, 0)])
def test_empty_batch(batch: int, H: int, bidirectional: bool, backend: str, generator: Generator) -> None:
    for time_major in (False, True):
        tensors = inputs(
            generator, (batch, H, 4, 20), rows=H or 1, bidirectional=bidirectional, channels=2, time_major=time_major
        )
        options: dict[str, Any] = {"return_state": True, "bidirectional": bidirectional, "time_major": time_major}
        (y, final), grads = evaluate("diagonal_ssm", tensors, backend, **options)
        assert y.shape == ((batch, 20, 2, H) if time_major else (batch, 2, H, 20))
        assert final.shape == (batch, H, 4)
        assert all(torch.equal(g, torch.zeros_like(tensors[name])) for name, g in grads.items())
        with torch.no_grad():
            of_reference = diagonal_ssm(**tensors, **options, backend="reference")
        assert [t.shape for t in of_reference] == [y.shape, final.shape]


@BACKENDS
@BOTH
@pytest.mark.parametrize("output", [0, 1])
def test_gradients_through_one_output_alone(
    output: int, bidirectional: bool, backend: str, generator: Generator
) -> None:
    """Autograd then has no gradient for the other one, which counts as zero."""
    tensors = inputs(generator, channels=2, rows=2, bidirectional=bidirectional, dtype=torch.complex128)
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}

    def gradients(backend: str) -> tuple[Tensor, ...]:
        y = diagonal_ssm(**leaves, return_state=True, bidirectional=bidirectional, backend=backend)[output]
        return torch.autograd.grad(y, list(leaves.values()), cotangents(y), allow_unused=True, materialize_grads=True)

    for name, a, e in zip(leaves, gradients(backend), gradients("reference"), strict=True):
        assert relative_error(a, e) <= 1e-11, name


def test_the_state_is_returned_on_demand(generator: Generator) -> None:
    tensors = inputs(generator, channels=2)
    y, final = diagonal_ssm(**tensors, return_state=True)
    assert torch.equal(diagonal_ssm(**tensors), y)
    assert (y.shape, final.shape, final.dtype) == ((2, 2, 4, 100), (2, 4, 3), torch.complex64)


def test_explain(generator: Generator) -> None:
    tensors = inputs(generator, bidirectional=True)
    options: dict[str, Any] = {"bidirectional": True, "time_major": False, "discretization": "bilinear", "rate": 2}
    assert explain(diagonal_ssm, **tensors, **options).backend in dispatch.implementations("diagonal_ssm")
    assert explain("diagonal_ssm", **tensors, **options, backend="pytorch").backend == "pytorch"
    with pytest.raises(dispatch.BackendUnavailableError, match=r"keops.*does not implement diagonal_ssm"):
        diagonal_ssm(**tensors, bidirectional=True, backend="keops")
    with pytest.raises(ValueError, match="expected dt of shape"):
        explain(diagonal_ssm, **{**tensors, "dt": tensors["dt"][:1]}, **options)


def test_the_backend_around_a_call_is_asked_for(generator: Generator) -> None:
    tensors = inputs(generator)
    with mock.patch.object(dispatch, "load", wraps=dispatch.load) as load, use_backend("pytorch"):
        diagonal_ssm(**tensors)
    assert [call.args for call in load.call_args_list] == [("diagonal_ssm", "pytorch")]


def test_autocast_leaves_the_parameters_alone(generator: Generator) -> None:
    tensors = inputs(generator)
    expected = diagonal_ssm(**{**tensors, "u": tensors["u"].bfloat16()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = diagonal_ssm(**{**tensors, "u": tensors["u"].bfloat16()})
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
