"""Adjoints through operations that are differentiable, in the place of a backend's, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from s4_fast.ops.direct import over_batches

Tensors = Sequence[Tensor | None]
Function = Callable[[list[Any]], Sequence[Tensor]]


def pulled_back(function: Function, grads: Tensors, tensors: Tensors, needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of those ``tensors`` that need one, for ``grads`` of the outputs of ``function(tensors)``.

    None stands for a gradient of 0. What is returned is differentiable in ``grads`` and ``tensors``.
    """
    count = len(grads)
    return over_batches(lambda *given: _pulled_back(function, given[:count], given[count:], needs), (*grads, *tensors))


def pulled_back_twice(
    function: Function,
    seconds: Tensors,
    grads: Tensors,
    tensors: Tensors,
    needs: Sequence[bool],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of those of ``(*grads, *tensors)`` that are ``wanted``, for ``seconds`` of what
    ``pulled_back`` gives. Differentiable where gradients are recorded."""
    count, ends, create_graph = len(seconds), len(seconds) + len(grads), torch.is_grad_enabled()

    def one(*given: Tensor | None) -> Sequence[Tensor | None]:
        with torch.enable_grad():
            views = _views(given[count:])
            firsts = _pulled_back(function, views[: ends - count], views[ends - count :], needs)
            pairs = zip(firsts, given[:count], strict=True)
            used = [(g, s) for g, s in pairs if g is not None and g.requires_grad and s is not None]
            return _gradients(used, views, wanted, create_graph)

    return over_batches(one, (*seconds, *grads, *tensors))


def _pulled_back(function: Function, grads: Tensors, tensors: Tensors, needs: Sequence[bool]) -> list[Tensor | None]:
    with torch.enable_grad():
        views = _views(tensors)
        used = [(y, g) for y, g in zip(function(views), grads, strict=True) if g is not None and y.requires_grad]
        return _gradients(used, views, needs, True)


def _views(tensors: Tensors) -> list[Any]:
    """So that a tensor from which another one was made is differentiated for its own sake alone."""
    return [None if t is None else t.view_as(t) for t in tensors]


def _gradients(
    used: Sequence[tuple[Tensor, Tensor]], inputs: Sequence[Any], wanted: Sequence[bool], create_graph: bool
) -> list[Tensor | None]:
    if not used:
        return [None for _ in wanted]
    outputs, grads = zip(*used, strict=True)
    leaves = [t for t, w in zip(inputs, wanted, strict=True) if w]
    found = iter(torch.autograd.grad(outputs, leaves, grads, create_graph=create_graph, allow_unused=True))
    return [next(found) if w else None for w in wanted]
