"""One sequence over several processes: every rank of a group holds a slice of the time axis, and only states travel.

The state that a slice leaves behind, from the state 0, does not depend on the other slices. The ranks exchange these,
and each moves those of the ranks before it to its own start. The adjoint runs the same way backwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s4_fast.dispatch import explain
from s4_fast.ops import log_vandermonde_transpose, ssm_scan
from s4_fast.time_split import SplittableSequence, TimeSplittable

Module = TypeVar("Module", bound=nn.Module)

# PyTorch has renamed both.
_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
_REDUCE_SCATTER = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"

# The bytes in which a rank describes its slice, or its error.
_RECORD = 1024


@overload
def scan(
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: Literal[False] = False,
    *,
    group: dist.ProcessGroup | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def scan(
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    *,
    return_state: Literal[True],
    group: dist.ProcessGroup | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


@torch.compiler.disable
def scan(
    u: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    return_state: bool = False,
    *,
    group: dist.ProcessGroup | None = None,
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""A diagonal SSM over a sequence that the ranks of ``group`` hold in slices, as ``s4_fast.ssm_scan``.

    Rank r holds the slice of L_r samples that follows those of the ranks before it. Slices may differ in length, and
    some may be empty. Every rank of the group must make the call, with the same x, B, C and D, and run the backward
    pass from a loss that depends on what the call returned there, if only with the factor 0: the others wait for it.

    Gradients are those of the sum of all ranks' losses. The gradient of ``u`` is that of the own slice, exactly. Those
    of x, B, C, D are this rank's share: the sum over the ranks is the whole gradient, and DistributedDataParallel,
    which averages, makes of it the gradient of the mean of the ranks' losses.

    Per call every rank receives from every other, going forward and again going backward, one state: ``batch * H * n``
    complex numbers of 8 bytes (float32) or 16 (float64), whatever the lengths; before, 1024 bytes that agree on the
    shapes. On a GPU the latter makes the host wait. A group of one rank communicates nothing. Where something else
    communicates in the backward pass, such as DistributedDataParallel, give a group of its own
    (``torch.distributed.new_group()``): the two do not follow each other in the same order on every rank.

    Under ``torch.compile`` the call is a graph break.

    Args:
        u: this rank's slice of the signals, ``(batch, H, L_r)`` with ``L_r >= 0``, float32 or float64.
        x: logarithms of the decays per step, ``(H, n)``, complex of the same precision.
        B: input coefficients, ``(H, n)``, one of each conjugate pair.
        C: output coefficients, ``(H, n)``, likewise.
        D: skip coefficients, ``(H,)``, real, or None.
        state: the state before the whole sequence, ``(batch, H, n)``, complex, or None for 0. The first rank's is
            taken, and has the gradient; others may pass None, and what they pass has the gradient 0.
        return_state: whether to return the state after the whole sequence too.
        group: the ranks that hold the sequence, in its order; None for all processes.
        reverse: whether time runs backwards, ``s_l = exp(x) s_{l+1} + B u_l``: from the last rank, which then counts
            as the first, to the first.
        backend: a backend's name, or None for the automatic choice (see ``s4_fast.explain``).

    Returns:
        This rank's slice of the outputs, ``(batch, H, L_r)``; with ``return_state`` also the state after the whole
        sequence ``(batch, H, n)``, the same on every rank, for the ``state`` of a call that goes on.

    Raises:
        RuntimeError: torch.distributed is not available, or no process group is initialised.
        ValueError: this process is not in ``group``; or, on all ranks, the shapes do not fit, differ between the ranks
            or one rank raised an error.
        TypeError: ``u`` or ``D`` is not real, another tensor not complex, or the precisions differ; other ranks raise
            a ValueError.
        BackendUnavailableError: ``backend`` cannot serve the call; other ranks raise a ValueError.

    Examples:
        >>> # on every rank, after torch.distributed.init_process_group(); here one process has the whole sequence
        >>> u, x = torch.randn(2, 8, 100), -torch.rand(8, 4) + 1j * torch.randn(8, 4)
        >>> B, C = torch.randn(2, 8, 4, dtype=torch.complex64)
        >>> scan(u, x, B, C).shape
        torch.Size([2, 8, 100])
    """

    def describe() -> dict[str, Any]:
        filled = u.new_empty(*u.shape[:2], 1) if u.ndim == 3 and u.shape[-1] == 0 else u  # ssm_scan wants a sample
        explain("ssm_scan", filled, x, B, C, D, state, backend=backend)
        sizes = {"batch": u.shape[0], "H": u.shape[1], "n": x.shape[1], "dtype": str(x.dtype), "device": u.device.type}
        return {**sizes, "presence of D": D is not None, "return_state": return_state, "reverse": reverse}

    slices = agree(
        "distributed.scan",
        describe,
        group,
        length=lambda: u.shape[-1],
        state=state is not None,
        needs_grad=lambda: any(t is not None and t.requires_grad for t in (u, x, B, state)),
        reverse=reverse,
    )
    wide, L = x.to(torch.complex128), u.shape[-1]

    def advance(s: Tensor, steps: int) -> Tensor:
        return torch.exp(wide * steps) * s  # at many steps a float32 phase is lost

    if L:
        final = log_vandermonde_transpose(u if reverse else u.flip(-1), B, x, L, backend=backend)
    else:
        final = (nothing(u) + nothing(B) + nothing(x)).expand(*u.shape[:2], x.shape[1])
    start, last = slices.carry(final, advance, state, reverse=reverse, return_state=return_state)
    if L:
        y = ssm_scan(u.flip(-1) if reverse else u, x, B, C, D, start, backend=backend)
        y = y.flip(-1) if reverse else y
    else:
        y = u + start.real[..., :0] + C.real[:, :0]
        y = y if D is None else y + D[:, None]
    return (y, last) if return_state else y


