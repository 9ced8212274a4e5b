"""Every Triton kernel, forward and each gradient, against float64. Collected by test_triton.py alone.

``assert_contract`` sees to it that Triton and nothing else ran. The interpreter takes a millisecond for what a GPU does
in a microsecond, hence few features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

import s4_fast
from s4_fast import native_library
from s4_fast.dispatch import BackendUnavailableError
from s4_fast.ops._triton_calls import version
from s4_fast.ssm import hippo
from tests import extended
from tests.extended import needs_extended
from tests.helpers import (
    DECAYS,
    DTYPES,
    Tensors,
    assert_contract,
    assert_gradients_one_by_one,
    evaluate,
    log_nodes,
    log_uniform,
    normal,
    uniform,
    unusual_views,
)

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
OPS = ("log_vandermonde", "log_vandermonde_transpose", "cauchy_bilinear", "cauchy_mult", "dplr_kernel")
slow = pytest.mark.slow
# Every L and every n that is awkward for a tile.
SMALL = [(2, 29, 1), (2, 3, 17), (1, 32, 129), (1, 100, 33)]
CASES = [(*size, torch.complex64) for size in SMALL]
CASES += [(*size, torch.complex128) for size in SMALL]
CASES += [
    pytest.param(*size, dtype, marks=slow)
    for size in [(1, 3, 1047), (1, 1, 4099), (1, 3, 4099), (2, 29, 1047), (1, 100, 4099)]
    for dtype in DTYPES
]

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # At masked states and nodes NumPy divides by zero and multiplies the infinity; nothing of it is stored.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]


def inputs(
    op: str, generator: Generator, H: int, n: int, L: int, dtype: torch.dtype, *, decay: str = "weak", c: int = 1
) -> tuple[Tensors, dict[str, int]]:
    """Tensors and scalars of ``op`` for nodes exp(x) with phases up to pi (Cauchy: 0.8 pi), for c rows."""
    if op.startswith("log_vandermonde") and dtype == torch.complex128 and version() < (3, 5):
        pytest.skip("no float64 products before Triton 3.5")
    x = log_nodes(generator, decay, H, n, dtype=torch.complex128)
    v = normal(generator, c, H, n, dtype=dtype)
    if op == "log_vandermonde":
        return {"v": v, "x": x.to(dtype)}, {"L": L}
    if op == "log_vandermonde_transpose":
        u = normal(generator, c, H, L, dtype=dtype.to_real())
        if H * n == 1:  # a single sum may cancel by chance, of which float32 then holds few digits
            u = u + (x.imag * torch.arange(L)).cos().to(u)
        return {"u": u, "v": v, "x": x.to(dtype)}, {"L": L}
    # Next to a pole float64 loses digits, and the reference with it: that has a test of its own.
    least = 1e-3 if dtype == torch.complex128 else 0.0
    w = torch.complex(x.real.clamp(-1, -least), 2 * torch.tan(0.4 * x.imag)).to(dtype)
    if op == "cauchy_bilinear":
        return {"v": v, "w": w}, {"L": L}
    if op == "cauchy_mult":
        return {"v": v, "z": 4 * normal(generator, L, dtype=dtype), "w": w}, {}
    return dplr(generator, H, n, 1, 1, c, dtype), {"L": L}


def dplr(generator: Generator, H: int, n: int, r: int, b: int, c: int, dtype: torch.dtype) -> Tensors:
    dt = log_uniform(generator, 1e-2, 1e-1, H, n)
    P = normal(generator, r, H, n, dtype=torch.complex128)
    tensors = {
        "w": dt * torch.complex(-uniform(generator, 0.1, 2, H, n), uniform(generator, -20, 20, H, n)),
        "P": P,
        "Q": P + 0.3 * normal(generator, r, H, n, dtype=torch.complex128),
        "B": normal(generator, b, H, n, dtype=torch.complex128),
        "C": normal(generator, c, H, n, dtype=torch.complex128),
    }
    return {name: t.to(dtype) for name, t in tensors.items()} | {"dt": dt.to(dtype.to_real())}


def check(op: str, tensors: Tensors, **options: float) -> None:
    forward = 5e-6 if op == "dplr_kernel" and tensors["w"].dtype == torch.complex64 else None
    options = {"forward": forward, **options}
    assert_contract(op, {name: t.to(DEVICE) for name, t in tensors.items()}, "triton", **options)


@pytest.mark.parametrize(("H", "n", "L", "dtype"), CASES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.each_value
def test_contract(op: str, H: int, n: int, L: int, dtype: torch.dtype, generator: Generator) -> None:
    tensors, scalars = inputs(op, generator, H, n, L, dtype)
    check(op, tensors, **scalars)


@pytest.mark.parametrize("decay", ["none", "strong"])
@pytest.mark.parametrize("op", ["log_vandermonde", "log_vandermonde_transpose", "cauchy_bilinear"])
@pytest.mark.sample(2)
def test_decay(op: str, decay: str, generator: Generator) -> None:
    assert decay in DECAYS
    tensors, scalars = inputs(op, generator, 1, 29, 301, torch.complex64, decay=decay)
    check(op, tensors, **scalars)


@pytest.mark.parametrize("dtype", [torch.complex64, pytest.param(torch.complex128, marks=slow)])
@pytest.mark.parametrize("op", ["log_vandermonde", "log_vandermonde_transpose"])
@pytest.mark.slow
def test_late_phases(op: str, dtype: torch.dtype, generator: Generator) -> None:
    """Where float32 would round x l by a hundredth of a radian, and float64 by 1e-11."""
    L = 2**16 + 1 if DEVICE == "cpu" else 2**20
    tensors, scalars = inputs(op, generator, 1, 3, L, dtype)
    tensors["x"].imag[0, 0] = math.pi
    check(op, tensors, **scalars)


@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("op", OPS[:4])
def test_programs_of_several_tiles(
    op: str, programs: int, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with thousands of features, where a program of an adjoint sums over more than one tile."""
    for module in ("vandermonde", "cauchy"):
        monkeypatch.setattr(f"s4_fast.ops.{module}.triton._PROGRAMS", programs)
    tensors, scalars = inputs(op, generator, 1, 3, 4099 if op.startswith("log") else 400, torch.complex64)
    check(op, tensors, **scalars)


