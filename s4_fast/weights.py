"""Tensors as a safetensors file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from s4_fast import files

# The readers' limit.
_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
# Bytes that are copied at a time.
_PIECE = 2**24


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], force: bool = False) -> None:
    """Write plain tensors, whole or not at all, by ``s4_fast.files.writing``.

    The package safetensors forms the whole file in memory, and where there is too little ends the process. Here a piece
    at a time is copied.

    Raises:
        ValueError: no reader of safetensors would take a name or a dtype.
        OSError: the file exists and not ``force``, or cannot be written.
    """
    if sys.byteorder != "little":
        raise ValueError("safetensors are written on processors with the lowest byte first alone")
    header = _header(tensors, metadata)
    with files.writing(path, force) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in _order(tensors):
            t = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
            raw = t.as_strided((t.numel(),), (1,)).view(torch.uint8)  # a size of 1 may have any stride
            for piece in raw.split(_PIECE):
                file.write(memoryview(piece.numpy()))


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Widest types first, so that every tensor is aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {_METADATA: dict(metadata)}
    end = 0
    for name in _order(tensors):
        t = tensors[name]
        if name == _METADATA:
            raise ValueError(f"{name}: safetensors cannot hold a tensor of this name")
        if t.dtype not in _DTYPES:
            raise ValueError(f"{name}: safetensors cannot hold tensors of dtype {t.dtype}")
        start, end = end, end + t.numel() * t.element_size()
        entries[name] = {"dtype": _DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name!r}: safetensors hold names in UTF-8 alone") from error
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    if len(header) > _LONGEST_HEADER - 8:
        raise ValueError(f"the names need {len(header)} bytes, and safetensors hold at most {_LONGEST_HEADER}")
    return header + b" " * (-len(header) % 8)
