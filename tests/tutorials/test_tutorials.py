"""The tutorials, run as a reader runs them, and their notebooks, which must be what the scripts say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.scripts import load

pytest.importorskip("matplotlib")
jupytext = pytest.importorskip("jupytext")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
LARGEST = 1_000_000
# Absolute paths of any system, and what a path in a traceback or a warning looks like.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|var|mnt|Users)/|\b[A-Z]:\\|site-packages")


@pytest.fixture(scope="module")
def execute() -> ModuleType:
    return load("tutorials/execute.py")


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
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    pictures = re.findall(r"^figure: (.*)$", done.stdout, re.MULTILINE)
    assert pictures
    assert len(set(pictures)) == len(pictures)
    for picture in pictures:
        with Image.open(tmp_path / picture) as image:
            assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("statsmodels") is None, reason="statsmodels is not installed")
def test_notebook_runs_from_anywhere(
    name: str, execute: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it needs is the package: the folder of the tutorials is neither its own nor on the path."""
    for variable, value in {"S4_FAST_SMOKE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(variable, value)
    notebook = jupytext.read(FOLDER / f"{name}.ipynb")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    execute.run(notebook, tmp_path)
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_the_script(name: str, execute: ModuleType) -> None:
    script, notebook = FOLDER / f"{name}.py", FOLDER / f"{name}.ipynb"
    made, stored = (
        [(cell.cell_type, cell.source, cell.metadata) for cell in each.cells]
        for each in (execute.notebook_of(script), jupytext.read(notebook))
    )
    assert stored == made
    assert not any("from support import" in source for _, source, _ in stored)
    assert sum("jupyter" in metadata for _, _, metadata in stored) == 1
    assert notebook.stat().st_size < LARGEST


def test_colours_stand_in_one_place() -> None:
    """A model has one colour in all tutorials, which nothing else has."""
    colour = re.compile(r"#[0-9a-fA-F]{6}\b|#[0-9a-fA-F]{3}\b|\"C[0-9]\"|\btab:")
    used = colour.findall((FOLDER / "support.py").read_text(encoding="utf-8"))
    assert len(used) > 5
    assert len(set(used)) == len(used)
    assert not [name for name in NAMES if colour.search((FOLDER / f"{name}.py").read_text(encoding="utf-8"))]


def test_papers_are_linked() -> None:
    listed = set(re.findall(r"https://arxiv\.org/abs/[\d.]+\d", (FOLDER / "README.md").read_text(encoding="utf-8")))
    assert len(listed) > 10
    for name in NAMES:
        linked = re.findall(r"https://arxiv\.org/abs/[\d.]+\d", (FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        assert linked
        assert set(linked) <= listed


def test_extra_installs_jupyter() -> None:
    (extra,) = re.findall(r"^tutorials = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    needed = set(re.findall(r'"([\w-]+)', extra))
    assert "jupyterlab" in needed
    assert needed <= set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


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
