"""``pytest benchmarks/``: the registry under pytest-benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs a source tree")]


def _run(*options: str, first: str = "") -> subprocess.CompletedProcess[str]:
    pytest.importorskip("pytest_benchmark")
    program = f"{first}\nimport sys, pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "benchmarks/", "-k", "S4DLayer.step", *options]
    # pytest-benchmark times nothing in a process of pytest-xdist, which this one may be.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_a_case_is_timed_grouped_stored_and_compared(tmp_path: Path) -> None:
    file = tmp_path / "stored.json"
    done = _run(f"--benchmark-json={file}", "--threads=1")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(file.read_text())
    assert document["machine_info"]["threads"] == "1"
    found = {benchmark["name"]: benchmark for benchmark in document["benchmarks"]}
    assert found.keys() == {"direct", "s4_fast"}
    assert {b["group"] for b in found.values()} == {"S4DLayer.step B=1 H=128 n=32, forward"}
    assert found["direct"]["extra_info"]["version"].startswith("torch 2")
    assert 0 < found["s4_fast"]["extra_info"]["forward_error"] < 2e-6
    assert all("data" not in benchmark["stats"] for benchmark in found.values())
    done = _run(f"--benchmark-compare={file}")
    assert "s4_fast (NOW)" in done.stdout


def test_what_misses_the_accuracy_contract_fails_and_is_not_timed(tmp_path: Path) -> None:
    file = tmp_path / "stored.json"
    done = _run(
        f"--benchmark-json={file}",
        first="from s4_fast.bench import accuracy\naccuracy.FORWARD = {'float32': 0.0}",
    )
    assert done.returncode == 1
    assert "misses the accuracy contract, not timed" in done.stdout
    assert [benchmark["name"] for benchmark in json.loads(file.read_text())["benchmarks"]] == ["direct"]


def test_a_peer_that_is_no_checkout_says_how_to_get_one(tmp_path: Path) -> None:
    done = _run(f"--peer={tmp_path}")
    assert done.returncode != 0
    assert "git clone https://github.com/state-spaces/s4" in done.stderr + done.stdout
