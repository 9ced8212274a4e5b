"""What the examples share: checkpoints that are whole or absent, and options that are refused in one line."""

from __future__ import annotations

import json
import math
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from safetensors import safe_open
from torch import Tensor

from s4_fast import S4SequenceModel, files, weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNT = click.IntRange(min=1)
SEED = click.IntRange(0, 2**63 - 1)


def save_figure(path: Path, figure: Figure, dpi: int) -> None:
    with files.writing(path) as file:
        figure.savefig(file, dpi=dpi, format=path.suffix[1:])


def build(arguments: dict[str, Any]) -> S4SequenceModel:
    try:
        return S4SequenceModel(**arguments)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


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


def positive(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"expected a positive number, got {value}")
    return value


def usable_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A device's name that works here; ``"auto"`` becomes cuda where there is one, else cpu."""
    if value == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(value).type
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(f"{value!r}: {str(error).splitlines()[0]}") from error
    if kind not in ("cpu", "cuda"):
        raise click.BadParameter(f"expected auto, cpu, cuda or cuda:<index>, got {value!r}")
    return value


def make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.BadParameter(f"cannot make the folder {path}: {error.strerror}", param_hint="--out") from error


def run_command(command: click.Command) -> None:
    """Run it as a program whose errors are one line, without click's usage text."""
    try:
        command(standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"{Path(sys.argv[0]).name}: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit("\ninterrupted; what was saved before is whole")
