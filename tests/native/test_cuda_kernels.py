"""Every CUDA kernel against float64: on the CPU, where emulate.h runs it, and on a GPU where there is one."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from s4_fast.ops.cauchy import reference as cauchy
from s4_fast.ops.vandermonde import reference as vandermonde
from tests.helpers import DTYPES, FORWARD, GRADIENT, log_nodes, log_uniform, normal, relative_error, uniform, widened
from tests.native.emulated import OPTIONS_VARIABLE, Emulated, Library, needs_compiler
from tests.native.trees import ROOT

DECAYS = ("none", "weak", "strong")


def empty(like: Tensor, *shape: int, real: bool = False) -> Tensor:
    """An output that a kernel has yet to write: NaN."""
    dtype = like.real.dtype if real else like.dtype
    return torch.full(shape, math.nan, dtype=dtype, device=like.device)


def close(actual: Tensor, expected: Tensor, allowed: dict[str, float] = FORWARD) -> None:
    precision = torch.finfo(actual.dtype).dtype
    error = relative_error(actual.cpu(), expected.to(widened(actual).dtype))
    assert error <= allowed[precision], error


def to(library: Library, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.to(library.device) for t in tensors]


def gradients(output: Tensor, cotangent: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, cotangent.to(output.dtype))


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [widened(t).clone().requires_grad_() for t in tensors]


# -------------------------------------------------------------------------------------------------------- Vandermonde

SIZES = [(1, 1, 1, 1), (2, 3, 3, 2), (3, 2, 29, 17), (1, 2, 17, 257), (2, 1, 100, 1047)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("c", "H", "n", "L"), [*SIZES, (1, 1, 3, 20000)])
def test_vandermonde(
    library: Library, generator: Generator, c: int, H: int, n: int, L: int, decay: str, dtype: torch.dtype
) -> None:
    v, x = normal(generator, c, H, n, dtype=dtype), log_nodes(generator, decay, H, n, dtype=dtype)
    expected = 1.5 / 2 * vandermonde.log_vandermonde(widened(v), widened(x), L)
    v, x = to(library, (v, x))
    out = empty(v, c, H, L, real=True)
    library.call("vandermonde", v, dtype, c, H, n, L, v, x, 1.5, out)
    close(out, expected)


def moments(library: Library, u: Tensor, x: Tensor, first: bool) -> list[Tensor]:
    (c, H, L), n = u.shape, x.shape[1]
    u, x = to(library, (u, x))
    out = [empty(x, c, H, n) for _ in range(1 + first)]
    library.call("moments", u, u.dtype, c, H, n, L, u, x, out[0], out[1] if first else None)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("c", "H", "n", "L"), [*SIZES, (1, 1, 3, 20000)])
def test_moments(
    library: Library, generator: Generator, c: int, H: int, n: int, L: int, decay: str, dtype: torch.dtype
) -> None:
    x = log_nodes(generator, decay, H, n, dtype=dtype)
    u = normal(generator, c, H, L, dtype=x.real.dtype)
    table = vandermonde.powers(widened(x), L)
    l = torch.arange(L, dtype=torch.float64)
    wide = u.to(torch.complex128)
    zeroth, first = moments(library, u, x, first=True)
    close(zeroth, torch.einsum("chl,hnl->chn", wide, table))
    close(first, torch.einsum("chl,hnl->chn", wide * l, table))
    assert torch.equal(moments(library, u, x, first=False)[0], zeroth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 2**20 - 300])
def test_phases_far_out(library: Library, generator: Generator, offset: int, dtype: torch.dtype) -> None:
    """A single sample at ``offset``: its moment is a power of lambda, whose phase has gone round many times."""
    x = log_nodes(generator, "weak", 1, 5, dtype=dtype)
    u = torch.zeros(1, 1, offset + 1, dtype=x.real.dtype)
    u[..., offset] = 1
    expected = vandermonde.powers(widened(x), offset + 1)[..., offset]
    close(moments(library, u, x, first=False)[0][0], expected)


def test_growing_nodes_do_not_overflow_beyond_the_end(library: Library) -> None:
    x = torch.tensor([[complex(40, 1)]], dtype=torch.complex64)
    u = torch.ones(1, 1, 2)
    zeroth, first = moments(library, u, x, first=True)
    expected = torch.exp(x.to(torch.complex128))
    close(zeroth[0], 1 + expected)
    close(first[0], expected)
    one = torch.ones(1, 1, dtype=torch.complex64)
    y, _ = scan(library, u, x, one, one, None, None)
    close(y[0, 0], 2 * torch.stack((torch.ones(()), 1 + expected[0, 0])).real)


# ------------------------------------------------------------------------------------------------------------- Cauchy

CAUCHY_SIZES = [(1, 5, 1, 1, False), (2, 3, 3, 17, False), (3, 2, 29, 131, True), (5, 2, 100, 70, False)]


def cauchy_inputs(
    generator: Generator, c: int, H: int, n: int, Lz: int, own: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    w = torch.complex(-log_uniform(generator, 1e-3, 1, H, n), uniform(generator, -8, 8, H, n)).to(dtype)
    z = 4 * normal(generator, H if own else 1, Lz, dtype=dtype)
    return normal(generator, c, H, n, dtype=dtype), z, w


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("c", "H", "n", "Lz", "own"), CAUCHY_SIZES)
def test_cauchy_mult(
    library: Library,
    generator: Generator,
    c: int,
    H: int,
    n: int,
    Lz: int,
    own: bool,
    symmetric: bool,
    dtype: torch.dtype,
) -> None:
    inputs = cauchy_inputs(generator, c, H, n, Lz, own, dtype)
    wide = leaves(*inputs)
    expected = cauchy.cauchy_mult(*wide, symmetric)
    grad = normal(generator, c, H, Lz, dtype=dtype)
    v, z, w, g = to(library, (*inputs, grad))
    sizes = (dtype, c, H, n, Lz, z.shape[0])
    out = empty(v, c, H, Lz)
    library.call("cauchy_mult", v, *sizes, v, z, w, symmetric, out)
    close(out, expected.detach())
    grads = [empty(t, *t.shape) for t in (v, z, w)]
    library.call("cauchy_mult_backward", v, *sizes, g, v, z, w, symmetric, *grads)
    for actual, wanted in zip(grads, gradients(expected, grad, wide), strict=True):
        close(actual, wanted, GRADIENT)
    for i, every in enumerate(grads):
        alone: list[Tensor | None] = [None, None, None]
        alone[i] = empty(every, *every.shape)
        library.call("cauchy_mult_backward", v, *sizes, g, v, z, w, symmetric, *alone)
        assert torch.equal(alone[i], every)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [-15, 0, 15])
def test_cauchy_mult_far_from_one(library: Library, generator: Generator, exponent: int, dtype: torch.dtype) -> None:
    """S4's nodes near omega = -1 are larger than the square root of the largest float32 number."""
    scale = 10.0 ** (exponent if dtype == torch.complex64 else 13 * exponent)
    v, z, w = cauchy_inputs(generator, 1, 1, 3, 9, False, dtype)
    z, w = scale * z, scale * w
    expected = scale * cauchy.cauchy_mult(*map(widened, (v, z, w)))
    v, z, w = to(library, (v, z, w))
    out = empty(v, 1, 1, 9)
    library.call("cauchy_mult", v, dtype, 1, 1, 3, 9, 1, v, z, w, True, out)
    close(scale * widened(out.cpu()), expected, dict.fromkeys(FORWARD, FORWARD[torch.finfo(dtype).dtype]))


