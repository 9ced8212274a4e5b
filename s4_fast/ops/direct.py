"""Calls that nothing but autograd sees: they go to a backend directly, past ``torch.library``.

The boundary costs tens of microseconds, which is more than one step of a recurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from s4_fast import torch_private


def runs_directly(tensors: Sequence[Tensor | None]) -> bool:
    """Whether nothing would see the boundary: no gradient, no graph, no transform, no mode, no subclass."""
    return only_autograd_sees(tensors) and not is_recorded(tensors)


def is_recorded(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd records what is done to them."""
    return torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors])


def only_autograd_sees(tensors: Sequence[Tensor | None]) -> bool:
    """Whether they are plain tensors with numbers in them, and no graph, transform or mode is at work."""
    if operations_are_seen():
        return False
    return (
        all([t is None or type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors])  # faster than generated
        and not (tensors[0] is not None and tensors[0].is_meta)
        and not torch_private.function_modes()
        and not torch_private.has_dual_level()
        and not torch_private.is_jit_tracing()
    )


def operations_are_seen() -> bool:
    """Whether a graph, a transform or a mode sees every operation, so that tensors need not hold numbers."""
    return (
        torch.compiler.is_compiling()
        or torch_private.dispatch_modes() > 0
        or torch_private.innermost_transform() is not None
    )


def is_transformed(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a transform of ``torch.func`` is at work, or some of them have tangents or are of a batch: backends know
    of none of these."""
    if torch.compiler.is_compiling():
        return torch_private.is_transformed_in_graph()
    if torch_private.innermost_transform() is not None:
        return True
    if torch_private.batch_level() and any(t is not None and torch_private.is_in_batch(t) for t in tensors):
        return True
    return torch_private.has_dual_level() and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def over_batches(function: Callable[..., Sequence[Tensor | None]], tensors: Sequence[Tensor | None]) -> list[Any]:
    """``function(*tensors)``. Where some are of a batch, as gradients with ``is_grads_batched=True`` are, by
    ``torch.func.vmap``: PyTorch has two, and that of such batches lacks many operations."""
    level = 0 if torch.compiler.is_compiling() else torch_private.batch_level()
    batched = [level > 0 and t is not None and torch_private.is_in_batch(t) for t in tensors]
    if not any(batched):
        return list(function(*tensors))
    there: list[bool] = []

    def each(*mapped: Tensor) -> tuple[Tensor, ...]:
        of_batch = iter(mapped)
        outputs = function(*(next(of_batch) if b else t for t, b in zip(tensors, batched, strict=True)))
        there.extend(t is not None for t in outputs)
        return tuple(t for t in outputs if t is not None)

    wholes = [torch_private.whole_batch(t, level) for t in tensors if t is not None and torch_private.is_in_batch(t)]
    found = iter(torch.func.vmap(each)(*wholes))
    return [torch_private.in_batch(next(found), level) if known else None for known in there]


def plain(t: Tensor) -> Tensor:
    """``t`` contiguous and without pending signs, as backends take it."""
    return t if is_plain(t) else t.resolve_conj().resolve_neg().contiguous()


def is_plain(t: Tensor) -> bool:
    """Whether backends take ``t`` as it is."""
    return t.is_contiguous() and not t.is_neg() and not t.is_conj()
