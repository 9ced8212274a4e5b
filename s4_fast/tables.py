"""Tables that stay readable at any width: one line per row where that fits, else one paragraph per row."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

_GAP = 2
# The least room in which text of several words is pleasant to read.
_READABLE = 30


@dataclass(frozen=True)
class Column:
    """``wraps`` is for the last column alone: its text may take several lines, broken between words."""

    heading: str
    right: bool = False
    wraps: bool = False


@dataclass(frozen=True)
class Rows:
    """A table. Where it is wider than the console, every row is a paragraph that names its values."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [max(cell.cell_len for cell in cells) for cells in self._by_column()]
        if self.columns[-1].wraps:
            rest = options.max_width - sum(widths[:-1]) - _GAP * (len(widths) - 1)
            widths[-1] = min(widths[-1], max(rest, _READABLE))
        fits = sum(widths) + _GAP * (len(widths) - 1) <= options.max_width
        yield from self._lines(widths) if fits else self._paragraphs(options.max_width)

    def _by_column(self) -> Iterator[list[Text]]:
        for index, column in enumerate(self.columns):
            yield [Text(column.heading), *(row[index] for row in self.rows)]

    def _lines(self, widths: Sequence[int]) -> Iterator[Text]:
        yield self._line([Text(column.heading, style="bold") for column in self.columns], widths)
        for row in self.rows:
            first, *more = wrapped(row[-1], widths[-1]) if self.columns[-1].wraps else [row[-1]]
            yield self._line([*row[:-1], first], widths)
            yield from (indented(line, sum(widths[:-1]) + _GAP * (len(widths) - 1)) for line in more)

    def _line(self, cells: Sequence[Text], widths: Sequence[int]) -> Text:
        line = Text(no_wrap=True, overflow="ignore")
        for column, cell, width in zip(self.columns, cells, widths, strict=True):
            space = " " * (width - cell.cell_len)
            line += Text(space) + cell if column.right else cell + Text(space)
            line += Text(" " * _GAP)
        line.rstrip()
        return line

    def _paragraphs(self, width: int) -> Iterator[Text]:
        for row in self.rows:
            yield from wrapped(Text(row[0].plain, style="bold"), width)
            line = Text()
            for column, cell in zip(self.columns[1:], row[1:], strict=True):
                named = Text.assemble((f"{column.heading}: ", "dim"), cell)
                if line and (not cell or _GAP + line.cell_len + _GAP + named.cell_len > width):
                    yield indented(line, _GAP)
                    line = Text()
                if _GAP + named.cell_len > width:
                    first, *more = wrapped(cell, width - 2 * _GAP - len(column.heading))
                    yield indented(Text.assemble((f"{column.heading}: ", "dim"), first), _GAP)
                    yield from (indented(part, 2 * _GAP + len(column.heading)) for part in more)
                elif cell:
                    line = Text("  ").join([line, named]) if line else named
            if line:
                yield indented(line, _GAP)


def wrapped(text: Text, width: int) -> list[Text]:
    """``text`` in lines of at most ``width``, broken between words; a longer word stays whole, to be copied.

    A text of one style keeps it.
    """
    lines = textwrap.wrap(text.plain, width, break_long_words=False, break_on_hyphens=False)
    return [Text(line, style=text.style, no_wrap=True, overflow="ignore") for line in lines or [""]]


def indented(line: Text, by: int) -> Text:
    """One line, moved to the right."""
    return Text(" " * by, no_wrap=True, overflow="ignore") + line


@dataclass(frozen=True)
class Paragraph:
    """Text in lines of the console's width, the first indented by ``first`` and the others by ``hang``."""

    text: Text
    hang: int = 2
    first: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = wrapped(self.text, options.max_width - max(self.first, self.hang))
        yield indented(lines[0], self.first)
        yield from (indented(line, self.hang) for line in lines[1:])
