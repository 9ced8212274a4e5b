"""Make the notebooks from the scripts, and run them: python tutorials/execute.py [01 02 ...]

The scripts, in jupytext's percent form, are the source. A notebook is written when all of its cells have run.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

FOLDER = Path(__file__).resolve().parent
SUPPORT = re.compile(r"^from support import (?:\([^)]*\)|.*)\n", re.MULTILINE)


def notebook_of(script: Path) -> NotebookNode:
    """The script as a notebook that runs in any folder: a cell, folded in Jupyter, holds what it imports of support."""
    notebook = jupytext.read(script)
    (place,) = (index for index, cell in enumerate(notebook.cells) if SUPPORT.search(cell.source))
    notebook.cells[place].source = SUPPORT.sub("", notebook.cells[place].source)
    notebook.cells.insert(place, new_code_cell((FOLDER / "support.py").read_text(encoding="utf-8").strip()))
    # What depends on the run or the machine alone stays out, so that a new run changes only what it shows.
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index}", nbformat.from_dict({})
    notebook.cells[place].metadata = nbformat.from_dict({"jupyter": {"source_hidden": True}})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def run(notebook: NotebookNode, folder: Path) -> None:
    """Execute its cells in the folder; the outputs are in the notebook then."""
    options = {"timeout": None, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options).execute()
    notebook.metadata.language_info = {"name": "python"}


if __name__ == "__main__":
    for script in sorted(FOLDER.glob("[0-9]*.py")):
        if not sys.argv[1:] or script.name.startswith(tuple(sys.argv[1:])):
            print(script.name, flush=True)
            notebook = notebook_of(script)
            run(notebook, FOLDER)
            nbformat.write(notebook, script.with_suffix(".ipynb"))
