"""What every kernel of the native library owes: every instruction set, any number of threads and of callers, any sizes.

The DPLR ops have more in tests/ops. What sanitizers see is in test_sanitizers.py.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

import s4_fast
from s4_fast import explain, native_library, ssm_step
from s4_fast.ops.scan import native as native_scan
from tests.helpers import (
    DTYPES,
    Tensors,
    assert_contract,
    evaluate,
    instruction_set,
    log_nodes,
    needs_native,
    normal,
    parts,
    threads,
)

ISAS = ("avx512", "avx2", "portable")
OPS = (
    "log_vandermonde",
    "log_vandermonde_transpose",
    "cauchy_mult",
    "cauchy_bilinear",
    "fft_conv",
    "ssm_scan",
    "ssm_step",
)
# (batch, H, n, L): no n but 64 is a number of whole vectors of every instruction set.
SIZES = [(16, 1, 1, 1), (3, 2, 3, 33), (2, 3, 17, 63), (1, 2, 33, 1600), (2, 1, 64, 700), (1, 2, 100, 1047)]

pytestmark = [needs_native, pytest.mark.usefixtures("poisoned_memory")]


def inputs(
    op: str, generator: Generator, batch: int, H: int, n: int, L: int, dtype: torch.dtype = torch.complex64
) -> Tensors:
    def make(*shape: int, real: bool = False) -> Tensor:
        return normal(generator, *shape, dtype=dtype.to_real() if real else dtype)

    if op == "fft_conv":
        shapes = {"u": (batch, H, L), "k": (2, H, 16 * n), "D": (2, H)}
        return {name: make(*shape, real=True) for name, shape in shapes.items()}
    x = log_nodes(generator, "weak", H, n, dtype=dtype)
    if op == "log_vandermonde":
        return {"v": make(batch, H, n), "x": x}
    if op == "log_vandermonde_transpose":
        return {"u": make(batch, H, L, real=True), "v": make(batch, H, n), "x": x}
    if op.startswith("cauchy"):
        w = torch.complex(x.real - 0.01, 2 * x.imag)
        nodes = {"z": 4 * make(H, L)} if op == "cauchy_mult" else {}
        return {"v": make(batch, H, n), **nodes, "w": w}
    state, weights = make(batch, H, n), {"x": x, "B": make(H, n), "C": make(H, n), "D": make(H, real=True)}
    if op == "ssm_scan":
        return {"u": make(batch, H, L, real=True), **weights, "state": state}
    return {"u": make(batch, H, real=True), "state": state, **weights}


def scalars(op: str, L: int) -> dict[str, int]:
    if op == "cauchy_bilinear" or op.startswith("log"):
        return {"L": L}
    return {"return_state": True} if op == "ssm_scan" else {}


def outcome(op: str, tensors: Tensors, L: int) -> tuple[Tensor, ...]:
    """Outputs and gradients."""
    output, grads = evaluate(op, tensors, "native", **scalars(op, L))
    return (*parts(output), *grads.values())


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_every_instruction_set(op: str, dtype: torch.dtype, isa: str, generator: Generator) -> None:
    with instruction_set(isa):
        for sizes in SIZES:
            assert_contract(op, inputs(op, generator, *sizes, dtype), "native", **scalars(op, sizes[-1]))


@pytest.mark.parametrize("sizes", [(1, 300, 2, 50), (300, 1, 2, 50), (40, 2, 5, 3000), (2, 1, 3, 70_000)])
@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_a_bit(op: str, sizes: tuple[int, ...], generator: Generator) -> None:
    """Few features with many rows, and many with one: cut in different ways."""
    tensors, L = inputs(op, generator, *sizes), sizes[-1]
    with threads(1):
        assert_contract(op, tensors, "native", **scalars(op, L))
        alone = outcome(op, tensors, L)
    for count in (2, 5):
        with threads(count):
            assert same(outcome(op, tensors, L), alone)


def test_threads_do_not_change_a_bit_of_a_large_step(generator: Generator) -> None:
    tensors = inputs("ssm_step", generator, 7, 150, 200, 1)
    with threads(1):
        alone = outcome("ssm_step", tensors, 1)
    with threads(5):
        assert same(outcome("ssm_step", tensors, 1), alone)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes", [(2, 37, 3, 1), (1, 3, 5, 63), (3, 35, 17, 1700), (2, 16, 130, 2100), (40, 2, 5, 900)]
)
@pytest.mark.sample(2)
def test_time_major_signals(sizes: tuple[int, ...], dtype: torch.dtype, isa: str, generator: Generator) -> None:
    """Lines of features and what is left of them, in groups that depend on the number of threads."""
    tensors, L = inputs("ssm_scan", generator, *sizes, dtype), sizes[-1]
    turned = {**tensors, "u": tensors["u"].mT.contiguous().mT}
    with instruction_set(isa):
        assert_contract("ssm_scan", turned, "native", return_state=True)
        expected = outcome("ssm_scan", tensors, L)
        for count in (1, 5):
            with threads(count):
                assert same(outcome("ssm_scan", turned, L), expected)


@pytest.mark.parametrize("op", OPS)
def test_callers_at_once(op: str, generator: Generator) -> None:
    problems = [inputs(op, generator, 6, 3, 5, 1000 + i) for i in range(4)]
    alone = [outcome(op, tensors, 1000 + i) for i, tensors in enumerate(problems)]
    with threads(3), ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda i: outcome(op, problems[i % 4], 1000 + i % 4), range(20))
        assert all(same(one, alone[i % 4]) for i, one in enumerate(found))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process(generator: Generator) -> None:
    """As a data loader's worker: the parent's threads do not exist there.

    Nor do those of PyTorch, which waits for them if tensors are larger than these.
    """
    u, x, B, C, D, state = inputs("ssm_scan", generator, 3, 8, 5, 1000).values()

    def run() -> tuple[Tensor, ...]:
        y, final = native_scan.ssm_scan(u, x, B, C, D, state, False)
        return y, final, *native_scan.ssm_scan_backward(y, final, u, x, B, C, D, state, False, (True,) * 6)

    with threads(3):
        before = run()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            code = 1
            try:
                code = 0 if same(run(), before) else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert same(run(), before)


@pytest.mark.parametrize("op", OPS)
def test_views(op: str, generator: Generator) -> None:
    """Every second number, expanded ones, those of a flipped tensor, and pending conjugations and signs."""
    tensors = inputs(op, generator, 2, 3, 5, 50)
    expanded = {name: t[:1].expand_as(t) for name, t in tensors.items()}
    doubled = {name: torch.stack((t, t + 1), -1).flatten(-2)[..., ::2] for name, t in tensors.items()}
    flipped = {name: t.flip(-1) for name, t in tensors.items()}
    # The imaginary part of a conjugate is its own's with the sign pending.
    lazy = {
        name: t.conj().resolve_conj().conj() if t.is_complex() else torch.complex(t, -t).conj().imag
        for name, t in tensors.items()
    }
    assert all(t.is_neg() or t.is_conj() for t in lazy.values())
    for view in (expanded, doubled, flipped, lazy):
        assert_contract(op, view, "native", **scalars(op, 50))


def test_a_step_leaves_the_state_unless_told_otherwise(generator: Generator) -> None:
    tensors = inputs("ssm_step", generator, 3, 2, 17, 1)
    u, state, x, B, C, D = tensors.values()
    before = state.clone()
    y, after = ssm_step(**tensors, backend="native")
    assert torch.equal(state, before) and after.data_ptr() != state.data_ptr()
    lam, place, y_in_place = native_scan.exponentials(x), state.clone(), torch.empty_like(y)
    native_library.call("step", u, u.dtype, *state.shape, u, place, lam, B, C, D, y_in_place, place)
    assert torch.equal(place, after) and torch.equal(y_in_place, y)


# -------------------------------------------------------------------------------------------------------------- memory

PEAK = """
import sys
import torch
from s4_fast import ssm_scan

