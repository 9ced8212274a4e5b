"""The recurrence of a diagonal SSM in linear time: over a sequence from state to state, and one step of it."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from s4_fast import dispatch
from s4_fast.ops import _checks, _native_calls, _tensor_core_calls
from s4_fast.ops._library import Op
from s4_fast.ops.scan import plain, reference

_SCAN = Op(
    "ssm_scan",
    tensors=("u", "x", "B", "C", "D", "state"),
    complex_inputs=(False, True, True, True, False, True),
    complex_outputs=(False, True),
    scalars=("bool time_major",),
    fake=lambda u, x, B, C, D, state, time_major: (u.new_empty(u.shape), u.new_empty(u.shape[0], *x.shape)),
    plain=plain.ssm_scan,
).register()

_STEP = Op(
    "ssm_step",
    tensors=("u", "state", "x", "B", "C", "D"),
    complex_inputs=(False, True, True, True, True, False),
    complex_outputs=(False, True),
    scalars=(),
    fake=lambda u, state, x, B, C, D: (u.new_empty(u.shape), state.new_empty(state.shape)),
    plain=plain.ssm_step,
).register()


@overload
def ssm_scan(
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: Literal[False] = False,
    *,
    backend: str | None = None,
) -> Tensor: ...


@overload
def ssm_scan(
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    return_state: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def ssm_scan(
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    *,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""A diagonal SSM over a sequence, ``s_l = exp(x) s_{l-1} + B u_l``, ``y_l = 2 Re sum_n C s_l + D u_l``.

    This is the recurrent form of S4D (Gu et al. 2022, arXiv 2206.11893, section 2). It is the same as ``fft_conv(u,
    log_vandermonde(C * B, x, L), D)`` where ``state`` is None, without a kernel, in time and memory linear in L. A
    sequence may be cut anywhere: pass the state that the first part returns to the second, and outputs, final state and
    gradients are those of the whole.

    A sample that is not finite leaves other rows and features alone, and on the CPU all outputs before it. On CUDA
    devices it also makes those before it in its own chunk NaN: ``native`` has chunks of 64 samples, or 32 in float64,
    ``pytorch`` of 64 to 256. A finite sample, however large, changes no bit before it.

    Args:
        u: signals, ``(batch, H, L)``, float32 or float64. ``native`` reads a view ``v.mT`` of a
            contiguous ``v (batch, L, H)`` as it lies, and ``y`` and the gradient of ``u`` are then such views too.
        x: logarithms of the decays per step, ``(H, n)``, complex of the same precision.
        B: input coefficients, ``(H, n)``, one of each conjugate pair.
        C: output coefficients, ``(H, n)``, likewise.
        D: skip coefficients, ``(H,)``, real, or None.
        state: ``s_{-1}``, ``(batch, H, n)``, complex, or None for 0.
        return_state: whether to return the state after the sequence too.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        ``y`` ``(batch, H, L)``, or ``(y, s_{L-1})`` with the state ``(batch, H, n)`` if ``return_state``. Both are
        differentiable in every tensor.

    Raises:
        TypeError: ``u`` or ``D`` is not real, another tensor not complex, or the precisions differ.
        ValueError: shapes do not fit, L or n is 0, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> u, x = torch.randn(2, 8, 100), -torch.rand(8, 4) + 1j * torch.randn(8, 4)
        >>> B, C = torch.randn(2, 8, 4, dtype=torch.complex64)
        >>> y, state = ssm_scan(u, x, B, C, return_state=True)
        >>> y.shape, state.shape
        (torch.Size([2, 8, 100]), torch.Size([2, 8, 4]))
        >>> halves = ssm_scan(u[..., :50], x, B, C), ssm_scan(u[..., :50], x, B, C, return_state=True)[1]
        >>> torch.allclose(ssm_scan(u[..., 50:], x, B, C, state=halves[1]), y[..., 50:], atol=1e-4)
        True
    """
    call = _prepare_scan(u, x, B, C, D, state)
    choice = dispatch.choose(call, backend)
    u, D = _real(u, call.dtype), _real(u.new_empty(0) if D is None else D, call.dtype)
    state = x.new_empty(0) if state is None else state
    turned = not u.is_contiguous() and u.mT.is_contiguous()
    if choice.backend == "reference" and u.numel():  # there is no FFT of nothing
        y, final = _rounded(reference.ssm_scan(*map(_widened, (u, x, B, C, D, state))), u, x)
    elif turned and dispatch.offers("ssm_scan", choice.backend, "time_major", call.device):
        y, final = _SCAN(u.mT, x, B, C, D, state, True, backend=choice.backend)
        y = y.mT
    else:
        # Here and not in the op: autograd keeps the copy, which the backward pass needs too.
        y, final = _SCAN(u.contiguous(), x, B, C, D, state, False, backend=choice.backend)
    return (y, final) if return_state else y


