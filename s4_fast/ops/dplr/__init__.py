"""The convolution kernel of a diagonal-plus-low-rank SSM (S4)."""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast import dispatch
from s4_fast.ops import _checks, _triton_calls
from s4_fast.ops._library import Op
from s4_fast.ops.dplr import reference

_TENSORS = ("w", "P", "Q", "B", "C", "dt")

_KERNEL = Op(
    "dplr_kernel",
    tensors=_TENSORS,
    complex_inputs=(True, True, True, True, True, False),
    complex_output=False,
    scalars=("SymInt L",),
    fake=lambda w, P, Q, B, C, dt, L: w.new_empty(B.shape[0], C.shape[0], w.shape[0], L),
).register()


def dplr_kernel(
    w: Tensor,
    P: Tensor,
    Q: Tensor,
    B: Tensor,
    C: Tensor,
    dt: Tensor,
    L: int,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""The length-L convolution kernel of a diagonal-plus-low-rank SSM under the bilinear discretisation.

    For ``A = Lambda - P Q^H`` with conjugate pairs, ``K[l] = 2 Re C A_bar^l B_bar``, computed as the inverse FFT of

    ``k(omega) = rho_CB - h rho_CP (I + h rho_QP)^{-1} rho_QB``,  ``h = (1 + omega)/2``,  ``rho_XY`` =
    :func:`cauchy_bilinear` of ``dt X Y``  (S4: Gu, Goel, Re 2022, algorithm 1, with the factor ``2/(1 + omega)``
    inside the sums).

    Args:
        w: ``dt * Lambda``, ``(H, n)``, complex64 or complex128.
        P, Q: low-rank factors, ``(r, H, n)``; ``Q`` is conjugated here, so HiPPO has ``Q = P``. Any rank r >= 1.
        B: input vectors, ``(b, H, n)``.
        C: truncated output vectors ``C_tilde = C (I - A_bar^L)``, ``(c, H, n)``.
        dt: step sizes, ``(H, 1)`` or ``(H, n)``, real.
        L: length, at least 1.
        backend: a backend's name, or None for the automatic choice (see :func:`s4_fast.explain`).

    Returns:
        ``(b, c, H, L)``, real. Differentiable in every tensor.

    Raises:
        TypeError: a tensor has the wrong type, or the precisions differ.
        ValueError: shapes do not fit, ``L < 1``, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.
    """
    call = _prepare(w, P, Q, B, C, dt, L)
    choice = dispatch.choose(call, backend)
    dt = dt.to(call.dtype)
    if choice.backend == "reference":
        w, P, Q, B, C = (t.to(torch.complex128) for t in (w, P, Q, B, C))
        return reference.dplr_kernel(w, P, Q, B, C, dt.double(), L).to(call.dtype)
    return _KERNEL(w, P, Q, B, C, dt, L, backend=choice.backend)


def _prepare(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> dispatch.Call:
    op = "dplr_kernel"
    tensors = dict(zip(_TENSORS, (w, P, Q, B, C, dt), strict=True))
    device = _checks.same_device(op, **tensors)
    dtype = _checks.common_dtype(op, real=("dt",), **tensors)
    _checks.length(op, L)
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"{op}: expected w of shape (H, n) with H, n >= 1, got {tuple(w.shape)}")
    H, n = w.shape
    for name, t in (("P", P), ("Q", Q), ("B", B), ("C", C)):
        if t.ndim != 3 or t.shape[0] < 1 or tuple(t.shape[1:]) != (H, n):
            raise ValueError(f"{op}: expected {name} of shape (k, {H}, {n}) to fit w, got {tuple(t.shape)}")
    if P.shape != Q.shape:
        raise ValueError(f"{op}: expected P and Q of one shape, got {_checks.shape_of(P=P, Q=Q)}")
    if dt.ndim != 2 or dt.shape[0] != H or (dt.shape[1] != 1 and dt.shape[1] != n):
        raise ValueError(f"{op}: expected dt of shape ({H}, 1) or ({H}, {n}), got {tuple(dt.shape)}")
    shape = {"H": H, "n": n, "L": L, "rank": P.shape[0], "b": B.shape[0], "c": C.shape[0]}
    return dispatch.Call(op, device, dtype, shape, _checks.needs_grad(**tensors))


def _triton_refuses(call: dispatch.Call) -> str | None:
    rank, b, c = (call.shape[name] for name in ("rank", "b", "c"))
    if (1 << (b + rank - 1).bit_length()) * (1 << (c + rank - 1).bit_length()) > 16:
        return f"its {rank + b} x {rank + c} sums per node do not fit in registers (rank {rank}, {b} B and {c} C)"
    return _triton_calls.refuses(call)


dispatch.register_op("dplr_kernel", _prepare)
dispatch.register("dplr_kernel", "reference", f"{__name__}.reference")
dispatch.register("dplr_kernel", "pytorch", f"{__name__}.pytorch")
dispatch.register(
    "dplr_kernel",
    "triton",
    f"{__name__}.triton",
    refuses=_triton_refuses,
    preferred=_triton_calls.preferred,
)