# --------------------------------------------------------------------------------------------------------------- DPLR


def schur_complement(v: Tensor, w: Tensor, shift: Tensor, c: int, b: int, L: int) -> Tensor:
    """k (b, c, H, L//2 + 1), as the header says."""
    theta = 2 * math.pi / L * torch.arange(L // 2 + 1, dtype=torch.float64)
    h = ((1 + torch.exp(-1j * theta)) / 2)[:, None, None]
    rows, columns, H, _ = v.shape
    rho = cauchy.cauchy_bilinear(v.flatten(0, 1), w, L).view(rows, columns, H, -1).permute(2, 3, 0, 1)
    M = shift.permute(2, 0, 1)[:, None] + torch.cat((rho[..., :c, :], h * rho[..., c:, :]), -2)
    k = M[..., :c, :b] - M[..., :c, b:] @ torch.linalg.solve(M[..., c:, b:], M[..., c:, :b])
    return k.permute(3, 2, 0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("b", "c", "rank", "H", "n", "L"),
    [
        (1, 1, 1, 1, 1, 1),
        (1, 1, 1, 2, 29, 100),
        (1, 1, 1, 1, 3, 1047),
        (1, 1, 2, 3, 17, 33),
        (2, 1, 1, 2, 3, 17),
        (3, 2, 2, 1, 33, 2),
        (1, 2, 3, 2, 5, 130),
        (1, 1, 4, 1, 16, 20),
    ],
)
def test_dplr_spectrum(
    library: Library, generator: Generator, b: int, c: int, rank: int, H: int, n: int, L: int, dtype: torch.dtype
) -> None:
    """Rows and columns as S4 has them: M_11 is I plus a matrix with positive semidefinite Hermitian part."""
    wide = torch.complex128
    w = torch.complex(-log_uniform(generator, 1e-2, 1, H, n), uniform(generator, -8, 8, H, n)).to(dtype)
    P = normal(generator, rank, H, n, dtype=wide)
    left = torch.cat((normal(generator, c, H, n, dtype=wide), P.conj()))
    right = torch.cat((normal(generator, b, H, n, dtype=wide), P))
    v = (0.1 * left[:, None] * right).contiguous()
    shift = normal(generator, c + rank, b + rank, H, dtype=torch.float64)
    shift[c:, b:] = torch.eye(rank)[..., None]

    wide_v, wide_w = leaves(v, w)
    expected = schur_complement(wide_v, wide_w, shift, c, b, L)
    grad = normal(generator, *expected.shape, dtype=dtype)
    v, w, shift, g = to(library, (v, w, shift, grad))
    sizes = (dtype, b, c, rank, H, n, L)
    spectrum = empty(w, *expected.shape)
    library.call("dplr_spectrum", w, *sizes, v, w, shift, spectrum)
    close(spectrum, expected.detach())
    grad_v, grad_w = empty(v, *v.shape), empty(v, H, n)
    library.call("dplr_spectrum_backward", w, *sizes, g, v, w, shift, grad_v, grad_w)
    for actual, wanted in zip((grad_v, grad_w), gradients(expected, grad, (wide_v, wide_w)), strict=True):
        assert relative_error(actual.cpu(), wanted) <= 1e-11
    again = empty(v, *v.shape)
    library.call("dplr_spectrum_backward", w, *sizes, g, v, w, shift, again, None)
    assert torch.equal(again, grad_v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "c", "rank", "H", "n"), [(5, 1, 1, 1, 1), (3, 2, 2, 3, 29), (2, 2, 5, 3, 100)])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_dplr_step(
    library: Library,
    generator: Generator,
    batch: int,
    c: int,
    rank: int,
    H: int,
    n: int,
    skip: bool,
    in_place: bool,
    dtype: Any,
) -> None:
    shapes = {"state": (batch, H, n), "increment": (H, n), "G": (rank, H, n), "V": (rank, H, n), "B": (H, n)}
    tensors = [normal(generator, *shape, dtype=dtype) for shape in (*shapes.values(), (c, H, n))]
    tensors[1] = normal(generator, H, n, dtype=torch.complex128)
    u, D = (normal(generator, *shape, dtype=tensors[0].real.dtype) for shape in ((batch, H), (H,)))
    state, increment, G, V, B, C = map(widened, tensors)
    overlaps = 2 * torch.einsum("rhn,bhn->rbh", V, state).real
    following = state + increment * state - torch.einsum("rhn,rbh->bhn", G, overlaps + 0j) + B * u[..., None]
    expected = 2 * torch.einsum("chn,bhn->bch", C, following).real + ((widened(D) * widened(u))[:, None] if skip else 0)
    u, D, *tensors = to(library, (u, D, *tensors))
    y = empty(tensors[0], batch, c, H, real=True)
    target = tensors[0] if in_place else empty(tensors[0], batch, H, n)
    library.call("dplr_step", u, dtype, batch, c, rank, H, n, u, *tensors, D if skip else None, y, target)
    close(target, following)
    close(y, expected)