@dataclass(frozen=True)
class Slices:
    """The slices of one sequence that the ranks of ``group`` hold, in their order; made by ``agree``."""

    group: dist.ProcessGroup | None
    rank: int
    lengths: tuple[int, ...]
    needs_grad: bool  # of the states, on any rank

    @torch.compiler.disable
    def carry(
        self,
        final: Tensor,
        advance: Callable[[Tensor, int], Tensor],
        state: Tensor | None = None,
        *,
        reverse: bool = False,
        return_state: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The state of a linear recurrence at this rank's start, and that after all slices. Every rank calls it.

        Args:
            final: the state that this rank's slice leaves behind when it begins from 0. The same shape and dtype on all
                ranks.
            advance: ``advance(s, L)`` moves a state L >= 1 steps without input, in the precision that L steps need.
            state: the state before all slices, or None for 0. That of the rank where time begins is taken; where
                others have one, its gradient is 0.
            reverse: whether time runs from the last rank to the first.
            return_state: False leaves the second result undefined, which saves its computation.

        Returns:
            The state that the ranks before leave behind (``state`` on the first) and the state after all of them. Both
            are differentiable in every rank's ``final``, in ``state``, and in what ``advance`` holds on this rank.
        """
        order = range(len(self.lengths))[:: -1 if reverse else 1]
        own = self.lengths[self.rank]
        if state is not None and self.rank == order[0]:
            final = (final + (advance(state, own) if own else state)).to(final.dtype)
        if self.needs_grad and not final.requires_grad:
            final = final.detach().requires_grad_()  # the others' backward pass waits for this rank
        finals = _gather(final, self)
        # The empty sum ties the first rank to the graph, as its part in the others' backward pass.
        start = total = finals[:0].sum(0)
        for q in order:
            if q == self.rank:
                start = total
                if not return_state:
                    break
            if q != order[0] and self.lengths[q]:
                total = advance(total, self.lengths[q])
            total = total + finals[q]
        start = start.to(final.dtype)
        if state is not None:
            start = start + (state if self.rank == order[0] else nothing(state))
        return start, total.to(final.dtype)

    @torch.compiler.disable
    def sum(self, t: Tensor) -> Tensor:
        """The sum of all ranks' t, on every rank. Differentiable. Every rank calls it."""
        if self.needs_grad and not t.requires_grad:
            t = t.detach().requires_grad_()
        return t if len(self.lengths) == 1 else _Sum.apply(t, self.group)


class TimeSplit:
    """The mark of modules whose input is a slice of the time axis; made by ``split_time``."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group

    def agree(
        self,
        op: str,
        check: Callable[[], None],
        u: Tensor,
        lengths: Any,
        *,
        length: Callable[[], int],
        state: bool,
        needs_grad: Callable[[], bool],
        same: Callable[[], dict[str, Any]],
    ) -> Slices:
        """``agree`` on inputs u of ``length()`` samples that ``check`` finds right, without ``lengths``.

        ``same()`` must be the same on all ranks, beside what u has.
        """

        def describe() -> dict[str, Any]:
            if lengths is not None:
                raise ValueError("lengths= cannot be combined with split_time: rows would end in different slices")
            check()
            return {"batch": u.shape[0], "dtype": str(u.dtype), "device": u.device.type, **same()}

        return agree(op, describe, self.group, length=length, state=state, needs_grad=needs_grad)

    @torch.compiler.disable
    def fail(self, op: str, error: BaseException) -> NoReturn:
        """Take part in the other ranks' ``agree`` with ``error``, and raise it."""

        def describe() -> dict[str, Any]:
            raise error

        agree(op, describe, self.group, length=int)
        raise error

    @torch.compiler.disable
    def from_first(self, t: Tensor) -> Tensor:
        """The first rank's t, in place."""
        if dist.get_world_size(self.group) > 1:
            dist.broadcast(t, group=self.group, group_src=0)
        return t

    def __deepcopy__(self, memo: dict[int, Any]) -> TimeSplit:
        return self

    def __reduce__(self) -> NoReturn:
        raise RuntimeError(
            "a module that is split over processes cannot be pickled; save its state_dict(), or call "
            "s4_fast.distributed.join_time(module) before"
        )


def split_time(module: Module, group: dist.ProcessGroup | None = None) -> Module:
    """Make every S4D and S4 layer inside ``module`` take this rank's slice of the time axis as its input.

    Inputs are then (batch, L_r, features), with slices in the order of the ranks, which may differ in length and be
    empty. Outputs are the slices of what the whole sequence gives, and gradients the ranks' shares of the whole one's,
    as in ``scan``. Parameters must be the same on all ranks, and all ranks of the group must call the module, and
    run the backward pass, together. A classifying ``s4_fast.S4SequenceModel`` pools over all ranks and has the
    same logits on each; if each makes the same loss of them, the sum of the gradients is that many times the loss's,
    and DistributedDataParallel's mean is the loss's. Dropout that is tied over time takes the first rank's mask.

    ``state=`` is the state before the whole sequence: a layer takes the first rank's, a model wants the same on every
    rank. ``return_state=True`` returns that after the whole sequence on every rank. ``lengths=`` is refused, and so is
    ``generate``. ``step`` is not split.

    What travels per layer, forward and again backward, is one state per rank, ``batch * d_model * d_state / 2`` complex
    numbers; for bidirectional layers two. A classifying model also sums (batch, d_model) float64 features over the
    ranks. Before each layer, and the model, 1024 bytes agree on the shapes, for which the host waits on a GPU.

    Args:
        module: a layer, or anything that contains layers. Other modules in it see their slice alone, which is right for
            what is applied at every time by itself.
        group: the ranks that hold the sequence, in its order. None makes a new group of all processes, as their order
            of communication must not depend on other things, such as DistributedDataParallel's; then every process
            must make this call. Do not give the group that other communication of the backward pass uses.

    Returns:
        ``module``.

    Raises:
        RuntimeError: torch.distributed is not available, or no process group is initialised.
        ValueError: this process is not in ``group``, or ``module`` contains nothing to split.

    Examples:
        >>> # on every rank, after torch.distributed.init_process_group(); here one process has the whole sequence
        >>> model = split_time(s4_fast.S4SequenceModel(1, 8, 10, n_layers=2))
        >>> model(torch.randn(2, 100, 1)).shape
        torch.Size([2, 10])
    """
    _rank("split_time", group)
    sequences = [(name, m) for name, m in module.named_modules() if isinstance(m, SplittableSequence)]
    if not sequences:
        raise ValueError(f"split_time: {type(module).__name__} contains no S4D or S4 layer")
    for name, m in sequences:
        if refusal := m.refuses_split():
            raise ValueError(f"split_time: {name or 'the module'}, {type(m).__name__}, cannot be split: {refusal}")
    split = TimeSplit(dist.new_group() if group is None else group)
    for part in _splittable(module):
        part.time_split = split
    return module


def _splittable(module: nn.Module) -> list[TimeSplittable]:
    return [m for m in module.modules() if isinstance(m, TimeSplittable)]


def join_time(module: Module) -> Module:
    """Undo ``split_time``: inputs are whole sequences again.

    Args:
        module: what was given to ``split_time``.

    Returns:
        ``module``.

    Examples:
        >>> model = join_time(split_time(s4_fast.S4DLayer(8)))
        >>> model.time_split is None
        True
    """
    for m in _splittable(module):
        m.time_split = None
    return module


@torch.compiler.disable
def agree(
    op: str,
    describe: Callable[[], dict[str, Any]],
    group: dist.ProcessGroup | None = None,
    *,
    length: Callable[[], int],
    state: bool = False,
    needs_grad: Callable[[], bool] = lambda: False,
    reverse: bool = False,
) -> Slices:
    """Exchange what the ranks of ``group`` have, before anything is computed. Every rank calls it.

    Args:
        op: the caller's name, for messages.
        describe: checks this rank's arguments and returns, by name, what must be the same on all ranks.
        group: None for all processes.
        length: that of this rank's slice; called after ``describe``, as what wrong arguments raise must not be raised
            before the exchange.
        state: whether this rank has an initial state; then the first one, the last with ``reverse``, must have one.
        needs_grad: whether the own part of a state that travels needs a gradient, if gradients are recorded.

    Raises:
        RuntimeError: torch.distributed is not available, or no process group is initialised.
        ValueError: this process is not in ``group``; or, on all ranks, the ranks differ, or ``describe`` failed on one.
        BaseException: what was raised on this rank, an interruption too.
    """
    rank = _rank(op, group)
    failure = None
    try:
        same = {"call": op, **describe()}
        grad = needs_grad() if torch.is_grad_enabled() else None
        text = json.dumps({"same": same, "length": length(), "state": state, "grad": grad}).encode()
        if len(text) > _RECORD:
            raise ValueError(f"{op}: what the ranks agree on takes {len(text)} bytes of {_RECORD}: {text.decode()}")
    except BaseException as error:  # whatever it is: the other ranks wait
        failure = error
        said = f"{type(error).__name__}: {error}"
        said = "".join(c if (c.isascii() and c.isprintable()) or c == "\n" else "?" for c in said)
        text = json.dumps({"error": said[: _RECORD // 3]}).encode()  # what JSON escapes takes two bytes
    records = _exchange(text, group)
    if failure is not None:
        raise failure
    _check(op, records, len(records) - 1 if reverse else 0)
    return Slices(group, rank, tuple(r["length"] for r in records), any(r["grad"] for r in records))


def nothing(t: Tensor) -> Tensor:
    """0 of shape (..., 1), tied to the graph of t: a rank without samples takes part in the backward pass too."""
    return t[..., :0].sum(-1, keepdim=True)


def _rank(op: str, group: dist.ProcessGroup | None) -> int:
    if not dist.is_available():
        raise RuntimeError(f"{op}: this build of PyTorch has no torch.distributed")
    if not dist.is_initialized():
        raise RuntimeError(
            f"{op}: no process group; start the processes with torchrun and call torch.distributed.init_process_group()"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(f"{op}: this process, rank {dist.get_rank()} of all, is not in the group")
    return rank


def _check(op: str, records: list[dict[str, Any]], first: int) -> None:
    errors = [f"rank {rank}: {record['error']}" for rank, record in enumerate(records) if "error" in record]
    if errors:
        raise ValueError(f"{op}: failed on {'; '.join(errors)}")
    names = dict.fromkeys(name for record in records for name in record["same"])
    for name in names:
        values = [record["same"].get(name) for record in records]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{op}: expected the same {name} on all ranks, got {values} on ranks 0 to {len(values) - 1}"
            )
    grads = [record["grad"] for record in records]
    if any(grads) and None in grads:
        raise ValueError(
            f"{op}: gradients are recorded on some ranks but not on {[r for r, g in enumerate(grads) if g is None]}; "
            "the backward pass would wait for them"
        )
    states = [rank for rank, record in enumerate(records) if record["state"]]
    if states and first not in states:
        raise ValueError(f"{op}: ranks {states} have an initial state, but not rank {first}, whose state is used")


def _exchange(text: bytes, group: dist.ProcessGroup | None) -> list[dict[str, Any]]:
    """Every rank's record, written as JSON."""
    if dist.get_world_size(group) == 1:
        return [json.loads(text)]
    # A mismatch of the tensors' devices must not fail here: what the group serves, not where the tensors are.
    devices = [entry.split(":")[0] for entry in dist.get_backend_config(group).split(",")]
    own = torch.zeros(_RECORD, dtype=torch.uint8)
    own[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = _all_gather(own.to("cpu" if "cpu" in devices else devices[0]), group).cpu()
    return [json.loads(bytes(row.tolist()).rstrip(b"\0")) for row in rows]


def _together(collective: Callable[..., Any], *tensors: Tensor, group: dist.ProcessGroup | None) -> None:
    """A collective call, whose failure says what it means."""
    try:
        collective(*tensors, group=group)
    except RuntimeError as error:
        said = (str(error).splitlines() or [""])[0]
        raise RuntimeError(
            f"rank {dist.get_rank(group)} of {dist.get_world_size(group)} waited for another in vain, which has ended, "
            f"or failed on the way; see its own output. torch.distributed says: {said}"
        ) from error


def _all_gather(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    out = own.new_empty(dist.get_world_size(group), own.numel())
    _together(getattr(dist, _GATHER), out.view(-1), own.reshape(-1), group=group)
    return out.view(-1, *own.shape)


class _Gather(torch.autograd.Function):
    """Every rank's tensor, as real pairs, (..., 2) -> (ranks, ..., 2). The adjoint sums over the ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _all_gather(own.contiguous(), group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_empty(grad.shape[1:])
        _together(getattr(dist, _REDUCE_SCATTER), own.view(-1), grad.reshape(-1), group=ctx.group)
        return own, None


class _Sum(torch.autograd.Function):
    """The sum over the ranks, on every rank, and so is the adjoint."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _reduced(own, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _reduced(grad, ctx.group), None


def _reduced(own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    out = own.clone(memory_format=torch.contiguous_format)
    _together(dist.all_reduce, out, group=group)
    return out


def _gather(state: Tensor, slices: Slices) -> Tensor:
    """(...) -> (ranks, ...); complex tensors travel as real pairs, which every backend takes."""
    if len(slices.lengths) == 1 or state.numel() == 0:
        return state.expand(len(slices.lengths), *state.shape)
    return torch.view_as_complex(_Gather.apply(torch.view_as_real(state.resolve_conj()), slices.group))
