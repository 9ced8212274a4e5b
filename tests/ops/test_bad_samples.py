"""What a NaN, an infinity or a spike in one sample, or in one tap of a kernel, reaches: nothing before it, no other row
and no other feature."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from s4_fast import dplr_step, fft_conv, ssm_scan, ssm_step
from tests.helpers import DTYPES, FORWARD, Tensors, backends, instruction_set, needs_native, normal
from tests.ops import diagonal_inputs
from tests.ops.test_dplr_step import inputs as dplr_inputs
from tests.ops.test_scan import scan_inputs, step_inputs

ROW, FEATURE = 1, 2
NON_FINITE = (math.nan, math.inf, -math.inf)
SPIKE = 1e6
# The first and last samples of chunks of 32 and 64, some inside, and the ends.
L = 300
PLACES = (0, 31, 32, 47, 64, 100, 255, 256, 290, L - 1)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def with_sample(u: Tensor, place: int, value: float) -> Tensor:
    """``value`` in one sample of u (batch, H, ...)."""
    changed = u.clone()
    changed[ROW, FEATURE, place] = value
    return changed


def check(run: Callable[[Tensor], Tensor], u: Tensor, place: int, value: float, moves: float = 0) -> None:
    """``run(u)`` is (batch, ..., H, L). Earlier outputs may move by ``moves`` of the row's norm without the sample."""
    y, bad = run(u), run(with_sample(u, place, value))
    row, bad_row = y[ROW].select(-2, FEATURE).clone(), bad[ROW].select(-2, FEATURE).clone()
    y[ROW].select(-2, FEATURE).zero_(), bad[ROW].select(-2, FEATURE).zero_()
    assert torch.equal(bad, y), "other rows or features"
    before, bad_before = row[..., :place], bad_row[..., :place]
    if moves:
        assert float((bad_before - before).norm()) <= moves * float(row.norm()), "earlier outputs"
    else:
        assert torch.equal(bad_before, before), "earlier outputs"
    after = bad_row[..., place:]
    assert not after.isfinite().any() if not math.isfinite(value) else after.isfinite().all()


def real(dtype: torch.dtype) -> str:
    return str(dtype.to_real()).removeprefix("torch.")


# --------------------------------------------------------------------------------------------------------- convolution


def conv_inputs(generator: Generator, dtype: torch.dtype, length: int, taps: int, c: int) -> Tensors:
    sizes: dict[str, tuple[int, ...]] = {"u": (3, 4, length), "k": (c, 4, taps), "D": (c, 4)}
    return {name: normal(generator, *shape, dtype=dtype.to_real()) for name, shape in sizes.items()}


