"""A diagonal-plus-low-rank SSM (S4) over a sequence, from the parameters of the continuous system."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from s4_fast import arguments, dispatch, native_library
from s4_fast.ops import _native_calls
from s4_fast.ops.diagonal import stored
from s4_fast.ops.diagonal.form import Arguments, Form
from s4_fast.ops.dplr_scan import plain, reference

_OP = stored.register(
    "dplr_scan", ("u", "dt", "A_real", "A_imag", "P", "B", "C", "D", "state", "ahead"), plain.dplr_scan
)


@overload
def dplr_scan(
    u: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: Literal[False] = False,
    *,
    ahead: Tensor | None = None,
    bidirectional: bool = False,
    rate: float = 1.0,
    time_major: bool = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def dplr_scan(
    u: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    return_state: Literal[True],
    ahead: Tensor | None = None,
    bidirectional: bool = False,
    rate: float = 1.0,
    time_major: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def dplr_scan(
    u: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    *,
    ahead: Tensor | None = None,
    bidirectional: bool = False,
    rate: float = 1.0,
    time_major: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""A DPLR SSM per feature over a sequence, ``x'(t) = A x(t) + B u(t)``, ``y(t) = 2 Re C x(t) + D u(t)``.

    ``A = Lambda - P P*`` over conjugate pairs, discretised by the bilinear transform at steps of ``rate * dt`` (S4; Gu,
    Goel, Re 2022, arXiv 2111.00396, equation 3 and appendix C.2), with ``Z = rate dt (Lambda - P P*)``:

        A_bar = (I - Z/2)^{-1} (I + Z/2),     B_bar = (I - Z/2)^{-1} rate dt B
        s_l = A_bar s_{l-1} + B_bar u_l,      y_l = 2 Re sum_n C s_l + D u_l

    There is no kernel, no FFT, and no length in the parameters: chunks of samples are products with matrices that are
    formed from the DPLR form in float64, in time and memory linear in L. Gradients go straight to A, P, B, C, dt, D, u
    and the states. A sequence may be cut anywhere: pass the state that the first part returns to the second.

    Args:
        u: signals, ``(batch, H, L)``, or ``(batch, L, H)`` if ``time_major``: float32 or float64, or a half type
            where the others are float32 (it is read and written as it is, and computed with in float32). It is read
            where it lies in either memory order, and y comes in the same one.
        A: the diagonal part Lambda, ``(S, n)``, complex, one of each conjugate pair. S divides H; feature h takes row
            ``h % S``.
        P: low-rank factors, ``(rank, S, n)``, or ``(S, n)`` for rank 1, complex. ``P P* s`` is
            ``sum_r P_r 2 Re sum_n P_r* s``.
        B: input coefficients, ``(S, n)``, complex, or None for 1.
        C: output coefficients, ``(H, n)`` or ``(c, H, n)``, complex; with ``bidirectional`` twice as many channels.
        dt: steps, ``(H,)``, ``(H, 1)`` or ``(H, n)``, real.
        D: skip coefficients, ``(H,)`` or ``(c, H)``, real, or None.
        state: ``s_{-1}``, ``(batch, H, n)``, complex, or None for 0.
        return_state: whether to return the state after the sequence too.
        ahead: with ``bidirectional``, the state that what follows u leaves behind at its end, in reversed time.
        bidirectional: whether the last half of C's channels runs from the end: ``r_l = A_bar r_{l+1} + B_bar u_l``,
            of which ``2 Re sum_n C r_{l+1}`` is added to ``y_l``, so that an output sees its own sample once.
        rate: how many times as coarse as dt the sampling is.
        time_major: whether time comes before the features.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        ``y`` like ``u``, or with channels ``(batch, c, H, L)`` (``(batch, L, c, H)`` if ``time_major``); with
        ``return_state`` also ``s_{L-1}``, ``(batch, H, n)``. Both are differentiable in every tensor.

    Raises:
        TypeError: an argument is not a tensor of the expected kind, or the precisions differ.
        ValueError: shapes do not fit, L, n or the rank is 0, ``ahead`` is given without ``bidirectional``, or the
            tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> w, P, B = s4_fast.ssm.initialization.dplr("legs", 8)
        >>> A, P, B = (t.to(torch.complex64)[..., None, :].expand(*t.shape[:-1], 16, -1) for t in (w, P, B))
        >>> C = torch.randn(16, 4, dtype=torch.complex64)
        >>> y = dplr_scan(torch.randn(2, 16, 100), A, P, B, C, torch.full((16,), 0.01))
    """
    given = _given(u, A, P, B, C, dt, D, state, ahead, bidirectional, rate, time_major)
    y, final = stored_dplr_scan(given, dispatch.choose(given.call(), backend).backend)
    if C.ndim == 3:
        y = y.unflatten(2 if time_major else 1, (given.form.channels(C.shape[0]), C.shape[1]))
    return (y, final) if return_state else y


