"""Discretisation of `x'(t) = A x(t) + B u(t)` with step `dt`: `x_l = Abar x_(l-1) + Bbar u_l`.

Bilinear (Tustin): S4 (Gu, Goel, Re 2022, arXiv 2111.00396), equation 3. Zero-order hold: S4D (Gu et al. 2022,
arXiv 2206.11893), section 2. The diagonal functions return the logarithm of the transition, which is what the
Vandermonde and scan ops take, and keep their accuracy for small `dt A`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from s4_fast import torch_private
from s4_fast.ops._complex import log_bilinear, plus
from s4_fast.ops.diagonal import plain
from s4_fast.ops.diagonal.discretization import phi, phi_derivative
from s4_fast.ops.direct import is_transformed, over_batches


def _broadcast(what: str, A: Sequence[int], B: Sequence[int], dt: Tensor | float) -> tuple[int, ...]:
    """The common shape, or ValueError: `what` is called so in the message."""
    shapes = tuple(A), tuple(B), tuple(dt.shape) if isinstance(dt, Tensor) else ()
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        raise ValueError(f"{what} of A, B and dt must broadcast, got {shapes[0]}, {shapes[1]}, {shapes[2]}") from None


def _scaled(A: Tensor, B: Tensor, dt: Tensor | float) -> tuple[Tensor, Tensor]:
    """`dt A (..., N, N)` and `dt B (..., N, 1)` of one dtype, batch dimensions broadcast."""
    if A.ndim < 2 or A.shape[-1] != A.shape[-2] or B.ndim < 1 or B.shape[-1] != A.shape[-1]:
        raise ValueError(f"expected A (..., N, N) and B (..., N), got A {tuple(A.shape)} and B {tuple(B.shape)}")
    batch = _broadcast("batch dimensions", A.shape[:-2], B.shape[:-1], dt)
    step = dt[..., None, None] if isinstance(dt, Tensor) else dt
    zA, zB = step * A, step * B[..., None]
    dtype = torch.promote_types(zA.dtype, zB.dtype)
    return zA.to(dtype).expand(*batch, -1, -1), zB.to(dtype).expand(*batch, -1, -1)


def bilinear(A: Tensor, B: Tensor, dt: Tensor | float) -> tuple[Tensor, Tensor]:
    """`Abar = (I - dt A / 2)^-1 (I + dt A / 2)`, `Bbar = (I - dt A / 2)^-1 dt B` (S4, equation 3).

    Args:
        A: `(..., N, N)`, floating or complex.
        B: `(..., N)`, floating or complex.
        dt: step, a number or a real tensor `(...)` that broadcasts with the batch dimensions.

    Returns:
        `Abar (..., N, N)` and `Bbar (..., N)`, in the promoted dtype, differentiable in `A`, `B` and `dt`.

    Raises:
        ValueError: if the shapes of `A` and `B` do not fit, or the batch dimensions do not broadcast.

    Examples:
        >>> A_bar, B_bar = bilinear(-torch.eye(2), torch.ones(2), 2.0)
        >>> A_bar, B_bar
        (tensor([[0., 0.],
                [0., 0.]]), tensor([1., 1.]))
    """
    zA, zB = _scaled(A, B, dt)
    eye = torch.eye(zA.shape[-1], dtype=zA.dtype, device=zA.device)
    out = torch.linalg.solve(eye - zA / 2, torch.cat([eye + zA / 2, zB], -1))
    return out[..., :-1], out[..., -1]


def zoh(A: Tensor, B: Tensor, dt: Tensor | float) -> tuple[Tensor, Tensor]:
    """`Abar = exp(dt A)`, `Bbar = int_0^dt exp(s A) ds B`, singular `A` included.

    Both are read from one exponential, `exp(dt [[A, B], [0, 0]]) = [[Abar, Bbar], [0, 1]]` (Van Loan 1978); there is no
    division by `A`.

    Args:
        A: `(..., N, N)`, floating or complex.
        B: `(..., N)`, floating or complex.
        dt: step, a number or a real tensor `(...)` that broadcasts with the batch dimensions.

    Returns:
        `Abar (..., N, N)` and `Bbar (..., N)`, in the promoted dtype, differentiable in `A`, `B` and `dt`.

    Raises:
        ValueError: if the shapes of `A` and `B` do not fit, or the batch dimensions do not broadcast.

    Examples:
        >>> A_bar, B_bar = zoh(torch.zeros(2, 2), torch.ones(2), 0.5)
        >>> A_bar, B_bar
        (tensor([[1., 0.],
                [0., 1.]]), tensor([0.5000, 0.5000]))
    """
    zA, zB = _scaled(A, B, dt)
    out = _matrix_exp(pad(torch.cat([zA, zB], -1), (0, 0, 0, 1)))
    return out[..., :-1, :-1], out[..., :-1, -1]


def _matrix_exp(M: Tensor) -> Tensor:
    """`exp(M)`, `M (..., N, N)`, by scaling, a Taylor series of degree 18 and squaring.

    `torch.linalg.matrix_exp` truncates its series too early where the norm of `M` lies between 1e-3 and 5e-2, where
    `dt A` often is: the sine in a rotation by 0.04 has a relative error of 2e-9 (PyTorch 2.13, float64).
    """
    norm = M.detach().abs().sum(-2).amax(-1)
    squarings = torch.frexp(norm).exponent.clamp(min=0)
    M = M * torch.ldexp(torch.ones_like(norm), -squarings)[..., None, None]
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    E = eye + M / 18
    for k in range(17, 0, -1):
        E = eye + M @ E / k
    for i in range(int(squarings.max())):
        E = torch.where((i < squarings)[..., None, None], E @ E, E)
    return E


def _check_modes(A: Tensor, B: Tensor, dt: Tensor | float) -> None:
    if not A.is_complex():
        raise TypeError(f"A must be complex, got {A.dtype}")
    _broadcast("shapes", A.shape, B.shape, dt)


def bilinear_diagonal(A: Tensor, B: Tensor, dt: Tensor | float) -> tuple[Tensor, Tensor]:
    """`x = log((1 + z/2) / (1 - z/2))` and `Bbar = dt B / (1 - z/2)` with `z = dt A` (S4, equation 3, diagonal `A`).

    With `z/2 = a + ib`, `x = 2 artanh(z/2)` is formed from real functions that do not cancel for small `z`,

        Re x = -log1p(-4a / ((1 + a)^2 + b^2)) / 2,   Im x = atan2(2b, (1 - a)(1 + a) - b^2),

    so `Im x` lies in `[-pi, pi]`, and `Re x <= 0` wherever `Re A <= 0`, rounding included. The points `z = 2` (a pole)
    and `z = -2` (`exp(x) = 0`) are singular.

    Args:
        A: `(..., n)`, complex.
        B: `(..., n)`, floating or complex.
        dt: step, a number or a real tensor that broadcasts with `A`, for instance `(H, 1)`.

    Returns:
        `x` and `Bbar`, complex, with the broadcast shape of `A`, `dt` and of `A`, `B`, `dt`; differentiable in all
        three.

    Raises:
        TypeError: if `A` is not complex.
        ValueError: if the shapes do not broadcast.

    Examples:
        >>> A = torch.tensor([-0.5 + 3j])
        >>> x, B_bar = bilinear_diagonal(A, torch.ones(1), torch.full((8, 1), 0.01))
        >>> x.shape, B_bar.shape
        (torch.Size([8, 1]), torch.Size([8, 1]))
    """
    _check_modes(A, B, dt)
    z = dt * A
    return log_bilinear(z), dt * B / plus(-0.5 * z, 1)


def zoh_diagonal(A: Tensor, B: Tensor, dt: Tensor | float) -> tuple[Tensor, Tensor]:
    """`x = z` and `Bbar = dt B phi(z)` with `z = dt A` and `phi(z) = (exp(z) - 1) / z`, `phi(0) = 1` (S4D, section 2).

    Args:
        A: `(..., n)`, complex.
        B: `(..., n)`, floating or complex.
        dt: step, a number or a real tensor that broadcasts with `A`, for instance `(H, 1)`.

    Returns:
        `x` and `Bbar`, complex, with the broadcast shape of `A`, `dt` and of `A`, `B`, `dt`; differentiable in all
        three, `A = 0` included.

    Raises:
        TypeError: if `A` is not complex.
        ValueError: if the shapes do not broadcast.

    Examples:
        >>> x, B_bar = zoh_diagonal(torch.tensor([0j, -1 + 0j]), torch.ones(2), 1.0)
        >>> B_bar
        tensor([1.0000+0.j, 0.6321+0.j])
    """
    _check_modes(A, B, dt)
    z = dt * A
    plainly = torch_private.is_exporting() or is_transformed((z,))
    return z, dt * B * (plain.phi(z.to(torch.complex128)).to(z.dtype) if plainly else _Phi.apply(z))


class _Phi(torch.autograd.Function):
    """`(exp(z) - 1) / z`, accurate to rounding together with its derivatives, in fewer operations than `plain.phi`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return phi(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        slope = phi_derivative(z.to(torch.complex128)).to(z.dtype).conj()
        if torch.compiler.is_compiling():  # which does not follow the question whether it is of a batch
            return grad * slope
        found: Tensor = over_batches(lambda g: (g * slope,), (grad,))[0]
        return found


def check_stable(A: Tensor, name: str = "A") -> None:
    """Raise ValueError unless every entry of `A` is finite with `Re A <= 0`.

    Args:
        A: any shape, floating or complex; on an accelerator the check waits for the device.
        name: how the message calls it.

    Raises:
        ValueError: stating the largest `Re A` (a non-finite entry counts as the largest), its index, and how many
            entries offend.

    Examples:
        >>> check_stable(torch.tensor([-0.5 + 3j]))
        >>> check_stable(torch.tensor([-0.5, 0.25]))
        Traceback (most recent call last):
        ValueError: A must be finite with Re <= 0: max Re(A) is 0.25 at index (1,) ...
    """
    if not torch_private.has_numbers(A):
        return
    real, finite = A.detach().real, torch.isfinite(A.detach())
    bad = ~finite | (real > 0)
    if not bad.any():
        return
    worst = int(torch.where(finite, real, torch.inf).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), A.shape))
    raise ValueError(
        f"{name} must be finite with Re <= 0: max Re({name}) is {real.flatten()[worst].item():g} at index {index} "
        f"(entry {A.detach().flatten()[worst].item()}), and {int(bad.sum())} of {A.numel()} entries offend"
    )
