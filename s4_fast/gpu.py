"""Which CUDA device is the current one. It is asked once per device, as a call of a layer would feel it."""

from __future__ import annotations

import functools

import torch

from s4_fast import torch_private


@torch_private.constant_in_graphs
def capability() -> tuple[int, int]:
    """Its compute capability, (9, 0) for sm_90."""
    return _capability(torch.cuda.current_device())


@torch_private.constant_in_graphs
def architecture() -> str:
    """The same by its name, ``"sm_90"``."""
    major, minor = _capability(torch.cuda.current_device())
    return f"sm_{major}{minor}"


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
