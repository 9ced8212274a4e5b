"""What the examples share: checkpoints that are whole or absent, and options that are refused in one line."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import click
from safetensors import safe_open
from safetensors.torch import save

from s4_fast import S4SequenceModel

COUNT = click.IntRange(min=1)


def build(arguments: dict[str, Any]) -> S4SequenceModel:
    try:
        return S4SequenceModel(**arguments)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def save_checkpoint(path: Path, model: S4SequenceModel, arguments: dict[str, Any]) -> None:
    """Write the weights, and as metadata the arguments that build the model.

    An interruption leaves the old file or the new one, never half of one.
    """
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(save(model.state_dict(), metadata={"model": json.dumps(arguments)}))
    os.replace(unfinished, path)


def load_checkpoint(path: Path, device: str = "cpu") -> S4SequenceModel:
    """A fresh model in evaluation mode, from nothing but the file."""
    with safe_open(path, framework="pt", device=device) as file:
        model = S4SequenceModel(**json.loads(file.metadata()["model"])).to(device)
        model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return model.eval()


def positive(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"expected a positive number, got {value}")
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
