"""A diagonal SSM over a sequence, from the parameters of the continuous system."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from s4_fast import arguments, dispatch
from s4_fast.ops import _native_calls
from s4_fast.ops._library import Op
from s4_fast.ops.diagonal import reference
from s4_fast.ops.diagonal.form import Form, form_of

_NAMES = ("u", "dt", "A_real", "A_imag", "B", "C", "D", "state", "ahead")
_DISCRETIZATIONS = ("zoh", "bilinear")
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
HALF = (torch.float16, torch.bfloat16)


def _fake(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    flags: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    batch, H, L = u.shape if not flags & 1 else (u.shape[0], u.shape[2], u.shape[1])
    n = A_real.shape[1]
    features = C.numel() // ((4 if flags & 2 else 2) * n)  # c H
    y = u.new_empty((batch, L, features) if flags & 1 else (batch, features, L))
    return y, C.new_empty(batch, H, n, 2)


_OP = Op(
    "diagonal_ssm",
    tensors=_NAMES,
    complex_inputs=(*(False,) * 7, True, True),
    complex_outputs=(False, True),
    scalars=("int flags", "float rate"),
    fake=_fake,
    optional=("B", "D", "state", "ahead"),
).register()


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
    the second.

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
        backend: a backend's name, or None for the automatic choice (see :func:`s4_fast.explain`).

    Returns:
        ``y`` like ``u``, or with channels ``(batch, c, H, L)`` (``(batch, L, c, H)`` if ``time_major``); with
        ``return_state`` also ``s_{L-1}``, ``(batch, H, n)``. Both are differentiable in every tensor.

    Raises:
        TypeError: an argument is not a tensor of the expected kind, or the precisions differ.
        ValueError: shapes do not fit, L or n is 0, ``discretization`` is unknown, ``ahead`` is given without
            ``bidirectional``, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Example:
        >>> A = -0.5 + 1j * torch.pi * torch.arange(4).expand(8, 4)
        >>> y = diagonal_ssm(torch.randn(2, 8, 100), A, None, torch.randn(8, 4, dtype=torch.cfloat), torch.full((8,), 0.01))
    """
    stored, form = _stored(u, A, B, C, dt, D, state, ahead, discretization, bidirectional, rate, time_major)
    y, final = stored_diagonal_ssm(*stored, form, backend=backend)
    if C.ndim == 3:
        y = y.unflatten(2 if time_major else 1, (-1, C.shape[1]))
    return (y, final) if return_state else y