def stored_dplr_scan(given: Arguments, backend: str) -> tuple[Tensor, Tensor]:
    """``dplr_scan`` of parameters as modules store them, real, with nothing between them and the op.

    ``backend`` is what ``dispatch.choose(given.call())`` says, or may be asked for.

    Returns:
        y (batch, c H, L), or (batch, L, c H) if ``given.form.time_major``, and the state after u.
    """
    return stored.run(_OP, reference.dplr_scan, given, backend)


def _given(
    u: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    bidirectional: bool,
    rate: float,
    time_major: bool,
) -> Arguments:
    """The arguments of ``stored_dplr_scan`` for those of ``dplr_scan``."""
    op = "dplr_scan"
    for name, t in (("A", A), ("P", P), ("B", B), ("C", C)):
        if (t is not None or name != "B") and not (isinstance(t, Tensor) and t.is_complex()):
            raise TypeError(f"{op}: expected {name} to be a complex tensor, got {arguments.kind(t)}")
    if C.ndim not in (2, 3):
        raise ValueError(f"{op}: expected C of shape (H, n) or (channels, H, n), got {tuple(C.shape)}")
    if P.ndim not in (2, 3) or (P.ndim == 3 and not len(P)):
        raise ValueError(f"{op}: expected P of shape (S, n) or (rank, S, n) with rank >= 1, got {tuple(P.shape)}")
    rate = arguments.number("rate", rate)
    if not 0 < rate < math.inf:
        raise ValueError(f"{op}: expected a rate above 0, got {rate}")
    form = Form(time_major, bidirectional, True, rate=rate)
    pairs = [None if t is None else torch.view_as_real(t.resolve_conj()) for t in (P if P.ndim == 3 else P[None], B, C)]
    low_rank, weight, outputs = pairs
    assert outputs is not None
    return Arguments(u, dt, A.real, A.imag, weight, outputs, D, state, ahead, form, low_rank)


def _describe(
    u: Tensor,
    A: Tensor,
    P: Tensor,
    B: Tensor | None,
    C: Tensor,
    dt: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    *,
    ahead: Tensor | None = None,
    bidirectional: bool = False,
    rate: float = 1.0,
    time_major: bool = False,
) -> dispatch.Call:
    return _given(u, A, P, B, C, dt, D, state, ahead, bidirectional, rate, time_major).call()


def _native_refuses(call: dispatch.Call) -> str | None:
    if refusal := _native_calls.refuses(call):
        return refusal
    if call.device == "cuda":
        for size, what in (("rank", "a rank"), ("n", "n")):
            most, given = native_library.limit(f"cuda_dplr_scan_{size}"), call.shape[size]
            if given > most:
                return f"it takes {what} of at most {most} on CUDA devices, not {given}"
    return None


dispatch.register_op("dplr_scan", _describe)
dispatch.register("dplr_scan", "reference", f"{__name__}.reference")
dispatch.register("dplr_scan", "pytorch", f"{__name__}.pytorch")
dispatch.register("dplr_scan", "native", f"{__name__}.native", refuses=_native_refuses)