def ssm_step(
    u: Tensor,
    state: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One step of a diagonal SSM, ``s = exp(x) state + B u``, ``y = 2 Re sum_n C s + D u``.

    From the zero state, steps give the outputs of ``ssm_scan`` (S4D: Gu et al. 2022, arXiv 2206.11893, section 2).

    Args:
        u: samples, ``(batch, H)``, float32 or float64.
        state: the state before, ``(batch, H, n)``, complex of the same precision.
        x: logarithms of the decays per step, ``(H, n)``, complex.
        B: input coefficients, ``(H, n)``, one of each conjugate pair.
        C: output coefficients, ``(H, n)``, likewise.
        D: skip coefficients, ``(H,)``, real, or None.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        ``y`` ``(batch, H)`` and the state after, ``(batch, H, n)``. Both are differentiable in every tensor.

    Raises:
        TypeError: ``u`` or ``D`` is not real, another tensor not complex, or the precisions differ.
        ValueError: shapes do not fit, n is 0, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> x, state = -torch.rand(8, 4) + 1j * torch.randn(8, 4), torch.zeros(2, 8, 4, dtype=torch.complex64)
        >>> B, C = torch.randn(2, 8, 4, dtype=torch.complex64)
        >>> y, state = ssm_step(torch.randn(2, 8), state, x, B, C)
        >>> y.shape, state.shape
        (torch.Size([2, 8]), torch.Size([2, 8, 4]))
    """
    call = _prepare_step(u, state, x, B, C, D)
    choice = dispatch.choose(call, backend)
    u, D = _real(u, call.dtype), _real(u.new_empty(0) if D is None else D, call.dtype)
    if choice.backend == "reference":
        return _rounded(reference.ssm_step(*map(_widened, (u, state, x, B, C, D))), u, x)
    return _STEP(u, state, x, B, C, D, backend=choice.backend)


def _real(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype == dtype else t.to(dtype)


def _widened(t: Tensor) -> Tensor:
    return t.to(torch.complex128 if t.is_complex() else torch.float64)


def _rounded(outputs: tuple[Tensor, Tensor], u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return outputs[0].to(u.dtype), outputs[1].to(x.dtype)


def _prepare_scan(
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
) -> dispatch.Call:
    op = "ssm_scan"
    if u.ndim != 3 or u.shape[-1] < 1:
        raise ValueError(f"{op}: expected u of shape (batch, H, L) with L >= 1, got {tuple(u.shape)}")
    return _prepare(op, {"L": u.shape[2]}, u, x, B, C, D, state)


def _prepare_step(u: Tensor, state: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> dispatch.Call:
    op = "ssm_step"
    if u.ndim != 2:
        raise ValueError(f"{op}: expected u of shape (batch, H), got {tuple(u.shape)}")
    return _prepare(op, {}, u, x, B, C, D, state)


def _prepare(
    op: str,
    sizes: dict[str, int],
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
) -> dispatch.Call:
    tensors = {"u": u, "x": x, "B": B, "C": C}
    if D is not None:
        tensors["D"] = D
    if state is not None:
        tensors["state"] = state
    device = _checks.same_device(op, **tensors)
    dtype = _checks.common_dtype(op, real=("u", "D"), **tensors)
    batch, H, *_ = u.shape
    if x.ndim != 2 or x.shape[0] != H or x.shape[1] < 1:
        raise ValueError(f"{op}: expected x of shape (H, n) with H = {H} and n >= 1, got {tuple(x.shape)}")
    n = x.shape[1]
    for name, t, shape in (("B", B, (H, n)), ("C", C, (H, n)), ("D", D, (H,)), ("state", state, (batch, H, n))):
        if t is not None and t.shape != shape:
            fit = f"{op}: expected {name} of shape {shape} to fit u {tuple(u.shape)} and x {tuple(x.shape)}"
            raise ValueError(f"{fit}, got {tuple(t.shape)}")
    return dispatch.Call(op, device, dtype, {"batch": batch, "H": H, "n": n, **sizes}, _checks.needs_grad(**tensors))


dispatch.register_op("ssm_scan", _prepare_scan)
dispatch.register_op("ssm_step", _prepare_step)
for _op, _offers in (("ssm_scan", {"time_major": ("cpu", "cuda")}), ("ssm_step", {"prepared_step": ("cpu",)})):
    dispatch.register(_op, "reference", f"{__name__}.reference")
    dispatch.register(_op, "pytorch", f"{__name__}.pytorch")
    dispatch.register(_op, "native", f"{__name__}.native", refuses=_native_calls.refuses, offers=_offers)
dispatch.register(
    "ssm_scan",
    "tensor_cores",
    f"{__name__}.tensor_cores",
    refuses=_tensor_core_calls.refuses,
    offers={"time_major": ("cuda",)},
)