def test_large_tiles_of_the_vandermonde_product(generator: Generator) -> None:
    """Two tiles of the largest kind, of which one is partly beyond L."""
    tensors, scalars = inputs("log_vandermonde", generator, 1, 17, 8200, torch.complex64)
    check("log_vandermonde", tensors, **scalars)


@pytest.mark.parametrize("distance", [1e-3, 1e-6])
def test_bilinear_next_to_poles(distance: float, generator: Generator) -> None:
    """Poles next to roots of unity, where 2 sin(theta/2) - Im(w) cos(theta/2) cancels."""
    L, k = 1000, torch.tensor([[0, 7, 250, 499]])
    w = torch.complex(torch.full(k.shape, -distance), 2 * torch.tan(math.pi * k / L + distance)).to(torch.complex64)
    check("cauchy_bilinear", {"v": normal(generator, 1, 4, dtype=torch.complex64), "w": w}, L=L)


@needs_extended
@pytest.mark.parametrize("decay", ["none", "weak"])
@pytest.mark.parametrize("L", [17, 1047])
def test_bilinear_in_float64_is_as_good_as_its_poles(L: int, decay: str, generator: Generator) -> None:
    """With hardly any decay one rounding of w moves the sums next to a pole by more than 1e-12 already."""
    x = log_nodes(generator, decay, 20, dtype=torch.complex128)
    v, w = normal(generator, 20, dtype=torch.complex128), torch.complex(x.real, 2 * torch.tan(0.4 * x.imag))
    output = s4_fast.cauchy_bilinear(v.to(DEVICE), w.to(DEVICE), L, backend="triton").cpu()
    extended.assert_as_good_as_its_poles(output, v, w, L, generator.initial_seed())


