"""Which calls the kernels for tensor cores serve. Importing this loads nothing."""

from __future__ import annotations

import torch

from s4_fast import gpu
from s4_fast.dispatch import Call


def refuses(call: Call) -> str | None:
    """Why they cannot run ``call``, or None."""
    if call.dtype != torch.float32:
        return "its products are of float32; use backend='native' for float64"
    if call.device == "cuda" and gpu.capability() < (8, 0):
        major, minor = gpu.capability()
        return f"it serves NVIDIA GPUs from sm_80 on, and this is sm_{major}{minor}; use backend='native'"
    return None


def refuses_layers(call: Call) -> str | None:
    """The same for whole layers."""
    if (channels := call.shape.get("channels", 1)) != 1:
        return f"it serves one channel, not {channels}; use backend='native'"
    if call.shape.get("directions", 1) != 1:
        return "it serves one direction, not both; use backend='native'"
    return refuses(call)
