"""The two layouts of a signal, (batch, features, length) and (batch, length, features)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s4_fast import torch_private
from s4_fast.ops.direct import operations_are_seen, over_batches


class _Turned(torch.autograd.Function):
    """``x.mT`` in memory of its own, and so the gradient: elementwise operations on either side then run on operands
    that lie alike in memory, which costs them a tenth of the time that mixed strides do."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        found: Tensor = over_batches(lambda g: (turned(g),), (grad,))[0]
        return found


def turned(x: Tensor) -> Tensor:
    """(..., i, j) -> (..., j, i), contiguous: a view where x lies so, else a copy."""
    if lies_turned(x) or not x.requires_grad or operations_are_seen() or torch_private.has_dual_level():
        return x.mT.contiguous()
    result: Tensor = _Turned.apply(x)
    return result


def lies_turned(x: Tensor) -> bool:
    """Whether x lies in memory as the transpose of a contiguous tensor."""
    return not x.is_contiguous() and x.mT.is_contiguous()
