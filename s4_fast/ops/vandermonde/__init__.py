"""Vandermonde products with nodes exp(x): the S4D convolution kernel and its transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast import dispatch
from s4_fast.ops import _checks, _native_calls, _tensor_core_calls, _triton_calls
from s4_fast.ops._layout import fold
from s4_fast.ops._library import Op
from s4_fast.ops.vandermonde import plain, reference

_FORWARD = Op(
    "log_vandermonde",
    tensors=("v", "x"),
    complex_inputs=(True, True),
    complex_outputs=(False,),
    scalars=("SymInt L",),
    fake=lambda v, x, L: v.new_empty(v.shape[0], v.shape[1], L),
    plain=plain.log_vandermonde,
).register()

_TRANSPOSE = Op(
    "log_vandermonde_transpose",
    tensors=("u", "v", "x"),
    complex_inputs=(False, True, True),
    complex_outputs=(True,),
    scalars=("SymInt L",),
    fake=lambda u, v, x, L: v.new_empty(v.shape),
    plain=plain.log_vandermonde_transpose,
).register()


def log_vandermonde(v: Tensor, x: Tensor, L: int, *, backend: str | None = None) -> Tensor:
    r"""The Vandermonde product of conjugate pairs, ``K[l] = 2 Re sum_n v_n exp(x_n l)`` for ``0 <= l < L``.

    This is the convolution kernel of a discretised diagonal SSM with ``v = C * B_bar`` and ``x = log(lambda)``
    (S4D: Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models", eq. 6).

    Args:
        v: coefficients, ``(..., n)``, complex64 or complex128, one of each conjugate pair.
        x: logarithms of the nodes per step, ``(..., n)``, same dtype. Leading dimensions broadcast; those that
            only ``v`` has share one set of tables.
        L: length, at least 1.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        ``(..., L)``, real, float32 or float64. Differentiable in ``v`` and ``x``.

    Raises:
        TypeError: a tensor is not complex, or the precisions differ.
        ValueError: shapes do not fit, ``L < 1``, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> v, x = torch.randn(2, 8, 4, dtype=torch.complex64), -torch.rand(8, 4) + 1j * torch.randn(8, 4)
        >>> log_vandermonde(v, x, 100).shape
        torch.Size([2, 8, 100])
    """
    call, lead = _prepare(v, x, L)
    L = call.shape["L"]
    choice = dispatch.choose(call, backend)
    if choice.backend == "reference":
        return reference.log_vandermonde(v.to(torch.complex128), x.to(torch.complex128), L).to(call.dtype)
    x, v = fold(lead, x, v)
    return _FORWARD(v, x, L, backend=choice.backend).view(*lead, L)


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int, *, backend: str | None = None) -> Tensor:
    r"""The transposed Vandermonde product, ``y_n = sum_l u_l v_n exp(x_n l)`` over ``0 <= l < L``.

    With ``u`` reversed in time and ``v = B_bar`` this is the state of a diagonal SSM after a sequence: the recurrence
    of S4D (Gu et al. 2022, arXiv 2206.11893, section 2), unrolled.

    Args:
        u: real signal, ``(..., L)``, float32 or float64.
        v: coefficients, ``(..., n)``, complex of the same precision.
        x: logarithms of the nodes per step, ``(..., n)``. Leading dimensions broadcast.
        L: length of ``u``, at least 1.
        backend: a backend's name, or None for the automatic choice.

    Returns:
        ``(..., n)``, complex. Differentiable in ``u``, ``v`` and ``x``.

    Raises:
        TypeError: ``u`` is not real, ``v`` or ``x`` not complex, or the precisions differ.
        ValueError: shapes do not fit, ``L < 1``, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> u, B = torch.randn(2, 8, 100), torch.randn(8, 4, dtype=torch.complex64)
        >>> x = -torch.rand(8, 4) + 1j * torch.randn(8, 4)
        >>> state = log_vandermonde_transpose(u.flip(-1), B, x, 100)
        >>> state.shape
        torch.Size([2, 8, 4])
    """
    call, lead = _prepare_transpose(u, v, x, L)
    L = call.shape["L"]
    choice = dispatch.choose(call, backend)
    u = u.to(call.dtype)
    if choice.backend == "reference":
        out = reference.log_vandermonde_transpose(u.double(), v.to(torch.complex128), x.to(torch.complex128), L)
        return out.to(v.dtype)
    x, u, v = fold(lead, x, u, v)
    return _TRANSPOSE(u, v, x, L, backend=choice.backend).view(*lead, x.shape[-1])


def _prepare(v: Tensor, x: Tensor, L: int) -> tuple[dispatch.Call, torch.Size]:
    op = "log_vandermonde"
    device = _checks.same_device(op, v=v, x=x)
    dtype = _checks.common_dtype(op, v=v, x=x)
    n = _checks.same_states(op, v=v, x=x)
    L = _checks.length(op, L)
    lead = _checks.broadcast_lead(op, v=v, x=x)
    return dispatch.Call(op, device, dtype, {"H": lead.numel(), "n": n, "L": L}, _checks.needs_grad(v=v, x=x)), lead


def _prepare_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> tuple[dispatch.Call, torch.Size]:
    op = "log_vandermonde_transpose"
    device = _checks.same_device(op, u=u, v=v, x=x)
    dtype = _checks.common_dtype(op, real=("u",), u=u, v=v, x=x)
    n = _checks.same_states(op, v=v, x=x)
    L = _checks.length(op, L)
    if u.ndim < 1 or u.shape[-1] != L:
        raise ValueError(f"{op}: expected u of shape (..., L) with L = {L}, got {tuple(u.shape)}")
    lead = _checks.broadcast_lead(op, u=u, v=v, x=x)
    return dispatch.Call(
        op, device, dtype, {"H": lead.numel(), "n": n, "L": L}, _checks.needs_grad(u=u, v=v, x=x)
    ), lead


dispatch.register_op("log_vandermonde", lambda *args, **kwargs: _prepare(*args, **kwargs)[0])
dispatch.register_op("log_vandermonde_transpose", lambda *args, **kwargs: _prepare_transpose(*args, **kwargs)[0])
for _op in ("log_vandermonde", "log_vandermonde_transpose"):
    dispatch.register(_op, "reference", f"{__name__}.reference")
    dispatch.register(_op, "pytorch", f"{__name__}.pytorch")
    dispatch.register(_op, "keops", f"{__name__}.keops", preferred=lambda call: False)
    dispatch.register(
        _op, "triton", f"{__name__}.triton", refuses=_triton_calls.refuses_products, preferred=_triton_calls.preferred
    )
    dispatch.register(_op, "native", f"{__name__}.native", refuses=_native_calls.refuses)
    dispatch.register(_op, "tensor_cores", f"{__name__}.tensor_cores", refuses=_tensor_core_calls.refuses)
