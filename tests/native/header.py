"""The functions and constants that csrc/include/s4_fast.h declares."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.native.trees import ROOT


class Argument(NamedTuple):
    name: str
    type: str


def functions(family: str) -> dict[str, tuple[Argument, ...]]:
    """By name without ``s4_fast_<family>_``, for a family whose functions take a dtype first: the arguments."""
    declared = re.findall(rf"S4_FAST_API int s4_fast_{family}_(\w+)\((int64_t dtype,[^)]*)\);", _text())
    return {name: tuple(map(_argument, arguments.split(","))) for name, arguments in declared}


def names() -> set[str]:
    """All functions."""
    return set(re.findall(r"S4_FAST_API [^(;]*\b(s4_fast_\w+)\(", _text()))


def constants() -> dict[str, int]:
    """Its numbers, by name without ``S4_FAST_``."""
    found = re.findall(r"\bS4_FAST_(\w+) = (\d+)", _text())
    return {name: int(value) for name, value in found} | limits()


def limits() -> dict[str, int]:
    """Those of its constants that bound a size."""
    return {name: int(value) for name, value in re.findall(r"\bLIMIT\((\w+), (\d+)\)", _text())}


def _text() -> str:
    return re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/include/s4_fast.h").read_text("utf-8"), flags=re.DOTALL)


def _argument(text: str) -> Argument:
    found = re.fullmatch(r"\s*(.*?)(\w+)\s*", text)
    assert found
    return Argument(found[2], found[1].strip())
