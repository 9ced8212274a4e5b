"""TorchScript, which none of the modules here can be turned into, and what to use instead."""

from __future__ import annotations

import torch

from s4_fast import torch_private

_INSTEAD = (
    "TorchScript (torch.jit, and the ONNX exporter that traces) cannot hold this model, whose backends it does not "
    "know; use torch.export, torch.compile, or python -m s4_fast export, which writes ONNX and C"
)


def refuse_tracing() -> None:
    """Raise RuntimeError where ``torch.jit.trace`` records operations."""
    if not torch.compiler.is_compiling() and torch_private.is_jit_tracing():
        raise RuntimeError(_INSTEAD)


def refuse_scripting() -> None:
    """Raise RuntimeError."""
    raise RuntimeError(_INSTEAD)