# --------------------------------------------------------------------------------------------------------------- scan


def scan_inputs(
    generator: Generator, batch: int, H: int, n: int, L: int, decay: str, dtype: torch.dtype, optional: bool
) -> list[Tensor | None]:
    """u, x, B, C, D and state."""
    x = log_nodes(generator, decay, H, n, dtype=dtype)
    u = 1 + normal(generator, batch, H, L, dtype=x.real.dtype)
    B, C = (normal(generator, H, n, dtype=dtype) for _ in range(2))
    D = normal(generator, H, dtype=u.dtype) if optional else None
    state = normal(generator, batch, H, n, dtype=dtype) if optional else None
    return [u, x, B, C, D, state]


def turned(t: Tensor | None, time_major: bool) -> Tensor | None:
    """(batch, H, L) as it lies where ``time_major``: (batch, L, H)."""
    return t if t is None or not time_major else t.mT.contiguous()


def scan(
    library: Library, *inputs: Tensor | None, time_major: bool = False, function: str = "scan"
) -> tuple[Tensor, Tensor]:
    u, x, B, C, D, state = (None if t is None else t.to(library.device) for t in inputs)
    (batch, H, L), n = u.shape, x.shape[1]
    u = turned(u, time_major)
    y, final = empty(x, *u.shape, real=True), empty(x, batch, H, n)
    library.call(function, u, u.dtype, batch, H, n, L, u, x, B, C, D, state, y, final, time_major)
    return (y.mT if time_major else y), final


