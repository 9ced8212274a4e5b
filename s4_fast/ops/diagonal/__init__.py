"""A diagonal SSM over a sequence, from the parameters of the continuous system."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from s4_fast import arguments, dispatch
from s4_fast.ops import _native_calls, _tensor_core_calls
from s4_fast.ops.diagonal import plain, reference, stored
from s4_fast.ops.diagonal.form import Arguments, Form

_DISCRETIZATIONS = ("zoh", "bilinear")


_OP = stored.register(
    "diagonal_ssm", ("u", "dt", "A_real", "A_imag", "B", "C", "D", "state", "ahead"), plain.diagonal_ssm
)


@overload
def diagonal_ssm(
    u: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: Literal[False] = False,
    *,
    ahead: Tensor | None = None,
    discretization: str = "zoh",
    bidirectional: bool = False,
    rate: float = 1.0,
    time_major: bool = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def diagonal_ssm(
    u: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    return_state: Literal[True],
    ahead: Tensor | None = None,
    discretization: str = "zoh",
    bidirectional: bool = False,
    rate: float = 1.0,
    time_major: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def diagonal_ssm(
    u: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    *,
    ahead: Tensor | None = None,
    discretization: str = "zoh",
    bidirectional: bool = False,
    rate: float = 1.0,
    time_major: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""A diagonal SSM per feature over a sequence, ``x'(t) = A x(t) + B u(t)``, ``y(t) = 2 Re C x(t) + D u(t)``.

    Discretised at steps of ``rate * dt``, with ``z = rate dt A`` (S4D; Gu et al. 2022, arXiv 2206.11893, section 2):

        zero-order hold: lambda = exp(z),            B_bar = rate dt B (exp(z) - 1) / z
        bilinear:        lambda = (2 + z) / (2 - z), B_bar = rate dt B / (1 - z/2)
        s_l = lambda s_{l-1} + B_bar u_l,            y_l = 2 Re sum_n C s_l + D u_l

    One call each way, in time and memory linear in L, with gradients straight to A, B, C, dt, D, u and the states. The
    discretisation is formed in float64. A sequence may be cut anywhere: pass the state that the first part returns to
    the second. What a sample that is not finite reaches is said at ``ssm_scan``.

    Args:
        u: signals, ``(batch, H, L)``, or ``(batch, L, H)`` if ``time_major``: float32 or float64, or a half type
            where the others are float32 (it is read and written as it is, and computed with in float32). It is read
            where it lies in either memory order, and y comes in the same one.
        A: poles, ``(S, n)``, complex, one of each conjugate pair. S divides H; feature h takes row ``h % S``.
        B: input coefficients, ``(S, n)``, complex, or None for 1.
        C: output coefficients, ``(H, n)`` or ``(c, H, n)``, complex; with ``bidirectional`` twice as many channels.
        dt: steps, ``(H,)``, ``(H, 1)`` or ``(H, n)``, real.
        D: skip coefficients, ``(H,)`` or ``(c, H)``, real, or None.
        state: ``s_{-1}``, ``(batch, H, n)``, complex, or None for 0.
        return_state: whether to return the state after the sequence too.
        ahead: with ``bidirectional``, the state that what follows u leaves behind at its end, in reversed time.
        discretization: ``"zoh"`` or ``"bilinear"``.
        bidirectional: whether the last half of C's channels runs from the end: ``r_l = lambda r_{l+1} + B_bar u_l``,
            of which ``2 Re sum_n C r_{l+1}`` is added to ``y_l``, so that an output sees its own sample once.
        rate: how many times as coarse as dt the sampling is.
        time_major: whether time comes before the features.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        ``y`` like ``u``, or with channels ``(batch, c, H, L)`` (``(batch, L, c, H)`` if ``time_major``); with
        ``return_state`` also ``s_{L-1}``, ``(batch, H, n)``. Both are differentiable in every tensor.

    Raises:
        TypeError: an argument is not a tensor of the expected kind, or the precisions differ.
        ValueError: shapes do not fit, L or n is 0, ``discretization`` is unknown, ``ahead`` is given without
            ``bidirectional``, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> A = -0.5 + 1j * torch.pi * torch.arange(4).expand(8, 4)
        >>> C = torch.randn(8, 4, dtype=torch.complex64)
        >>> y = diagonal_ssm(torch.randn(2, 8, 100), A, None, C, torch.full((8,), 0.01))
    """
    given = _given(u, A, B, C, dt, D, state, ahead, discretization, bidirectional, rate, time_major)
    y, final = stored_diagonal_ssm(given, dispatch.choose(given.call(), backend).backend)
    if C.ndim == 3:
        y = y.unflatten(2 if time_major else 1, (given.form.channels(C.shape[0]), C.shape[1]))
    return (y, final) if return_state else y


def stored_diagonal_ssm(given: Arguments, backend: str) -> tuple[Tensor, Tensor]:
    """``diagonal_ssm`` of parameters as modules store them, real, with nothing between them and the op.

    ``backend`` is what ``dispatch.choose(given.call())`` says, or may be asked for.

    Returns:
        y (batch, c H, L), or (batch, L, c H) if ``given.form.time_major``, and the state after u.
    """
    return stored.run(_OP, reference.diagonal_ssm, given, backend)


def _given(
    u: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    discretization: str,
    bidirectional: bool,
    rate: float,
    time_major: bool,
) -> Arguments:
    """The arguments of ``stored_diagonal_ssm`` for those of ``diagonal_ssm``."""
    op = "diagonal_ssm"
    discretization = arguments.choice("discretization", discretization, _DISCRETIZATIONS, op)
    for name, t in (("A", A), ("B", B), ("C", C)):
        if (t is not None or name != "B") and not (isinstance(t, Tensor) and t.is_complex()):
            raise TypeError(f"{op}: expected {name} to be a complex tensor, got {arguments.kind(t)}")
    if C.ndim not in (2, 3):
        raise ValueError(f"{op}: expected C of shape (H, n) or (channels, H, n), got {tuple(C.shape)}")
    rate = arguments.number("rate", rate)
    if not 0 < rate < math.inf:
        raise ValueError(f"{op}: expected a rate above 0, got {rate}")
    form = Form(time_major, bidirectional, discretization == "bilinear", rate=rate)
    weight = None if B is None else torch.view_as_real(B.resolve_conj())
    outputs = torch.view_as_real(C.resolve_conj())
    return Arguments(u, dt, A.real, A.imag, weight, outputs, D, state, ahead, form)


def _describe(
    u: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    *,
    ahead: Tensor | None = None,
    discretization: str = "zoh",
    bidirectional: bool = False,
    rate: float = 1.0,
    time_major: bool = False,
) -> dispatch.Call:
    return _given(u, A, B, C, dt, D, state, ahead, discretization, bidirectional, rate, time_major).call()


dispatch.register_op("diagonal_ssm", _describe)
dispatch.register("diagonal_ssm", "reference", f"{__name__}.reference")
dispatch.register("diagonal_ssm", "pytorch", f"{__name__}.pytorch")
dispatch.register("diagonal_ssm", "native", f"{__name__}.native", refuses=_native_calls.refuses)
dispatch.register("diagonal_ssm", "tensor_cores", f"{__name__}.tensor_cores", refuses=_tensor_core_calls.refuses_layers)
