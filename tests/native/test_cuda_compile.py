"""Every CUDA kernel, compiled as an install compiles it: no spill, no stack and no warning. Needs nvcc, not a GPU."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.native.trees import ROOT

SOURCES = sorted((ROOT / "csrc/cuda").rglob("*.cu"))
FLAGS = runpy.run_path(str(ROOT / "csrc/build_native.py"))["NVCC_FLAGS"]
USAGE = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_\d+'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")


def usage(source: Path, architecture: int, folder: Path) -> dict[str, tuple[int, ...]]:
    """Bytes of stack, spill stores and spill loads, and registers of every kernel, by name."""
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = ["nvcc", *FLAGS, "-Werror=all-warnings", target, "-Xptxas=-v", "-c", str(source)]
    command += ["-o", str(folder / f"{source.stem}.o")]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    found = {name: tuple(map(int, values)) for name, *values in USAGE.findall(result.stdout)}
    assert len(found) == result.stdout.count("Compiling entry function") > 0
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_no_kernel_spills(architecture: int, tmp_path: Path) -> None:
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if f"sm_{architecture}" not in known:
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    with ThreadPoolExecutor(2) as pool:
        tables = pool.map(lambda source: usage(source, architecture, tmp_path), SOURCES)
    used = {name: values for table in tables for name, values in table.items()}
    for name, values in used.items():
        print(f"sm_{architecture}", *values, name)
    assert not {name: values for name, values in used.items() if any(values[:3])}
