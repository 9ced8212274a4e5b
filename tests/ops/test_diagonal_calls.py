"""diagonal_ssm and dplr_scan as they are called: gradients, memory, what backends refuse, and what every error says."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck

import s4_fast
from s4_fast import dispatch, explain, use_backend
from tests.helpers import (
    assert_gradients_one_by_one,
    cotangents,
    evaluate,
    parts,
    relative_error,
    unusual_views,
)
from tests.ops.diagonal_inputs import BACKENDS, BOTH, EACH, EVERY, ORDERS, RULES, contract, inputs, on, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")


# ---------------------------------------------------------------------------------------------- gradients and layouts


@EVERY
@BOTH
def test_gradcheck(bidirectional: bool, op: str, backend: str, generator: Generator) -> None:
    tensors = inputs(
        op, generator, (2, 2, 2, 5), channels=2, rows=1, bidirectional=bidirectional, dtype=torch.complex128
    )
    names = list(tensors)

    def function(rule: dict[str, Any], *args: Tensor) -> Any:
        given = dict(zip(names, args, strict=True))
        return run(op, **given, return_state=True, bidirectional=bidirectional, backend=backend, **rule)

    for rule in RULES[op]:
        leaves = [t.requires_grad_() for t in tensors.values()]
        assert gradcheck(functools.partial(function, rule), leaves, fast_mode=True)


@BACKENDS
@BOTH
def test_gradients_one_by_one(bidirectional: bool, op: str, backend: str, generator: Generator) -> None:
    tensors = inputs(op, generator, channels=2, rows=2, bidirectional=bidirectional, dtype=torch.complex128)
    assert_gradients_one_by_one(op, tensors, backend, return_state=True, bidirectional=bidirectional)


@BACKENDS
@BOTH
@ORDERS
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
def test_memory_layout_does_not_matter(
    view: str, time_major: bool, bidirectional: bool, op: str, backend: str, device: str, generator: Generator
) -> None:
    for channels in (None, 2):
        tensors = inputs(op, generator, channels=channels, rows=2, bidirectional=bidirectional, time_major=time_major)
        contract(op, unusual_views(on(device, tensors))[view], backend, time_major=time_major)


@BACKENDS
@BOTH
def test_expanded_inputs(bidirectional: bool, op: str, backend: str, generator: Generator) -> None:
    tensors = inputs(op, generator, (1, 1, 1, 50), bidirectional=bidirectional)
    shapes = {"u": (3, 4, 50), "A": (4, 5), "B": (4, 5), "C": (1 + bidirectional, 4, 5), "dt": (4, 5), "D": (4,)}
    contract(op, {name: t.expand(shapes.get(name, (3, 4, 5))) for name, t in tensors.items()}, backend)


@EVERY
@BOTH
def test_inputs_are_left_as_they_are(bidirectional: bool, op: str, backend: str, generator: Generator) -> None:
    tensors = inputs(op, generator, channels=2, rows=2, bidirectional=bidirectional, dtype=torch.complex128)
    before = {name: t.clone() for name, t in tensors.items()}
    outcome = evaluate(op, tensors, backend, return_state=True, bidirectional=bidirectional)
    with torch.no_grad():
        outputs = parts(run(op, **tensors, return_state=True, bidirectional=bidirectional, backend=backend))
    assert all(torch.equal(t, before[name]) for name, t in tensors.items())
    for made in (*outputs, *outcome.grads.values()):
        assert all(made.data_ptr() != t.data_ptr() for t in tensors.values())


@BACKENDS
@BOTH
@pytest.mark.parametrize("channels", [None, 2])
@pytest.mark.parametrize("sizes", [(2, 4, 3, 100), (1, 5, 3, 1), (3, 1, 3, 70)])
def test_an_output_lies_in_memory_as_its_signal(
    sizes: tuple[int, int, int, int],
    channels: int | None,
    bidirectional: bool,
    op: str,
    backend: str,
    generator: Generator,
) -> None:
    """In either order, said by ``time_major`` or seen in strides; a gradient may come in the other one."""
    tensors = inputs(op, generator, sizes, channels=channels, bidirectional=bidirectional)
    u, options = tensors.pop("u"), {"bidirectional": bidirectional, "backend": backend}
    found = []
    for signal, time_major in ((u, False), (u.mT.contiguous(), True), (u.mT.contiguous().mT, False), (u.mT, True)):
        leaf = signal.detach().requires_grad_()
        y = run(op, leaf, **tensors, time_major=time_major, **options)
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
def test_empty_batch(batch: int, H: int, bidirectional: bool, op: str, backend: str, generator: Generator) -> None:
    for time_major in (False, True):
        tensors = inputs(
            op,
            generator,
            (batch, H, 4, 20),
            rows=H or 1,
            bidirectional=bidirectional,
            channels=2,
            time_major=time_major,
        )
        options: dict[str, Any] = {"return_state": True, "bidirectional": bidirectional, "time_major": time_major}
        (y, final), grads = evaluate(op, tensors, backend, **options)
        assert y.shape == ((batch, 20, 2, H) if time_major else (batch, 2, H, 20))
        assert final.shape == (batch, H, 4)
        assert all(torch.equal(g, torch.zeros_like(tensors[name])) for name, g in grads.items())
        with torch.no_grad():
            of_reference = run(op, **tensors, **options, backend="reference")
        assert [t.shape for t in of_reference] == [y.shape, final.shape]


@BACKENDS
@BOTH
@pytest.mark.parametrize("output", [0, 1])
def test_gradients_through_one_output_alone(
    output: int, bidirectional: bool, op: str, backend: str, generator: Generator
) -> None:
    """Autograd then has no gradient for the other one, which counts as zero."""
    tensors = inputs(op, generator, channels=2, rows=2, bidirectional=bidirectional, dtype=torch.complex128)
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}

    def gradients(backend: str) -> tuple[Tensor, ...]:
        y = run(op, **leaves, return_state=True, bidirectional=bidirectional, backend=backend)[output]
        return torch.autograd.grad(y, list(leaves.values()), cotangents(y), allow_unused=True, materialize_grads=True)

    for name, a, e in zip(leaves, gradients(backend), gradients("reference"), strict=True):
        assert relative_error(a, e) <= 1e-11, name


@EACH
def test_the_state_is_returned_on_demand(op: str, generator: Generator) -> None:
    tensors = inputs(op, generator, channels=2)
    y, final = run(op, **tensors, return_state=True)
    assert torch.equal(run(op, **tensors), y)
    assert (y.shape, final.shape, final.dtype) == ((2, 2, 4, 100), (2, 4, 3), torch.complex64)


@EACH
def test_explain(op: str, generator: Generator) -> None:
    tensors = inputs(op, generator, bidirectional=True)
    options: dict[str, Any] = {"bidirectional": True, "time_major": False, "rate": 2, **RULES[op][-1]}
    assert explain(getattr(s4_fast, op), **tensors, **options).backend in dispatch.implementations(op)
    assert explain(op, **tensors, **options, backend="pytorch").backend == "pytorch"
    with pytest.raises(dispatch.BackendUnavailableError, match=r"keops.*" + f"does not implement {op}"):
        run(op, **tensors, bidirectional=True, backend="keops")
    with pytest.raises(ValueError, match="expected dt of shape"):
        explain(getattr(s4_fast, op), **{**tensors, "dt": tensors["dt"][:1]}, **options)


@EACH
def test_the_backend_around_a_call_is_asked_for(op: str, generator: Generator) -> None:
    tensors = inputs(op, generator)
    with mock.patch.object(dispatch, "load", wraps=dispatch.load) as load, use_backend("pytorch"):
        run(op, **tensors)
    assert [call.args for call in load.call_args_list] == [(op, "pytorch")]


@EACH
def test_autocast_leaves_the_parameters_alone(op: str, generator: Generator) -> None:
    tensors = inputs(op, generator)
    expected = run(op, **{**tensors, "u": tensors["u"].bfloat16()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(op, **{**tensors, "u": tensors["u"].bfloat16()})
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
