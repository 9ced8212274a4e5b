"""diagonal_ssm over its backends: the accuracy contract, and what it is equal to. Options and cuts: dplr_scan too."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Generator

from s4_fast import diagonal_ssm, ssm_scan
from s4_fast.bench.accuracy import FORWARD, GRADIENT
from s4_fast.ssm.discretization import bilinear_diagonal, zoh_diagonal
from tests.helpers import (
    DECAYS,
    DTYPES,
    assert_contract,
    backends,
    cotangents,
    evaluate,
    relative_error,
    widened,
)
from tests.ops.diagonal_inputs import BACKENDS, BOTH, EVERY, ORDERS, RULES, contract, inputs, on, run

# (batch, H, n, L). Several features: the gradient of one dt alone can be a small difference by chance.
SIZES = [(2, 7, 1, 1), (1, 8, 3, 17), (2, 6, 29, 17), (3, 6, 3, 1047), (1, 5, 100, 1047), (1, 5, 100, 1)]

OP = "diagonal_ssm"
DIAGONAL = pytest.mark.parametrize("backend", backends(OP))

pytestmark = pytest.mark.usefixtures("poisoned_memory")


# --------------------------------------------------------------------------------------------------------- accuracy


@DIAGONAL
@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("sizes", SIZES)
def test_contract(
    sizes: tuple[int, int, int, int],
    decay: str,
    dtype: torch.dtype,
    bidirectional: bool,
    backend: str,
    device: str,
    generator: Generator,
) -> None:
    tensors = inputs(OP, generator, sizes, decay=decay, bidirectional=bidirectional, dtype=dtype)
    rule = "bilinear" if sizes[2] % 2 == 0 else "zoh"
    contract(OP, on(device, tensors), backend, discretization=rule)


@BACKENDS
@BOTH
@ORDERS
@pytest.mark.sample(2)
def test_contract_of_every_option(
    time_major: bool, bidirectional: bool, op: str, backend: str, device: str, generator: Generator
) -> None:
    for channels, rows, steps in itertools.product((None, 1, 3), (1, 2, 4), ("vector", "column", "per state")):
        tensors = inputs(
            op,
            generator,
            channels=channels,
            rows=rows,
            steps=steps,
            bidirectional=bidirectional,
            time_major=time_major,
            dtype=torch.complex128 if rows == 2 else torch.complex64,
        )
        rate = (0.5, 1, 2.5)[rows // 2]
        for rule in RULES[op]:
            contract(op, on(device, tensors), backend, time_major=time_major, rate=rate, **rule)


@BACKENDS
@BOTH
@pytest.mark.sample(1)
def test_contract_without_what_is_optional(
    bidirectional: bool, op: str, backend: str, device: str, generator: Generator
) -> None:
    optional = ("B", "D", "state", "ahead")[: 3 + bidirectional]
    for count in range(1, len(optional) + 1):
        for absent in itertools.combinations(optional, count):
            tensors = on(device, inputs(op, generator, channels=2, bidirectional=bidirectional))
            tensors = {name: t for name, t in tensors.items() if name not in absent}
            options: dict[str, Any] = {} if "B" in tensors else {"B": None}
            for return_state in (False, True):
                assert_contract(
                    op,
                    tensors,
                    backend,
                    return_state=return_state,
                    bidirectional=bidirectional,
                    **options,
                )


@pytest.mark.slow
@DIAGONAL
@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", ["none", "weak"])
def test_a_million_steps(
    decay: str, dtype: torch.dtype, bidirectional: bool, backend: str, device: str, generator: Generator
) -> None:
    contract(
        OP,
        on(device, inputs(OP, generator, (1, 2, 2, 2**20), decay=decay, bidirectional=bidirectional, dtype=dtype)),
        backend,
    )


@BACKENDS
@BOTH
@ORDERS
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_signals_are_rounded_twice_at_most(
    half: torch.dtype, time_major: bool, bidirectional: bool, op: str, backend: str, device: str, generator: Generator
) -> None:
    """Of the output and of the gradient of u; states and the other gradients are those of float32."""
    tensors = on(device, inputs(op, generator, bidirectional=bidirectional, time_major=time_major))
    tensors["u"] = tensors["u"].to(half)
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    wide = {name: widened(t).requires_grad_() for name, t in tensors.items()}
    options: dict[str, Any] = {"return_state": True, "bidirectional": bidirectional, "time_major": time_major}
    actual = run(op, **leaves, **options, backend=backend)
    expected = run(op, **wide, **options, backend="reference")
    given = cotangents(actual)
    grads = torch.autograd.grad(actual, list(leaves.values()), given)
    exact = torch.autograd.grad(expected, list(wide.values()), [widened(t) for t in given])
    rounding = torch.finfo(half).eps / 2
    assert actual[0].dtype == grads[0].dtype == half
    assert relative_error(actual[0], expected[0].detach()) <= 2 * rounding
    assert relative_error(actual[1], expected[1].detach()) <= FORWARD["float32"]
    for name, g, e in zip(leaves, grads, exact, strict=True):
        assert relative_error(g, e) <= (2 * rounding if name == "u" else GRADIENT["float32"]), name


# ------------------------------------------------------------------------------------------------- what it is equal to


@pytest.mark.parametrize("backend", [*backends(OP), "reference"])
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_it_is_the_scan_of_the_discretised_system(
    discretization: str, backend: str, device: str, generator: Generator
) -> None:
    tensors = on(device, inputs(OP, generator, dtype=torch.complex128))
    u, A, B, C, dt, D, state = tensors.values()
    x, B_bar = {"zoh": zoh_diagonal, "bilinear": bilinear_diagonal}[discretization](A, B, dt)
    expected = ssm_scan(u, x, B_bar, C, D, state, return_state=True, backend="pytorch")
    found = diagonal_ssm(**tensors, return_state=True, discretization=discretization, backend=backend)
    assert all(relative_error(a, e) <= 1e-12 for a, e in zip(found, expected, strict=True))


@EVERY
def test_a_rate_scales_the_steps(op: str, backend: str, generator: Generator) -> None:
    tensors = inputs(op, generator, dtype=torch.complex128)
    coarse = run(op, **tensors, rate=1.7, backend=backend)
    assert relative_error(coarse, run(op, **{**tensors, "dt": 1.7 * tensors["dt"]}, backend=backend)) <= 1e-13


@EVERY
@ORDERS
@pytest.mark.parametrize("cuts", [(1,), (64,), (17, 18, 83), (99,)])
def test_a_sequence_may_be_cut_anywhere(
    cuts: tuple[int, ...], time_major: bool, op: str, backend: str, device: str, generator: Generator
) -> None:
    """Outputs, final state and gradients, of the state before the first part too."""
    tensors = on(device, inputs(op, generator, channels=2, rows=2, time_major=time_major, dtype=torch.complex128))
    whole = evaluate(op, tensors, backend, return_state=True, time_major=time_major)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    u, *weights, state = leaves.values()
    outputs, time = [], 1 if time_major else -1
    for part in u.tensor_split(cuts, time):
        y, state = run(op, part, *weights, state, return_state=True, time_major=time_major, backend=backend)
        outputs.append(y)
    joined = torch.cat(outputs, time)
    assert relative_error(joined, whole.output[0]) <= 1e-13
    assert relative_error(state, whole.output[1]) <= 1e-13
    grads = torch.autograd.grad([joined, state], list(leaves.values()), cotangents((joined, state)))
    for name, g in zip(leaves, grads, strict=True):
        assert relative_error(g, whole.grads[name]) <= 1e-12, name


@EVERY
@pytest.mark.parametrize("cut", [1, 40, 99])
def test_both_directions_may_be_cut_anywhere(
    cut: int, op: str, backend: str, device: str, generator: Generator
) -> None:
    """``ahead`` of a part is the state that a scan of what follows leaves behind in reversed time."""
    tensors = on(device, inputs(op, generator, bidirectional=True, dtype=torch.complex128))
    whole = run(op, **tensors, bidirectional=True, backend=backend)
    u, *system, C, dt, D, state, ahead = tensors.values()
    early, late = u.tensor_split((cut,), -1)
    options: dict[str, Any] = {"bidirectional": True, "return_state": True, "backend": backend}
    _, behind = run(op, late.flip(-1), *system, C[0], dt, None, ahead, return_state=True, backend=backend)
    first, state = run(op, early, *system, C, dt, D, state, ahead=behind, **options)
    second, _ = run(op, late, *system, C, dt, D, state, ahead=ahead, **options)
    assert relative_error(torch.cat((first, second), -1), whole) <= 1e-13


@EVERY
def test_the_future_has_an_influence_in_both_directions_alone(op: str, backend: str, generator: Generator) -> None:
    for bidirectional in (False, True):
        tensors = inputs(op, generator, bidirectional=bidirectional, dtype=torch.complex128)
        later = {**tensors, "u": tensors["u"].clone()}
        later["u"][..., 60:] += 1
        before, after = (run(op, **t, bidirectional=bidirectional, backend=backend)[..., :60] for t in (tensors, later))
        assert (relative_error(after, before) > 1e-3) == bidirectional
        assert bidirectional or relative_error(after, before) <= 1e-14
