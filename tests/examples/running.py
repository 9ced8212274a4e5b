"""Examples run as a user runs them, in a process of their own or in this one."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import s4_fast

ROOT = Path(__file__).parents[2]


def printed_by(script: Path, *options: str, cwd: Path | None = None) -> str:
    """What the program prints; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *options]
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def exit_code(script: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int | str | None:
    """That of the program in this process, whose threads and memory stay as they are."""
    monkeypatch.setattr(s4_fast, "keep_pages", lambda: True)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    return stop.value.code
