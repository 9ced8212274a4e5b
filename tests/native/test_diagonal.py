"""s4_fast_cpu_diagonal and its adjoint against the definition in float64."""

from __future__ import annotations

import ctypes
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Generator, Tensor

from s4_fast import native_library
from s4_fast.ops.diagonal import reference
from s4_fast.ops.diagonal.form import Form
from s4_fast.ssm.discretization import bilinear_diagonal, zoh_diagonal
from tests.helpers import (
    DECAYS,
    FORWARD,
    GRADIENT,
    Tensors,
    instruction_set,
    log_uniform,
    needs_native,
    normal,
    relative_error,
    threads,
    uniform,
)

ISAS = ("avx512", "avx2", "portable")
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ARGUMENTS = ("u", "dt", "A_real", "A_imag", "B", "C", "D", "state", "ahead")
OPTIONAL = ("B", "D", "state", "ahead")

pytestmark = [needs_native, pytest.mark.usefixtures("poisoned_memory")]


FORM = Form()


@dataclass(frozen=True)
class Case:
    batch: int = 2
    H: int = 4
    n: int = 3
    L: int = 33
    c: int = 1
    copies: int = 4
    per_state: bool = False
    decay: str = "weak"
    form: Form = FORM
    absent: tuple[str, ...] = ()
    final: bool = True
    dtype: torch.dtype = torch.float64
    signal: torch.dtype | None = None

    @property
    def signal_dtype(self) -> torch.dtype:
        return self.signal or self.dtype

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.batch, self.H, self.n, self.L, self.c, self.copies, self.n if self.per_state else 1

    def tensors(self, generator: Generator) -> Tensors:
        """What the library takes; pairs of reals where numbers are complex."""
        form, batch, H, n = self.form, self.batch, self.H, self.n
        dt = log_uniform(generator, 0.01, 0.1, H, n if self.per_state else 1)
        decay = DECAYS[self.decay](generator, self.copies, n) * 20
        phase = uniform(generator, -math.pi, math.pi, self.copies, n) * 10 / form.rate
        made = {
            "u": normal(generator, batch, *((self.L, H) if form.time_major else (H, self.L)), dtype=torch.float64),
            "dt": dt.log() if form.log_dt else dt,
            "A_real": decay.clamp(min=1e-9).log() if form.log_decay else -decay,
            "A_imag": phase,
            "B": normal(generator, self.copies, n, 2, dtype=torch.float64),
            "C": normal(generator, self.c * (1 + form.bidirectional), H, n, 2, dtype=torch.float64),
            "D": normal(generator, self.c, H, dtype=torch.float64),
            "state": normal(generator, batch, H, n, 2, dtype=torch.float64),
            "ahead": normal(generator, batch, H, n, 2, dtype=torch.float64),
        }
        absent = (*self.absent, *(() if form.bidirectional else ("ahead",)))
        return {
            name: t.to(self.signal_dtype if name == "u" else self.dtype)
            for name, t in made.items()
            if name not in absent
        }

    def cotangents(self, generator: Generator) -> tuple[Tensor, Tensor | None]:
        shape = (self.L, self.c, self.H) if self.form.time_major else (self.c, self.H, self.L)
        grad_y = normal(generator, self.batch, *shape, dtype=torch.float64).to(self.signal_dtype)
        grad_final = normal(generator, self.batch, self.H, self.n, 2, dtype=torch.float64).to(self.dtype)
        return grad_y, grad_final if self.final else None


def call(name: str, case: Case, *tensors: Tensor | None) -> None:
    native_library.call(
        name, torch.empty(0), CODES[case.dtype], CODES[case.signal_dtype], case.form.flags, *case.sizes,
        float(case.form.rate), *tensors,
    )  # fmt: skip


