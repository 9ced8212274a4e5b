"""Discretisation, recurrence, kernels and convolution against SciPy, on dense real matrices of the whole system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal
from torch import Generator, Tensor

import s4_fast
from s4_fast.ssm import discretization, initialization
from tests.helpers import backends, log_uniform, normal, relative_error, uniform
from tests.properties.holding import PROFILES, hold

Array = NDArray[np.float64]
WIDE = torch.complex128


class Drawn(NamedTuple):
    """A system of one feature, and a signal, but for their numbers."""

    measure: str  # of HiPPO, or "random"
    n: int
    L: int
    rank: int
    rule: str
    seed: int


MEASURES = {"legs": 1, "legt": 2, "fout": 1, "lagt": 1}  # and the least rank
systems = st.builds(
    Drawn,
    st.sampled_from(["random", *MEASURES]),
    st.one_of(st.sampled_from([1, 3, 29]), st.integers(1, 12)),
    st.one_of(st.sampled_from([1, 17]), st.integers(1, 100)),
    st.integers(1, 3),
    st.sampled_from(["zoh", "bilinear"]),
    st.integers(0, 2**31 - 1),
)


class System(NamedTuple):
    """Tensors as the ops take them, of one feature; where it is diagonal, P is 0."""

    A: Tensor  # (n,)
    P: Tensor  # (rank, n)
    B: Tensor
    C: Tensor
    D: Tensor  # ()
    dt: Tensor  # ()
    u: Tensor  # (L,)
    state: Tensor


def system_of(drawn: Drawn, low_rank: bool) -> System:
    generator, n = Generator().manual_seed(drawn.seed), drawn.n
    if drawn.measure == "random":
        A = torch.complex(-log_uniform(generator, 1e-3, 10, n), uniform(generator, -30, 30, n))
        P, B = normal(generator, drawn.rank, n, dtype=WIDE), normal(generator, n, dtype=WIDE)
    else:
        A, P, B = initialization.dplr(drawn.measure, 2 * n, max(drawn.rank, MEASURES[drawn.measure]))
    C, state = normal(generator, 2, n, dtype=WIDE)
    u, D = normal(generator, drawn.L, dtype=torch.float64), normal(generator, 1, dtype=torch.float64)[0]
    dt = log_uniform(generator, 1e-3, 1e-1, 1)[0]
    return System(A, P if low_rank else 0 * P, B, C, D, dt, u, state)


def real(vector: Tensor) -> Array:
    """(..., n) complex as (..., 2 n) real and imaginary parts."""
    return torch.cat((vector.real, vector.imag), -1).numpy()


def row(vector: Tensor) -> Array:
    """What gives ``2 Re sum_n vector s`` from the parts of s."""
    return 2 * torch.cat((vector.real, -vector.imag), -1).numpy()


def dense(of: System) -> tuple[Array, Array, Array, Array]:
    """The real system on the parts of s: A (2n, 2n), B (2n, 1), C (1, 2n), D (1, 1)."""
    real_A, imag_A = torch.diag(of.A.real), torch.diag(of.A.imag)
    A = torch.cat((torch.cat((real_A, -imag_A), 1), torch.cat((imag_A, real_A), 1))).numpy()
    A = A - real(of.P).T @ row(of.P.conj())
    return A, real(of.B)[:, None], row(of.C)[None], np.array([[of.D.item()]])


def discretised(of: System, rule: str) -> tuple[Array, Array, Array, Array]:
    """SciPy's A_bar and B_bar, with the C and D of before: it has its bilinear outputs between two samples."""
    A, B, C, D = dense(of)
    A_bar, B_bar, *_ = signal.cont2discrete((A, B, C, D), of.dt.item(), method=rule)
    return A_bar, B_bar, C, D


def simulated(of: System, rule: str) -> tuple[Tensor, Tensor]:
    """y (L,) and the last state (n,), by SciPy's simulation of a discrete system."""
    A_bar, B_bar, C, D = discretised(of, rule)
    # Its states are those before a sample: one more shows the last.
    u = np.append(of.u.numpy(), 0)[:, None]
    *_, states = signal.dlsim((A_bar, B_bar, C, D, 1.0), u, x0=real(of.state))
    after = torch.from_numpy(states[1:])
    n = len(of.A)
    return after @ torch.from_numpy(C[0]) + of.D * of.u, torch.complex(after[-1, :n], after[-1, n:])


def close(got: Tensor, want: Tensor, scale: Tensor | None = None) -> None:
    """To what is left of float64 after powers of dense matrices."""
    error = relative_error(got, want)
    if scale is not None:
        error *= float(torch.linalg.vector_norm(want) / torch.linalg.vector_norm(scale))
    assert error <= 1e-9, error


def columns(*tensors: Tensor) -> list[Tensor]:
    """Each with a leading dimension for its one feature."""
    return [t[None] for t in tensors]


