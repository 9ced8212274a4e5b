from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from s4_fast.ssm import hippo
from s4_fast.state_spaces.initialization import COMBINATIONS, initial
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
    if name == "legs":  # in another basis, and not clipped
        assert relative_error(B[0].abs(), torch.tensor(GOLDEN["nplr.legs.r1.f64.noclip.B"]).abs()) <= 1e-12
    else:
        assert relative_error(B, golden(f"{key}.B")) <= 1e-6


@pytest.mark.parametrize(("measure", "rank"), [("legs", 1), ("legs", 2), ("legt", 2), ("legt", 3), ("fourier", 1)])
def test_hippo_matrices_are_the_official_ones_up_to_the_phases_of_the_basis(measure, rank):
    A, P, B, V = initial(measure, 8, rank, 2)
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
    assert torch.equal(initial("legs", 8, 1, 2, B_clip=None).B, legs.B)
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
