"""The pages of the repository, their blocks of code, and what these take for granted."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.scripts import ROOT as ROOT

GUIDES = ("tutorials/README.md", "examples/README.md", "benchmarks/README.md", "csrc/README.md", "CONTRIBUTING.md")
PAGES = (
    "README.md",
    *GUIDES,
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
)
# A block may follow a comment that says what it needs beside itself and the blocks before it.
BLOCK = re.compile(
    r"(?:^<!-- with (?P<needs>[^>]+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
CODE = re.compile(r"^```.*?^```$|^    \S[^\n]*$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    page: str
    line: int
    needs: str | None
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, found.start("code")) + 1, found["needs"], found["language"], found["code"])
        for found in BLOCK.finditer(text)
    ]


def code_removed(text: str) -> str:
    """The page without its blocks of code, fenced or indented."""
    return CODE.sub("", text)
