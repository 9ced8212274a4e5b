from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from s4_fast.ssm import hippo
from s4_fast.state_spaces import S4Block
from s4_fast.state_spaces.initialization import COMBINATIONS, initial
from s4_fast.state_spaces.kernels import SSMKernelDPLR
from s4_fast.state_spaces.transforms import TRANSFORMS, transformed, untransformed
from tests.helpers import relative_error

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "hippo_N8.npz")
MODES = [key.split(".")[1:3] for key in GOLDEN if key.startswith("dplr.") and key.endswith(".A")]


def golden(key: str) -> Tensor:
    return torch.tensor(GOLDEN[key]).to(torch.complex128)


@pytest.mark.parametrize(("name", "B_init"), MODES)
def test_modes_are_the_official_ones(name, B_init):
    A, P, B, _ = initial(f"diag-{name}", 8, 3, 2, B_init=B_init)
    key = f"dplr.{name}.{B_init}"
    assert A.shape == B.shape == (2, 4) and P.shape == (3, 2, 4) and float(P.abs().max()) == 0
    assert relative_error(A, golden(f"{key}.A")) <= 1e-6
    want = golden(f"{key}.B")
    if name == "legs":  # where LAPACK decides about signs
        B, want = (b * b.imag.sign() for b in (B, want))
    assert relative_error(B, want) <= 1e-6


@pytest.mark.parametrize(("measure", "rank"), [("legs", 1), ("legs", 2), ("legt", 2), ("legt", 3), ("fourier", 1)])
def test_hippo_matrices_are_the_official_ones_up_to_the_phases_of_the_basis(measure, rank):
    A, P, B, V = initial(measure, 8, rank, 2, B_clip=None)
    key = f"nplr.{measure}.r{rank}.f64.noclip"
    W, official_P, official_B = (golden(f"{key}.{name}") for name in "WPB")
    assert relative_error(A[1], W) <= 1e-7 and relative_error(P[:, 1].abs(), official_P.abs()) <= 1e-7
    if measure != "fourier":  # whose zero eigenvalue the original gives a vector that is not a mode of the matrix
        assert relative_error(P[:, 1] * B[1].conj(), official_P * official_B.conj()) <= 1e-7
    full = V[0] @ torch.diag(A[0]) @ V[0].mH
    dense = full + full.conj()
    for p in P[:, 0]:
        both = torch.cat((p, p.conj()))
        U = torch.cat((V[0], V[0].conj()), 1)
        dense = dense - torch.outer(U @ both, (U @ both).conj())
    want, b = hippo.transition(measure, 8)
    assert relative_error(dense, want.to(dense.dtype)) <= 1e-12
    assert relative_error(2 * (V[0] @ B[0]).real, b) <= 1e-12


# The basis, and the clamp in it


