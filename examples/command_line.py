"""The command line of the examples: options that are checked, and refusals in one line."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import click
import torch

from s4_fast import S4SequenceModel

COUNT = click.IntRange(min=1)
SEED = click.IntRange(0, 2**63 - 1)


def build(arguments: dict[str, Any]) -> S4SequenceModel:
    try:
        return S4SequenceModel(**arguments)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


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
