from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from s4_fast.ssm import hippo
from s4_fast.ssm.discretization import bilinear, bilinear_diagonal, check_stable, zoh, zoh_diagonal

C128 = torch.complex128
DENSE = {bilinear: bilinear_diagonal, zoh: zoh_diagonal}
# Four roundings, relative to the modulus: twice what was seen.
TOLERANCE = {dtype: 4 * torch.finfo(dtype).eps for dtype in (torch.complex64, torch.complex128)}


@pytest.fixture(autouse=True)
def precision():
    with mpmath.workdps(60):
        yield


def points() -> torch.Tensor:
    """Values of dt A over the closed left half plane: 14 decades of modulus, both axes, and around 2 pi i k."""
    modulus = torch.cat(
        [torch.logspace(-13, 1, 29, dtype=torch.float64), torch.tensor([0.4999, 0.5, 0.5001, 30.0, 3000.0])]
    )
    direction = torch.tensor([1j, -1j, -1, -0.001 + 1j, -0.3 - 0.8j, -0.7 + 0.7j, -1 + 1e-9j], dtype=C128)
    grid = (modulus[:, None] * direction).flatten()
    resonant = torch.tensor([complex(a, 2 * math.pi * k + b) for a in (0, -1e-5) for k in (1, 7) for b in (0.0, 1e-4)])
    return torch.cat([grid, resonant.to(C128)])


def relative_error(got: torch.Tensor, want: list[mpmath.mpc]) -> float:
    return max(float(abs(mpmath.mpmathify(g) - w) / abs(w)) for g, w in zip(got.tolist(), want, strict=True))


def exact(z: torch.Tensor, function) -> list[mpmath.mpc]:
    return [function(mpmath.mpmathify(value)) for value in z.tolist()]


def mp_phi(z):
    return (mpmath.exp(z) - 1) / z


def mp_phi_derivative(z):
    return (mpmath.exp(z) * (z - 1) + 1) / z**2


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_zoh_diagonal_is_accurate_everywhere(dtype):
    z, dt = points().to(dtype), 0.25  # a power of two: dt A is exact
    A = (4 * z).requires_grad_()
    x, Bbar = zoh_diagonal(A, torch.ones(()), dt)
    assert x.dtype == Bbar.dtype == dtype
    assert torch.equal(x, z)
    assert relative_error(Bbar.detach() / dt, exact(z, mp_phi)) < TOLERANCE[dtype]
    (grad,) = torch.autograd.grad(Bbar, A, torch.ones_like(Bbar))
    assert relative_error(grad.conj().resolve_conj() / dt**2, exact(z, mp_phi_derivative)) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_bilinear_diagonal_is_accurate_everywhere(dtype):
    z, dt = points().to(dtype), 0.25
    z = z[(z + 2).abs() > 0.1]  # x is infinite at -2
    A = (4 * z).requires_grad_()
    x, Bbar = bilinear_diagonal(A, torch.ones(()), dt)
    assert x.dtype == Bbar.dtype == dtype
    want = exact(z, lambda z: mpmath.log((1 + z / 2) / (1 - z / 2)))
    assert relative_error(x.detach(), want) < TOLERANCE[dtype]
    assert relative_error(Bbar.detach() / dt, exact(z, lambda z: 1 / (1 - z / 2))) < TOLERANCE[dtype]
    (grad,) = torch.autograd.grad(x, A, torch.ones_like(x))
    want = exact(z, lambda z: 4 / ((2 - z) * (2 + z)))
    assert relative_error(grad.conj().resolve_conj() / dt, want) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("discretize", [bilinear_diagonal, zoh_diagonal])
