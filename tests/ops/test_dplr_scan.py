"""dplr_scan over its backends: the accuracy contract, its definition, and samples that are not finite.

What it shares with diagonal_ssm is tested in test_diagonal*.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from s4_fast import diagonal_ssm, dplr_scan
from s4_fast.bench.accuracy import FORWARD, GRADIENT
from s4_fast.ops.diagonal.form import Form
from s4_fast.ops.dplr_scan.discretization import Discretized
from tests.helpers import DECAYS, DTYPES, Tensors, backends, cotangents, evaluate, relative_error, widened
from tests.ops.diagonal_inputs import BOTH, contract, inputs, on
from tests.ops.dplr_scan_inputs import MEASURES, hippo

OP = "dplr_scan"
BACKENDS = pytest.mark.parametrize("backend", backends(OP))
EVERY = pytest.mark.parametrize("backend", [*backends(OP), "reference"])
MEASURE = pytest.mark.parametrize("measure", MEASURES)
# (batch, H, n, L), rank, channels
SIZES = [
    ((1, 6, 1, 1), 1, None),
    ((3, 4, 3, 17), 2, 2),
    ((2, 5, 29, 64), 1, None),
    ((1, 4, 29, 65), 3, 1),
    ((3, 4, 1, 130), 1, None),
    ((2, 3, 3, 1047), 2, 2),
]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


# --------------------------------------------------------------------------------------------------------- accuracy


@BACKENDS
@BOTH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("sizes", "rank", "channels"), SIZES)
def test_contract(
    sizes: tuple[int, int, int, int],
    rank: int,
    channels: int | None,
    decay: str,
    dtype: torch.dtype,
    bidirectional: bool,
    backend: str,
    device: str,
    generator: Generator,
) -> None:
    tensors = inputs(
        *(OP, generator, sizes), rank=rank, channels=channels, decay=decay, bidirectional=bidirectional, dtype=dtype
    )
    contract(OP, on(device, tensors), backend)


@BACKENDS
@MEASURE
@BOTH
@pytest.mark.sample(3)
def test_contract_of_hippo(bidirectional: bool, measure: str, backend: str, device: str, generator: Generator) -> None:
    """As models start: stored in float32, with nothing beside what goes through the state."""
    tensors = hippo(measure, generator, (2, 3, 32, 500), bidirectional=bidirectional)
    if bidirectional:
        tensors["ahead"] = tensors["state"].flip(-1)
    contract(OP, on(device, tensors), backend)


@BACKENDS
@BOTH
def test_contract_of_many_chunks_that_do_not_decay(
    bidirectional: bool, backend: str, device: str, generator: Generator
) -> None:
    """Where what is carried never fades. Without a low-rank part the diagonal op is the yardstick."""
    tensors = on(device, inputs(OP, generator, (2, 3, 2, 2**16), decay="none", bidirectional=bidirectional))
    tensors["P"].zero_()
    wide = {name: widened(t) for name, t in tensors.items() if name != "P"}
    options: dict[str, Any] = {"return_state": True, "bidirectional": bidirectional}
    expected = evaluate("diagonal_ssm", wide, "pytorch", discretization="bilinear", **options)
    found = evaluate(OP, tensors, backend, **options)
    for actual, exact in zip(found.output, expected.output, strict=True):
        assert relative_error(actual, exact) <= FORWARD["float32"]
    for name, exact in expected.grads.items():
        assert relative_error(found.grads[name], exact) <= GRADIENT["float32"], name


@BACKENDS
def test_a_state_that_many_calls_pass_on_stays_accurate(backend: str, device: str, generator: Generator) -> None:
    """Each rounds it, to no side: what a call does to it must not be rounded beside."""
    tensors = on(device, inputs(OP, generator, (2, 3, 2, 2**16), decay="none"))
    tensors["P"].zero_()
    wide = {name: widened(t) for name, t in tensors.items() if name != "P"}
    y, final = diagonal_ssm(**wide, discretization="bilinear", return_state=True, backend="pytorch")
    u, state, parts = tensors.pop("u"), tensors.pop("state"), []
    for samples in u.split(2**9, -1):
        part, state = dplr_scan(samples, **tensors, state=state, return_state=True, backend=backend)
        parts.append(part)
    assert relative_error(torch.cat(parts, -1), y) <= FORWARD["float32"]
    assert relative_error(state, final) <= FORWARD["float32"]


@pytest.mark.slow
@BACKENDS
@MEASURE
def test_a_hundred_thousand_steps(measure: str, backend: str, device: str, generator: Generator) -> None:
    """The definition's gradients would need gigabytes: float64 has them, where its outputs are the definition's."""
    tensors = on(device, hippo(measure, generator, (1, 2, 32, 2**17)))
    wide = {name: widened(t) for name, t in tensors.items()}
    expected, found = (evaluate(OP, t, b, return_state=True) for t, b in ((wide, "pytorch"), (tensors, backend)))
    with torch.no_grad():
        defined = dplr_scan(**wide, return_state=True, backend="reference")
    for actual, middle, exact in zip(found.output, expected.output, defined, strict=True):
        # The dense step of the definition is the one that is off: against long doubles, by 2e-12 and more.
        assert relative_error(middle, exact) <= 1e-10
        assert relative_error(actual, exact) <= FORWARD["float32"]
    for name, exact in expected.grads.items():
        assert relative_error(found.grads[name], exact) <= GRADIENT["float32"], name


# ------------------------------------------------------------------------------------------------- what it is equal to


@EVERY
@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_the_dense_system(rank: int, backend: str, device: str, generator: Generator) -> None:
    """``(I - dt/2 A)^{-1}`` from the dense A over both halves of each pair, by the inverse, and powers of A_bar."""
    tensors = on(device, inputs(OP, generator, (2, 3, 4, 40), rank=rank, dtype=torch.complex128))
    u, A, P, B, C, dt, D, state = tensors.values()
    found, final = dplr_scan(**tensors, return_state=True, backend=backend)
    for h in range(3):
        pole, low_rank, weight, row = (torch.cat((t, t.conj()), -1) for t in (A[h], P[:, h], B[h], C[h]))
        dense = torch.diag(pole) - sum(torch.outer(p, p.conj()) for p in low_rank)
        eye = torch.eye(8, dtype=dense.dtype, device=device)
        backward = torch.linalg.inv(eye - dt[h] / 2 * dense)
        A_bar, B_bar = backward @ (eye + dt[h] / 2 * dense), backward @ weight * dt[h]
        powers = torch.stack([torch.linalg.matrix_power(A_bar, l) for l in range(41)])
        kernel = (row @ powers[:-1] @ B_bar).real
        toeplitz = torch.stack([torch.cat((kernel.new_zeros(j), kernel[: 40 - j])) for j in range(40)])
        start = torch.cat((state[:, h], state[:, h].conj()), -1)
        expected = u[:, h] @ toeplitz + (start @ (row @ powers[1:]).mT).real + D[h] * u[:, h]
        assert relative_error(found[:, h], expected) <= 1e-12
        last = start @ powers[40].mT + u[:, h].flip(-1).to(A_bar.dtype) @ (powers[:-1] @ B_bar)
        assert relative_error(final[:, h], last[:, :4]) <= 1e-12


@EVERY
def test_a_single_factor_needs_no_rank(backend: str, generator: Generator) -> None:
    tensors = inputs(OP, generator)
    with_rank = dplr_scan(**tensors, backend=backend)
    assert torch.equal(dplr_scan(**{**tensors, "P": tensors["P"][0]}, backend=backend), with_rank)


@EVERY
def test_without_a_low_rank_part_it_is_the_diagonal_system(backend: str, generator: Generator) -> None:
    tensors = inputs("diagonal_ssm", generator, dtype=torch.complex128)
    expected = evaluate("diagonal_ssm", tensors, "reference", discretization="bilinear")
    P = torch.zeros(1, 4, 3, dtype=torch.complex128)
    found = evaluate(OP, {**tensors, "P": P}, backend)
    assert relative_error(found.output, expected.output) <= 1e-12
    assert all(relative_error(found.grads[name], g) <= 1e-11 for name, g in expected.grads.items())


@pytest.mark.parametrize("form", [Form(), Form(log_dt=True, log_decay=True, conjugate=True, rate=1.7)])
@pytest.mark.parametrize("steps", ["column", "per state"])
def test_gradients_of_the_discretisation(steps: str, form: Form, generator: Generator) -> None:
    """Of every form of the stored parameters, against autograd through the same formulas."""
    tensors = inputs(OP, generator, rank=2, rows=2, steps=steps, dtype=torch.complex128)
    A, P, B, dt = tensors["A"], tensors["P"], tensors["B"], tensors["dt"]
    stored = [dt, A.real.clone(), A.imag.clone(), torch.view_as_real(P), torch.view_as_real(B)]
    if form.log_dt:
        stored[0], stored[1] = dt.log(), (-A.real).log()
    leaves = [t.requires_grad_() for t in stored]
    system = Discretized(*leaves, form)
    outputs = (system.a, system.G, system.V, system.B_bar)
    given = cotangents(outputs)
    expected = torch.autograd.grad(outputs, leaves, given)
    for a, e in zip(system.gradients(*given), expected, strict=True):
        assert relative_error(a, e) <= 1e-12


# ------------------------------------------------------------------------------------------------ what is not finite


def differing(tensors: Tensors, backend: str, bidirectional: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of u, and those with a sample of row 1 of feature 2 that is not finite."""
    found = []
    for value in (0.0, float("nan"), float("inf")):
        u = tensors["u"].clone()
        u[1, 2, 70] = value
        y, final = dplr_scan(**{**tensors, "u": u}, return_state=True, bidirectional=bidirectional, backend=backend)
        found.append([y, final])
    return found