def forward(case: Case, tensors: Tensors) -> tuple[Tensor, Tensor | None]:
    grad_y, grad_final = case.cotangents(Generator())
    y, final = torch.empty_like(grad_y), None if grad_final is None else torch.empty_like(grad_final)
    call("diagonal", case, *map(tensors.get, ARGUMENTS), y, final)
    return y, final


def backward(
    case: Case, tensors: Tensors, grad_y: Tensor | None, grad_final: Tensor | None, wanted: tuple[str, ...] = ARGUMENTS
) -> Tensors:
    grads = {name: torch.empty_like(t) for name, t in tensors.items() if name in wanted}
    call("diagonal_backward", case, grad_y, grad_final, *map(tensors.get, ARGUMENTS), *map(grads.get, ARGUMENTS))
    return grads


def expected(case: Case, tensors: Tensors, grad_y: Tensor, grad_final: Tensor | None) -> tuple[Tensor, Tensor, Tensors]:
    """Output, final state and gradients by the definition."""
    leaves: dict[str, Tensor] = {name: t.double().requires_grad_() for name, t in tensors.items()}
    given: list[Any] = [leaves.get(name) for name in ARGUMENTS]
    given[-2:] = [t if t is None else torch.view_as_complex(t) for t in given[-2:]]
    given.append(case.form)
    y, final = reference.diagonal_ssm(*given)
    final = torch.view_as_real(final)
    loss = (y * grad_y.double()).sum() + (0 if grad_final is None else (final * grad_final.double()).sum())
    return y, final, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def check(case: Case, generator: Generator) -> None:
    check_tensors(case, case.tensors(generator), generator)


def check_tensors(case: Case, tensors: Tensors, generator: Generator) -> None:
    grad_y, grad_final = case.cotangents(generator)
    with threads(1):  # quicker for tensors as small as these
        want_y, want_final, want = expected(case, tensors, grad_y, grad_final)
    y, final = forward(case, tensors)
    precision = torch.finfo(case.dtype).dtype
    # A half signal is rounded once, and once more where a second direction adds to it.
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(case.signal_dtype, 0.0)
    errors = {"y": (relative_error(y, want_y.detach()), FORWARD[precision] + rounding)}
    if final is not None:
        errors["final"] = (relative_error(final, want_final.detach()), FORWARD[precision])
    for name, grad in backward(case, tensors, grad_y, grad_final).items():
        errors[name] = (relative_error(grad, want[name]), GRADIENT[precision] + (rounding if name == "u" else 0))
    assert not {name: pair for name, pair in errors.items() if not pair[0] <= pair[1]}, (case, errors)


FLAGS = ("time_major", "bidirectional", "bilinear", "log_dt", "log_decay", "conjugate")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_reading_of_the_arguments(dtype: torch.dtype, generator: Generator) -> None:
    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    for flags in itertools.product((False, True), repeat=len(FLAGS)):
        form = Form(**dict(zip(FLAGS, flags, strict=True)), rate=pick(1.0, 0.5, 2.0))
        case = Case(L=pick(1, 40, 230), c=pick(1, 3), copies=pick(1, 2, 4), per_state=pick(False, True), form=form)
        absent = tuple(name for name in OPTIONAL if pick(False, True))
        check(replace(case, absent=absent, final=pick(False, True), decay=pick(*DECAYS), dtype=dtype), generator)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_major", [False, True])
def test_sizes(time_major: bool, dtype: torch.dtype, isa: str, generator: Generator) -> None:
    # Features enough that no gradient of dt is a small difference by chance.
    sizes = [(1, 5, 1, 1), (7, 6, 3, 32), (20, 5, 29, 17), (3, 18, 3, 191), (1, 5, 100, 1047), (1, 5, 5, 4097)]
    with instruction_set(isa):
        for i, (batch, H, n, L) in enumerate(sizes):
            form = Form(time_major=time_major, bidirectional=i % 2 > 0 or L > 1000, bilinear=i % 3 == 2)
            check(Case(batch, H, n, L, c=1 + i % 2, copies=H, decay="strong", form=form, dtype=dtype), generator)


