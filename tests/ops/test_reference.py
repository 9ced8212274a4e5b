"""The definitions that everything else is measured against, measured against 40-digit arithmetic and dense matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mpmath
import pytest
import torch
from mpmath import mpc, mpf
from torch import Generator, Tensor

from s4_fast.ops.cauchy import reference as cauchy
from s4_fast.ops.dplr import reference as dplr
from s4_fast.ops.long_conv import reference as long_conv
from s4_fast.ops.scan import reference as scan
from s4_fast.ops.vandermonde import reference as vandermonde
from s4_fast.ssm import hippo
from tests.helpers import DECAYS, log_nodes, log_uniform, normal, relative_error, uniform

WIDE = torch.complex128


@pytest.fixture(autouse=True)
def forty_digits() -> Iterator[None]:
    with mpmath.workdps(40):
        yield


def exact(t: Tensor) -> list:
    """The entries of ``t`` without rounding."""
    return [mpmath.mpmathify(value) for value in t.flatten().tolist()]


def rounded(values: list) -> Tensor:
    return torch.tensor([complex(value) for value in values], dtype=WIDE)


# ------------------------------------------------------------------------------------------------------ vandermonde


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.sample(1)
def test_powers_hold_every_digit_of_long_phases(decay: str, generator: Generator) -> None:
    L = 2**20
    x = log_nodes(generator, decay, 4, dtype=WIDE)
    x = torch.cat((x, torch.tensor([1j * math.pi, -1j * math.pi, -1e-6 + 3j], dtype=WIDE)))
    steps = [0, 1, 2, 4095, 2**19 + 1, L - 3, L - 2, L - 1]
    powers = vandermonde.powers(x, L)[:, steps]
    for node, row in zip(exact(x), powers, strict=True):
        for l, value in zip(steps, row.tolist(), strict=True):
            expected = mpmath.exp(node * l)
            # Each of two factors is rounded by about one unit in the last place.
            assert abs(value - complex(expected)) <= 8 * 2**-52 * abs(complex(expected)) + 1e-300


@pytest.mark.parametrize("L", [1, 2, 37])
def test_log_vandermonde(L: int, generator: Generator) -> None:
    x, v = log_nodes(generator, "weak", 5, dtype=WIDE), normal(generator, 5, dtype=WIDE)
    nodes = list(zip(exact(v), exact(x), strict=True))
    expected = [2 * mpmath.re(sum(v * mpmath.exp(x * l) for v, x in nodes)) for l in range(L)]
    assert relative_error(vandermonde.log_vandermonde(v, x, L), rounded(expected).real) <= 1e-14


@pytest.mark.parametrize("L", [1, 2, 37])
def test_log_vandermonde_transpose(L: int, generator: Generator) -> None:
    x, v = log_nodes(generator, "weak", 5, dtype=WIDE), normal(generator, 5, dtype=WIDE)
    u = normal(generator, L, dtype=torch.float64)
    signal = exact(u)
    expected = [
        v * sum(u * mpmath.exp(x * l) for l, u in enumerate(signal)) for v, x in zip(exact(v), exact(x), strict=True)
    ]
    assert relative_error(vandermonde.log_vandermonde_transpose(u, v, x, L), rounded(expected)) <= 1e-14


# ----------------------------------------------------------------------------------------------------------- cauchy


def sum_over_pairs(v: Tensor, w: Tensor, term) -> mpc:
    """sum of term(v, w) over conjugate pairs."""
    return sum(term(a, b) + term(mpmath.conj(a), mpmath.conj(b)) for a, b in zip(exact(v), exact(w), strict=True))


def poles(generator: Generator, n: int) -> Tensor:
    return torch.complex(-log_uniform(generator, 1e-4, 1, n), uniform(generator, -8, 8, n))


@pytest.mark.parametrize("symmetric", [True, False])
def test_cauchy_mult(symmetric: bool, generator: Generator) -> None:
    v, w = normal(generator, 5, dtype=WIDE), poles(generator, 5)
    z = torch.cat((4 * normal(generator, 20, dtype=WIDE), w * (1 + 1e-6)))
    if symmetric:
        expected = [sum_over_pairs(v, w, lambda v, w, z=z: v / (z - w)) for z in exact(z)]
    else:
        expected = [sum(v / (z - w) for v, w in zip(exact(v), exact(w), strict=True)) for z in exact(z)]
    assert relative_error(cauchy.cauchy_mult(v, z, w, symmetric), rounded(expected)) <= 1e-14


@pytest.mark.parametrize("L", [1, 2, 7, 64, 4096, 2**20])
def test_cauchy_bilinear(L: int, generator: Generator) -> None:
    """At both ends of the half circle, at random nodes, and at those next to a resonance."""
    v, w = normal(generator, 3, dtype=WIDE), poles(generator, 3)
    nearest = (L / math.pi * torch.atan(w.imag.abs() / 2)).round().long().clamp(max=L // 2)
    k = torch.cat((torch.tensor([0, L // 2]), torch.randint(L // 2 + 1, (10,), generator=generator), nearest))
    k = k.unique().tolist()
    expected = []
    for index in k:
        omega = mpmath.expjpi(mpf(-2 * index) / L)
        expected.append(sum_over_pairs(v, w, lambda v, w, omega=omega: 2 * v / ((2 - w) - omega * (2 + w))))
    # 2 sin(theta/2) and Im(w) cos(theta/2), of order 1 and rounded, differ by |Re w| >= 1e-4 times a cosine.
    assert relative_error(cauchy.cauchy_bilinear(v, w, L)[k], rounded(expected)) <= 1e-11


# ------------------------------------------------------------------------------------------------------------- dplr


def dense_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """C A_bar^l B_bar by powers of the dense matrix, one feature: w, dt (n,), P, Q (r, n), B (b, n), C (c, n).

    With a step per state the matrix is diag(dt) A, and the input diag(dt) B.
    """

    def both(t: Tensor) -> Tensor:
        return torch.cat((t, t.conj()), -1)

    w, P, Q, B, C, dt = both(w), both(P), both(Q), both(B), both(C), both(dt.expand_as(w))
    eye = torch.eye(len(w), dtype=WIDE)
    A = torch.diag(w) - (dt * P).mT @ Q.conj()
    A_bar = torch.linalg.solve(eye - A / 2, eye + A / 2)
    state = torch.linalg.solve(eye - A / 2, (dt * B).mT)
    C = torch.linalg.solve(eye - torch.linalg.matrix_power(A_bar, L), C, left=False)  # from C-tilde
    kernel = []
    for _ in range(L):
        kernel.append((C @ state).mT)
        state = A_bar @ state
    return torch.stack(kernel, -1).real


def stacked_dense_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    return torch.stack([dense_kernel(w[h], P[:, h], Q[:, h], B[:, h], C[:, h], dt[h], L) for h in range(len(w))], 2)


@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
@pytest.mark.parametrize("L", [1, 2, 17, 128])
def test_dplr_kernel_of_hippo_matrices(measure: str, L: int, generator: Generator) -> None:
    form = hippo.nplr(measure, 16, rank=2)
    dt = log_uniform(generator, 1e-2, 1e-1, 2, 1)
    P, B = form.P[:, None].expand(2, 2, 8), form.B.expand(1, 2, 8)
    # FouT leaves one pole at 0, where C-tilde = C (I - A_bar^L) holds but its sums are infinite.
    w = dt * torch.complex(form.w.real.clamp(max=-1e-2), form.w.imag)
    arguments = w, P, P, B, normal(generator, 1, 2, 8, dtype=WIDE), dt.to(WIDE)
    assert relative_error(dplr.dplr_kernel(*arguments, L), stacked_dense_kernel(*arguments, L)) <= 1e-11


@pytest.mark.parametrize("L", [1, 2, 17, 128])
@pytest.mark.parametrize(("r", "b", "c"), [(1, 1, 1), (2, 3, 2), (3, 1, 2)])
def test_dplr_kernel_of_other_matrices(r: int, b: int, c: int, L: int, generator: Generator) -> None:
    """Q != P, a step per state, several inputs and outputs."""
    H, n = 2, 4
    dt = log_uniform(generator, 1e-2, 1e-1, H, n)
    w = dt * torch.complex(-uniform(generator, 0.1, 2, H, n), uniform(generator, -20, 20, H, n))
    P = normal(generator, r, H, n, dtype=WIDE)
    Q = P + 0.3 * normal(generator, r, H, n, dtype=WIDE)
    arguments = w, P, Q, normal(generator, b, H, n, dtype=WIDE), normal(generator, c, H, n, dtype=WIDE), dt.to(WIDE)
    actual = dplr.dplr_kernel(*arguments, L)
    assert actual.shape == (b, c, H, L)
    assert relative_error(actual, stacked_dense_kernel(*arguments, L)) <= 1e-11


# -------------------------------------------------------------------------------------------------------- long_conv


@pytest.mark.parametrize(("L", "Lk"), [(1, 1), (6, 6), (6, 2), (3, 7)])
def test_fft_conv_is_a_double_sum(L: int, Lk: int, generator: Generator) -> None:
    u = normal(generator, 2, 3, L, dtype=torch.float64)
    k = normal(generator, 2, 3, Lk, dtype=torch.float64)
    D = normal(generator, 2, 3, dtype=torch.float64)
    expected = D[..., None] * u[:, None]
    for l in range(L):
        for j in range(min(l + 1, Lk)):
            expected[..., l] += k[..., j] * u[:, None, :, l - j]
    assert relative_error(long_conv.fft_conv(u, k, D), expected) <= 1e-14
    without = long_conv.fft_conv(u, k, u.new_empty(0))
    assert relative_error(without, expected - D[..., None] * u[:, None]) <= 1e-13


# ------------------------------------------------------------------------------------------------------------- scan


def scan_arguments(generator: Generator, decay: str, L: int) -> list[Tensor]:
    """u, x, B, C, D, state of two sequences of one feature with three states."""
    x = log_nodes(generator, decay, 1, 3, dtype=WIDE)
    B, C = normal(generator, 1, 3, dtype=WIDE), normal(generator, 1, 3, dtype=WIDE)
    u, D = normal(generator, 2, 1, L, dtype=torch.float64), normal(generator, 1, dtype=torch.float64)
    return [u, x, B, C, D, normal(generator, 2, 1, 3, dtype=WIDE)]


def recurrence(u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Sample by sample in 40 digits."""
    lam, B, C, (D,) = [mpmath.exp(value) for value in exact(x)], exact(B), exact(C), exact(D)
    outputs, finals = [], []
    for signal, start in zip(u, state, strict=True):
        s = exact(start)
        for sample in exact(signal):
            s = [l * before + b * sample for l, before, b in zip(lam, s, B, strict=True)]
            outputs.append(2 * mpmath.re(sum(c * value for c, value in zip(C, s, strict=True))) + D * sample)
        finals += s
    return rounded(outputs).real.view(u.shape), rounded(finals).view(state.shape)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("L", [1, 2, 37])
def test_ssm_scan_is_a_loop(L: int, decay: str, generator: Generator) -> None:
    arguments = scan_arguments(generator, decay, L)
    for actual, expected in zip(scan.ssm_scan(*arguments), recurrence(*arguments), strict=True):
        assert relative_error(actual, expected) <= 1e-14
    u, x, B, C, D, state = arguments
    none = D.new_empty(0)
    without = scan.ssm_scan(u, x, B, C, none, state.new_empty(0))
    for actual, expected in zip(without, recurrence(u, x, B, C, 0 * D, 0 * state), strict=True):
        assert relative_error(actual, expected) <= 1e-14


@pytest.mark.parametrize("decay", DECAYS)
def test_ssm_step_is_a_scan_of_one_sample(decay: str, generator: Generator) -> None:
    u, x, B, C, D, state = scan_arguments(generator, decay, 1)
    y, following = scan.ssm_step(u[..., 0], state, x, B, C, D)
    expected = recurrence(u, x, B, C, D, state)
    assert relative_error(y[..., None], expected[0]) <= 1e-14
    assert relative_error(following, expected[1]) <= 1e-14
