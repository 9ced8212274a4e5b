"""The figures of the README are those of the results files, the notebooks and the examples that they name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
# A number with a point or a per cent sign; versions, sizes and years are not measured.
MEASURED = re.compile(r"\d+\.\d+(?:e-\d+)?|\d+(?:\.\d+)? %")


def test_tables_are_those_of_the_results() -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    assert spec and spec.loader
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert len(tables.MARKED.findall(README)) >= 5
    for page in tables.PAGES:
        text = page.read_text("utf-8")
        assert tables.filled(text) == text, "run: python benchmarks/tables.py"


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_figures_of_the_examples_are_those_of_their_guide() -> None:
    guide = (ROOT / "examples/README.md").read_text("utf-8").replace(" %", "%")
    results = re.findall(r"^\| `python .*\| (.*) \|$", section("Examples"), re.MULTILINE)
    assert len(results) == 4
    figures = [figure for result in results for figure in MEASURED.findall(result.replace("PyTorch 2.13", ""))]
    assert len(figures) >= 8
    assert not [figure for figure in figures if figure.replace(" %", "%") not in guide]


def test_figures_of_the_tutorials_are_those_of_their_notebooks() -> None:
    notebooks = "".join(path.read_text("utf-8") for path in (ROOT / "tutorials").glob("*.ipynb"))
    figures = MEASURED.findall(section("Tutorials"))
    assert len(figures) >= 5
    assert not [figure for figure in figures if figure not in notebooks]


def test_pictures_are_there() -> None:
    pictures = re.findall(r"(?:src|srcset)=\"([^\"]+)\"|!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for pair in pictures:
        path = next(filter(None, pair))
        assert (ROOT / path).is_file() or path.startswith("https://"), path
