"""Checkpoints of models built on state-spaces/s4, written as safetensors that load into the layers here."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s4_fast import memory, weights
from s4_fast.state_spaces.releases import Change, Older, older_parts

# Where training scripts keep the state_dict in a checkpoint of more than that; the first is Lightning's.
_CONTAINERS = ("state_dict", "model_state_dict", "model")
# What DistributedDataParallel and torch.compile put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
# Nodes that older releases cached in the kernel, as buffers, and what tells a kernel from another module.
_CACHES = ("omega", "z")
_KERNEL = ("C", "B")


class Entry(NamedTuple):
    """One entry of a checkpoint, and what becomes of it.

    Attributes:
        old: its name in the checkpoint.
        new: the name that it is written under, or None where it is left out.
        value: what is written, or what was there.
        note: what was done, beside a change of name.
    """

    old: str
    new: str | None
    value: Any
    note: str = ""


def convert(old: Path, new: Path, prefix: str | None = None, *, force: bool = False) -> list[Entry]:
    """Read the PyTorch checkpoint ``old`` and write its tensors to ``new``, a safetensors file.

    ``old`` holds a ``state_dict``, alone or under ``state_dict`` (as Lightning writes it), ``model_state_dict`` or
    ``model``. It is read with ``weights_only=True``: nothing in it is executed. Names and shapes are those of release 4
    of the official code, which the layers here share; layers of releases 1 to 3 are told by their entries and written
    as release 4 has them (``s4_fast.state_spaces.releases``). Caches of kernels (``omega``, ``z``) are left out,
    and complex tensors become pairs of real numbers.

    Args:
        old: the checkpoint.
        new: the file to write.
        prefix: only what is under this name is written, without it: the attribute of a LightningModule that holds the
            model, for instance. None takes away what all names begin with: ``module.``, ``_orig_mod.``, and in
            Lightning's checkpoints ``model.``.
        force: whether ``new`` may exist.

    Returns:
        What became of each entry.

    Raises:
        FileExistsError: ``new`` exists.
        OSError: a file cannot be read or written.
        ValueError: ``old`` is no such checkpoint, or nothing is under ``prefix``. Nothing is written then.
    """
    if new.exists() and (not force or new.samefile(old)):
        raise FileExistsError(f"{new} exists" if not force else f"{new} is the checkpoint itself")
    found = entries(read(old), prefix)
    tensors = {entry.new: entry.value for entry in found if entry.new is not None}
    weights.write(new, tensors, {"format": "pt"}, force)
    return found


def read(path: Path) -> Mapping[str, Any]:
    """The content of a PyTorch checkpoint or of a safetensors file on the CPU, of which nothing is executed.

    Raises:
        MemoryError: there is too little memory for it.
        OSError: the file cannot be read.
        ValueError: it holds no mapping, or more than tensors and plain values.
    """
    with path.open("rb") as file:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            with warnings.catch_warnings():  # of what the error says
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
        # Arbitrary bytes fail in the unpickler with errors of any kind.
        except Exception as error:
            if memory.ran_out(error):
                raise MemoryError(*error.args) from error
            raise ValueError(f"{path} is no plain PyTorch checkpoint: {_cause(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no state_dict, but an object of type {type(content).__name__}")
    return content


def entries(checkpoint: Mapping[str, Any], prefix: str | None = None) -> list[Entry]:
    """What becomes of each entry of the state_dict in ``checkpoint``; ``prefix`` and errors as in ``convert``."""
    state_dict, lightning = unwrapped(checkpoint)
    prefix = _common(state_dict, lightning) if prefix is None else _closed(prefix)
    if not any(name.startswith(prefix) for name in state_dict):
        first = sorted({name.split(".")[0] for name in state_dict})
        raise ValueError(f"nothing is under the prefix {prefix!r}; names begin with {', '.join(first)}")
    older = older_parts({name: value for name, value in state_dict.items() if name.startswith(prefix)})
    changed: dict[str, list[tuple[Older, Change]]] = {}
    for part in older.values():
        for change in part.changes:
            changed.setdefault(change.old, []).append((part, change))
    found = []
    for name, value in state_dict.items():
        made = [_renamed(part, change, prefix) for part, change in changed.get(name, ())]
        found += made or [_entry(name, value, prefix, state_dict)]
    written = Counter(entry.new for entry in found if entry.new is not None)
    if twice := [name for name, count in written.items() if count > 1]:
        raise ValueError(f"{', '.join(twice)}: entries of two releases would be written under one name")
    return found


def unwrapped(checkpoint: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """The state_dict in ``checkpoint``, and whether it lies where Lightning writes it.

    Raises:
        ValueError: it is empty, or has keys that are no names.
    """
    container = next((name for name in _CONTAINERS if isinstance(checkpoint.get(name), Mapping)), None)
    state_dict: Mapping[str, Any] = checkpoint if container is None else checkpoint[container]
    if not state_dict:
        raise ValueError("the state_dict is empty")
    for name in state_dict:
        if not isinstance(name, str):
            raise ValueError(f"the keys of a state_dict are names, got {name!r}")
    return state_dict, container == "state_dict"


def _renamed(part: Older, change: Change, prefix: str) -> Entry:
    note = f"release {part.release}" + (f": {change.note}" if change.note else "")
    if change.new is None:
        return Entry(change.old, None, change.value, note)
    if change.new.endswith("A_real") and part.diagonal:
        note += "; the discretisation is not in a checkpoint (releases 2 and 3: disc='bilinear', minimal S4D: 'zoh')"
    return Entry(change.old, change.new.removeprefix(prefix), change.value, note)


def _entry(name: str, value: Any, prefix: str, state_dict: Mapping[str, Any]) -> Entry:
    module, _, own = name.rpartition(".")
    if not name.startswith(prefix):
        return Entry(name, None, value, f"left out: not under {prefix}")
    if own in _CACHES and all(f"{module}.{sibling}".lstrip(".") in state_dict for sibling in _KERNEL):
        return Entry(name, None, value, "left out: a cache of the kernel")
    if own == "_extra_state":
        return Entry(name, None, value, "left out: no tensor")
    if not isinstance(value, Tensor):
        raise ValueError(f"expected tensors, {name} is of type {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_meta:
        raise ValueError(f"{name} is not a plain tensor: layout {value.layout}, dtype {value.dtype}")
    t, new = value.detach(), name.removeprefix(prefix)
    if t.is_complex():
        return Entry(name, new, torch.view_as_real(t.resolve_conj()), "complex, as pairs of real numbers")
    return Entry(name, new, t)


def _common(state_dict: Mapping[str, Any], lightning: bool) -> str:
    """What ``convert`` takes away from all names without being told."""
    prefix = ""
    while True:
        candidates = [prefix + wrapper for wrapper in (*_WRAPPERS, *(["model."] if lightning else []))]
        longer = next((c for c in candidates if all(name.startswith(c) for name in state_dict)), None)
        if longer is None:
            return prefix
        prefix, lightning = longer, lightning and not longer.endswith("model.")


def _closed(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith(".") else f"{prefix}."


def _cause(error: Exception) -> str:
    """Why the unpickler failed, without PyTorch's advice to execute the file."""
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return f"it holds {forbidden[1]}; where you trust the file, save its state_dict alone"
    return f"damaged, or of another kind ({type(error).__name__})"