def each_backend(op: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backend", [*backends(op), "reference"])


@PROFILES
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_discretisation(rule: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        of = system_of(drawn, low_rank=True)
        A, B, *_ = dense(of)
        made: Callable[..., tuple[Tensor, Tensor]] = getattr(discretization, rule)
        got = made(torch.from_numpy(A), torch.from_numpy(B[:, 0]), of.dt)
        A_bar, B_bar, *_ = discretised(of, rule)
        close(got[0], torch.from_numpy(A_bar))
        close(got[1], torch.from_numpy(B_bar[:, 0]))

    hold(check, systems, profile)


@PROFILES
@each_backend("diagonal_ssm")
def test_diagonal_system(backend: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        of = system_of(drawn, low_rank=False)
        y, after = simulated(of, drawn.rule)
        A, B, C, dt, D = columns(of.A, of.B, of.C, of.dt, of.D)
        more: dict[str, Any] = {"return_state": True, "discretization": drawn.rule, "backend": backend}
        got = s4_fast.diagonal_ssm(of.u[None, None], A, B, C, dt, D, of.state[None, None], **more)
        close(got[0][0, 0], y)
        close(got[1][0, 0], after)

    hold(check, systems, profile)


@PROFILES
@each_backend("dplr_scan")
def test_dplr_system(backend: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        of = system_of(drawn, low_rank=True)
        y, after = simulated(of, "bilinear")
        A, B, C, dt, D = columns(of.A, of.B, of.C, of.dt, of.D)
        u, P, state = of.u[None, None], of.P[:, None], of.state[None, None]
        got = s4_fast.dplr_scan(u, A, P, B, C, dt, D, state, return_state=True, backend=backend)
        close(got[0][0, 0], y)
        close(got[1][0, 0], after)

    hold(check, systems, profile)


@PROFILES
@each_backend("dplr_kernel")
def test_dplr_kernel_is_the_impulse_response(backend: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        # FouT's mode at 0 lies on a node, where the op is not defined.
        of = system_of(drawn, low_rank=True)
        of = of._replace(A=torch.complex(of.A.real.clamp(max=-1e-2), of.A.imag))
        A_bar, B_bar, C, _ = discretised(of, "bilinear")
        states = [B_bar[:, 0]]
        for _ in range(drawn.L - 1):
            states.append(A_bar @ states[-1])
        want = torch.from_numpy(np.stack(states) @ C[0])
        # C (1 - A_bar^L), back from the row that acts on the parts.
        short = torch.from_numpy(C[0] - C[0] @ np.linalg.matrix_power(A_bar, drawn.L))
        n = len(of.A)
        truncated = torch.complex(short[:n], -short[n:]) / 2
        P, B, C_row = of.P[:, None], of.B[None, None], truncated[None, None]
        A, dt = (of.dt * of.A)[None], of.dt.reshape(1, 1)
        got = s4_fast.dplr_kernel(A, P, P, B, C_row, dt, drawn.L, backend=backend)
        # One tap may be a small difference of its terms.
        scale = torch.linalg.vector_norm(of.C) * torch.linalg.vector_norm(torch.from_numpy(B_bar))
        close(got[0, 0, 0], want, torch.maximum(torch.linalg.vector_norm(want), scale))

    hold(check, systems, profile)


@PROFILES
@each_backend("ssm_scan")
def test_discrete_recurrence_and_its_kernel(backend: str, profile: str) -> None:
    """Modes as filters of order one."""

    def check(drawn: Drawn) -> None:
        of = system_of(drawn, low_rank=False)
        x = of.dt * of.A
        u, decays = of.u.numpy(), torch.exp(x).numpy()
        impulse = np.eye(1, drawn.L)[0]
        modes = [
            [signal.lfilter([b], [1, -decay], v.astype(complex)) for v in (u, impulse)]
            for b, decay in zip(of.B.numpy(), decays, strict=True)
        ]
        response, taps = (2 * torch.from_numpy(np.array(m)).T @ of.C for m in zip(*modes, strict=True))
        scale = torch.linalg.vector_norm(of.B * of.C)
        X, B, C, D = columns(x, of.B, of.C, of.D)
        y = s4_fast.ssm_scan(of.u[None, None], X, B, C, D, backend=backend)
        close(y[0, 0], response.real + of.D * of.u, scale)
        kernel = s4_fast.log_vandermonde(B * C, X, drawn.L, backend=backend)
        close(kernel[0], taps.real, scale)

    hold(check, systems, profile)


@PROFILES
@each_backend("fft_conv")
def test_convolution(backend: str, profile: str) -> None:
    def check(drawn: Drawn) -> None:
        generator = Generator().manual_seed(drawn.seed)
        k, D, u = (normal(generator, size, dtype=torch.float64) for size in (drawn.n, 1, drawn.L))
        want = torch.from_numpy(signal.convolve(u.numpy(), k.numpy(), method="direct")[: drawn.L]) + D * u
        close(s4_fast.fft_conv(u[None, None], k[None], D, backend=backend)[0, 0], want, u)

    hold(check, systems, profile)


@PROFILES
@each_backend("cauchy_mult")
def test_cauchy_sums_are_a_transfer_function(backend: str, profile: str) -> None:
    """C (z - A)^-1 B of the whole system, by a linear solve."""

    def check(drawn: Drawn) -> None:
        of = system_of(drawn, low_rank=False)
        A, B, C, _ = dense(of)
        z = 1.0 + 10j * torch.randn(5, dtype=torch.float64, generator=Generator().manual_seed(drawn.seed))
        want = [(C @ np.linalg.solve(at * np.eye(len(A)) - A, B))[0, 0] for at in z.numpy()]
        got = s4_fast.cauchy_mult(of.B * of.C, z, of.A, backend=backend)
        close(got, torch.tensor(want, dtype=WIDE))

    hold(check, systems, profile)
