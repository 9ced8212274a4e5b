"""Which calls the Triton kernels serve. Importing this does not import Triton."""

from __future__ import annotations

import os

import torch

from s4_fast.dispatch import Call


def refuses(call: Call) -> str | None:
    """Why Triton cannot run ``call`` where its tensors are, or None."""
    if call.device == "cuda":
        return "its kernels are written for NVIDIA GPUs; this PyTorch is built for AMD" if torch.version.hip else None
    if call.device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"the tensors are on {call.device!r} and Triton runs on CUDA devices (on a CPU with TRITON_INTERPRET=1)"


def preferred(call: Call) -> bool:
    """The interpreter is for tests: never by itself."""
    return call.device == "cuda"
