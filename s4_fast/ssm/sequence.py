"""The one way through a sequence: scan or convolution, both directions, states, lengths, and slices over processes.

Layers keep shapes, mixing and names. What they hand over here is a model, signals in either layout, and what is asked
for; ``time_major`` says whether signals are (batch, length, features) or (batch, features, length).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from s4_fast import dispatch, torch_private
from s4_fast.backend_table import SCAN_THRESHOLDS
from s4_fast.dispatch import BackendUnavailableError, Call
from s4_fast.ops import fft_conv
from s4_fast.ssm.layout import turned
from s4_fast.ssm.model import SSMModel
from s4_fast.ssm.parameters import HALF

if TYPE_CHECKING:
    from s4_fast.distributed import Slices

PATHS = ("auto", "scan", "convolution")


class Path(NamedTuple):
    """``"scan"`` or ``"convolution"``, and why."""

    name: str
    reason: str


class Way(NamedTuple):
    """How a layer goes through a sequence."""

    time_major: bool = True
    bidirectional: bool = False
    rate: float = 1.0
    path: str = "auto"
    taps: int | None = None  # the kernel's length, where it is less than the sequence's
    change: Callable[[Tensor], Tensor] | None = None  # of the kernel, (channels, d_model, L)


def choose(model: SSMModel, batch: int, L: int, way: Way) -> Path:
    """The path of ``model`` over (batch, L) samples per feature. Backends are chosen as for every op."""
    if not model.scans():
        return Path("convolution", f"{type(model).__name__} has no scan")
    if way.change is not None or (way.taps is not None and way.taps < L):
        return Path("convolution", "the kernel itself is cut or changed")
    if torch_private.has_hooks(model):
        return Path("convolution", "hooks are to see the kernel")
    if way.path != "auto":
        return Path(way.path, "requested by path=")
    return faster(model, batch, L)


def faster(model: SSMModel, batch: int, L: int) -> Path:
    """The faster path of a ``model`` that scans."""
    n, C = model.d_state // 2, model.C
    shape = {"batch": batch, "H": model.d_model, "n": n, "L": L}
    try:
        call = Call("diagonal_ssm", C.device.type, model.real_dtype(), shape)
        backend = dispatch.choose(call, model.backend).backend
    except BackendUnavailableError as error:
        return Path("convolution", f"the requested backend has no scan: {error}")
    wanted = model.backend or dispatch.requested() or "auto"
    if wanted not in ("auto", backend):
        return Path("convolution", f"backend {wanted} has no scan")
    threshold = SCAN_THRESHOLDS.get((C.device.type, backend))
    if threshold is None:
        return Path(
            "convolution", f"automatic: the scan has not been measured on {C.device.type} with backend {backend}"
        )
    least = 1 if n <= threshold.states else threshold.length * n
    faster = f"automatic: for n = {n} the {backend} scan is the faster path from L = {least} on"
    return Path("scan" if L >= least else "convolution", faster)


def through(
    model: SSMModel,
    u: Tensor,
    D: Tensor | None,
    way: Way,
    *,
    state: Tensor | None = None,
    ahead: Tensor | None = None,
    lengths: Tensor | None = None,
    return_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``k * u + D u`` over a whole sequence, from state to state.

    Args:
        model: the kernel k and its recurrence.
        u: signals in ``way``'s layout, zero beyond the rows' ends; in half precision they stay so, whatever is inside.
        D: (d_model,) or (c, d_model), or None.
        way: layout, directions, rate, and which path.
        state: the state before, (batch, d_model, n), or None for 0.
        ahead: the state that what follows u leaves behind at its end, in reversed time.
        lengths: (batch,), the lengths of right-padded rows.
        return_state: whether the state after the (row's) last sample is wanted.

    Returns:
        y like u with c d_model features, contiguous, and the state or None.
    """
    batch, L = u.shape[0], u.shape[1 if way.time_major else 2]
    after: Tensor | None
    if choose(model, batch, L, way).name == "scan":
        y, after = model.scan(
            u, D, state, ahead, rate=way.rate, bidirectional=way.bidirectional, time_major=way.time_major
        )
        if return_state and lengths is not None:
            after = model.state_after(_by_feature(u, way), state, lengths, way.rate)
        # What comes next works on whole rows of memory, and so does its gradient.
        y = y if y.is_contiguous() else turned(y.mT)
    else:
        with model.computed_once():
            signals = _by_feature(u, way)
            y = _convolved(model, signals, D, way, state, ahead).to(u.dtype)
            y = turned(y) if way.time_major else y
            after = model.state_after(signals, state, lengths, way.rate) if return_state else None
    return y, after if return_state else None


def _by_feature(u: Tensor, way: Way) -> Tensor:
    """(batch, d_model, L), contiguous, in the precision that is computed with."""
    u = u.mT if way.time_major else u
    return u.to(torch.float32).contiguous() if u.dtype in HALF else u.contiguous()


def _convolved(
    model: SSMModel, u: Tensor, D: Tensor | None, way: Way, state: Tensor | None, ahead: Tensor | None
) -> Tensor:
    """(batch, c d_model, L) by the kernel and an FFT convolution."""
    L = u.shape[-1]
    k = model.seen_kernel(L if way.taps is None else min(L, way.taps), way.rate)
    if way.change is not None:
        k = way.change(k)
    c = len(k) // 2 if way.bidirectional else len(k)
    if D is not None:
        D = (D.float() if D.dtype in HALF else D).view(c, -1)
    y = fft_conv(u, k[:c], D)
    if way.bidirectional:
        # The second kernel meets each sample one later.
        late = pad(k[c:], (1, 0))[..., :L]
        y = y + fft_conv(u.flip(-1), late).flip(-1)
        if ahead is not None:
            y = y + model.response(ahead, L, way.rate)[:, c:].flip(-1)
    if state is not None:
        y = y + model.free_response(state, L, way.rate)[:, :c]
    return y.flatten(1, 2)


def through_slice(
    model: SSMModel,
    slices: Slices,
    u: Tensor,
    D: Tensor | None,
    way: Way,
    *,
    state: Tensor | None,
    return_state: bool,
    tied: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor | None]:
    """:func:`through` for this rank's slice u, from the state before the whole sequence to that after it.

    ``tied`` are the tensors of which a rank without samples must have gradients too.
    """
    signals, L = _by_feature(u, way), u.shape[1 if way.time_major else 2]
    model.prepare(max(slices.lengths))  # what it changes must change alike on all ranks
    # 0, for the graph: a rank without samples has its part in the backward pass, and gradients of 0.
    ties: Any = sum(t.flatten()[:0].sum() for t in (u, *tied)) if L == 0 else 0
    with model.computed_once():
        advance = model.propagator(way.rate)
        final = model.state_after(signals, None, None, way.rate) + ties
        start, last = slices.carry(final, advance, state, return_state=return_state)
        ahead = None
        if way.bidirectional:
            final = model.state_after(signals.flip(-1), None, None, way.rate) + ties
            ahead, _ = slices.carry(final, advance, reverse=True)
        if L:
            y, _ = through(model, u, D, way, state=start, ahead=ahead)
        else:
            y = u + ties + start.real.sum() * 0
            y = y if ahead is None else y + ahead.real.sum() * 0
    return y, last if return_state else None


def as_autocast(u: Tensor) -> Tensor:
    """u in the dtype that autocast gives to ``nn.Linear``, where it is on and u is not float64."""
    device = u.device.type
    if torch.is_autocast_enabled(device) and u.is_floating_point() and u.dtype is not torch.float64:
        return u.to(torch.get_autocast_dtype(device))
    return u