def resident(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

H, n, L = map(int, sys.argv[1:])
small = [t.requires_grad_() for t in (-torch.rand(H, n) / L + 1j, torch.randn(H, n) + 0j, torch.randn(H, n) + 0j)]
ssm_scan(torch.randn(1, H, 100), *small, torch.randn(H), backend="native").sum().backward()
start = resident("VmRSS")
u, D = torch.randn(1, H, L, requires_grad=True), torch.randn(H, requires_grad=True)
y, state = ssm_scan(u, *small, D, return_state=True, backend="native")
(y.sum() + state.abs().sum()).backward()
assert all(torch.isfinite(t.grad).all() for t in (u, D, *small))
print(resident("VmHWM") - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/self/status to read memory from")
@pytest.mark.parametrize(
    ("H", "n", "L", "limit"),
    [
        # u, y, their gradients, and as much again: the states would be 128 times u.
        (1, 64, 2**21, 8 * 4 * 2**21 + 2**25),
        pytest.param(64, 32, 2**20, 2**32, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_memory_of_a_long_scan_with_gradients(H: int, n: int, L: int, limit: int) -> None:
    command = [sys.executable, "-c", PEAK, str(H), str(n), str(L)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) <= limit


# ----------------------------------------------------------------------------------------------------------- bad input

U, X, D, S = torch.zeros(2, 3, 5), torch.zeros(3, 4) + 0j, torch.zeros(3), torch.zeros(2, 3, 4) + 0j


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"D": D[:2]}, ValueError, r"D of shape \(3,\)"),
        ({"D": D[None]}, ValueError, r"D of shape \(3,\)"),
        ({"D": D.double()}, TypeError, "one precision, .* D float64"),
        ({"D": D.half()}, TypeError, "D to be float32 or float64, got float16"),
        ({"D": D.to("meta")}, ValueError, "one device, .* D on meta"),
        ({"x": X[:, :0], "B": X[:, :0], "C": X[:, :0], "state": S[..., :0]}, ValueError, "n >= 1, got"),
        ({"state": S.to(torch.complex128)}, TypeError, "one precision"),
        ({"B": X[:2]}, ValueError, r"B of shape \(3, 4\)"),
    ],
)
def test_bad_input_does_not_reach_the_kernels(changes: Tensors, error: type[Exception], message: str) -> None:
    arguments = {"u": U, "x": X, "B": X, "C": X, "D": D, "state": S, **changes}
    with pytest.raises(error, match=f"^ssm_scan: expected .*{message}"):
        s4_fast.ssm_scan(**arguments, backend="native")
    with pytest.raises(error, match=f"^ssm_step: expected .*{message}"):
        s4_fast.ssm_step(**{**arguments, "u": U[..., 0]}, backend="native")


def test_lengths_beyond_32_bits_are_served() -> None:
    """Asked without memory for them: sizes and offsets are 64 bits wide from here to the kernels."""
    L = 2**31 + 5
    u = torch.empty(1, 1, 1).expand(1, 1, L)
    assert explain("ssm_scan", u, X[:1], X[:1], X[:1], D[:1], backend="native").backend == "native"
    assert explain("log_vandermonde_transpose", u, X[:1], X[:1], L, backend="native").backend == "native"
    assert explain("log_vandermonde", X, X, L, backend="native").backend == "native"
    assert explain("cauchy_bilinear", X, X, L, backend="native").backend == "native"


def test_a_prepared_call_takes_what_was_left_open(generator: Generator) -> None:
    tensors = inputs("ssm_step", generator, 3, 2, 5, 1)
    u, state, x, B, C, D = tensors.values()
    lam = native_scan.exponentials(x)
    want = native_scan.step(u, state, lam, B, C, D), native_scan.step(u, state, lam, B, C, D[:0])
    run = native_library.Prepared("step", u.dtype, int, 2, 5, Tensor, Tensor, lam, B, C, Tensor, Tensor, Tensor)
    other = native_library.Prepared("exp", x.dtype, int, x, Tensor)
    for _ in range(2):
        for skip, outputs in zip((D.data_ptr(), None), want, strict=True):
            y, after = torch.empty_like(u), torch.empty_like(state)
            run(3, u.data_ptr(), state.data_ptr(), skip, y.data_ptr(), after.data_ptr())
            assert torch.equal(y, outputs[0]) and torch.equal(after, outputs[1])
        again = torch.empty_like(lam)
        other(x.numel(), again.data_ptr())
        assert torch.equal(again, lam)
    native_library.call("exp", x, x.dtype, x.numel(), x, torch.empty_like(lam))  # has its own idea of the arguments
    with pytest.raises(RuntimeError, match=r"^native library: exp: count must be at least 1, got 0$"):
        other(0, lam.data_ptr())
    with pytest.raises(RuntimeError, match="NULL"):
        other(1, None)
    with pytest.raises(ctypes.ArgumentError):
        other("1", lam.data_ptr())  # type: ignore[arg-type]
    for wrong in ((1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="zip"):
            other(*wrong)
    with pytest.raises(AssertionError):
        native_library.Prepared("exp", x.dtype, int, x.T, Tensor)
