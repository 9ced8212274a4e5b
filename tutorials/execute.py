"""Make the notebooks from the scripts, and run them: python tutorials/execute.py [01 02 ...]

The scripts, in jupytext's percent form, are the source. A notebook is written when all of its cells have run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


def execute(script: Path) -> None:
    """Write the executed notebook beside the script."""
    notebook = jupytext.read(script)
    # What depends on the run or the machine alone stays out, so that a new run changes only what it shows.
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index}", nbformat.from_dict({})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    options = {"timeout": None, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, resources={"metadata": {"path": FOLDER}}, **options).execute()
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    for script in sorted(FOLDER.glob("[0-9]*.py")):
        if not sys.argv[1:] or script.name.startswith(tuple(sys.argv[1:])):
            print(script.name, flush=True)
            execute(script)