@pytest.mark.slow
def test_long_segments(generator: Generator) -> None:
    """More chunks than a block, and than the states that are kept at a time: of a line of features."""
    form = Form(time_major=True, bidirectional=True, log_dt=True)
    with threads(1):
        check(Case(1, 16, 130, 1700, copies=8, form=form, dtype=torch.float32), generator)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("signal", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("time_major", [False, True])
def test_half_signals(time_major: bool, signal: torch.dtype, isa: str, generator: Generator) -> None:
    with instruction_set(isa):
        for L, H, both in ((1, 3, True), (100, 33, False), (1047, 18, True)):
            form = Form(time_major=time_major, bidirectional=both)
            check(Case(2, H, 4, L, c=2, copies=1, form=form, dtype=torch.float32, signal=signal), generator)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("signal", [torch.bfloat16, torch.float16])
def test_half_numbers_are_those_of_pytorch(signal: torch.dtype, time_major: bool, isa: str) -> None:
    """Every number goes through unchanged, and is rounded as PyTorch rounds: y = D u with D = 1 and D near 1."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(signal)
    normal_numbers = every.float().abs() >= (torch.finfo(torch.float32).tiny if signal == torch.bfloat16 else 0)
    every = torch.where(normal_numbers | every.isnan(), every, 0)
    # What is not finite spoils its row, and fills whole rows here: vectors, in both layouts.
    every = every[every.isfinite().argsort(stable=True)]
    batch, H, L = 256, 16, 16
    for scale in (1.0, 1 + 2**-9, 0.7):
        case = Case(batch, H, 1, L, form=Form(time_major=time_major), copies=1, dtype=torch.float32, signal=signal)
        tensors = case.tensors(Generator().manual_seed(0))
        tensors["u"], tensors["D"] = every.reshape_as(tensors["u"]), torch.full_like(tensors["D"], scale)
        tensors["C"].zero_(), tensors["state"].zero_(), tensors["B"].fill_(2.0**-126)
        with instruction_set(isa), threads(1):
            y, _ = forward(case, tensors)
        want = (every.double() * tensors["D"][0, 0].double()).float()
        want = torch.where(want.abs() < torch.finfo(torch.float32).tiny, 0 * want, want).to(signal)
        got, want = y.flatten(), want.flatten()
        finite = every.isfinite()
        assert torch.equal(got[finite].float(), want[finite].float())
        assert not got[~finite].isfinite().any()


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("sizes", [(1, 7, 5, 40), (2, 37, 3, 300), (40, 2, 5, 900), (16, 1, 3, 5000)])
def test_threads_do_not_change_a_bit(sizes: tuple[int, ...], time_major: bool, generator: Generator) -> None:
    batch, H, n, L = sizes
    case = Case(
        batch, H, n, L, c=2, copies=1, form=Form(time_major=time_major, bidirectional=True), dtype=torch.float32
    )
    tensors, cotangents = case.tensors(generator), case.cotangents(generator)

    def run(count: int) -> list[Tensor]:
        with threads(count):
            y, final = forward(case, tensors)
            assert final is not None
            return [y, final, *backward(case, tensors, *cotangents).values()]

    alone = run(1)
    for count in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(run(count), alone, strict=True))


@pytest.mark.parametrize("L", [20, 300])
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
    without = backward(case, tensors, None, grad_final)
    zeros = backward(case, tensors, torch.zeros_like(grad_y), grad_final)
    assert all(torch.equal(without[name], zeros[name]) for name in ARGUMENTS)
    without = backward(case, tensors, grad_y, None)
    zeros = backward(case, tensors, grad_y, torch.zeros_like(case.cotangents(generator)[1]))  # type: ignore[arg-type]
    assert all(torch.equal(without[name], zeros[name]) for name in ARGUMENTS)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-8, 1e-4, 0.4999, 0.5001, 3.0])
def test_small_and_large_steps(size: float, dtype: torch.dtype, bilinear: bool, generator: Generator) -> None:
    """|dt A| around where a series takes over from a quotient; the definition without its cancellation near 0."""
    case = Case(H=8, n=4, copies=1, L=40, form=Form(bilinear=bilinear, rate=2.0), dtype=dtype)
    tensors = case.tensors(generator)
    tensors["dt"].fill_(0.25)
    angle = uniform(generator, 0.5 * math.pi, 1.5 * math.pi, 1, 4)
    tensors["A_real"].copy_(2 * size * angle.cos()), tensors["A_imag"].copy_(2 * size * angle.sin())
    with (
        mock.patch.object(reference, "zoh", lambda step, A, B: zoh_diagonal(A, B, step)),
        mock.patch.object(reference, "bilinear", lambda step, A, B: bilinear_diagonal(A, B, step)),
    ):
        check_tensors(case, tensors, generator)


@pytest.mark.parametrize("time_major", [False, True])
def test_what_is_not_a_number_stays_in_its_row_and_feature(time_major: bool, generator: Generator) -> None:
    for L, first in ((40, 20), (640, 320)):
        case = Case(2, 3, 3, L, copies=1, form=Form(time_major=time_major), dtype=torch.float32)
        tensors = case.tensors(generator)
        want, _ = forward(case, tensors)
        where = (1, first, 2) if time_major else (1, 2, first)
        tensors["u"][where] = math.nan
        got, _ = forward(case, tensors)
        assert got.isnan().any()
        bad = got.isnan() | (got != want)
        bad = bad.movedim(1, -1)[:, 0] if time_major else bad[:, 0]
        assert not bad[0].any() and not bad[1, :2].any()
        assert not bad[1, 2, :first].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copies": 3}, "copies must divide H = 4, got 3"),
        ({"copies": 0}, "copies must be at least 1, got 0"),
        ({"c": 0}, "c must be at least 1, got 0"),
        ({"signal": torch.bfloat16, "dtype": torch.float64}, "signal_dtype 2 does not go with dtype 1"),
        ({"signal": torch.float64, "dtype": torch.float32}, "signal_dtype 1 does not go with dtype 0"),
        ({"dtype": torch.bfloat16}, "unknown dtype 2"),
    ],
)
def test_what_the_library_refuses(changes: dict[str, object], message: str, generator: Generator) -> None:
    case = Case(copies=1, final=False)
    tensors = case.tensors(generator)
    y = torch.empty(2, 1, 4, 33, dtype=torch.float64)
    wrong = replace(case, **changes)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=f"^native library: diagonal: {message}$"):
        call("diagonal", wrong, *map(tensors.get, ARGUMENTS), y, None)
    with pytest.raises(RuntimeError, match=f"^native library: diagonal_backward: {message}$"):
        call("diagonal_backward", wrong, y, None, *map(tensors.get, ARGUMENTS), *[None] * len(ARGUMENTS))


def test_states_of_dt_and_unknown_flags_are_refused(generator: Generator) -> None:
    handle, case = native_library._handle(), Case(copies=1)
    tensors, memory = case.tensors(generator), torch.empty(1000, dtype=torch.float64)
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in map(tensors.get, ARGUMENTS)]
    for flags, dt_states, message in ((0, 2, "dt_states must be 1 or n = 3, got 2"), (64, 1, "unknown flags 64")):
        sizes = [ctypes.c_int64(i) for i in (1, 1, flags, *case.sizes[:-1], dt_states)]
        code = handle.s4_fast_cpu_diagonal(
            *sizes, ctypes.c_double(1), *pointers, ctypes.c_void_p(memory.data_ptr()), None, ctypes.c_int64(1)
        )
        assert code and native_library._error(handle) == f"diagonal: {message}"