def scan_gradients(
    library: Library,
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool] = (True,) * 6,
    time_major: bool = False,
    function: str = "scan",
) -> list[Tensor | None]:
    """Of u, x, B, C, D and state, that of u always; None for those that are not there or not needed."""
    grad_y, grad_final, *tensors = (None if t is None else t.to(library.device) for t in (*cotangents, *inputs))
    sizes = (*inputs[0].shape[:2], inputs[1].shape[1], inputs[0].shape[2])
    grad_y, tensors[0] = turned(grad_y, time_major), turned(tensors[0], time_major)
    needed = [True, *needed[1:]]
    out = [empty(t, *t.shape) if t is not None and need else None for t, need in zip(tensors, needed, strict=True)]
    dtype = inputs[0].dtype
    library.call(f"{function}_backward", grad_y, dtype, *sizes, grad_y, grad_final, *tensors, *out, time_major)
    return [turned(out[0], time_major), *out[1:]]


def expected_gradients(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], wide: Sequence[Tensor], inputs: Sequence[Any]
) -> list[Tensor | None]:
    """Those of ``scanned``'s outputs for the inputs that are there, of which ``wide`` are the leaves."""
    grad_y, grad_final = cotangents
    total = (outputs[0] * widened(grad_y)).sum()
    if grad_final is not None:
        total = total + (outputs[1] * widened(grad_final).conj()).real.sum()
    found = iter(torch.autograd.grad(total, wide))
    return [None if t is None else next(found) for t in inputs]


