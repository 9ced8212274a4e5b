from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from s4_fast.ssm import hippo
from s4_fast.ssm.initialization import diagonal, dplr, log_dt

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "hippo_N8.npz")
INITS = ["lin", "inv", "inv2", "quad", "real", "legs", "legt", "lagt", "fout", "fourier", "rand"]


@pytest.mark.parametrize("init", ["lin", "inv", "inv2", "quad", "real", "legs"])
def test_diagonal_matches_official(init):
    A, B = diagonal(init, 8)
    # The official values are complex64, of the member of each pair with the negative imaginary part.
    official = torch.from_numpy(GOLDEN[f"dplr.{init}.constant.A"][0]).conj()
    torch.testing.assert_close(A.to(torch.complex64), official, rtol=5e-7, atol=0)
    if init == "legs":
        torch.testing.assert_close(B.abs(), torch.from_numpy(GOLDEN["nplr.legs.r1.f64.noclip.B"]).abs())
    else:
        assert torch.equal(B, torch.from_numpy(GOLDEN[f"dplr.{init}.constant.B"][0]).to(torch.complex128))


def test_lin_and_inv_are_the_paper_s_formulas():
    for N in (2, 6, 64):
        lin, inv = diagonal("lin", N)[0], diagonal("inv", N)[0]
        for k in range(N // 2):
            assert lin[k].item() == pytest.approx(complex(-0.5, math.pi * k), rel=1e-15)
            assert inv[k].item() == pytest.approx(complex(-0.5, N / math.pi * (N / (2 * k + 1) - 1)), rel=1e-14)


@pytest.mark.parametrize("init", INITS)
def test_diagonal_shapes_dtypes_and_stability(init):
    A, B = diagonal(init, 10)
    assert A.shape == B.shape == (5,) and A.dtype == B.dtype == torch.complex128
    assert (A.imag >= 0).all()
    assert (A.real == (-torch.arange(1, 6) if init == "real" else -0.5)).all()
    assert (B.real > 0).all() and (B.imag == 0).all()


@pytest.mark.parametrize("measure", sorted(hippo.MINIMAL_RANK))
def test_diagonal_takes_the_normal_part(measure):
    A, B = diagonal(measure, 16)
    w, _, b, _ = hippo.nplr(measure, 16, 2)
    assert torch.equal(A.imag, w.imag) and torch.equal(B, b)


def test_diagonal_scales():
    A, _ = diagonal("lin", 8)
    S, _ = diagonal("lin", 8, real_scale=3.0, imag_scale=0.5)
    assert torch.equal(S, torch.complex(3 * A.real, 0.5 * A.imag))


def test_diagonal_rand_is_uniform_and_reproducible():
    N = 4000
    A, _ = diagonal("rand", N, generator=torch.Generator().manual_seed(1))
    again, _ = diagonal("rand", N, generator=torch.Generator().manual_seed(1))
    other, _ = diagonal("rand", N, generator=torch.Generator().manual_seed(2))
    assert torch.equal(A, again) and not torch.equal(A, other)
    quantiles = (A.imag / (math.pi * N / 2)).sort().values
    uniform = (torch.arange(N // 2) + 0.5) / (N // 2)
    assert (quantiles - uniform).abs().max() < 0.04  # Kolmogorov-Smirnov, p of about 0.003


def test_log_dt_is_log_uniform_and_reproducible():
    x = log_dt((50, 40), 1e-3, 1e-1, generator=torch.Generator().manual_seed(0))
    assert x.shape == (50, 40) and x.dtype == torch.float64
    assert torch.equal(x, log_dt((50, 40), 1e-3, 1e-1, torch.Generator().manual_seed(0)))
    quantiles = ((x.flatten() - math.log(1e-3)) / math.log(1e2)).sort().values
    uniform = (torch.arange(2000) + 0.5) / 2000
    assert (quantiles - uniform).abs().max() < 0.04


def test_log_dt_of_one_step():
    assert (log_dt((3,), 0.01, 0.01) == math.log(0.01)).all()


@pytest.mark.parametrize(("lo", "hi"), [(0.0, 0.1), (-0.1, 0.1), (0.1, 0.01), (math.nan, 0.1), (0.1, math.inf)])
def test_log_dt_errors(lo, hi):
    with pytest.raises(ValueError, match=rf"0 < dt_min <= dt_max, got dt_min = {lo}, dt_max = {hi}"):
        log_dt((4,), lo, hi)


@pytest.mark.parametrize(("init", "rank"), [("legs", 1), ("legs", 2), ("legt", 2), ("lagt", 1), ("fout", 1)])
def test_dplr_has_the_transfer_function_of_the_dense_system(init, rank):
    N = 8
    A, b = (t.to(torch.complex128) for t in hippo.transition(init, N))
    w, P, B = (torch.cat([t, t.conj()], -1) for t in dplr(init, N, rank))
    M = torch.diag(w) - P.T @ P.conj()
    for s in (0.3 + 2j, 1.0 + 0j, 5j):
        eye = s * torch.eye(N, dtype=torch.complex128)
        dense = b @ torch.linalg.solve(eye - A, b)
        torch.testing.assert_close(B.conj() @ torch.linalg.solve(eye - M, B), dense, rtol=1e-12, atol=0)


@pytest.mark.parametrize("init", INITS)
def test_dplr_of_a_diagonal_init(init):
    w, P, B = dplr(f"diag-{init}", 8, rank=2, generator=torch.Generator().manual_seed(0))
    A, b = diagonal(init, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(w, A) and torch.equal(B, b)
    assert P.shape == (2, 4) and P.dtype == torch.complex128 and not P.any()


def test_results_ignore_the_default_device():
    with torch.device("meta"):
        assert all(not t.is_meta for init in INITS for t in diagonal(init, 4))
        assert not log_dt((2,), 0.1, 1).is_meta


def test_errors():
    with pytest.raises(ValueError, match=r"unknown init 'cubic'; expected one of lin, "):
        diagonal("cubic", 8)
    with pytest.raises(ValueError, match=r"unknown init 'diag-cubic'; expected one of .*diag-lin"):
        dplr("diag-cubic", 8)
    with pytest.raises(ValueError, match=r"unknown init 'lin'; expected one of legs, .*diag-lin"):
        dplr("lin", 8)
    for init in INITS:
        with pytest.raises(ValueError, match=r"positive even number .*got 5"):
            diagonal(init, 5)
    with pytest.raises(ValueError, match=r"real_scale must be positive.*got 0"):
        diagonal("lin", 8, real_scale=0)
    with pytest.raises(ValueError, match=r"'legt' needs rank >= 2, got rank = 1"):
        dplr("legt", 8)
    with pytest.raises(ValueError, match=r"rank >= 1, got rank = 0"):
        dplr("diag-lin", 8, rank=0)
