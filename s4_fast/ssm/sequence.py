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
from s4_fast.backend_table import BACKENDS, SCAN_THRESHOLDS
from s4_fast.dispatch import BackendUnavailableError, Call, Choice
from s4_fast.ops import fft_conv
from s4_fast.ops._checks import needs_grad
from s4_fast.ssm.layout import lies_turned, turned
from s4_fast.ssm.model import Scan, SSMModel
from s4_fast.ssm.parameters import full

if TYPE_CHECKING:
    from s4_fast.distributed import Slices

PATHS = ("auto", "scan", "convolution")
_FEW_AND_MANY = (1, 1 << 24)  # samples


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
    forced = _forced(model, L, way)
    if forced is not None:
        return forced
    call = _call(model, batch, L, way)
    try:
        choice = dispatch.choose(call, model.backend)
    except BackendUnavailableError as error:
        return Path("convolution", f"the requested backend has no scan: {error}")
    return faster(model, call.device, choice, L)


def _call(model: SSMModel, batch: int, L: int, way: Way) -> Call:
    """The call of the scan, whichever path is taken."""
    directions = 2 if way.bidirectional else 1
    shape = {"batch": batch, "H": model.d_model, "n": model.d_state // 2, "L": L}
    shape |= {"channels": model.channels // directions, "directions": directions}
    return Call(model.scan_op, model.C.device.type, model.real_dtype(), shape, needs_grad(C=model.C))


def described(model: SSMModel, way: Way) -> str:
    """Path and backend that would run now, for a module's ``repr``, which is also asked of modules that cannot run."""
    try:
        paths = {choose(model, 1, L, way).name for L in _FEW_AND_MANY}
        try:
            choice = dispatch.choose(_call(model, 1, 1, way), model.backend)
            backend = choice.replaces or choice.backend
        except BackendUnavailableError:
            backend = f"{model.backend or dispatch.requested()} (unavailable)"
    except (AttributeError, RuntimeError, ValueError):  # half made, or the environment asks for no backend's name
        return f"path={way.path}"
    taken = paths.pop() if len(paths) == 1 else "scan or convolution, by length"
    return f"path={way.path if taken == way.path else f'{way.path} -> {taken}'}, backend={backend}"


def _forced(model: SSMModel, L: int, way: Way) -> Path | None:
    """The path where there is no choice."""
    if way.path == "convolution":
        return Path("convolution", "requested by path=")
    if not model.scans():
        return Path("convolution", f"{type(model).__name__} has no scan")
    if way.change is not None or (way.taps is not None and way.taps < L):
        return Path("convolution", "the kernel itself is cut or changed")
    if torch_private.has_hooks(model):
        return Path("convolution", "hooks are to see the kernel")
    return Path("scan", "requested by path=") if way.path == "scan" else None


def faster(model: SSMModel, device: str, choice: Choice, L: int) -> Path:
    """The faster path of a ``model`` that scans, on the backend that is chosen."""
    backend = choice.backend
    if backend == dispatch.PLAIN:
        return Path("scan", choice.reason)  # whose program takes any length
    if choice.replaces is not None:
        return Path("convolution", f"the backend that is preferred has no scan: {choice.reason}")
    threshold = SCAN_THRESHOLDS.get((model.scan_op, device, backend))
    if threshold is None and BACKENDS[backend].scans_when_asked:
        return Path("scan", choice.reason)
    if threshold is None:
        return Path("convolution", f"automatic: the scan has not been measured on {device} with backend {backend}")
    n = model.d_state // 2
    least = 1 if n <= threshold.states else threshold.length * n
    faster = f"automatic: for n = {n} the {backend} scan is the faster path from L = {least} on"
    return Path("scan" if L >= least else "convolution", faster)


def _scan(
    model: SSMModel, u: Tensor, D: Tensor | None, L: int, way: Way, state: Tensor | None, ahead: Tensor | None
) -> Scan | None:
    """The scan, where that is the path, as ``choose`` says."""
    forced = _forced(model, L, way)
    if forced is not None and forced.name == "convolution":
        return None
    try:
        scan = model.prepared_scan(
            u, D, state, ahead, rate=way.rate, bidirectional=way.bidirectional, time_major=way.time_major
        )
    except BackendUnavailableError:
        if forced is not None:
            raise
        return None
    if forced is None and faster(model, u.device.type, scan.choice, L).name == "convolution":
        return None
    return scan


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
        y like u with c d_model features, which lies in memory as u does, and the state or None.
    """
    after: Tensor | None
    D, L = None if D is None else full(D), u.shape[1 if way.time_major else 2]
    model.prepare(L if way.taps is None else min(L, way.taps), way.rate)
    scan = _scan(model, u, D, L, way, state, ahead)
    if scan is not None:
        y, after = scan.run()
        if return_state and lengths is not None:
            after = model.state_after(_by_feature(u, way), state, lengths, way.rate)
    else:
        signals = _by_feature(u, way)
        y = _convolved(model, signals, D, way, state, ahead).to(u.dtype)
        # What comes next works on memory that lies alike.
        if way.time_major:
            y = y.mT if lies_turned(u) else turned(y)
        elif lies_turned(u):
            y = turned(y).mT
        after = model.state_after(signals, state, lengths, way.rate) if return_state else None
    return y, after if return_state else None


def _by_feature(u: Tensor, way: Way) -> Tensor:
    """(batch, d_model, L), contiguous, in the precision that is computed with."""
    u = full(u)
    return turned(u) if way.time_major else u.contiguous()


def _convolved(
    model: SSMModel, u: Tensor, D: Tensor | None, way: Way, state: Tensor | None, ahead: Tensor | None
) -> Tensor:
    """(batch, c d_model, L) by the kernel and an FFT convolution."""
    L = u.shape[-1]
    k = model.seen_response(L if way.taps is None else min(L, way.taps), way.rate)
    if way.change is not None:
        k = way.change(k)
    c = len(k) // 2 if way.bidirectional else len(k)
    if D is not None:
        D = D.view(c, -1)
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
    """``through`` for this rank's slice u, from the state before the whole sequence to that after it.

    ``tied`` are the tensors of which a rank without samples must have gradients too.
    """
    signals, L = _by_feature(u, way), u.shape[1 if way.time_major else 2]
    # 0, for the graph: a rank without samples has its part in the backward pass, and gradients of 0.
    ties: Any = sum(t.flatten()[:0].sum() for t in (u, *tied)) if L == 0 else 0
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
        c = model.channels // 2 if way.bidirectional else model.channels
        y = u.repeat(1, 1, c) if way.time_major else u.repeat(1, c, 1)
        y = y + ties + start.real.sum() * 0
        y = y if ahead is None else y + ahead.real.sum() * 0
    return y, last if return_state else None


def as_autocast(u: Tensor) -> Tensor:
    """u in the dtype that autocast gives to ``nn.Linear``, where it is on and u is not float64."""
    device = u.device.type
    if device == "meta":  # which PyTorch has no autocast for
        return u
    if torch.is_autocast_enabled(device) and u.is_floating_point() and u.dtype is not torch.float64:
        return u.to(torch.get_autocast_dtype(device))
    return u
