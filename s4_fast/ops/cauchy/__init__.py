"""Cauchy sums: for arbitrary nodes, and at the roots of unity in the form that has no singularity."""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast import dispatch
from s4_fast.ops import _checks, _native_calls, _tensor_core_calls, _triton_calls
from s4_fast.ops._layout import fold
from s4_fast.ops._library import Op
from s4_fast.ops.cauchy import plain, reference

_MULT = Op(
    "cauchy_mult",
    tensors=("v", "z", "w"),
    complex_inputs=(True, True, True),
    complex_outputs=(True,),
    scalars=("bool symmetric",),
    fake=lambda v, z, w, symmetric: v.new_empty(v.shape[0], v.shape[1], z.shape[1], 2),
    plain=plain.cauchy_mult,
).register()

_BILINEAR = Op(
    "cauchy_bilinear",
    tensors=("v", "w"),
    complex_inputs=(True, True),
    complex_outputs=(True,),
    scalars=("SymInt L",),
    fake=lambda v, w, L: v.new_empty(v.shape[0], v.shape[1], L // 2 + 1, 2),
    plain=plain.cauchy_bilinear,
).register()


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool = True, *, backend: str | None = None) -> Tensor:
    r"""The Cauchy product ``y(z) = sum_n v_n / (z - w_n)``, plus ``v_n* / (z - w_n*)`` if ``symmetric``.

    With ``symmetric`` the n terms stand for n conjugate pairs (S4: Gu, Goel, Re 2022, "Efficiently Modeling Long
    Sequences with Structured State Spaces", section 3 and appendix C). At a node equal to a pole the result is
    not finite, as the definition says.

    Args:
        v: coefficients, ``(..., n)``, complex64 or complex128.
        z: nodes, ``(Lz,)`` or ``(..., Lz)``, same dtype.
        w: poles, ``(..., n)``, same dtype. Leading dimensions broadcast.
        symmetric: whether to add the conjugate pairs.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        ``(..., Lz)``, complex. Differentiable in ``v``, ``z`` and ``w``.

    Raises:
        TypeError: a tensor is not complex, or the precisions differ.
        ValueError: shapes do not fit, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> v, w = torch.randn(2, 8, 4, dtype=torch.complex64), -torch.rand(8, 4) + 1j * torch.randn(8, 4)
        >>> z = torch.exp(2j * torch.pi * torch.arange(100) / 100)
        >>> cauchy_mult(v, z, w).shape
        torch.Size([2, 8, 100])
    """
    call, lead = _prepare_mult(v, z, w, symmetric)
    choice = dispatch.choose(call, backend)
    if choice.backend == "reference":
        wide = torch.complex128
        return reference.cauchy_mult(v.to(wide), z.to(wide), w.to(wide), symmetric).to(v.dtype)
    if all(size == 1 for size in z.shape[:-1]):
        w, v = fold(lead, w, v)
        z = z.reshape(1, -1)
    else:
        w = w.expand(*torch.broadcast_shapes(w.shape[:-1], z.shape[:-1]), w.shape[-1])
        z = z.expand(*w.shape[:-1], z.shape[-1])
        (w, v), (z, _) = fold(lead, w, v), fold(lead, z, v)
    return _MULT(v, z, w, symmetric, backend=choice.backend).view(*lead, z.shape[-1])