@pytest.mark.parametrize("distance", [1e-2, 1e-5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mult_next_to_poles(symmetric: bool, distance: float, generator: Generator) -> None:
    tensors, _ = inputs("cauchy_mult", generator, 1, 29, 1, torch.complex64)
    turn = torch.polar(torch.ones(29), 2 * math.pi * torch.rand(29, generator=generator))
    tensors["z"] = tensors["w"].flatten() * (1 + distance * turn)
    check("cauchy_mult", tensors, symmetric=symmetric)


def test_mult_with_nodes_per_feature(generator: Generator) -> None:
    tensors, _ = inputs("cauchy_mult", generator, 3, 5, 1, torch.complex64, c=2)
    check("cauchy_mult", tensors | {"z": 4 * normal(generator, 3, 50, dtype=torch.complex64)})


@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(1)
def test_rows_that_do_not_fill_a_block(op: str, generator: Generator) -> None:
    tensors, scalars = inputs(op, generator, 2, 5, 50, torch.complex64, c=3)
    check(op, tensors, **scalars)


@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
@pytest.mark.parametrize("L", [200, pytest.param(4096, marks=slow)])
@pytest.mark.sample(1)
def test_hippo(measure: str, L: int, generator: Generator) -> None:
    """The gradient of LegT, whose poles are weakly damped, is lost when sums are rounded to float32."""
    form = hippo.nplr(measure, 64, 2 if measure == "legt" else 1)
    dt = log_uniform(generator, 1e-3, 1e-1, 1, 1)
    w = dt * torch.complex(form.w.real.clamp(max=-1e-4), form.w.imag)
    P, C = form.P[:, None], normal(generator, 1, 1, 32, dtype=torch.complex128)
    tensors = {"w": w, "P": P, "Q": P, "B": form.B[None, None], "C": C}
    check("dplr_kernel", {name: t.to(torch.complex64) for name, t in tensors.items()} | {"dt": dt.float()}, L=L)


@pytest.mark.parametrize(("r", "b", "c"), [(2, 1, 1), (1, 2, 2), (1, 1, 5), (3, 1, 1)])
@pytest.mark.sample(1)
def test_ranks_and_several_inputs_and_outputs(r: int, b: int, c: int, generator: Generator) -> None:
    check("dplr_kernel", dplr(generator, 2, 4, r, b, c, torch.complex64), L=50)
    check("dplr_kernel", dplr(generator, 2, 4, r, b, c, torch.complex128), L=51)


def test_too_many_sums_for_registers_are_refused(generator: Generator) -> None:
    tensors = {name: t.to(DEVICE) for name, t in dplr(generator, 1, 2, 3, 2, 2, torch.complex64).items()}
    with pytest.raises(BackendUnavailableError, match="5 x 5 sums"):
        s4_fast.dplr_kernel(**tensors, L=8, backend="triton")
    assert s4_fast.explain("dplr_kernel", **tensors, L=8, backend="auto").backend != "triton"


@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.each_value
def test_memory_layout_does_not_matter(op: str, view: str, generator: Generator) -> None:
    tensors, scalars = inputs(op, generator, 3, 5, 20, torch.complex64)
    moved = {name: torch.atleast_2d(t).to(DEVICE) for name, t in tensors.items()}
    assert_contract(op, unusual_views(moved)[view], "triton", **scalars)


@pytest.mark.parametrize("op", OPS[:4])
@pytest.mark.sample(1)
def test_broadcast_and_expanded_inputs(op: str, generator: Generator) -> None:
    tensors, scalars = inputs(op, generator, 1, 5, 20, torch.complex64, c=2)
    check(op, {name: t.expand(2, 3, t.shape[-1]) if name != "z" else t for name, t in tensors.items()}, **scalars)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(1)
def test_gradients_one_by_one(op: str, generator: Generator) -> None:
    tensors, scalars = inputs(op, generator, 2, 3, 9, torch.complex128)
    assert_gradients_one_by_one(op, {name: t.to(DEVICE) for name, t in tensors.items()}, "triton", **scalars)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(1)
def test_repeated_runs_are_equal_to_the_bit(op: str, generator: Generator) -> None:
    tensors, scalars = inputs(op, generator, 1, 5, 300, torch.complex64)
    tensors = {name: t.to(DEVICE) for name, t in tensors.items()}
    first, second = (evaluate(op, tensors, "triton", **scalars) for _ in range(2))
    assert torch.equal(first.output, second.output)
    assert all(torch.equal(g, second.grads[name]) for name, g in first.grads.items())


@pytest.mark.parametrize("op", OPS)
def test_the_automatic_choice_takes_it_on_a_gpu_where_there_is_no_native_kernel(
    op: str, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_library, "refusal", lambda device: "not here")
    tensors, scalars = inputs(op, generator, 1, 3, 9, torch.complex64)
    chosen = s4_fast.explain(op, **{name: t.to(DEVICE) for name, t in tensors.items()}, **scalars, backend="auto")
    assert chosen.backend == ("triton" if DEVICE == "cuda" else "pytorch")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.slow
def test_compiled(op: str, dtype: torch.dtype, generator: Generator) -> None:
    """By Inductor on a GPU; in the interpreter by what it shares with every compiler, the traced graph."""
    tensors, scalars = inputs(op, generator, 2, 3, 20, dtype)
    tensors = {name: t.to(DEVICE) for name, t in tensors.items()}
    expected = forward_and_gradients(op, tensors, scalars, getattr(s4_fast, op))
    compiled = torch.compile(
        getattr(s4_fast, op), fullgraph=True, backend="aot_eager" if DEVICE == "cpu" else "inductor"
    )
    actual = forward_and_gradients(op, tensors, scalars, compiled)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_in_a_cuda_graph(op: str, dtype: torch.dtype, generator: Generator) -> None:
    """Replayed on other values in the same memory."""
    tensors, scalars = inputs(op, generator, 4, 5, 300, dtype)
    tensors = {name: t.to(DEVICE) for name, t in tensors.items()}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        forward_and_gradients(op, tensors, scalars, getattr(s4_fast, op))
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = forward_and_gradients(op, tensors, scalars, getattr(s4_fast, op))
    others, _ = inputs(op, generator, 4, 5, 300, dtype)
    for name, t in others.items():
        tensors[name].copy_(t)
    graph.replay()
    torch.cuda.synchronize()
    expected = forward_and_gradients(op, tensors, scalars, getattr(s4_fast, op))
    assert all(torch.equal(a, e) for a, e in zip(captured, expected, strict=True))


def forward_and_gradients(
    op: str, tensors: Tensors, scalars: dict[str, int], run: Callable[..., Tensor]
) -> list[Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    output = run(**leaves, **scalars, backend="triton")
    return [output, *torch.autograd.grad(output, list(leaves.values()), torch.ones_like(output))]
