"""Tries the wheel on every supported Python that is here, with the oldest and the newest PyTorch.

``python .ci/versions.py`` makes a fresh environment for each pair, installs the wheel with its dependencies, runs
doctor and a few tests, prints a table, and exits with 1 where a pair failed. An interpreter is ``python3.10`` and so on
on the path, or any given with ``--python``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NEWEST = "newest"
# Those that notice what changes between versions, in about a minute.
TESTS = (
    "tests/test_torch_private.py",
    "tests/test_dispatch.py",
    "tests/ops/test_scan.py",
    "tests/layers/test_ssm_layer.py",
    "tests/layers/test_transforms.py",
)


class Failed(Exception):
    """The message names the step."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=list(PYTHONS), help="versions on the path, or files")
    parser.add_argument("--torch", nargs="+", default=[oldest_torch(), NEWEST], help="versions, or newest")
    parser.add_argument("--wheel", type=Path, help="instead of one that is built")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        wheel = asked.wheel.resolve() if asked.wheel else built(Path(folder))
        for python in asked.python:
            for torch in asked.torch:
                rows.append((python, torch, *tried(python, torch, wheel)))
                print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    headings = ("Python", "asked for", "PyTorch", "NumPy", "Triton", "seconds", "result")
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    for row in (headings, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 1 if any(row[-1].startswith("FAILED") for row in rows) else 0


def oldest_torch() -> str:
    """The least version that pyproject.toml allows."""
    found = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert found
    return f"{found[1]}.0"


def built(folder: Path) -> Path:
    """The wheel, with the native library for CPUs."""
    environment = {"S4_FAST_BUILD": "cpu", **os.environ}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, env=environment)
    return next(folder.glob("s4_fast-*.whl"))


def tried(python: str, torch: str, wheel: Path) -> tuple[str, str, str, str, str]:
    """The installed versions, the time that it took, and the result."""
    interpreter = shutil.which(python) or shutil.which(f"python{python}")
    if interpreter is None or not works(interpreter):
        return "", "", "", "", "no such interpreter here"
    versions, start = ("", "", ""), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = str(folder / "venv/bin/python")
        try:
            run("venv", [interpreter, "-m", "venv", str(folder / "venv")], folder)
            wanted = "torch" if torch == NEWEST else f"torch=={torch}"
            packages = [wanted, str(wheel), "pytest>=8", "hypothesis>=6.100", "scipy>=1.10"]
            run("install", [own, "-m", "pip", "install", "--quiet", *packages], folder)
            versions = installed(own)
            run("doctor", [own, "-I", "-m", "s4_fast", "doctor"], folder)
            # Beside the package itself they would test that one.
            for part in ("tests", "examples"):
                shutil.copytree(ROOT / part, folder / part)
            shutil.copy(ROOT / "pyproject.toml", folder)
            run("tests", [own, "-m", "pytest", "-x", *TESTS], folder)
            result = "passed"
        except Failed as error:
            result = f"FAILED: {error}"
    return *versions, f"{time.monotonic() - start:.0f}", result


def works(interpreter: str) -> bool:
    """Version managers put names on the path that only say that a version is not chosen."""
    return subprocess.run([interpreter, "--version"], capture_output=True, check=False).returncode == 0


def installed(python: str) -> tuple[str, str, str]:
    """Of torch, NumPy and Triton."""
    script = """
from importlib import metadata
for name in ("torch", "numpy", "triton"):
    try:
        print(metadata.version(name))
    except metadata.PackageNotFoundError:
        print("-")
"""
    torch, numpy, triton = run("versions", [python, "-I", "-c", script], Path.cwd()).split()
    return torch, numpy, triton


def run(step: str, command: Sequence[str], folder: Path) -> str:
    """What the command prints; a failing one is shown."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    if found.returncode:
        print(found.stdout[-6000:], found.stderr[-6000:], sep="\n", file=sys.stderr)
        raise Failed(step)
    return found.stdout


if __name__ == "__main__":
    raise SystemExit(main())
