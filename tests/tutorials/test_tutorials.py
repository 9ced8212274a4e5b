"""The tutorials, run as a reader runs them, and their notebooks, which must be what the scripts say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
jupytext = pytest.importorskip("jupytext")

FOLDER = Path(__file__).parents[2] / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
LARGEST = 600_000
# Absolute paths of any system, and what a path in a traceback or a warning looks like.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|var|mnt|Users)/|\b[A-Z]:\\|site-packages")


def cells(text: str, form: str) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.reads(text, form).cells]


def outputs(name: str) -> list[list[dict]]:
    """Of each code cell."""
    notebook = jupytext.read(FOLDER / f"{name}.ipynb")
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def words(output: dict) -> str:
    """All that an output shows but for its pictures."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return output.get("text", "") + str(data)


def test_there_are_tutorials() -> None:
    assert {"01_ssm_basics", "02_s4_quickstart"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("statsmodels") is None, reason="statsmodels is not installed")
def test_script_runs(name: str, tmp_path: Path) -> None:
    """From any folder, and every picture that it announces is there."""
    variables = {"S4_FAST_SMOKE": "1", "PYTHONPATH": str(FOLDER.parent), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", FOLDER / f"{name}.py"],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    pictures = re.findall(r"^figure: (.*)$", done.stdout, re.MULTILINE)
    assert pictures
    assert len(set(pictures)) == len(pictures)
    assert all((tmp_path / picture).stat().st_size > 1000 for picture in pictures)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_the_script(name: str) -> None:
    script, notebook = FOLDER / f"{name}.py", FOLDER / f"{name}.ipynb"
    assert cells(notebook.read_text(), "ipynb") == cells(script.read_text(), "py:percent")
    assert notebook.stat().st_size < LARGEST


@pytest.mark.parametrize("name", NAMES)
def test_notebook_was_executed(name: str) -> None:
    notebook = jupytext.read(FOLDER / f"{name}.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    # A warning is something the reader would have to explain to himself.
    assert not [output.text for cell in code for output in cell.outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_names_no_machine(name: str) -> None:
    notebook = jupytext.read(FOLDER / f"{name}.ipynb")
    texts = [cell.source for cell in notebook.cells] + [words(o) for each in outputs(name) for o in each]
    assert not [text for text in texts if MACHINE_PATH.search(text)]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(not cell.metadata for cell in notebook.cells)
