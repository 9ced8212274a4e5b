"""The names that are in the native library: those of the header for others, and a namespace for each half."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from s4_fast import native_library
from tests.helpers import needs_native
from tests.native import header

pytestmark = [
    needs_native,
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("nm"), reason="nm of the GNU binutils is not here"),
]
# A name right inside the namespace s4_fast.
NAME = re.compile(r"\bs4_fast::(\(anonymous namespace\)::)?(\w+)")
# What csrc/common has for both halves, and the namespaces of the halves.
COMMON, HALVES = {"fail", "guard", "message"}, {"cpu", "cuda"}


def symbols(*options: str) -> list[str]:
    """The demangled names that the library defines."""
    library = native_library._handle()._name
    command = ["nm", "--defined-only", "--demangle", *options, library]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split(maxsplit=2)[2] for line in lines]


def has_cuda() -> bool:
    return "s4_fast_cuda_usable" in symbols("--dynamic")


def test_the_library_shows_what_the_header_declares() -> None:
    declared = {name for name in header.names() if has_cuda() or not name.startswith("s4_fast_cuda_")}
    assert set(symbols("--dynamic")) == declared


def test_the_halves_share_no_name() -> None:
    """Two types or functions of one name would be linked into one, silently."""
    found = {name for symbol in symbols() for _, name in NAME.findall(symbol)}
    assert found - COMMON == (HALVES if has_cuda() else {"cpu"})
