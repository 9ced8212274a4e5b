"""What is known of each backend: its turn in the automatic choice, where it runs, what it needs, when its scan pays."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from s4_fast import native_library


@dataclass(frozen=True)
class Requirement:
    """``missing()`` says what a backend lacks on this machine, or returns the empty string.

    ``fix()`` is the command that provides it, or the empty string where none does. Both are asked at every use, so
    that what is installed meanwhile is found.
    """

    missing: Callable[[], str]
    fix: Callable[[], str]


class Threshold(NamedTuple):
    """Where the scan is the faster one: for up to ``states`` pairs, and from ``length`` samples a pair on."""

    states: int
    length: int


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    ``turn`` is the backend's place in the automatic choice, None where that never takes it. ``devices`` are the types
    that it runs on, none meaning all. ``scan`` has, by op and type of device, where the scan of a layer pays; none,
    where that has not been measured: then a layer convolves, or scans if ``scans_when_asked``.
    """

    turn: int | None = None
    devices: tuple[str, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    scan: Mapping[tuple[str, str], Threshold] = field(default_factory=dict)
    scans_when_asked: bool = False


def _package(name: str) -> Callable[[], str]:
    def missing() -> str:
        # What has been imported is there, and finding it again takes tens of microseconds.
        found = sys.modules.get(name) is not None or importlib.util.find_spec(name)
        return "" if found else f"the package {name!r} is not installed"

    return missing


def _cxx_compiler() -> str:
    """KeOps compiles with ``$CXX`` or ``g++`` (``clang++`` on macOS), at its first use of a formula."""
    names = [os.environ.get("CXX"), "g++", *(["clang++"] if sys.platform == "darwin" else [])]
    found = any(name and shutil.which(name) for name in names)
    return "" if found else "it compiles its formulas, and there is no C++ compiler"


# The scan's cost grows with the states, the FFT's with the logarithm of the length. Measured forward and backward.
# CPU: with 64 features, batches of 1 to 32 and lengths of 128 to 65536 on two cores with AVX-512 (PyTorch 2.13): at
# n = 32 the native scan took 0.28 to 0.94 of the convolution's time, at n = 128 it was the faster from L = 8192 on; in
# PyTorch the times crossed near L = 1000, 6000, 12000 and 50000 for n = 2, 8, 32 and 128.
# CUDA: with 128 to 512 features, batches of 1 to 64 and lengths of 256 to 65536 on an H200 (PyTorch 2.11): the native
# scan took 0.37 to 0.86 of the convolution's time for n = 4 and 16, 0.44 to 1.01 for n = 32, and for n = 64 1.05 to 1.8
# but for L = 65536 (0.72).
# S4, CPU: without the native library kernel and convolution took 0.4 times as long as the scan at batch 16, n = 32 and
# L = 1024, and 3.6 times as long at batch 1 and L = 16384. On CUDA devices it has not been measured.
BACKENDS = {
    "reference": Backend(),
    "pytorch": Backend(
        turn=3, scan={("diagonal_ssm", "cpu"): Threshold(0, 512), ("dplr_scan", "cpu"): Threshold(0, 256)}
    ),
    "keops": Backend(
        devices=("cpu", "cuda"),
        requirements=(
            Requirement(_package("pykeops"), lambda: "pip install 'pykeops>=2.2'"),
            Requirement(_cxx_compiler, lambda: "apt-get install g++ (or set CXX to another C++ compiler)"),
        ),
    ),
    "triton": Backend(
        turn=2,
        devices=("cpu", "cuda"),
        requirements=(Requirement(_package("triton"), lambda: "pip install 'triton>=3.2'"),),
    ),
    "native": Backend(
        turn=1,
        devices=("cpu", "cuda"),
        requirements=(Requirement(lambda: native_library.cause(), lambda: native_library.fix()),),
        scan={
            ("diagonal_ssm", "cpu"): Threshold(64, 32),
            ("diagonal_ssm", "cuda"): Threshold(32, 1024),
            ("dplr_scan", "cpu"): Threshold(64, 32),
        },
    ),
    # No turn before a GPU has run it.
    "tensor_cores": Backend(
        devices=("cuda",),
        requirements=(Requirement(lambda: native_library.cause(cuda=True), lambda: native_library.fix(cuda=True)),),
        scans_when_asked=True,
    ),
}


def in_turn(rows: Mapping[str, Backend]) -> tuple[str, ...]:
    """The names of those that have a turn, the lowest first; of equal turns the one that stands first."""
    turns = [(row.turn, name) for name, row in rows.items() if row.turn is not None]
    return tuple(name for _, name in sorted(turns, key=lambda found: found[0]))


AUTOMATIC_ORDER = in_turn(BACKENDS)

# By op, type of device and backend, for layers. It may be changed.
SCAN_THRESHOLDS = {(*where, name): pays for name, row in BACKENDS.items() for where, pays in row.scan.items()}


def check_name(backend: str, where: str) -> None:
    """ValueError unless ``backend`` is the name of one."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r} in {where}; expected one of {', '.join(BACKENDS)}")
