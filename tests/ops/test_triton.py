"""Runs triton_kernels.py in a process of its own: Triton decides when it is imported whether it interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s4_fast import dispatch
from s4_fast.dispatch import Call
from s4_fast.ops import _triton_calls

KERNELS = Path(__file__).with_name("triton_kernels.py")
MISSING = dispatch.backends()["triton"].cause

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"triton: {MISSING}")


@pytest.mark.parametrize("selected", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels(selected: str) -> None:
    """On the GPU where there is one, else in Triton's interpreter on the CPU."""
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        if _triton_calls.version() < (3, 9) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
            pytest.skip("the interpreter of Triton before 3.9 needs NumPy before 2.4")
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", str(KERNELS), "-m", selected, "-p", "no:cacheprovider"]
    run = subprocess.run(command, env=environment, cwd=KERNELS.parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(bool(torch.version.hip), reason="PyTorch for AMD is refused before")
def test_a_c_compiler_is_looked_for_until_it_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    call = Call("cauchy_mult", "cuda", torch.float32, {"n": 4, "L": 9, "symmetric": 1})
    compiler = tmp_path / "my-cc"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "my-cc")
    for _ in range(2):
        assert "there is no C compiler; run: apt-get install gcc" in str(_triton_calls.refuses(call))
    compiler.touch(mode=0o755)
    for _ in range(2):
        assert _triton_calls.refuses(call) is None
    monkeypatch.setenv("CC", "another")
    assert "there is no C compiler" in str(_triton_calls.refuses(call))