@BACKENDS
@BOTH
def test_a_sample_that_is_not_finite_leaves_the_others_alone(
    bidirectional: bool, backend: str, device: str, generator: Generator
) -> None:
    tensors = on(device, inputs(OP, generator, (3, 4, 3, 200), channels=2, bidirectional=bidirectional))
    (y, final), *others = differing(tensors, backend, bidirectional)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[1, :, 2, slice(None) if bidirectional else slice(70, None)] = True
    for bad_y, bad_final in others:
        assert relative_error(bad_y[~touched], y[~touched]) <= 1e-6
        assert not bad_y[touched].isfinite().any()
        assert not bad_final[1, 2].isfinite().any()
        bad_final[1, 2] = final[1, 2]
        assert relative_error(bad_final, final) <= 1e-6


@BACKENDS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_of_other_rows_and_features_stay_finite(
    value: float, backend: str, device: str, generator: Generator
) -> None:
    """Those of the parameters of the feature are not: nothing hides what happened."""
    tensors = on(device, inputs(OP, generator, (3, 4, 3, 200)))
    tensors["u"][1, 2, 70] = value
    grads = evaluate(OP, tensors, backend).grads
    for name in ("A", "B", "C", "dt", "P"):
        features = grads[name].isfinite().flatten(1 if name != "P" else 2).all(-1).reshape(-1)
        assert features.tolist() == [True, True, False, True], name
    assert grads["u"].isfinite().all()
    tensors["u"][1, 2, 70] = 0
    leaf = tensors["u"].requires_grad_()
    y = dplr_scan(**tensors, backend=backend)
    given = torch.ones_like(y)
    given[1, 2, 70] = value
    (grad,) = torch.autograd.grad(y, leaf, given)
    touched = torch.zeros_like(y, dtype=torch.bool)
    touched[1, 2, :71] = True
    assert grad[~touched].isfinite().all()
    assert not grad[touched].isfinite().any()
