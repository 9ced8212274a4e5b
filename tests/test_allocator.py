from __future__ import annotations

import mmap
import platform
import subprocess
import sys

import pytest

from s4_fast import allocator

glibc = pytest.mark.skipif(
    platform.system() != "Linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc is needed"
)

# 40 MiB is above every size that glibc serves from the heap by itself. A small block that lands in a freed hole can
# still send a large one to new pages now and then.
_FAULTS = """
import resource, sys, torch
from s4_fast import keep_pages
if sys.argv[1] == "keep":
    assert keep_pages() is True
def allocate():
    for _ in range(8):
        torch.ones(10 * 2**20)
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
@pytest.mark.slow
def test_freed_pages_are_not_faulted_in_again() -> None:
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-W", "error", "-c", _FAULTS, mode], text=True))
        for mode in ("keep", "default")
    }
    assert faults["default"] > 8 * 10 * 2**20 * 4 / mmap.PAGESIZE * 0.9
    assert faults["keep"] < faults["default"] / 3


def test_another_system_is_left_alone_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.warns(RuntimeWarning, match="changed nothing: it needs glibc on Linux, and this is Darwin") as caught:
        assert allocator.keep_pages() is False
    assert len(caught) == 1


@glibc
def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = iter((1, 2))
    monkeypatch.setattr(allocator, "_address", lambda library, name: next(addresses))
    with pytest.warns(RuntimeWarning, match="another allocator"):
        assert allocator.keep_pages() is False
