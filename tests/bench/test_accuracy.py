from __future__ import annotations

import dataclasses

import pytest
import torch

import s4_fast
from s4_fast import dispatch
from s4_fast.bench import accuracy, direct, evaluate
from s4_fast.bench.accuracy import FAIL, KNOWN_LIMIT, PASS, Errors
from s4_fast.bench.cases import Case
from s4_fast.bench.inputs import OPS, arguments

TINY = [
    *(Case(op, 3, 4, 24, batch=2, dtype="float64") for op in OPS),
    Case("dplr_kernel", 3, 4, 24, rank=2, dtype="float64"),
    Case("ssm_scan", 3, 4, 24, batch=2, dtype="float64", state=True),
    Case("diagonal_ssm", 3, 4, 24, batch=2, dtype="float64", state=True),
    Case("dplr_scan", 3, 4, 24, batch=2, rank=2, dtype="float64", state=True),
]


def test_every_op_has_cases_and_a_direct_evaluation() -> None:
    assert set(OPS) == set(dispatch.ops())
    assert all(callable(getattr(direct, op)) for op in OPS)


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.op} {case.sizes}")
def test_direct_evaluation_and_its_gradients_are_the_definition(case: Case) -> None:
    inputs = arguments(case)
    outcome = evaluate.forward_backward(evaluate.implementation(case.op, evaluate.DIRECT), inputs)()
    errors = accuracy.errors(outcome, accuracy.reference(case, inputs))
    assert errors.forward < 1e-12
    assert errors.gradient is not None and errors.gradient < 1e-11


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.op} {case.sizes}")
def test_reference_in_blocks_is_the_reference_in_one_piece(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = arguments(case)
    function = evaluate.implementation(case.op, "reference")
    whole = evaluate.forward_backward(function, inputs)()
    monkeypatch.setattr(accuracy, "_BLOCK", 3 * case.batch * case.L)
    errors = accuracy.errors(accuracy.reference(case, inputs), whole)
    assert errors.forward < 1e-14
    assert errors.gradient is not None and errors.gradient < 1e-14


def test_a_convolution_with_the_given_kernel_is_the_scan() -> None:
    case = Case("ssm_scan", 3, 4, 24, batch=2, dtype="float64")
    inputs = arguments(case)
    function = evaluate.implementation(case.op, evaluate.KERNEL_GIVEN)
    outcome = evaluate.forward_backward(function, evaluate.inputs(case.op, evaluate.KERNEL_GIVEN, inputs))()
    assert outcome.gradients.keys() == {"u", "k", "D"}
    errors = accuracy.errors(outcome, accuracy.reference(case, inputs))
    assert errors.forward < 1e-12
    assert errors.gradient is not None and errors.gradient < 1e-11


def test_long_convolutions_are_not_compared_with_the_quadratic_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("fft_conv", 2, 1, 50, dtype="float64")
    inputs = arguments(case)
    definition = accuracy.reference(case, inputs)
    monkeypatch.setattr(accuracy, "_QUADRATIC", 1)
    errors = accuracy.errors(accuracy.reference(case, inputs), definition)
    assert 0 < errors.forward < 1e-14


@pytest.mark.parametrize("op", ["ssm_scan", "diagonal_ssm", "dplr_scan"])
def test_long_scans_are_compared_with_a_convolution(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(op, 3, 4, 200, batch=2, dtype="float64")
    inputs = arguments(case)
    definition = accuracy.reference(case, inputs)
    monkeypatch.setattr(accuracy, "_POWERS", 1)
    errors = accuracy.errors(accuracy.reference(case, inputs), definition)
    assert 0 < errors.forward < 1e-14
    assert errors.gradient is not None and 0 < errors.gradient < 1e-13


def test_the_worst_gradient_is_named_even_when_it_is_nan() -> None:
    one = torch.ones(2, dtype=torch.float64)
    expected = evaluate.Outcome((one,), {"v": one, "x": one, "w": one})
    actual = evaluate.Outcome((one,), {"v": one, "x": 2 * one, "w": one})
    assert accuracy.errors(actual, expected) == Errors(0.0, 1.0, "x")
    actual.gradients["w"] = one * torch.nan
    assert accuracy.errors(actual, expected).worst == "w"


def test_the_worst_of_several_outputs_counts_even_when_it_is_nan() -> None:
    one = torch.ones(2, dtype=torch.float64)
    expected = evaluate.Outcome((one, one, one), {})
    assert accuracy.errors(evaluate.Outcome((one, 3 * one, 2 * one), {}), expected).forward == 2
    forward = accuracy.errors(evaluate.Outcome((one, one * torch.nan, 2 * one), {}), expected).forward
    assert forward != forward


def test_verdicts() -> None:
    short, double = Case("log_vandermonde", 1, 1, 1024), Case("log_vandermonde", 1, 1, 1024, dtype="float64")
    assert accuracy.verdict(short, "pytorch", Errors(2e-6, 1e-5, "v")) == PASS
    assert accuracy.verdict(short, "pytorch", Errors(3e-6, 1e-6, "v")) == FAIL
    assert accuracy.verdict(short, "pytorch", Errors(1e-7, float("nan"), "v")) == FAIL
    assert accuracy.verdict(double, "pytorch", Errors(1e-11, None, "")) == FAIL
    assert accuracy.verdict(dataclasses.replace(short, op="dplr_kernel"), "pytorch", Errors(4e-6, None, "")) == PASS
    assert accuracy.verdict(short, "keops", Errors(3e-4, 3e-4, "x")) == KNOWN_LIMIT
    assert accuracy.verdict(short, "keops", Errors(1e-1, 1e-7, "x")) == FAIL
    assert accuracy.verdict(double, "keops", Errors(3e-4, 3e-4, "x")) == FAIL


def test_the_automatic_choice_is_asked_for_even_where_a_backend_is_forced() -> None:
    inputs = arguments(Case("log_vandermonde", 2, 2, 8))
    with s4_fast.use_backend("reference"):
        assert evaluate.automatic("log_vandermonde", inputs) != "reference"
