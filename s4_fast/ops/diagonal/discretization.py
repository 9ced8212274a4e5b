"""The discretisation of a diagonal SSM and its adjoint, in complex128."""

from __future__ import annotations

import torch
from torch import Tensor, conj_physical

from s4_fast.ops._complex import expm1, joined, log_bilinear
from s4_fast.ops.diagonal.form import Form

_WIDE = torch.complex128


def phi(z: Tensor) -> Tensor:
    """``(exp(z) - 1) / z``, and 1 at 0."""
    one = z.abs() < torch.finfo(z.dtype).eps  # to rounding
    return torch.where(one, 1, expm1(z) / torch.where(one, 1, z))


def phi_derivative(z: Tensor) -> Tensor:
    """``(exp(z) - phi(z)) / z``, which magnifies roundings by ``1/|z|``: near 0 its series, ``sum (k+1) z^k / (k+2)!``.

    For z in complex128.
    """
    small = z.abs() < 0.5
    t = torch.where(small, z, 0)
    # Formed anew: a graph of dynamic shapes takes floats from outside for inputs, which a backward cannot have.
    *lower, highest = _series(16)
    series = torch.full_like(t, highest)
    for coefficient in reversed(lower):
        series = coefficient + t * series
    far = torch.where(small, 1, z)
    return torch.where(small, series, (torch.exp(far) - phi(far)) / far)


def _series(terms: int) -> list[float]:
    coefficients, factorial = [], 1.0
    for k in range(terms):
        factorial *= k + 2
        coefficients.append((k + 1) / factorial)
    return coefficients


def system(
    dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor | None, form: Form
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The steps (H, 1) or (H, n) in float64, and A and B (H, n) in complex128, of what is stored. Differentiable."""
    copies, wide = len(dt) // len(A_real), dt.double()
    real, imag = A_real.double(), A_imag.double()
    A = joined(-real.exp() if form.log_decay else real, -imag if form.conjugate else imag)
    weight = None if B is None else torch.view_as_complex(B).to(_WIDE).repeat(copies, 1)
    return form.rate * (wide.exp() if form.log_dt else wide), A.repeat(copies, 1), weight


class Discretized:
    """``x = log(lambda)`` and ``B_bar = step hold(z) B``, z = step A, of dt (H, 1) or (H, n), A_real, A_imag (S, n), B
    (S, n, 2) or None for 1. Feature h takes the copy h % S of A and B.

    Zero-order hold: ``x = z``, ``hold = (exp(z) - 1) / z`` (S4D, section 2). Bilinear: ``x = log((2 + z) / (2 - z))``,
    ``hold = 1 / (1 - z/2)`` (S4, equation 3).
    """

    def __init__(self, dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor | None, form: Form) -> None:
        self.form, self.copies = form, len(dt) // len(A_real)
        self.step, self.A, self.B = system(dt, A_real, A_imag, B, form)
        self.z = self.step * self.A
        self.hold = 1 / (1 - self.z / 2) if form.bilinear else phi(self.z)
        self.x = log_bilinear(self.z) if form.bilinear else self.z
        self.B_bar = self.step * self.hold if self.B is None else self.step * self.hold * self.B

    def gradients(self, grad_x: Tensor, grad_B_bar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of dt, A_real, A_imag and B, float64 (B as pairs), for those of x and B_bar (H, n).

        ``grad_z = grad_x x'* + grad_B_bar (step hold' B)*``, ``grad_A = step grad_z``, ``grad_B = grad_B_bar (step
        hold)*``, ``grad_step = Re sum_n grad_x (x' A)* + grad_B_bar ((z hold)' B)*``: through hold and hold' apart, the
        last would cancel where z is large.
        """
        form, z = self.form, self.z
        held = grad_B_bar if self.B is None else grad_B_bar * conj_physical(self.B)
        growth = self.hold.square() if form.bilinear else torch.exp(z)  # (z hold)'
        slope = growth / 2 if form.bilinear else phi_derivative(z)
        grad_z = grad_x / conj_physical(1 - z.square() / 4) if form.bilinear else grad_x
        grad_step = (grad_z * conj_physical(self.A) + held * conj_physical(growth)).real
        grad_z = grad_z + held * conj_physical(self.step * slope)
        stored = of_stored(form, self.step, self.A, self.copies, grad_step, self.step * grad_z)
        grad_B = of_copies(grad_B_bar * conj_physical(self.step * self.hold), self.copies)
        return (*stored, torch.view_as_real(grad_B))


def of_stored(
    form: Form, step: Tensor, A: Tensor, copies: int, grad_step: Tensor, grad_A: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of dt, A_real and A_imag for those, (H, n), of the step and A of ``system``."""
    if step.shape[1] == 1:
        grad_step = grad_step.sum(1, keepdim=True)
    grad_A = of_copies(grad_A, copies)
    return (
        grad_step * (step if form.log_dt else form.rate),
        grad_A.real * A[: len(grad_A)].real if form.log_decay else grad_A.real,
        -grad_A.imag if form.conjugate else grad_A.imag,
    )


def of_copies(t: Tensor, copies: int) -> Tensor:
    """(..., H, n) -> (..., S, n): the sum over the features that share a copy."""
    return t.unflatten(-2, (copies, -1)).sum(-3)
