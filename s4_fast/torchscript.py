"""TorchScript, and ONNX by PyTorch's exporter, which hold no sequence of these modules; and what to use instead."""

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


def refuse_onnx() -> None:
    """Raise RuntimeError where ``torch.onnx.export`` records operations: its graphs have no complex numbers."""
    if torch_private.is_exporting() and torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "torch.onnx holds no complex numbers, and so no sequence of this model; python -m s4_fast export writes "
            "its step and its prefill as ONNX (s4_fast.export.to_onnx), and torch.onnx.export takes a FrozenStep"
        )


def refuse_scripting() -> None:
    """Raise RuntimeError."""
    raise RuntimeError(_INSTEAD)
