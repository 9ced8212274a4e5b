"""What the examples write and read: models, tensors and figures in files that are whole or absent."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from s4_fast import S4SequenceModel, files, weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_checkpoint(path: Path, model: S4SequenceModel, arguments: dict[str, Any]) -> None:
    """Write the weights, and as metadata the arguments that build the model."""
    weights.write(path, model.state_dict(), {"model": json.dumps(arguments)}, force=True)


def load_checkpoint(path: Path, device: str = "cpu") -> S4SequenceModel:
    """A fresh model in evaluation mode, from nothing but the file."""
    with safe_open(path, framework="pt", device=device) as file:
        model = S4SequenceModel(**json.loads(file.metadata()["model"])).to(device)
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return model.eval()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a ``state_dict`` as ``torch.save`` does."""
    with files.writing(path) as file:
        torch.save(dict(tensors), file)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The ``state_dict`` in a file of ``torch.save``, or under its key ``"model"``, on the CPU.

    Raises:
        ValueError: the file holds nothing of the kind.
    """
    try:
        # torch.load would take damaged numbers for good ones.
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"it is damaged at {damaged!r}")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise ValueError("it is no file of torch.save, or a part of one") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"it cannot be read: {reason}") from error
    if isinstance(found, Mapping):
        found = found.get("model", found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError("it holds no state_dict")
    return dict(found)


def save_figure(path: Path, figure: Figure, dpi: int) -> None:
    with files.writing(path) as file:
        figure.savefig(file, dpi=dpi, format=path.suffix[1:])