def stored_diagonal_ssm(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    form: Form,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`diagonal_ssm` of parameters as modules store them, real, with nothing between them and the op.

    dt (H,), (H, 1) or (H, n), or log dt; A_real and A_imag (S, n), log(-Re A) and -Im A where ``form`` says so; B
    (S, n, 2) or (1, S, n, 2); C (channels, H, n, 2), and D (c, H), or for one channel (H, n, 2) and (H,).

    Returns:
        y (batch, c H, L), or (batch, L, c H) if ``form.time_major``, and the state after u.
    """
    call = _prepare(u, dt, A_real, A_imag, B, C, D, state, ahead, form)
    chosen = dispatch.choose(call, backend).backend
    # Where samples lie in the other order, that one is read.
    turned = not u.is_contiguous() and u.mT.is_contiguous()
    if turned:
        u, form = u.mT, form._replace(time_major=not form.time_major)
    if chosen == "reference" and u.numel():  # there is no FFT of nothing
        y, final = _by_definition(u, dt, A_real, A_imag, B, C, D, state, ahead, form)
    else:
        y, final = _OP(u, dt, A_real, A_imag, B, C, D, state, ahead, form.flags, form.rate, backend=chosen)
    return (y.mT if turned else y), final


def _by_definition(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    form: Form,
) -> tuple[Tensor, Tensor]:
    def wide(t: Tensor | None, *shape: int) -> Tensor | None:
        if t is None:
            return None
        t = t.to(torch.complex128 if t.is_complex() else torch.float64)
        return t.reshape(shape) if shape else t

    H, n = u.shape[2 if form.time_major else 1], A_real.shape[1]
    tensors = (
        u.double(),
        wide(dt, H, -1),
        wide(A_real),
        wide(A_imag),
        wide(B, -1, n, 2),
        wide(C, -1, H, n, 2),
        wide(D, -1, H),
        wide(state),
        wide(ahead),
    )
    y, final = reference.diagonal_ssm(*tensors, form)  # type: ignore[arg-type]
    y = y.flatten(2) if form.time_major else y.flatten(1, 2)
    return y.to(u.dtype), final.to(_COMPLEX[C.dtype])


def _stored(
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
) -> tuple[tuple[Tensor | None, ...], Form]:
    """The arguments of :func:`stored_diagonal_ssm` for those of :func:`diagonal_ssm`."""
    op = "diagonal_ssm"
    if discretization not in _DISCRETIZATIONS:
        raise ValueError(f"{op}: unknown discretization {discretization!r}; expected one of zoh, bilinear")
    for name, t in (("A", A), ("B", B), ("C", C)):
        if t is not None and not (isinstance(t, Tensor) and t.is_complex()):
            raise TypeError(f"{op}: expected {name} to be a complex tensor, got {arguments.kind(t)}")
    if C.ndim not in (2, 3):
        raise ValueError(f"{op}: expected C of shape (H, n) or (channels, H, n), got {tuple(C.shape)}")
    pairs = [None if t is None else torch.view_as_real(t.resolve_conj()) for t in (B, C if C.ndim == 3 else C[None])]
    form = Form(time_major, bidirectional, discretization == "bilinear", rate=float(rate))
    steps = dt[:, None] if isinstance(dt, Tensor) and dt.ndim == 1 else dt
    return (u, steps, A.real, A.imag, *pairs, D, state, ahead), form


def _prepare(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    form: Form,
) -> dispatch.Call:
    """The call, if its arguments fit."""
    sizes = _fitting(u, dt, A_real, A_imag, B, C, D, state, ahead, form)
    if sizes is None:
        raise _misfit(u, dt, A_real, A_imag, B, C, D, state, ahead, form)
    grads: tuple[str, ...] = ()
    if torch.is_grad_enabled():
        given = zip(_NAMES, (u, dt, A_real, A_imag, B, C, D, state, ahead), strict=True)
        grads = tuple(name for name, t in given if t is not None and t.requires_grad)
    return dispatch.Call("diagonal_ssm", u.device.type, C.dtype, sizes, grads)


def _fitting(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    form: Form,
) -> dict[str, int] | None:
    """The sizes, or None where something does not fit; on the path of every call, so without words."""
    if not isinstance(u, Tensor) or u.ndim != 3 or C.ndim not in (3, 4) or A_real.ndim != 2:
        return None
    dtype, device = C.dtype, u.device
    batch, H, L = u.shape
    if form.time_major:
        H, L = L, H
    outputs, (copies, n) = (C.shape[0] if C.ndim == 4 else 1), A_real.shape
    c = outputs // 2 if form.bidirectional else outputs
    fits = (
        min(L, n, copies, c) >= 1
        and (dtype is torch.float32 or dtype is torch.float64)
        and (u.dtype is dtype or (u.dtype in HALF and dtype is torch.float32))
        and outputs == c * (1 + form.bidirectional)
        and C.shape[-3:] == (H, n, 2)
        and H % copies == 0
        and A_imag.shape == A_real.shape
        and (dt.shape == (H,) or dt.shape == (H, 1) or dt.shape == (H, n))
        and all(t.dtype is dtype and t.device == device for t in (dt, A_real, A_imag, C))
    )
    if not fits:
        return None
    if B is not None and (B.shape[-3:] != (copies, n, 2) or B.numel() != 2 * copies * n or B.dtype is not dtype or B.device != device):
        return None
    if D is not None and (
        (D.shape != (c, H) and not (c == 1 and D.shape == (H,))) or D.dtype is not dtype or D.device != device
    ):
        return None
    for s in (state, ahead):
        if s is not None and (
            s.shape != (batch, H, n) or s.dtype is not _COMPLEX[dtype] or s.device != device
        ):
            return None
    if ahead is not None and not form.bidirectional:
        return None
    return {"batch": batch, "H": H, "n": n, "L": L, "channels": c}


def _misfit(
    u: Tensor,
    dt: Tensor,
    A_real: Tensor,
    A_imag: Tensor,
    B: Tensor | None,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    ahead: Tensor | None,
    form: Form,
) -> Exception:
    """What does not fit, and what was expected."""
    op = "diagonal_ssm"
    given = {"u": u, "dt": dt, "A": A_real, "B": B, "C": C, "D": D, "state": state, "ahead": ahead}
    tensors = {name: t for name, t in given.items() if t is not None}
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            return TypeError(f"{op}: expected {name} to be a tensor, got {arguments.kind(t)}")
    layout = "(batch, L, H)" if form.time_major else "(batch, H, L)"
    length = u.shape[1 if form.time_major else 2] if u.ndim == 3 else 0
    if length < 1:
        return ValueError(f"{op}: expected u of shape {layout} with L >= 1, got {tuple(u.shape)}")
    if A_real.ndim != 2 or 0 in A_real.shape:
        return ValueError(f"{op}: expected A of shape (S, n) with n >= 1, got {tuple(A_real.shape)}")
    device = u.device
    if any(t.device != device for t in tensors.values()):
        where = ", ".join(f"{name} on {t.device}" for name, t in tensors.items())
        return ValueError(f"{op}: expected all tensors on one device, got {where}")
    dtype = C.dtype
    if dtype not in (torch.float32, torch.float64):
        return TypeError(f"{op}: expected C in single or double precision, got {dtype}")
    for name, t in tensors.items():
        expected = _COMPLEX[dtype] if name in ("state", "ahead") else dtype
        if t.dtype != expected and not (name == "u" and t.dtype in HALF and dtype == torch.float32):
            return TypeError(f"{op}: expected all tensors in one precision, {name} to be {expected}, got {t.dtype}")
    batch, H = u.shape[0], u.shape[2 if form.time_major else 1]
    S, n = A_real.shape
    if H % S:
        return ValueError(f"{op}: expected the {S} rows of A to divide the {H} features of u {tuple(u.shape)}")
    if ahead is not None and not form.bidirectional:
        return ValueError(f"{op}: ahead is for bidirectional=True")
    outputs = C.shape[0] if C.ndim == 4 else 1
    if C.ndim not in (3, 4) or C.shape[-3:] != (H, n, 2) or (form.bidirectional and outputs % 2) or not outputs:
        even = ", an even number of channels" if form.bidirectional else ""
        return ValueError(f"{op}: expected C of shape (channels, {H}, {n}){even}, got {tuple(C.shape[:-1])}")
    c = form.channels(outputs)
    for name, t, shape in (("B", B, (S, n)), ("D", D, (c, H)), ("state", state, (batch, H, n)), ("ahead", ahead, (batch, H, n))):
        found = None if t is None else tuple(t.shape[:-1] if name == "B" else t.shape)
        if found is not None and found != shape:
            return ValueError(f"{op}: expected {name} of shape {shape}, got {found}")
    return ValueError(f"{op}: expected dt of shape ({H},), ({H}, 1) or ({H}, {n}), got {tuple(dt.shape)}")


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
    stored, form = _stored(u, A, B, C, dt, D, state, ahead, discretization, bidirectional, rate, time_major)
    return _prepare(*stored, form)  # type: ignore[arg-type]


dispatch.register_op("diagonal_ssm", _describe)
dispatch.register("diagonal_ssm", "reference", f"{__name__}.reference")
dispatch.register("diagonal_ssm", "pytorch", f"{__name__}.pytorch")
dispatch.register("diagonal_ssm", "native", f"{__name__}.native", refuses=_native_calls.refuses)
