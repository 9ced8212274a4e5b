"""What is usable on this machine, as a mapping that prints as a table."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import NamedTuple

# What is printed outside a command does not depend on the terminal, as notebooks and log files have none.
_WIDTH = 80


@dataclass(frozen=True)
class Status:
    """Whether a backend is usable on this machine; if not, the cause and the command that fixes it.

    Attributes:
        usable: whether what it needs is there.
        ops: the names of the ops that it implements.
        cause: what is missing, or the empty string.
        fix: the command that provides it, or the empty string.

    Examples:
        >>> s4_fast.backends()["pytorch"].usable
        True
    """

    usable: bool
    ops: tuple[str, ...]
    cause: str = ""
    fix: str = ""


class Line(NamedTuple):
    """A backend in words: ``what`` are the ops that it implements, or why it cannot be used."""

    name: str
    usable: str
    what: str


class Backends(dict[str, Status]):
    """The status of every backend by name."""

    def lines(self) -> list[Line]:
        """The backends in words."""
        every = max((len(status.ops) for status in self.values()), default=0)
        return [
            Line(name, "yes", f"all {every}" if len(status.ops) == every else ", ".join(status.ops))
            if status.usable
            else Line(name, "no", status.cause)
            for name, status in self.items()
        ]

    def fixes(self) -> list[str]:
        """The commands that make backends usable, each with the backends' names."""
        names: dict[str, list[str]] = {}
        for name, status in self.items():
            if status.fix:
                names.setdefault(status.fix, []).append(name)
        return [f"{', '.join(served)}: {fix}" for fix, served in names.items()]

    def __repr__(self) -> str:
        rows = [Line("backend", "usable", "ops, or why not"), *self.lines()]
        first, second = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
        shown = [wrapped(row.what, row.name.ljust(first) + row.usable.ljust(second)) for row in rows]
        return "\n".join([*shown, *(wrapped(f"To use {line}") for line in self.fixes())])


def wrapped(text: str, before: str = "") -> str:
    """``text`` after ``before`` in lines broken between words, the later ones indented."""
    indent = " " * (len(before) or 2)
    return textwrap.fill(
        text, _WIDTH, initial_indent=before, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