def eigenvectors(measure: str, N: int) -> Tensor:
    """Of the normal part of a HiPPO matrix, and of one of each conjugate pair."""
    A, P = hippo.transition(measure, N)[0], hippo.low_rank_correction(measure, N, hippo.MINIMAL_RANK[measure])
    return torch.linalg.eigh((A + P.mT @ P) * -1j)[1][:, : N // 2]


@pytest.mark.parametrize("N", [4, 16, 64, 128])
@pytest.mark.parametrize("B_clip", [2.0, 0.5, None])
@pytest.mark.parametrize("measure", ["legs", "legt", "lagt"])
def test_the_imaginary_part_of_B_is_clamped_in_the_basis_of_eigh(measure, B_clip, N):
    rank = hippo.MINIMAL_RANK[measure]
    _, P, B, _ = initial(measure, N, rank, 1, B_clip=B_clip)
    V = eigenvectors(measure, N)
    want = V.mH @ hippo.transition(measure, N)[1].to(V)
    if B_clip is not None:
        want = torch.complex(want.real, want.imag.clamp(-B_clip, B_clip))
    rows = hippo.low_rank_correction(measure, N, rank).to(V) @ V.conj()
    # Free of the signs of V.
    assert relative_error(B * P[:, 0].conj(), want * rows.conj()) <= 1e-9


@pytest.mark.parametrize("B_clip", [2.0, None])
def test_fourier_has_nothing_to_clamp(B_clip):
    B = initial("fourier", 64, 1, 1, B_clip=B_clip).B[0]
    assert relative_error(B.abs(), torch.tensor([1.0] * 31 + [0.5**0.5], dtype=torch.float64)) <= 1e-12


# Of the official release 4.1, in float64, turned by a sign each so that Im B is positive.
LEGS_16 = torch.complex(
    *torch.tensor(
        [
            [0.06310101, 0.06799112, 0.07837094, 0.09617591, 0.12645931, 0.18273893, 0.30716623, 0.57642614],
            [2.0, 2.0, 2.0, 1.60846599, 1.28736177, 1.05976452, 0.84285723, 0.40582466],
        ],
        dtype=torch.float64,
    )
)


@pytest.mark.parametrize("init", ["legs", "diag-legs", "dplr"])
def test_B_of_legs_is_the_official_one(init):
    B = initial(init, 16, 1, 1).B[0]
    assert relative_error(B * B.imag.sign(), LEGS_16) <= 1e-7


@pytest.mark.parametrize("mode", ["dplr", "diag"])
@pytest.mark.parametrize(("init", "clamped"), [("legs", 4), ("diag-legs", 4), ("hippo", 2), ("all", 1)])
def test_new_layers_start_with_the_clamped_B(init, clamped, mode):
    kernel = S4Block(4, mode=mode, init=init).layer.kernel
    V = eigenvectors("legs", 64)
    B = V.mH @ hippo.transition("legs", 64)[1].to(V)
    want = torch.complex(B.real, B.imag.clamp(-2, 2)).abs().expand(clamped, -1)
    got = torch.view_as_complex(kernel.B.detach())[0].abs().double()
    assert relative_error(got[:clamped], want) <= 1e-6
    assert float(got.max()) < 2.001


@pytest.mark.parametrize("N", [8, 24, 64])
@pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "fourier"])
def test_the_basis_is_that_of_eigh_with_its_signs(measure, N, monkeypatch):
    """A seed draws C for this basis: with it, it gives the layer that it gives the original."""
    found = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda M: found.append((M, eigh(M)[1])) or eigh(M))
    _, _, B, V = initial(measure, N, 2, 1)
    matrix, theirs = found[0]
    used = slice(N // 2 - 1 if measure == "fourier" else N // 2)  # the vectors of its eigenvalue 0 are free
    assert relative_error(V[0][:, used], theirs[:, used]) <= 1e-4
    assert torch.equal(B, initial(measure, N, 2, 1).B)
    if measure == "legs":  # to the last digit, as signs may hang on it
        n = torch.arange(N)
        P = (n + 0.5).sqrt()
        r = (2.0 * n + 1).double().sqrt()
        A = -(r[:, None] * r).tril(-1).float() - torch.diag(n + 1.0)
        assert torch.equal(matrix, (A + P[:, None] * P).double() * -1j)


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt"])
def test_the_clamp_does_not_depend_on_LAPACK(measure, monkeypatch, generator):
    eigh = torch.linalg.eigh
    A, P, B, V = initial(measure, 16, 2, 1)
    phases = torch.polar(torch.ones(16).double(), 6.3 * torch.rand(16, generator=generator).double())
    for turn in (torch.tensor([1.0, -1.0]).repeat(8), phases):

        def turned(M: Tensor, turn: Tensor = turn) -> tuple[Tensor, Tensor]:
            w, vectors = eigh(M)
            return w, vectors * turn

        monkeypatch.setattr(torch.linalg, "eigh", turned)
        other = initial(measure, 16, 2, 1)
        sign = (other.B / B).real
        assert relative_error(sign.abs(), torch.ones_like(sign)) <= 1e-12
        for got, want in zip(other, (A, P * sign, B * sign, V * sign), strict=True):
            assert relative_error(got, want) <= 1e-12


@pytest.mark.parametrize(("init", "rank"), [("legs", 1), ("legt", 2), ("lagt", 1), ("fourier", 1)])
def test_the_first_coordinate_is_an_output_in_every_basis(init, rank):
    """``deterministic`` makes C of V, so that B unclamped gives the kernel of the dense HiPPO matrices."""
    options = {"d_state": 8, "deterministic": True, "dt_min": 0.05, "dt_max": 0.05}
    kernel = SSMKernelDPLR(2, init=init, rank=rank, B_clip=None, **options).double()
    A, b = hippo.transition(init, 8)
    eye = torch.eye(8).double()
    left = torch.linalg.inv(eye - 0.025 * A)
    s, want = left @ (0.05 * b), []
    for _ in range(40):
        want.append(s[0])
        s = left @ (s + 0.025 * (A @ s))
    # FouT stores the real part 0 of its modes as -1e-4, the least that the transform holds.
    tolerance = 1e-3 if init != "legs" else 1e-6
    assert relative_error(kernel(L=40)[0][0, 0].detach(), torch.stack(want)) <= tolerance


def test_combinations_take_equal_shares():
    for name, inits in COMBINATIONS.items():
        A, P, B, V = initial(name, 8, 2, 8)
        for got, parts in zip(
            (A, P, B, V), zip(*(initial(i, 8, 2, 8 // len(inits)) for i in inits), strict=True), strict=True
        ):
            assert torch.equal(got, torch.cat(parts, 1 if got is P else 0))
    A = initial(("diag-real", "dplr-lin"), 4, 1, 2).A
    assert relative_error(A, torch.tensor([[-1, -2], [-0.5, -0.5 - 1j * math.pi]], dtype=torch.complex128)) <= 1e-15


def test_arguments_of_modes():
    base = initial("diag-lin", 8, 1, 500)
    scaled = initial("diag-lin", 8, 1, 500, real_scale=3.0, imag_scale=0.5, B_scale=2.0)
    assert torch.equal(scaled.A, torch.complex(3 * base.A.real, base.A.imag / 2)) and torch.equal(scaled.B, 2 * base.B)
    A = initial("diag-lin", 8, 1, 500, real_random=True, imag_random=True).A
    assert -1 <= A.real.min() < -0.9 and -0.1 < A.real.max() <= 0
    assert -4 * math.pi <= A.imag.min() < -3.6 * math.pi and -0.4 * math.pi < A.imag.max() <= 0
    A = initial("diag-real", 8, 1, 500, real_random=True).A
    assert -4 <= A.real.min() < -3.6 and -0.4 < A.real.max() <= 0 and float(A.imag.abs().max()) == 0
    logs = (-initial("diag-rand", 8, 1, 500).A.imag).log()
    assert abs(float(logs.mean())) < 0.15 and 0.9 < float(logs.std()) < 1.1
    for options in ({"B_init": "random"}, {"B_random": True}):
        B = initial("diag-lin", 8, 1, 500, **options).B
        assert abs(complex(B.mean())) < 0.15 and 0.9 < float(B.abs().square().mean()) < 1.1
    normal = initial("diag-inv", 8, 1, 2, normalize=True)
    assert relative_error((normal.B / normal.A).abs().square().sum(-1), torch.full((2,), 0.5)) <= 1e-12
    P = initial("dplr-lin", 8, 2, 500, P_scale=3.0).P
    assert 8 < float(P.abs().square().mean()) < 10
    legs = initial("legs", 8, 1, 2)
    assert torch.equal(initial("dplr-lin", 8, 1, 2, B_init="hippo").P, legs.P)
    assert torch.equal(initial("diag-lin", 8, 1, 2, B_init="hippo").B, legs.B)
    assert torch.equal(initial("diag-legs", 8, 1, 2).A, initial("dplr", 8, 1, 2).A)
    for name, alias in (("lin", "linear"), ("inv", "inverse"), ("inv2", "inverse2"), ("quad", "quadratic")):
        assert torch.equal(initial(f"diag-{name}", 8, 1, 2).A, initial(f"dplr-{alias}", 8, 1, 2).A)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_undone(transform):
    top = 0.99 if transform == "sigmoid" else 1000.0
    value = torch.logspace(-4, math.log10(top), 50, dtype=torch.float64)
    again = transformed(untransformed(value, transform, "it"), transform)
    offset = 1e-4 if transform == "relu" else 0.0
    assert relative_error(again, value + offset) <= 1e-12
    assert float(transformed(untransformed(torch.zeros(1, dtype=torch.float64), transform, "it"), transform)) > 0.99e-4