def test_real_part_of_the_logarithm_keeps_its_own_digits(discretize):
    z = torch.complex(-torch.logspace(-14, -1, 27, dtype=torch.float64), torch.full((27,), 3.0, dtype=torch.float64))
    x, _ = discretize(z, torch.ones(()), 1.0)
    log = exact(z, lambda z: mpmath.log((1 + z / 2) / (1 - z / 2)) if discretize is bilinear_diagonal else z)
    assert relative_error(x.real, [w.real for w in log]) < 1e-15


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("discretize", [bilinear_diagonal, zoh_diagonal])
def test_the_limit_at_zero(discretize, dtype):
    A = torch.zeros(1, dtype=dtype, requires_grad=True)
    B, dt = torch.tensor([2 - 1j], dtype=dtype, requires_grad=True), torch.tensor([0.5], requires_grad=True)
    x, Bbar = discretize(A, B, dt)
    assert x.item() == 0 and Bbar.item() == 1 - 0.5j
    (gx,) = torch.autograd.grad(x, A, torch.ones_like(x), retain_graph=True)
    gA, gB, gdt = torch.autograd.grad(Bbar, (A, B, dt), torch.ones_like(Bbar))
    assert gx.item() == 0.5 and gB.item() == 0.5 and gdt.item() == 2
    assert gA.item() == 0.5**2 / 2 * (2 + 1j)  # conj(dt^2 B / 2)


@pytest.mark.parametrize("order", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("discretize", [bilinear_diagonal, zoh_diagonal])
def test_gradients_of_the_diagonal_forms(discretize, order):
    A = torch.tensor([[0, -1e-4 + 1e-3j, -0.5 + 0.2j], [-3, 2j, -2 + 20j]], dtype=C128, requires_grad=True)
    B = torch.tensor([1.0 + 1j, 2, -1j], dtype=C128, requires_grad=True)
    dt = torch.tensor([[0.5], [0.2]], dtype=torch.float64, requires_grad=True)
    assert order(discretize, (A, B, dt))


@pytest.mark.parametrize("dense", DENSE)
def test_gradients_of_the_dense_forms(dense):
    A = hippo.transition("legs", 3)[0].requires_grad_()
    B = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    dt = torch.tensor([0.1, 0.5], dtype=torch.float64, requires_grad=True)
    assert gradcheck(dense, (A, B, dt))


@pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "fout"])
@pytest.mark.parametrize("dense", DENSE)
def test_dense_matches_diagonal_in_the_eigenbasis(dense, measure):
    w, _, B, V = hippo.nplr(measure, 16, 2)
    U, b = torch.cat([V, V.conj()], 1), hippo.transition(measure, 16)[1]
    dt = torch.tensor([[1e-6], [0.01], [0.3]], dtype=torch.float64)
    normal = ((U * torch.cat([w, w.conj()])) @ U.mH).real
    Abar, Bbar = dense(normal, b, dt[:, 0])
    x, v = DENSE[dense](w, B, dt)
    assert Abar.shape == (3, 16, 16) and Bbar.shape == (3, 16) and x.shape == v.shape == (3, 8)
    rebuilt = 2 * torch.einsum("in,bn,jn->bij", V, x.exp(), V.conj()).real
    torch.testing.assert_close(Abar, rebuilt, rtol=0, atol=5e-14)
    torch.testing.assert_close(Bbar / dt, 2 * (v @ V.T).real / dt, rtol=0, atol=1e-13)


@pytest.mark.parametrize("measure", ["legs", "fout"])
@pytest.mark.parametrize("dt", [1e-6, 2e-3, 0.3])
def test_dense_matches_arbitrary_precision(measure, dt):
    A, B = hippo.transition(measure, 6)
    z, b, eye = mpmath.matrix(A.tolist()) * dt, mpmath.matrix(B.tolist()) * dt, mpmath.eye(6)
    inverse = (eye - z / 2) ** -1
    augmented = mpmath.matrix(7)
    augmented[:6, :6], augmented[:6, 6] = z, b
    augmented = mpmath.expm(augmented)
    for (Abar, Bbar), want in [
        (bilinear(A, B, dt), (inverse * (eye + z / 2), inverse * b)),
        (zoh(A, B, dt), (augmented[:6, :6], augmented[:6, 6])),
    ]:
        wantA, wantB = (torch.tensor([[float(v) for v in row] for row in m.tolist()], dtype=A.dtype) for m in want)
        eps = torch.finfo(A.dtype).eps
        assert (Abar - wantA).norm() <= 4 * eps * wantA.norm()
        assert (Bbar - wantB[:, 0]).norm() <= 4 * eps * wantB.norm()


