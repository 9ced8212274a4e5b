from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s4_fast.ssm import hippo

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "hippo_N8.npz")
MEASURES = sorted(hippo.MINIMAL_RANK)


def golden(key: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[key])


def full(modes: torch.Tensor) -> torch.Tensor:
    return torch.cat([modes, modes.conj()], -1)


@pytest.mark.parametrize("measure", ["legs", "legt", "fout", "fourier", "lagt"])
def test_transition_matches_official(measure):
    A, B = hippo.transition(measure, 8)
    # The official Fourier matrices are rounded to a few units in the last place.
    key = "src_transition" if measure == "lagt" else "transition"
    torch.testing.assert_close(A, golden(f"{key}.{measure}.A"), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(B, golden(f"{key}.{measure}.B")[:, 0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt"])
def test_transition_is_nested(measure):
    A, B = hippo.transition(measure, 9)
    for N in (1, 4, 7):
        a, b = hippo.transition(measure, N)
        assert torch.equal(a, A[:N, :N]) and torch.equal(b, B[:N])


@pytest.mark.parametrize("N", [2, 8, 64, 256])
@pytest.mark.parametrize("measure", MEASURES)
def test_low_rank_correction_makes_the_matrix_normal(measure, N):
    rank = hippo.MINIMAL_RANK[measure]
    A, _ = hippo.transition(measure, N)
    P = hippo.low_rank_correction(measure, N, rank + 1)
    assert P.shape == (rank + 1, N) and P.dtype == torch.float64
    assert P[:rank].any(1).all() and not P[rank].any()
    S = A + P.T @ P
    shift = S.diagonal().mean()
    torch.testing.assert_close(shift.item(), -0.5 if measure == "legs" else 0.0, rtol=0, atol=1e-13)
    S = S - shift * torch.eye(N, dtype=S.dtype)
    torch.testing.assert_close(S, -S.T, rtol=0, atol=1e-15 * A.abs().max().item() * 4)


@pytest.mark.parametrize("N", [2, 4, 8, 64, 256])
@pytest.mark.parametrize("measure", MEASURES)
def test_nplr_reconstructs_the_matrix(measure, N):
    rank = hippo.MINIMAL_RANK[measure]
    A, b = hippo.transition(measure, N)
    w, P, B, V = hippo.nplr(measure, N, rank)
    assert (w.shape, P.shape, B.shape, V.shape) == ((N // 2,), (rank, N // 2), (N // 2,), (N, N // 2))
    assert {t.dtype for t in (w, P, B, V)} == {torch.complex128}
    U, L = full(V), full(P)
    eye = torch.eye(N, dtype=U.dtype)
    torch.testing.assert_close(U.mH @ U, eye, rtol=0, atol=2e-14)
    rebuilt = U @ (torch.diag(full(w)) - L.T @ L.conj()) @ U.mH
    assert (rebuilt - A).norm() <= 1e-14 * A.norm()
    assert (U @ full(B) - b).norm() <= 1e-14 * b.norm()
    assert (L @ U.T - hippo.low_rank_correction(measure, N, rank)).norm() <= 1e-14 * P.norm()


@pytest.mark.parametrize("N", [2, 64])
@pytest.mark.parametrize("measure", MEASURES)
def test_nplr_conventions(measure, N):
    w, P, B, V = hippo.nplr(measure, N, 2)
    assert (w.real == (-0.5 if measure == "legs" else 0.0)).all()
    assert (w.imag.diff() < 0).all()
    assert (w.imag[:-1] > 0).all()
    assert (w.imag[-1] == 0) if measure == "fout" else (w.imag[-1] > 0)
    assert (B.imag == 0).all() and (B.real > 0.05).all()
    if measure == "fout":
        assert V[1, -1].imag > 0.7
    if hippo.MINIMAL_RANK[measure] == 1:
        ratio = 1.0 if measure == "fout" else 0.5**0.5
        torch.testing.assert_close(P[0], ratio * B, rtol=0, atol=1e-13)
        assert not P[1].any()


@pytest.mark.parametrize("measure", MEASURES)
def test_nplr_does_not_depend_on_the_signs_of_the_decomposition(measure, monkeypatch):
    expected = hippo.nplr(measure, 8, 2)
    svd = torch.linalg.svd

    def flipped(M):
        U, s, Vh = svd(M)
        sign = torch.tensor([-1.0, 1.0, -1.0, -1.0], dtype=s.dtype)
        left = torch.where(s > 1e-12, sign, 1)  # the two vectors of a null pair have independent signs
        return U * left, s, sign[:, None] * Vh

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    for got, want in zip(hippo.nplr(measure, 8, 2), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("measure", "rank", "tol"),
    # The official FouT rounds sqrt(2) to float32 on the way, which also leaves a real part of 4e-8 in w.
    [
        ("legs", 1, 1e-13),
        ("legs", 2, 1e-13),
        ("legt", 2, 1e-13),
        ("legt", 3, 1e-13),
        ("fourier", 1, 1e-7),
        ("fout", 2, 1e-7),
    ],
)
def test_nplr_matches_official(measure, rank, tol):
    w, P, B, V = hippo.nplr(measure, 8, rank)
    # Conjugated: the official choice is the member of each pair with the negative imaginary part.
    W0, P0, B0, V0 = (golden(f"nplr.{measure}.r{rank}.f64.noclip.{name}").conj() for name in "WPBV")
    torch.testing.assert_close(w.imag, W0.imag, rtol=1e-14, atol=2e-14)
    torch.testing.assert_close(w, W0, rtol=tol, atol=tol)
    torch.testing.assert_close(P.abs(), P0.abs(), rtol=tol, atol=tol)
    torch.testing.assert_close(B.abs(), B0.abs(), rtol=tol, atol=tol)
    torch.testing.assert_close(P * B.conj(), P0 * B0.conj(), rtol=tol, atol=tol)
    torch.testing.assert_close((V * w) @ V.mH, (V0 * W0) @ V0.mH, rtol=tol, atol=tol * 10)


def test_lagt_eigenvalues_are_cotangents():
    w = hippo.nplr("lagt", 64).w
    theta = torch.pi * (2 * torch.arange(32, dtype=torch.float64) + 1) / 128
    torch.testing.assert_close(w.imag, 0.5 / theta.tan(), rtol=1e-12, atol=1e-14)


def test_results_ignore_the_default_dtype_and_device():
    expected = hippo.nplr("legs", 8)
    with torch.device("meta"):
        for got, want in zip(hippo.nplr("legs", 8), expected, strict=True):
            assert got.device.type == "cpu" and torch.equal(got, want)
        for measure in MEASURES:
            assert not hippo.nplr(measure, 4, 2).V.is_meta


@pytest.mark.parametrize("function", [hippo.transition, hippo.low_rank_correction, hippo.nplr])
def test_errors(function):
    with pytest.raises(ValueError, match=r"unknown measure 'hermite'; expected one of .*lagt"):
        function("hermite", 8)
    with pytest.raises(ValueError, match=r"N must be .*got 0"):
        function("legs", 0)
    with pytest.raises(ValueError, match=r"N must be a positive even number .*got 7"):
        function("fout", 7)


@pytest.mark.parametrize("function", [hippo.low_rank_correction, hippo.nplr])
@pytest.mark.parametrize(("measure", "rank"), [("legt", 1), ("legs", 0), ("lagt", 0), ("fout", 0)])
def test_rank_too_small(function, measure, rank):
    with pytest.raises(ValueError, match=rf"'{measure}' needs rank >= {rank + 1}, got rank = {rank}"):
        function(measure, 8, rank)


def test_nplr_refuses_odd_sizes():
    with pytest.raises(ValueError, match=r"positive even number .*got 9"):
        hippo.nplr("legs", 9)