@pytest.mark.parametrize("backend", [*backends("fft_conv"), "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("length", "taps", "c"),
    [
        (1, 1, 1),
        (17, 17, 3),
        (100, 100, 1),
        (L, L, 2),
        (L, 2 * L, 1),
        pytest.param(3000, 3000, 1, marks=pytest.mark.slow),
    ],
)
def test_convolution(length: int, taps: int, c: int, dtype: torch.dtype, backend: str, generator: Generator) -> None:
    tensors = conv_inputs(generator, dtype, length, taps, c)
    u = tensors.pop("u")

    def run(u: Tensor) -> Tensor:
        return fft_conv(u, **tensors, backend=backend)

    for place in {0, length // 2, length // 3, length - 1}:
        for value in NON_FINITE:
            check(run, u, place, value, FORWARD[real(dtype)])
        # PyTorch's FFT rounds every output by as much as suits the largest.
        check(run, u, place, SPIKE, FORWARD[real(dtype)] * (SPIKE if backend == "pytorch" else 1))


@pytest.mark.parametrize("backend", [*backends("fft_conv"), "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution_with_few_taps(dtype: torch.dtype, backend: str, generator: Generator) -> None:
    """The reference ends what a sample does; an FFT may not tell it from the rest of the row."""
    tensors = conv_inputs(generator, dtype, L, 20, 2)
    u = tensors.pop("u")
    for place in (0, 100, L - 1):
        y = fft_conv(u, **tensors, backend=backend)
        bad = fft_conv(with_sample(u, place, math.nan), **tensors, backend=backend)
        row, bad_row = y[ROW, :, FEATURE, :place], bad[ROW, :, FEATURE]
        assert torch.linalg.vector_norm(bad_row[..., :place] - row) <= FORWARD[real(dtype)] * y.norm()
        assert bad_row[..., place : place + 20].isnan().all()


@pytest.mark.parametrize("backend", backends("fft_conv"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "taps"), [(1, 1), (100, 60), (L, L), (L, 2 * L)])
def test_taps(length: int, taps: int, dtype: torch.dtype, backend: str, generator: Generator) -> None:
    """A tap of one channel and feature."""
    u, k, D = conv_inputs(generator, dtype, length, taps, 2).values()
    y = fft_conv(u, k, D, backend=backend)
    for place in {0, taps // 2, min(taps, length) - 1}:
        for value in NON_FINITE:
            changed = k.clone()
            changed[1, FEATURE, place] = value
            bad, place = fft_conv(u, changed, D, backend=backend), min(place, length)
            before, bad_before = y[:, 1, FEATURE, :place], bad[:, 1, FEATURE, :place]
            assert torch.linalg.vector_norm(bad_before - before) <= FORWARD[real(dtype)] * y.norm()
            assert not bad[:, 1, FEATURE, place:].isfinite().any()
            others = torch.ones(2, 4, dtype=torch.bool)
            others[1, FEATURE] = False
            assert torch.equal(bad[:, others], y[:, others])


@pytest.mark.parametrize("backend", backends("fft_conv"))
def test_gradients_of_other_rows_and_features(backend: str, generator: Generator) -> None:
    for length in (50, L):
        tensors = conv_inputs(generator, torch.complex64, length, length, 2)
        grad = normal(generator, 3, 2, 4, length, dtype=torch.float32)

        def gradients(u: Tensor, tensors: Tensors = tensors, grad: Tensor = grad) -> tuple[Tensor, ...]:
            given = [u.requires_grad_(), *(tensors[name].clone().requires_grad_() for name in "kD")]
            return torch.autograd.grad(fft_conv(*given, backend=backend), given, grad)

        good = gradients(tensors["u"].clone())
        bad = gradients(with_sample(tensors["u"], length // 2, math.nan))
        others = [h for h in range(4) if h != FEATURE]
        assert torch.equal(bad[0], good[0])
        assert torch.equal(bad[1][:, others], good[1][:, others]) and bad[1][:, FEATURE].isnan().any()
        assert torch.equal(bad[2][:, others], good[2][:, others]) and bad[2][:, FEATURE].isnan().all()


# ---------------------------------------------------------------------------------------------------------------- scan


def check_scan(length: int, time_major: bool, dtype: torch.dtype, backend: str, generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", 3, 20, 5, length, dtype)
    u = tensors.pop("u")

    def run(u: Tensor) -> Tensor:
        return ssm_scan(u.mT.contiguous().mT if time_major else u, **tensors, backend=backend).contiguous()

    for place in (p for p in PLACES if p < length):
        for value in (*NON_FINITE, SPIKE):
            check(run, u, place, value)


@pytest.mark.parametrize("backend", backends("ssm_scan"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("length", [20, L])
def test_scan(length: int, time_major: bool, dtype: torch.dtype, backend: str, generator: Generator) -> None:
    check_scan(length, time_major, dtype, backend, generator)


@needs_native
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(dtype: torch.dtype, isa: str, generator: Generator) -> None:
    with instruction_set(isa):
        check_scan(L, False, dtype, "native", generator)
        for length in (17, 100, L, 3000):
            tensors = conv_inputs(generator, dtype, length, length, 1)
            u = tensors.pop("u")
            for value in (math.nan, SPIKE):
                check(partial(fft_conv, **tensors, backend="native"), u, length // 2, value, FORWARD[real(dtype)])


@pytest.mark.parametrize("backend", backends("ssm_scan"))
def test_a_scan_over_groups_of_chunks(backend: str, generator: Generator) -> None:
    """States pass several levels of the scan over chunks, and several blocks of chunks."""
    tensors = scan_inputs(generator, "weak", 2, 3, 4, 5000)
    u = tensors.pop("u")
    for place in (100, 2047, 2048, 3000, 4999):
        check(partial(ssm_scan, **tensors, backend=backend), u, place, math.nan)


def _systems() -> list[Any]:
    found = []
    for op in ("diagonal_ssm", "dplr_scan"):
        for backend in backends(op):
            marks = getattr(backend, "marks", ())
            found.append(pytest.param(op, getattr(backend, "values", (backend,))[0], marks=marks))
    return found


SYSTEMS = pytest.mark.parametrize(("op", "backend"), _systems())


@SYSTEMS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time_major", [False, True])
def test_systems(time_major: bool, dtype: torch.dtype, op: str, backend: str, generator: Generator) -> None:
    tensors = diagonal_inputs.inputs(op, generator, (3, 4, 5, L), channels=2, time_major=time_major, dtype=dtype)
    u = tensors.pop("u")

    def run(u: Tensor) -> Tensor:
        tensors["u"] = u.mT.contiguous() if time_major else u
        y = diagonal_inputs.run(op, **tensors, time_major=time_major, backend=backend)
        return (y.permute(0, 2, 3, 1) if time_major else y).contiguous()

    u = u.mT.contiguous() if time_major else u
    for place in PLACES:
        for value in (*NON_FINITE, SPIKE):
            check(run, u, place, value)


@SYSTEMS
def test_systems_from_both_ends(op: str, backend: str, generator: Generator) -> None:
    """Every output of the row has the sample in one of its sums; the others have not."""
    tensors = diagonal_inputs.inputs(op, generator, (3, 4, 5, L), channels=1, bidirectional=True)
    y = diagonal_inputs.run(op, **tensors, bidirectional=True, backend=backend)
    tensors["u"] = with_sample(tensors["u"], 100, math.nan)
    bad = diagonal_inputs.run(op, **tensors, bidirectional=True, backend=backend)
    assert bad[ROW, 0, FEATURE].isnan().all()
    bad[ROW, 0, FEATURE] = y[ROW, 0, FEATURE]
    assert torch.equal(bad, y)


@SYSTEMS
def test_half_precision(op: str, backend: str, generator: Generator) -> None:
    tensors = diagonal_inputs.inputs(op, generator, (3, 4, 5, L))
    u = tensors.pop("u").bfloat16()
    for place in PLACES:
        check(lambda u: diagonal_inputs.run(op, u=u, **tensors, backend=backend), u, place, math.nan)


# --------------------------------------------------------------------------------------------------------------- steps


def check_step(step: Callable[..., Any], tensors: Tensors) -> None:
    """A step has no earlier outputs, but other rows and features."""
    u = tensors["u"]
    y, after = step(**tensors)
    for value in (*NON_FINITE, SPIKE):
        changed = u.clone()
        changed[ROW, FEATURE] = value
        bad, bad_after = step(**{**tensors, "u": changed})
        mine = torch.zeros_like(u, dtype=torch.bool)
        mine[ROW, FEATURE] = True
        others = ~mine
        of_y, of_bad = (t.movedim(1, -1) if t.ndim > 2 else t for t in (y, bad))
        assert torch.equal(bad_after[others], after[others]) and torch.equal(of_bad[others], of_y[others])
        assert of_bad[mine].isfinite().all() == math.isfinite(value)


@pytest.mark.parametrize("backend", backends("ssm_step"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_step(dtype: torch.dtype, backend: str, generator: Generator) -> None:
    check_step(partial(ssm_step, backend=backend), step_inputs(generator, "weak", 3, 4, 5, dtype))


@pytest.mark.parametrize("backend", backends("dplr_step"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_low_rank_step(dtype: torch.dtype, backend: str, generator: Generator) -> None:
    check_step(partial(dplr_step, backend=backend), dplr_inputs(generator, dtype, 3, 4, 5))
