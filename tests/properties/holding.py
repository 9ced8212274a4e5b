"""How the tests of properties run: hypothesis in a profile, and an op against its definition in float64."""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

import s4_fast
from s4_fast import dispatch
from s4_fast.bench.accuracy import DPLR_KERNEL_FORWARD, FORWARD, GRADIENT
from tests.helpers import Tensors, parts, widened
from tests.properties.strategies import Plan

Drawn = TypeVar("Drawn")
PROFILES = pytest.mark.parametrize("profile", ["quick", pytest.param("thorough", marks=pytest.mark.slow)])

# The arguments that an op is linear in, each by itself.
LINEAR = ("u", "v", "k", "B", "C", "D", "state", "ahead")


def hold(
    check: Callable[[Drawn], None], strategy: st.SearchStrategy[Drawn], profile: str, examples: Iterable[Drawn] = ()
) -> None:
    """``check`` holds for the examples, and for what ``strategy`` draws."""

    @given(strategy)
    def run(drawn: Drawn) -> None:
        check(drawn)

    for one in examples:
        run = example(one)(run)
    settings.get_profile(profile)(run)()


Results = dict[str, Tensor]


def results(op: str, tensors: Tensors, backend: str, seed: int, **scalars: Any) -> Results:
    """Outputs and the gradients of all tensors, for cotangents that every type holds exactly."""
    inputs = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = parts(getattr(s4_fast, op)(**inputs, **scalars, backend=backend))
    generator, cotangents = Generator().manual_seed(seed), []
    for t in outputs:
        drawn = torch.randn((*t.shape, 2), generator=generator, dtype=torch.float64).clamp(-3.9, 3.9)
        short = (64 * drawn).round() / 64
        cotangents.append((torch.view_as_complex(short) if t.is_complex() else short[..., 0]).to(t.dtype))
    grads = torch.autograd.grad(outputs, list(inputs.values()), cotangents)
    found = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
    return found | {f"grad {name}": g for name, g in zip(inputs, grads, strict=True)}


def _sizes(plan: Plan, tensors: Tensors, scalars: dict[str, Any]) -> dict[str, float]:
    """The norms that results have without the cancellation of a few terms by chance.

    They are those for other signs and phases of what the op is linear in.
    """
    largest: dict[str, float] = {}
    for seed in range(4):
        generator = Generator().manual_seed(seed)

        def turned(t: Tensor, generator: Generator = generator) -> Tensor:
            phase = torch.rand(t.shape, generator=generator, dtype=torch.float64)
            turn = torch.exp(2j * cmath.pi * phase)
            return t * turn if t.is_complex() else t * turn.real.sign()

        others = {name: turned(t) if name in LINEAR else t for name, t in tensors.items()}
        for name, t in results(plan.op, others, "reference", seed, **scalars).items():
            largest[name] = max(largest.get(name, 0), float(torch.linalg.vector_norm(t)))
    return largest


def _allowed(plan: Plan, name: str, t: Tensor) -> float:
    if t.dtype in (torch.bfloat16, torch.float16):  # two roundings of the type
        return torch.finfo(t.dtype).eps
    precision = torch.finfo(t.dtype).dtype
    if plan.op == "dplr_kernel":
        # The definition in float64 is good to this.
        return DPLR_KERNEL_FORWARD[precision] if name.startswith("output") else max(GRADIENT[precision], 1e-9)
    return (FORWARD if name.startswith("output") else GRADIENT)[precision]


def assert_contract(plan: Plan, backend: str) -> None:
    """``backend`` runs the call and is within the contract of the definition in float64 on the same inputs."""
    tensors, scalars = plan.call()
    before = {name: t.clone() for name, t in tensors.items()}
    with mock.patch.object(dispatch, "load", wraps=dispatch.load) as load:
        actual = results(plan.op, tensors, backend, plan.seed, **scalars)
    ran = {call.args for call in load.call_args_list}
    assert ran == {(plan.op, backend)} or (plan.empty and not ran)
    assert all(torch.equal(t, before[name]) for name, t in tensors.items()), "an input has changed"
    wide = {name: widened(t) for name, t in tensors.items()}
    expected = results(plan.op, wide, "reference", plan.seed, **scalars)

    typical: dict[str, float] = {}
    failures = {}
    for name, want in expected.items():
        got = actual[name]
        assert got.shape == want.shape and got.is_complex() == want.is_complex(), name
        error = float(torch.linalg.vector_norm(widened(got) - want))
        allowed = _allowed(plan, name, got)
        if error <= allowed * float(torch.linalg.vector_norm(want)):
            continue
        typical = typical or _sizes(plan, wide, scalars)
        if not error <= allowed * typical[name]:  # not `>`, which would let NaN pass
            failures[name] = (error, allowed * typical[name])
    assert not failures, f"error and bound by result: {failures}"