def test_zoh_of_a_singular_matrix():
    A, B = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    Abar, Bbar = zoh(A, B, 0.25)
    torch.testing.assert_close(Abar, torch.tensor([[1, 0.25], [0, 1]], dtype=A.dtype), rtol=1e-15, atol=0)
    torch.testing.assert_close(Bbar, torch.tensor([0.03125, 0.25], dtype=A.dtype), rtol=1e-15, atol=0)


@pytest.mark.parametrize("dense", DENSE)
def test_dense_broadcasts_and_promotes(dense):
    g = torch.Generator().manual_seed(0)
    A, B = -torch.rand(5, 1, 3, 3, dtype=torch.float64, generator=g), torch.randn(4, 3, dtype=C128, generator=g)
    dt = torch.rand(2, 1, 1, dtype=torch.float64, generator=g)
    Abar, Bbar = dense(A, B, dt)
    assert Abar.shape == (2, 5, 4, 3, 3) and Bbar.shape == (2, 5, 4, 3) and Abar.dtype == Bbar.dtype == C128
    a, b = dense(A[3, 0], B[2], dt[1].item())
    torch.testing.assert_close(Abar[1, 3, 2].real, a.real, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(Bbar[1, 3, 2], b, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dense", DENSE)
def test_dense_errors(dense):
    with pytest.raises(ValueError, match=r"got A \(3, 4\) and B \(4,\)"):
        dense(torch.zeros(3, 4), torch.zeros(4), 0.1)
    with pytest.raises(ValueError, match=r"got A \(4, 4\) and B \(4, 1\)"):
        dense(torch.zeros(4, 4), torch.zeros(4, 1), 0.1)
    with pytest.raises(ValueError, match=r"batch dimensions .* must broadcast, got \(2,\), \(3,\), \(\)"):
        dense(torch.zeros(2, 4, 4), torch.zeros(3, 4), 0.1)


@pytest.mark.parametrize("discretize", [bilinear_diagonal, zoh_diagonal])
def test_diagonal_errors(discretize):
    with pytest.raises(ValueError, match=r"shapes .* must broadcast, got \(2, 4\), \(4,\), \(3, 1\)"):
        discretize(torch.zeros(2, 4, dtype=C128), torch.ones(4), torch.ones(3, 1))
    with pytest.raises(TypeError, match=r"A must be complex, got torch\.float32"):
        discretize(torch.zeros(4), torch.ones(4), 0.1)


def test_diagonal_forms_compile_without_a_break():
    A, B, dt = torch.tensor([-0.5 + 3j, 0]), torch.ones(2), torch.full((3, 1), 0.1)
    for discretize in (bilinear_diagonal, zoh_diagonal):
        compiled = torch.compile(discretize, fullgraph=True, backend="aot_eager")(A, B, dt)
        torch.testing.assert_close(compiled, discretize(A, B, dt))


def test_check_stable_accepts_the_closed_left_half_plane():
    check_stable(torch.tensor([-1 + 2j, 3j, 0]))
    check_stable(torch.tensor([-1.0, 0.0]))
    check_stable(torch.zeros(0, dtype=C128))


def test_check_stable_reports_the_worst_entry():
    A = torch.full((2, 3), -0.5 + 1j, dtype=C128, requires_grad=True).clone()
    A[0, 1], A[1, 2] = 0.25, 0.75 + 3j
    with pytest.raises(ValueError, match=r"max Re\(w\) is 0\.75 at index \(1, 2\) .*2 of 6 entries"):
        check_stable(A, name="w")
    with pytest.raises(ValueError, match=r"max Re\(A\) is 0\.5 at index \(\) .*1 of 1 entries"):
        check_stable(torch.tensor(0.5))


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, complex(-1, math.nan), complex(-1, math.inf)])
def test_check_stable_rejects_what_is_not_finite(value):
    A = torch.tensor([-1, 0.5, value, -2], dtype=C128)
    with pytest.raises(ValueError, match=r"A must be finite .* at index \(2,\) .*2 of 4 entries"):
        check_stable(A)
