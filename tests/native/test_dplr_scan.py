"""s4_fast_cpu_dplr_scan and its adjoint against the definition in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from s4_fast.ops.diagonal.form import Form
from s4_fast.ops.dplr_scan import reference
from s4_fast.ssm import initialization
from tests.helpers import (
    DECAYS,
    FORWARD,
    GRADIENT,
    Tensors,
    instruction_set,
    needs_native,
    normal,
    relative_error,
    threads,
)
from tests.native import test_diagonal
from tests.native.test_diagonal import FLAGS, ISAS, call

ARGUMENTS = ("u", "dt", "A_real", "A_imag", "P", "B", "C", "D", "state", "ahead")

pytestmark = [needs_native, pytest.mark.usefixtures("poisoned_memory")]


@dataclass(frozen=True)
class Case(test_diagonal.Case):
    rank: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        *sizes, copies, dt_states = super().sizes
        return *sizes, self.rank, copies, dt_states

    def tensors(self, generator: Generator) -> Tensors:
        made = super().tensors(generator)
        made["P"] = normal(generator, self.rank, self.copies, self.n, 2, dtype=torch.float64).to(self.dtype)
        return {name: made[name] for name in ARGUMENTS if name in made}


def forward(case: Case, tensors: Tensors) -> tuple[Tensor, Tensor | None]:
    grad_y, grad_final = case.cotangents(Generator())
    y, final = torch.empty_like(grad_y), None if grad_final is None else torch.empty_like(grad_final)
    call("dplr_scan", case, *map(tensors.get, ARGUMENTS), y, final)
    return y, final


def backward(
    case: Case, tensors: Tensors, grad_y: Tensor | None, grad_final: Tensor | None, wanted: tuple[str, ...] = ARGUMENTS
) -> Tensors:
    grads = {name: torch.empty_like(t) for name, t in tensors.items() if name in wanted}
    call("dplr_scan_backward", case, grad_y, grad_final, *map(tensors.get, ARGUMENTS), *map(grads.get, ARGUMENTS))
    return grads


def expected(case: Case, tensors: Tensors, grad_y: Tensor, grad_final: Tensor | None) -> tuple[Tensor, Tensor, Tensors]:
    """Output, final state and gradients by the definition."""
    leaves: dict[str, Tensor] = {name: t.double().requires_grad_() for name, t in tensors.items()}
    given: list[Any] = [leaves.get(name) for name in ARGUMENTS]
    given[-2:] = [t if t is None else torch.view_as_complex(t) for t in given[-2:]]
    y, final = reference.dplr_scan(*given, case.form)
    final = torch.view_as_real(final)
    loss = (y * grad_y.double()).sum() + (0 if grad_final is None else (final * grad_final.double()).sum())
    return y, final, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def check(case: Case, generator: Generator) -> None:
    check_tensors(case, case.tensors(generator), generator)


def check_tensors(case: Case, tensors: Tensors, generator: Generator) -> None:
    grad_y, grad_final = case.cotangents(generator)
    with threads(1):  # quicker for tensors as small as these
        wanted = expected(case, tensors, grad_y, grad_final)
    compare(case, tensors, grad_y, grad_final, wanted)


def compare(
    case: Case, tensors: Tensors, grad_y: Tensor, grad_final: Tensor | None, wanted: tuple[Tensor, Tensor, Tensors]
) -> None:
    want_y, want_final, want = wanted
    y, final = forward(case, tensors)
    precision = torch.finfo(case.dtype).dtype
    # A half signal is rounded once, and once more where a second direction adds to it.
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(case.signal_dtype, 0.0)
    errors = {"y": (relative_error(y, want_y.detach()), FORWARD[precision] + rounding)}
    if final is not None:
        errors["final"] = (relative_error(final, want_final.detach()), FORWARD[precision])
    for name, grad in backward(case, tensors, grad_y, grad_final).items():
        errors[name] = (relative_error(grad, want[name]), GRADIENT[precision] + (rounding if name == "u" else 0))
    bad = {name: pair for name, pair in errors.items() if not pair[0] <= pair[1]}
    assert not bad, (bad, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.slow
def test_every_reading_of_the_arguments(dtype: torch.dtype, generator: Generator) -> None:
    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    for flags in itertools.product((False, True), repeat=len(FLAGS)):
        form = Form(**dict(zip(FLAGS, flags, strict=True)), rate=pick(1.0, 0.5, 2.0))
        case = Case(
            L=pick(1, 40, 430), c=pick(1, 3), rank=pick(1, 2), copies=pick(1, 2, 4), per_state=pick(False, True),
            form=form,
        )  # fmt: skip
        absent = tuple(name for name in ("B", "D", "state", "ahead") if pick(False, True))
        check(replace(case, absent=absent, final=pick(False, True), decay=pick(*DECAYS), dtype=dtype), generator)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.sample(1)
def test_sizes(time_major: bool, dtype: torch.dtype, isa: str, generator: Generator) -> None:
    # A copy for each feature: the sum of their gradients may by chance be a small difference.
    sizes = [
        # batch, H, n, L, rank
        (1, 5, 1, 1, 1), (3, 6, 3, 17, 3), (17, 3, 29, 63, 1), (17, 18, 3, 64, 2), (17, 3, 3, 65, 1),
        (1, 5, 100, 1047, 1), (3, 2, 32, 1047, 2),
    ]  # fmt: skip
    with instruction_set(isa):
        for i, (batch, H, n, L, rank) in enumerate(sizes):
            form = Form(time_major=time_major, bidirectional=i % 2 > 0)
            check(Case(batch, H, n, L, 1 + i % 2, H, decay="strong", form=form, dtype=dtype, rank=rank), generator)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("signal", [torch.bfloat16, torch.float16])
@pytest.mark.sample(1)
def test_half_signals(signal: torch.dtype, isa: str, generator: Generator) -> None:
    with instruction_set(isa):
        for L, H, time_major in ((1, 3, True), (100, 33, False), (1047, 18, True), (1047, 9, False)):
            form = Form(time_major=time_major, bidirectional=L != 100)
            check(Case(2, H, 4, L, c=2, copies=H, form=form, dtype=torch.float32, signal=signal), generator)


SYSTEMS = ("legs 1", "legs 2", "legt 2", "fout 1", "lagt 1", "undamped 1")


@pytest.mark.parametrize("L", [2500, pytest.param(2**17, marks=pytest.mark.slow)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_accuracy_over_many_chunks(system: str, L: int, generator: Generator) -> None:
    """More chunks than pass states in float. By float64 where the definition would take too long."""
    H, n, (name, rank) = 4, 32, system.split()
    case = Case(2, H, n, L, copies=1, rank=int(rank), final=False, absent=("state",), dtype=torch.float32)
    tensors = case.tensors(generator)
    tensors["dt"].copy_(torch.logspace(-3, -1, H)[:, None])
    if name == "undamped":
        tensors["A_real"].fill_(-1e-4), tensors["P"].zero_()
        tensors["A_imag"].copy_(math.pi * torch.arange(n)[None])
    else:
        poles, P, B = initialization.dplr(name, 2 * n, rank=int(rank))
        tensors["A_real"].copy_(poles.real[None]), tensors["A_imag"].copy_(poles.imag[None])
        tensors["P"].copy_(torch.view_as_real(P)[:, None]), tensors["B"].copy_(torch.view_as_real(B)[None])
    grad_y, _ = case.cotangents(generator)
    wide = replace(case, dtype=torch.float64, final=True)
    tensors64 = {name: t.double() for name, t in tensors.items()}
    y, final = forward(wide, tensors64)
    assert final is not None
    grads = backward(wide, tensors64, grad_y.double(), None)
    if name == "undamped":  # of numbers that are 0 only the absolute error says something
        del tensors64["P"]
        grads["P"] = backward(case, tensors, grad_y, None)["P"].double()
        assert grads["P"].isfinite().all()
    compare(case, tensors, grad_y, None, (y, final, grads))


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-3])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.sample(1)
def test_poles_that_lie_close(rank: int, apart: float, generator: Generator) -> None:
    """Where the transition of a chunk must not be made of quotients by their differences, and real poles."""
    case = Case(1, 4, 6, 2500, copies=1, rank=rank, dtype=torch.float32)
    tensors = case.tensors(generator)
    tensors["A_real"].fill_(-0.5), tensors["A_imag"].fill_(20.0)
    tensors["A_imag"][0, 3:] += 20 * apart * torch.arange(1, 4)
    tensors["A_imag"][0, 0] = 0
    check_tensors(case, tensors, generator)
    tensors["P"].zero_()
    y, _ = forward(case, tensors)
    assert y.isfinite().all()


@pytest.mark.slow
def test_double_over_many_chunks(generator: Generator) -> None:
    check(Case(1, 2, 3, 3000, copies=1, form=Form(bidirectional=True, time_major=True)), generator)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.slow
def test_single_over_many_chunks(time_major: bool, generator: Generator) -> None:
    form = Form(time_major=time_major, bidirectional=True)
    check(Case(2, 3, 3, 2500, c=2, copies=3, form=form, dtype=torch.float32, rank=2), generator)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("sizes", [(1, 7, 5, 40), (2, 37, 3, 500), (40, 2, 5, 900), (16, 1, 3, 5000)])
def test_threads_do_not_change_a_bit(sizes: tuple[int, ...], time_major: bool, generator: Generator) -> None:
    batch, H, n, L = sizes
    form = Form(time_major=time_major, bidirectional=True)
    case = Case(batch, H, n, L, c=2, copies=1, form=form, dtype=torch.float32)
    tensors, cotangents = case.tensors(generator), case.cotangents(generator)

    def run(count: int) -> list[Tensor]:
        with threads(count):
            y, final = forward(case, tensors)
            assert final is not None
            return [y, final, *backward(case, tensors, *cotangents).values()]

    alone = run(1)
    for count in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(run(count), alone, strict=True))


@pytest.mark.parametrize("L", [20, 500])
def test_gradients_one_by_one(L: int, generator: Generator) -> None:
    """Any of them may be left out, and grad_y and grad_final."""
    form = Form(bidirectional=True, log_dt=True, log_decay=True)
    case = Case(L=L, c=2, copies=2, form=form)
    tensors = case.tensors(generator)
    grad_y, grad_final = case.cotangents(generator)
    every = backward(case, tensors, grad_y, grad_final)
    for name in ARGUMENTS:
        alone = backward(case, tensors, grad_y, grad_final, (name,))
        assert relative_error(alone[name], every[name]) <= 1e-14
    assert grad_final is not None
    for given, other in (((None, grad_final), (torch.zeros_like(grad_y), grad_final)),
                         ((grad_y, None), (grad_y, torch.zeros_like(grad_final)))):  # fmt: skip
        without, zeros = backward(case, tensors, *given), backward(case, tensors, *other)
        assert all(torch.equal(without[name], zeros[name]) for name in ARGUMENTS)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("time_major", [False, True])
def test_what_is_not_a_number_stays_in_its_row_and_feature(
    time_major: bool, batch: int, value: float, generator: Generator
) -> None:
    """Earlier outputs of the row are untouched, wherever in a chunk it comes."""
    for L, first in ((40, 20), (2640, 0), (2640, 100), (2640, 250), (2640, 2601)):
        case = Case(batch, 3, 3, L, c=2, copies=1, form=Form(time_major=time_major), dtype=torch.float32)
        tensors = case.tensors(generator)
        want, _ = forward(case, tensors)
        u = tensors["u"].mT if time_major else tensors["u"]
        u[-1, 2, first] = value
        got, _ = forward(case, tensors)
        if time_major:
            got, want = got.permute(0, 2, 3, 1), want.permute(0, 2, 3, 1)
        assert not got[-1, :, 2, first:].isfinite().all(-1).any()
        changed = (got != want) & ~(got.isnan() & want.isnan())
        changed[-1, :, 2, first:] = False
        assert not changed.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copies": 3}, "copies must divide H = 4, got 3"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"signal": torch.bfloat16, "dtype": torch.float64}, "signal_dtype 2 does not go with dtype 1"),
    ],
)
def test_what_the_library_refuses(changes: dict[str, object], message: str, generator: Generator) -> None:
    case = Case(copies=1, final=False)
    tensors = case.tensors(generator)
    y = torch.empty(2, 1, 4, 33, dtype=torch.float64)
    wrong = replace(case, **changes)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=f"^native library: dplr_scan: {message}$"):
        call("dplr_scan", wrong, *map(tensors.get, ARGUMENTS), y, None)
    with pytest.raises(RuntimeError, match=f"^native library: dplr_scan_backward: {message}$"):
        call("dplr_scan_backward", wrong, y, None, *map(tensors.get, ARGUMENTS), *[None] * len(ARGUMENTS))
