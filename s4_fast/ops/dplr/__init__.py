"""The convolution kernel of a diagonal-plus-low-rank SSM (S4), and one step of its recurrence."""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast import dispatch, native_library
from s4_fast.ops import _checks, _native_calls, _tensor_core_calls, _triton_calls
from s4_fast.ops._library import Op
from s4_fast.ops.direct import is_transformed, only_autograd_sees
from s4_fast.ops.dplr import plain, pytorch, reference

_TENSORS = ("w", "P", "Q", "B", "C", "dt")
_STEP_TENSORS = ("u", "state", "increment", "G", "V", "B", "C", "D")

_KERNEL = Op(
    "dplr_kernel",
    tensors=_TENSORS,
    complex_inputs=(True, True, True, True, True, False),
    complex_outputs=(False,),
    scalars=("SymInt L",),
    fake=lambda w, P, Q, B, C, dt, L: w.new_empty(B.shape[0], C.shape[0], w.shape[0], L),
    plain=plain.dplr_kernel,
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
    ``cauchy_bilinear`` of ``dt X Y``  (S4: Gu, Goel, Re 2022, algorithm 1, with the factor ``2/(1 + omega)``
    inside the sums).

    Args:
        w: ``dt * Lambda``, ``(H, n)``, complex64 or complex128. One that lies on a node, as w = 0 does on omega = 1,
            gives NaN: FouT has such a mode, whose decay the modules keep above 0.
        P: low-rank factors, ``(r, H, n)``, of any rank r >= 1.
        Q: low-rank factors, ``(r, H, n)``, which are conjugated here, so HiPPO has ``Q = P``.
        B: input vectors, ``(b, H, n)``.
        C: truncated output vectors ``C_tilde = C (I - A_bar^L)``, ``(c, H, n)``.
        dt: step sizes, ``(H, 1)`` or ``(H, n)``, real.
        L: length, at least 1.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        ``(b, c, H, L)``, real. Differentiable in every tensor.

    Raises:
        TypeError: a tensor has the wrong type, or the precisions differ.
        ValueError: shapes do not fit, ``L < 1``, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> dt, w = torch.full((8, 1), 0.01), -0.5 + 1j * torch.pi * torch.arange(1, 5).expand(8, 4)
        >>> P, B, C = torch.randn(3, 1, 8, 4, dtype=torch.complex64)
        >>> dplr_kernel(dt * w, P, P, B, C, dt, 100).shape
        torch.Size([1, 1, 8, 100])
    """
    call = _prepare(w, P, Q, B, C, dt, L)
    L = call.shape["L"]
    choice = dispatch.choose(call, backend)
    dt = dt.to(call.dtype)
    if choice.backend == "reference":
        w, P, Q, B, C = (t.to(torch.complex128) for t in (w, P, Q, B, C))
        return reference.dplr_kernel(w, P, Q, B, C, dt.double(), L).to(call.dtype)
    return _KERNEL(w, P, Q, B, C, dt, L, backend=choice.backend)


def dplr_step(
    u: Tensor,
    state: Tensor,
    increment: Tensor,
    G: Tensor,
    V: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""One step of a diagonal-plus-low-rank recurrence, in O(n) per feature.

    ``s' = s + increment s - sum_r G_r (2 Re sum_n V_r s) + B u``, ``y_c = 2 Re sum_n C_c s' + D u``, over one of each
    conjugate pair (S4: Gu, Goel, Re 2022, arXiv 2111.00396, appendix C.2). The increment is lambda - 1 of the diagonal
    part. The next state is formed in complex128 and rounded once: what a complex64 increment has lost of lambda adds up
    over the steps, so give it in complex128.

    Args:
        u: input, ``(batch, H)``, float32 or float64.
        state: ``(batch, H, n)``, complex of the same precision, as are the following.
        increment: ``(H, n)``, complex64 or complex128, whatever the rest is.
        G: low-rank factors of the step, ``(r, H, n)``, of any rank r >= 1.
        V: low-rank factors of the step, ``(r, H, n)``.
        B: input vector, ``(H, n)``.
        C: output vectors, ``(c, H, n)``.
        D: skip coefficients, ``(H,)``, real, or None.
        backend: a backend's name, or None for the automatic choice. ``"native"`` takes no part in graphs and
            modes, nor on CUDA devices in gradients; under transforms operations of PyTorch take its place.

    Returns:
        ``y`` ``(batch, c, H)``, real, and the next state. Differentiable in every tensor.

    Raises:
        TypeError: a tensor has the wrong type, or the precisions differ.
        ValueError: shapes do not fit, or the tensors are on different devices.
        BackendUnavailableError: ``backend`` cannot serve the call.

    Examples:
        >>> model = s4_fast.DPLRSSM(8, 16)
        >>> increment, G, V, B, C = model.discretize()
        >>> y, state = dplr_step(torch.randn(2, 8), model.init_state(2), increment, G, V, B, C)
        >>> y.shape, state.shape
        (torch.Size([2, 1, 8]), torch.Size([2, 8, 8]))
    """
    call = _prepare_step(u, state, increment, G, V, B, C, D)
    choice = dispatch.choose(call, backend)
    increment = increment.to(torch.complex128)
    if choice.backend == "reference":
        given = (u, state, increment, G, V, B, C, *(() if D is None else (D,)))
        wide = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in given)
        y, following = reference.dplr_step(*wide)
        return y.to(call.dtype), following.to(state.dtype)
    # What load does, the import of a module, cannot be part of a compiled graph; of the others pytorch alone can, and
    # it alone is made of operations that transforms and derivatives of any order go through.
    plainly = torch.compiler.is_compiling() or is_transformed((u, state, increment, G, V, B, C, D))
    module = pytorch if plainly else dispatch.load("dplr_step", choice.backend)
    D = None if D is None else D.to(call.dtype)
    return module.dplr_step(u.to(call.dtype), state, increment, G, V, B, C, D)