def cauchy_bilinear(v: Tensor, w: Tensor, L: int, *, backend: str | None = None) -> Tensor:
    r"""Cauchy sums of conjugate pairs at the L-th roots of unity, with the bilinear factor inside.

    ``rho_k = sum_n 2 v_n / ((2 - w_n) - omega_k (2 + w_n))`` plus the same of ``v_n*, w_n*``, at
    ``omega_k = exp(-2 pi i k / L)`` for ``0 <= k <= L // 2``. This is ``2/(1 + omega) sum v/(z - w)`` at the bilinear
    nodes ``z = 2 (1 - omega)/(1 + omega)`` of S4 (Gu et al. 2022, lemma C.3), finite at ``omega = -1`` too.

    Args:
        v: coefficients, ``(..., n)``, complex64 or complex128, one of each conjugate pair.
        w: poles ``dt * A``, ``(..., n)``, same dtype. Leading dimensions broadcast; those that only ``v`` has share
            one set of tables.
        L: number of roots of unity, at least 1.
        backend: a backend's name, or None for the automatic choice.

    Returns:
        ``(..., L // 2 + 1)``, complex. Differentiable in ``v`` and ``w``.

    Raises:
        TypeError: a tensor is not complex, or the precisions differ.
        ValueError: shapes do not fit, ``L < 1``, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> v, w = torch.randn(8, 4, dtype=torch.complex64), -torch.rand(8, 4) + 1j * torch.randn(8, 4)
        >>> cauchy_bilinear(v, w, 100).shape
        torch.Size([8, 51])
    """
    call, lead = _prepare_bilinear(v, w, L)
    L = call.shape["L"]
    choice = dispatch.choose(call, backend)
    if choice.backend == "reference":
        return reference.cauchy_bilinear(v.to(torch.complex128), w.to(torch.complex128), L).to(v.dtype)
    w, v = fold(lead, w, v)
    return _BILINEAR(v, w, L, backend=choice.backend).view(*lead, L // 2 + 1)


def _prepare_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool = True) -> tuple[dispatch.Call, torch.Size]:
    op = "cauchy_mult"
    device = _checks.same_device(op, v=v, z=z, w=w)
    dtype = _checks.common_dtype(op, v=v, z=z, w=w)
    n = _checks.same_states(op, v=v, w=w)
    if z.ndim < 1 or z.shape[-1] < 1:
        raise ValueError(f"{op}: expected z of shape (..., Lz) with Lz >= 1, got {tuple(z.shape)}")
    lead = _checks.broadcast_lead(op, v=v, z=z, w=w)
    shape = {"H": lead.numel(), "n": n, "L": z.shape[-1], "symmetric": int(symmetric)}
    return dispatch.Call(op, device, dtype, shape, _checks.needs_grad(v=v, z=z, w=w)), lead


def _prepare_bilinear(v: Tensor, w: Tensor, L: int) -> tuple[dispatch.Call, torch.Size]:
    op = "cauchy_bilinear"
    device = _checks.same_device(op, v=v, w=w)
    dtype = _checks.common_dtype(op, v=v, w=w)
    n = _checks.same_states(op, v=v, w=w)
    L = _checks.length(op, L)
    lead = _checks.broadcast_lead(op, v=v, w=w)
    return dispatch.Call(op, device, dtype, {"H": lead.numel(), "n": n, "L": L}, _checks.needs_grad(v=v, w=w)), lead


def _native_refuses_bilinear(call: dispatch.Call) -> str | None:
    if call.device != "cpu":
        return f"it sums at the roots of unity on the CPU; the tensors are on {call.device!r}"
    return _native_calls.refuses(call)


def _native_prefers_bilinear(call: dispatch.Call) -> bool:
    """Where n reciprocals a node take less than a node's share of the FFT form.

    Forward and backward on one busy core with AVX-512 (PyTorch 2.13) they took 0.12 to 0.9 of its time with n L below
    2^20, 0.2 to 1.1 at 2^20, 0.7 to 1.9 beyond with n = 32, 64 and 256, and 0.2 to 0.5 with n = 3 and 16 at L = 2^18
    and 2^20.
    """
    n, L = call.shape["n"], call.shape["L"]
    return n <= 16 or n * L <= 1 << 20


dispatch.register_op("cauchy_mult", lambda *args, **kwargs: _prepare_mult(*args, **kwargs)[0])
dispatch.register_op("cauchy_bilinear", lambda *args, **kwargs: _prepare_bilinear(*args, **kwargs)[0])
for _op in ("cauchy_mult", "cauchy_bilinear"):
    dispatch.register(_op, "reference", f"{__name__}.reference")
    dispatch.register(_op, "pytorch", f"{__name__}.pytorch")
    dispatch.register(
        _op, "triton", f"{__name__}.triton", refuses=_triton_calls.refuses, preferred=_triton_calls.preferred
    )
dispatch.register("cauchy_mult", "keops", f"{__name__}.keops", preferred=lambda call: False)
dispatch.register("cauchy_mult", "native", f"{__name__}.native", refuses=_native_calls.refuses)
dispatch.register(
    "cauchy_bilinear",
    "native",
    f"{__name__}.native",
    refuses=_native_refuses_bilinear,
    preferred=_native_prefers_bilinear,
)
dispatch.register("cauchy_bilinear", "tensor_cores", f"{__name__}.tensor_cores", refuses=_tensor_core_calls.refuses)
