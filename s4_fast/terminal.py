"""What the command line writes to a terminal: text of files that may be anyone's, and errors of one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from s4_fast import memory


def console(*, stderr: bool = False) -> Console:
    """One that prints text as it is: brackets in names are no markup, and words between colons no emoji."""
    options: dict[str, Any] = {"stderr": stderr, "highlight": False, "markup": False, "emoji": False}
    found = Console(**options)
    # A pipe has no width: what is one line stays one.
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(**options, width=10**6)


def progress() -> Progress:
    """What is being done and how much of it is, on a terminal's standard error; it disappears at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found = console(stderr=True)
    # What libraries print belongs where they print it.
    return Progress(
        *columns,
        console=found,
        transient=True,
        disable=not found.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextmanager
def compilers_on_stderr() -> Iterator[None]:
    """What the process and its children write to standard output past Python goes to standard error in this block."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def shown(text: object) -> str:
    """``text`` of a file that may be anyone's, in one line: what steers a terminal is written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


class Refused(click.ClickException):
    """Shown in one line, without the command's usage."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        super().__init__(shown(message))


@contextmanager
def refusing() -> Iterator[None]:
    """What is raised for wrong arguments and files in the block, as :class:`Refused`."""
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if memory.ran_out(error):
            raise
        raise Refused(error) from error


class Commands(click.Group):
    """Commands that end in one line, with exit code 1, where memory or a file fails them."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MemoryError, RuntimeError, OSError) as error:
            if memory.ran_out(error):
                wanted = memory.wanted(error)
                more = f": {wanted} more were asked for" if wanted else ""
                raise click.ClickException(f"too little memory{more}") from None
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise click.ClickException(shown(error)) from error
            raise
