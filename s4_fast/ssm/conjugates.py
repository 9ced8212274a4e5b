"""Two forms of a state: one of each conjugate pair, as everything here keeps it, and both, as dense recurrences do."""

from __future__ import annotations

import torch
from torch import Tensor

from s4_fast.ops.direct import operations_are_seen


def with_conjugates(state: Tensor) -> Tensor:
    """``(s, s*)``: (..., n) -> (..., 2n), the conjugates appended, as state-spaces/s4 orders them. Differentiable.

    Args:
        state: (..., n), complex64 or complex128.

    Returns:
        (..., 2n), complex.

    Raises:
        TypeError: ``state`` is not complex.

    Examples:
        >>> with_conjugates(torch.tensor([1 + 2j]))
        tensor([1.+2.j, 1.-2.j])
    """
    _complex("with_conjugates", state)
    return torch.cat((state, state.conj()), -1)


def without_conjugates(state: Tensor) -> Tensor:
    """The first half of ``(s, s*)``: (..., 2n) -> (..., n). Differentiable.

    A thousand roundings of the largest entry may lie between the halves. Where there are no numbers to compare, on
    meta tensors, in compiled graphs and under transforms, nothing is compared.

    Args:
        state: (..., 2n), complex64 or complex128.

    Returns:
        (..., n), complex.

    Raises:
        TypeError: ``state`` is not complex.
        ValueError: its last dimension is odd, or the second half is not the conjugate of the first.

    Examples:
        >>> without_conjugates(torch.tensor([1 + 2j, 1 - 2j]))
        tensor([1.+2.j])
    """
    _complex("without_conjugates", state)
    if state.ndim < 1 or state.shape[-1] % 2:
        raise ValueError(f"without_conjugates: expected state of shape (..., 2n), got {tuple(state.shape)}")
    first, second = state.chunk(2, -1) if state.shape[-1] else (state, state)
    if state.numel() and not state.is_meta and not operations_are_seen():
        with torch.no_grad():
            difference = float((second - first.conj()).abs().max())
            largest = float(state.abs().max())
        if not difference <= 1000 * torch.finfo(state.dtype).eps * largest:
            raise ValueError(
                "without_conjugates: expected the second half of state to be the conjugate of the first, "
                f"got a difference of up to {difference:.3g} between entries of up to {largest:.3g}"
            )
    return first


def _complex(function: str, state: Tensor) -> None:
    if not state.is_complex():
        raise TypeError(f"{function}: expected state to be complex, got {state.dtype} of shape {tuple(state.shape)}")
