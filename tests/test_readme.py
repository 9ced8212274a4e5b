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
    assert tables.filled(README) == README, "run: python benchmarks/tables.py"


def test_pictures_are_there() -> None:
    pictures = re.findall(r"(?:src|srcset)=\"([^\"]+)\"|!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for pair in pictures:
        path = next(filter(None, pair))
        assert (ROOT / path).is_file() or path.startswith("https://"), path