def scanned(
    u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, in powers that are exact at any length."""
    L = u.shape[-1]
    table = vandermonde.powers(x, L + 1)
    kernel = 2 * torch.einsum("hn,hnl->hl", C * B, table[..., :L]).real
    size = 2 * L
    y = torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(kernel, n=size), n=size)[..., :L]
    final = B * torch.einsum("bhl,hnl->bhn", u.flip(-1).to(x.dtype), table[..., :L])
    if state is not None:
        y = y + 2 * torch.einsum("bhn,hnl->bhl", C * state, table[..., 1:]).real
        final = final + table[..., L] * state
    return (y if D is None else y + D[:, None] * u), final


# A chunk has 64 samples in float32 and 32 in float64, a segment 64 chunks. Several features: in a single one terms
# cancel by chance, and the relative error grows.
SCAN_SIZES = [
    (5, 4, 1, 1),
    (2, 3, 3, 17),
    (3, 2, 29, 64),
    (1, 2, 33, 130),
    (2, 3, 3, 1047),
    (1, 3, 2, 4096),
    (1, 3, 3, 8205),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize(("batch", "H", "n", "L"), SCAN_SIZES)
def test_scan(
    library: Library,
    generator: Generator,
    batch: int,
    H: int,
    n: int,
    L: int,
    optional: bool,
    decay: str,
    dtype: torch.dtype,
) -> None:
    inputs = scan_inputs(generator, batch, H, n, L, decay, dtype, optional)
    check_scan(library, generator, inputs, alone=L in (17, 1047) and decay == "weak", both_layouts=decay == "weak")


def check_scan(
    library: Library,
    generator: Generator,
    inputs: Sequence[Tensor | None],
    alone: bool,
    both_layouts: bool,
    function: str = "scan",
) -> None:
    present = [t is not None for t in inputs]
    wide = leaves(*(t for t in inputs if t is not None))
    expected = scanned(*wide)
    found = scan(library, *inputs, function=function)
    for actual, wanted in zip(found, expected, strict=True):
        close(actual, wanted.detach())

    # Correlated with u, whose mean is not 0: gradients are sums over all samples, which must not vanish by chance.
    cotangents = [inputs[0] + normal(generator, *expected[0].shape, dtype=inputs[0].dtype), None]
    if inputs[-1] is not None:
        cotangents[1] = normal(generator, *expected[1].shape, dtype=inputs[1].dtype)
    wanted_grads = expected_gradients(expected, cotangents, wide, inputs)
    every = scan_gradients(library, cotangents, inputs, function=function)
    for actual, want in zip(every, wanted_grads, strict=True):
        if want is not None:
            close(actual, want, GRADIENT)
    if alone:
        for i in range(6):
            if present[i]:
                needed = [i == k for k in range(6)]
                only = scan_gradients(library, cotangents, inputs, needed, function=function)
                assert torch.equal(only[i], every[i])
    if both_layouts:
        pairs = zip(scan(library, *inputs, time_major=True, function=function), found, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        turned_grads = scan_gradients(library, cotangents, inputs, time_major=True, function=function)
        for a, b in zip(turned_grads, every, strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [1, 32, 64, 777])
def test_scan_in_two_parts(library: Library, generator: Generator, cut: int, dtype: torch.dtype) -> None:
    check_two_parts(library, generator, cut, dtype)


def check_two_parts(
    library: Library, generator: Generator, cut: int, dtype: torch.dtype, function: str = "scan"
) -> None:
    u, *rest, state = scan_inputs(generator, 2, 2, 5, 1000, "weak", dtype, True)
    y, final = scan(library, u, *rest, state, function=function)
    first, between = scan(library, u[..., :cut].contiguous(), *rest, state, function=function)
    second, end = scan(library, u[..., cut:].contiguous(), *rest, between, function=function)
    close(torch.cat((first, second), -1), y.cpu())
    close(end, final.cpu())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
def test_long_scan(library: Library, generator: Generator, decay: str, dtype: torch.dtype) -> None:
    inputs = scan_inputs(generator, 1, 1, 2, 2**20 - 5, decay, dtype, True)
    for actual, wanted in zip(scan(library, *inputs), scanned(*map(widened, inputs)), strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "H", "n"), [(5, 1, 1), (3, 3, 29), (2, 2, 100)])
@pytest.mark.parametrize("in_place", [False, True])
def test_step(
    library: Library, generator: Generator, batch: int, H: int, n: int, in_place: bool, dtype: torch.dtype
) -> None:
    u, x, B, C, D, state = scan_inputs(generator, batch, H, n, 1, "weak", dtype, True)
    expected, following = scanned(*map(widened, (u, x, B, C, D, state)))
    x, u, B, C, D, state = to(library, (x, u[..., 0], B, C, D, state))
    decays = torch.full((H, n), math.nan, dtype=torch.complex128, device=library.device)
    library.call("exp", x, dtype, H * n, x, decays)
    assert relative_error(decays.cpu(), torch.exp(widened(x.cpu()))) <= 1e-15
    for skip in (None, D):
        target = state.clone() if in_place else empty(state, batch, H, n)
        y = empty(state, batch, H, real=True)
        library.call("step", u, dtype, batch, H, n, u, target if in_place else state, decays, B, C, skip, y, target)
        close(target, following)
        close(y, expected[..., 0] - (0 if skip is not None else widened((D * u).cpu())))


# ------------------------------------------------------------------------------------------- what only emulation shows


def everything(library: Library, generator: Generator, dtype: torch.dtype) -> list[Tensor]:
    """The results of every kernel that has a barrier, on one input each."""
    v, z, w = cauchy_inputs(generator, 2, 2, 19, 70, False, dtype)
    x = log_nodes(generator, "weak", 2, 19, dtype=dtype)
    u = normal(generator, 2, 2, 300, dtype=x.real.dtype)
    out = [empty(v, 2, 2, 300, real=True), empty(v, 2, 2, 70), *(empty(t, *t.shape) for t in (v, z, w))]
    library.call("vandermonde", v, dtype, 2, 2, 19, 300, v, x, 2.0, out[0])
    sizes = (dtype, 2, 2, 19, 70, 1)
    library.call("cauchy_mult", v, *sizes, v, z, w, True, out[1])
    library.call("cauchy_mult_backward", v, *sizes, out[1], v, z, w, True, *out[2:])
    out += moments(library, u, x, first=True)
    u, x, B, C, D, state = scan_inputs(generator, 2, 2, 35, 2100, "weak", dtype, True)
    out += scan(library, u, x, B, C, D, state)
    grads = [empty(t, *t.shape) for t in (u, x, B, C, D, state)]
    library.call("scan_backward", u, dtype, 2, 2, 35, 2100, u, state, u, x, B, C, D, state, *grads, False)
    out += grads
    coefficients, shift = normal(generator, 3, 3, 2, 19, dtype=torch.complex128), torch.eye(3, dtype=torch.float64)
    shift = shift[..., None].expand(3, 3, 2).contiguous()
    spectrum, grad_v, grad_w = empty(w, 1, 1, 2, 66), empty(coefficients, 3, 3, 2, 19), empty(coefficients, 2, 19)
    sizes = (dtype, 1, 1, 2, 2, 19, 130)
    library.call("dplr_spectrum", w, *sizes, coefficients, w, shift, spectrum)
    library.call("dplr_spectrum_backward", w, *sizes, spectrum, coefficients, w, shift, grad_v, grad_w)
    following, y = empty(state, 2, 2, 35), empty(state, 2, 1, 2, real=True)
    library.call(
        *("dplr_step", u, dtype, 2, 1, 1, 2, 35),
        *(u[..., 0].contiguous(), state, B.to(torch.complex128), C[None].contiguous(), B[None].contiguous(), C),
        *(B[None], D, y, following),
    )
    return [*out, spectrum, grad_v, grad_w, following, y]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_threads_does_not_matter(emulated: Emulated, session_seed: int, dtype: torch.dtype) -> None:
    """A barrier that is missing lets a thread read what another has yet to write."""
    results = []
    for order in ("forwards", "backwards", "shuffled"):
        emulated.order(order)
        results.append(everything(emulated, Generator().manual_seed(session_seed), dtype))
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(t, tensors[0]) and torch.isfinite(torch.view_as_real(t + 0j)).all() for t in tensors)


@needs_compiler
def test_bad_arguments(emulated: Emulated) -> None:
    one = torch.ones(1, 1, 1, dtype=torch.complex64)
    out = torch.ones(1, 1, 1)
    wide = one.to(torch.complex128)
    shift = torch.ones(9, dtype=torch.float64)

    def refused(message: str, name: str, *args: Any) -> None:
        with pytest.raises(RuntimeError, match=message):
            emulated.call(name, one, *args)

    refused("^vandermonde: L = 0, expected at least 1$", "vandermonde", one.dtype, 1, 1, 1, 0, one, one, 2.0, out)
    refused("^vandermonde: n = -3, expected", "vandermonde", one.dtype, 1, 1, -3, 1, one, one, 2.0, out)
    refused("^moments: dtype 7 is neither", "moments", 7, 1, 1, 1, 1, out, one, one, None)
    refused("z has 2 rows, expected 1 or H = 3$", "cauchy_mult", one.dtype, 1, 3, 1, 1, 2, one, one, one, 1, one)
    refused("rank = 5, expected at most 4$", "dplr_spectrum", one.dtype, 1, 1, 5, 1, 1, 1, wide, one, shift, one)
    refused(
        "^dplr_spectrum_backward: 7 x 6 sums per node; at most 36 fit",
        *("dplr_spectrum_backward", one.dtype, 6, 5, 1, 1, 1, 1, one, wide, one, shift, wide, None),
    )
    refused("^dplr_step: rank = 65, expected", "dplr_step", one.dtype, 1, 1, 65, 1, 1, *(one,) * 10)
    refused("would need .* blocks; a GPU runs at most", "exp", one.dtype, 2**40, one, wide)
    refused("the product of the sizes is larger than", "moments", one.dtype, 2**40, 2**40, 1, 1, out, one, one, None)


@needs_compiler
def test_a_workspace_that_is_too_small(emulated: Emulated) -> None:
    u, x = torch.ones(1, 1, 5000), torch.ones(1, 1, dtype=torch.complex64)
    function = emulated._handle.s4_fast_cuda_scan
    sizes = [ctypes.c_int64(value) for value in (0, 1, 1, 1, 5000)]
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (u, x, x, x)]
    size, room = ctypes.c_int64(100), torch.zeros(100, dtype=torch.uint8)
    rest = (None, None, ctypes.c_void_p(u.data_ptr()), None, ctypes.c_int64(0))
    code = function(*sizes, *pointers, *rest, ctypes.c_void_p(room.data_ptr()), ctypes.byref(size), 0, None)
    assert code
    assert b"scan: the workspace has 100 bytes and needs" in emulated._handle.s4_fast_error()
    assert function(*sizes, *pointers, *rest, None, None, 0, None)
    assert b"neither a workspace nor where to write its size" in emulated._handle.s4_fast_error()


@needs_compiler
@pytest.mark.slow
def test_no_sanitizer_complains() -> None:
    """These tests again, with the kernels compiled for the address and undefined-behaviour sanitizers."""
    found = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    preload = found.stdout.strip()
    if not os.path.isabs(preload):
        pytest.skip("g++ has no address sanitizer")
    environment = {
        **os.environ,
        OPTIONS_VARIABLE: "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all",
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:verify_asan_link_order=0",
    }
    every_kernel = (
        "order or (emulated and (weak or dplr or cauchy or step or optional or half or signals or memory))"
        " and not (long or largest or whole)"
    )
    names = ("diagonal", "dplr", "tensor_dplr", "tensor_scan", "tensor_vandermonde")
    files = [__file__, *(str(ROOT / f"tests/native/test_cuda_{name}.py") for name in names)]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", every_kernel, *files]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "[100%]" in result.stdout
