"""Argument checks shared by the public ops: one place for the wording of shape, dtype and device errors."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from s4_fast.arguments import kind

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
_PRECISION_OF_REAL = {torch.float32: torch.float32, torch.float64: torch.float64}
_PRECISION_OF_COMPLEX = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def shape_of(**tensors: Tensor) -> str:
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())


def same_device(op: str, **tensors: Tensor) -> str:
    """The common device type; ValueError when they live on different ones, TypeError for what is no tensor."""
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(t)}")
    device = next(iter(tensors.values())).device
    for t in tensors.values():
        if t.device != device:
            where = ", ".join(f"{name} on {t.device}" for name, t in tensors.items())
            raise ValueError(f"{op}: expected all tensors on one device, got {where}")
    return device.type


def common_dtype(op: str, *, real: Sequence[str] = (), **tensors: Tensor) -> torch.dtype:
    """The common real precision (float32 or float64); ``real`` names the tensors that must not be complex.

    Under autocast, half-precision real inputs count as float32. TypeError for anything else.
    """
    common = None
    mixed = False
    for name, t in tensors.items():
        precisions = _PRECISION_OF_REAL if name in real else _PRECISION_OF_COMPLEX
        precision = precisions.get(t.dtype)
        if precision is None:
            half = name in real and t.dtype in (torch.float16, torch.bfloat16)
            if not (half and torch.is_autocast_enabled(t.device.type)):
                expected = " or ".join(str(d).removeprefix("torch.") for d in precisions)
                got = str(t.dtype).removeprefix("torch.")
                raise TypeError(f"{op}: expected {name} to be {expected}, got {got} of shape {tuple(t.shape)}")
            precision = torch.float32
        mixed = mixed or common not in (None, precision)
        common = precision
    if mixed:
        got = ", ".join(f"{name} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors.items())
        raise TypeError(f"{op}: expected all tensors in one precision, got {got}")
    assert common is not None
    return common


def to_precision(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t`` in the real precision ``dtype``, complex where it was complex."""
    return t.to(COMPLEX[dtype] if t.is_complex() else dtype)


def length(op: str, L: int) -> int:
    """L as an int, if it is one or stands for one, as NumPy's do.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is less than 1.
    """
    if isinstance(L, bool) or not isinstance(L, (int, torch.SymInt)):
        if isinstance(L, bool) or not hasattr(L, "__index__"):
            raise TypeError(f"{op}: expected L to be an int, got {type(L).__name__}")
        L = operator.index(L)
    if L < 1:
        raise ValueError(f"{op}: expected a length L >= 1, got L = {L}")
    return L


def same_states(op: str, **tensors: Tensor) -> int:
    """The common last dimension n >= 1; ValueError when it differs between the tensors."""
    if any(t.ndim < 1 for t in tensors.values()):
        raise ValueError(f"{op}: expected tensors with a last dimension n, got {shape_of(**tensors)}")
    sizes = {t.shape[-1] for t in tensors.values()}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"{op}: expected one last dimension n >= 1 in all of them, got {shape_of(**tensors)}")
    return sizes.pop()


def broadcast_lead(op: str, **tensors: Tensor) -> torch.Size:
    """The broadcast shape of all leading dimensions; ValueError when they do not broadcast."""
    try:
        return torch.broadcast_shapes(*(t.shape[:-1] for t in tensors.values()))
    except RuntimeError:
        raise ValueError(f"{op}: leading dimensions do not broadcast: {shape_of(**tensors)}") from None


def needs_grad(**tensors: Tensor) -> tuple[str, ...]:
    """The names of the tensors whose gradient will be asked for."""
    if not torch.is_grad_enabled():
        return ()
    return tuple(name for name, t in tensors.items() if t.requires_grad)
