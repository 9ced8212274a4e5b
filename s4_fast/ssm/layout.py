"""The two layouts of a signal, (batch, features, length) and (batch, length, features)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Turned(torch.autograd.Function):
    """``x.mT`` in memory of its own, and so the gradient: elementwise operations on either side then run on operands
    that lie alike in memory, which costs them a tenth of the time that mixed strides do."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mT.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return turned(grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.mT.contiguous()


def turned(x: Tensor) -> Tensor:
    """(..., i, j) -> (..., j, i), contiguous. A view where x is one of what is wanted, and needs no gradient."""
    if x.mT.is_contiguous() and not x.requires_grad:
        return x.mT
    result: Tensor = _Turned.apply(x)
    return result