def _prepare(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> dispatch.Call:
    op = "dplr_kernel"
    tensors = dict(zip(_TENSORS, (w, P, Q, B, C, dt), strict=True))
    device = _checks.same_device(op, **tensors)
    dtype = _checks.common_dtype(op, real=("dt",), **tensors)
    L = _checks.length(op, L)
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


def _prepare_step(
    u: Tensor,
    state: Tensor,
    increment: Tensor,
    G: Tensor,
    V: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
) -> dispatch.Call:
    op = "dplr_step"
    named = zip(_STEP_TENSORS, (u, state, increment, G, V, B, C, D), strict=True)
    tensors = {name: t for name, t in named if t is not None}
    device = _checks.same_device(op, **tensors)
    _checks.common_dtype(op, increment=increment)
    dtype = _checks.common_dtype(op, real=("u", "D"), **{k: t for k, t in tensors.items() if k != "increment"})
    if state.ndim != 3 or 0 in state.shape[1:]:
        raise ValueError(f"{op}: expected state of shape (batch, H, n) with H, n >= 1, got {tuple(state.shape)}")
    batch, H, n = state.shape
    vectors = (("u", u, (batch, H)), ("increment", increment, (H, n)), ("B", B, (H, n)), ("D", D, (H,)))
    for name, t, expected in vectors:
        if t is not None and t.shape != expected:
            raise ValueError(f"{op}: expected {name} of shape {expected} to fit state, got {tuple(t.shape)}")
    for name, t in (("G", G), ("V", V), ("C", C)):
        if t.ndim != 3 or t.shape[0] < 1 or t.shape[1:] != (H, n):
            raise ValueError(f"{op}: expected {name} of shape (k, {H}, {n}) to fit state, got {tuple(t.shape)}")
    if G.shape != V.shape:
        raise ValueError(f"{op}: expected G and V of one shape, got {_checks.shape_of(G=G, V=V)}")
    shape = {"batch": batch, "H": H, "n": n, "rank": G.shape[0], "c": C.shape[0]}
    given = tuple(tensors.values())
    watched = not (only_autograd_sees(given) or is_transformed(given))
    return dispatch.Call(op, device, dtype, shape, _checks.needs_grad(**tensors), watched)


def _native_refuses_kernel(call: dispatch.Call) -> str | None:
    return _native_calls.refuses(call) or _native_refuses_sums(call)


def _tensor_cores_refuse(call: dispatch.Call) -> str | None:
    return _tensor_core_calls.refuses(call) or _native_refuses_sums(call)


def _native_refuses_sums(call: dispatch.Call) -> str | None:
    rank, b, c = (call.shape[name] for name in ("rank", "b", "c"))
    most = native_library.limit(f"{call.device}_dplr_sums")
    if (b + rank) * (c + rank) > most:
        return f"it takes at most {most} sums, not {b + rank} x {c + rank} (rank {rank}, {b} B and {c} C)"
    return _native_refuses_rank(rank, f"{call.device}_dplr_rank")


def _native_refuses_step(call: dispatch.Call) -> str | None:
    if torch.compiler.is_compiling():
        return "its step is not part of compiled graphs"
    if call.watched:
        return "its step takes no part in modes"
    if call.grads and call.device != "cpu":
        return f"its step has no gradients on {call.device}, and {', '.join(call.grads)} need them"
    return _native_calls.refuses(call) or _native_refuses_rank(call.shape["rank"], f"{call.device}_dplr_step_rank")


def _native_refuses_rank(rank: int, limit: str) -> str | None:
    most = native_library.limit(limit)
    return f"it takes a rank of at most {most}, not {rank}" if rank > most else None


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
dispatch.register("dplr_kernel", "native", f"{__name__}.native", refuses=_native_refuses_kernel)
dispatch.register("dplr_kernel", "tensor_cores", f"{__name__}.tensor_cores", refuses=_tensor_cores_refuse)

dispatch.register_op("dplr_step", _prepare_step)
dispatch.register("dplr_step", "reference", f"{__name__}.reference")
dispatch.register("dplr_step", "pytorch", f"{__name__}.pytorch")
dispatch.register(
    "dplr_step", "native", f"{__name__}.native", refuses=_native_refuses_step, offers={"prepared_step": ("cpu",)}
)
