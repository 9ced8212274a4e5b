"""``row A^length`` by squaring. In a compiled graph it is one op, as a loop over the bits of a length makes a graph for
every length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s4_fast import torch_private


def row_power(row: Tensor, A: Tensor, length: int) -> Tensor:
    """``row A^length``, row (..., c, N), A (..., N, N), real."""
    if torch.compiler.is_compiling() and not torch_private.is_exporting() and not inside_transform():
        found: Tensor = torch.ops.s4_fast.row_power(row, A, length)
        return found
    return _by_squaring(row, A, length)


@torch_private.constant_in_graphs
def inside_transform() -> bool:
    """Whether a transform of ``torch.func`` is at work, in compiled functions too."""
    return torch_private.innermost_transform() is not None


def _by_squaring(row: Tensor, A: Tensor, length: int) -> Tensor:
    while length:
        if length & 1:
            row = row @ A
        length >>= 1
        A = A @ A if length else A
    return row


@torch.library.custom_op(
    "s4_fast::row_power", mutates_args=(), schema="(Tensor row, Tensor A, SymInt length) -> Tensor"
)
def _forward(row: Tensor, A: Tensor, length: int) -> Tensor:
    found = _by_squaring(row, A, length)
    return found.clone() if found is row else found


@torch.library.custom_op(
    "s4_fast::row_power_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor row, Tensor A, SymInt length) -> (Tensor, Tensor)",
)
def _backward(grad: Tensor, row: Tensor, A: Tensor, length: int) -> tuple[Tensor, Tensor]:
    steps = []  # the row and the power of A before each bit
    while length:
        steps.append((length & 1, row, A))
        if length & 1:
            row = row @ A
        length >>= 1
        A = A @ A if length else A
    of_A = torch.zeros_like(A)
    for i, (bit, row, A) in enumerate(reversed(steps)):
        if i:
            of_A = of_A @ A.mT + A.mT @ of_A
        if bit:
            of_A = of_A + row.mT @ grad
            grad = grad @ A.mT
    return (grad.contiguous() if steps else grad.clone()), of_A


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.length = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    of_row, of_A = torch.ops.s4_fast.row_power_backward(grad, *ctx.saved_tensors, ctx.length)
    return of_row, of_A, None


_forward.register_fake(lambda row, A, length: row.new_empty(row.shape))
_backward.register_fake(lambda grad, row, A, length: (row.new_empty(row.shape), A.new_empty(A.shape)))
_forward.register_autograd(_gradients, setup_context=_setup_context)
