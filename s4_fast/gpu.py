"""What the current CUDA device is. A device is asked once, as a call of a layer would feel it."""

from __future__ import annotations

import functools

import torch

from s4_fast import torch_private


@torch_private.constant_in_graphs
def capability() -> tuple[int, int]:
    """Its compute capability, (9, 0) for sm_90; (0, 0) where tensors pretend to be on a device, and there is none."""
    if not torch.cuda.is_initialized() and not torch.cuda.is_available():  # the first is the quick one
        return 0, 0
    return _capability(torch.cuda.current_device())


@torch_private.constant_in_graphs
def architecture() -> str:
    """The same by its name, ``"sm_90"``."""
    major, minor = capability()
    return f"sm_{major}{minor}"


@functools.cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
