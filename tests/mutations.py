"""How much the default tests notice: changes single places of the code, one at a time, and runs them.

    pip install -e '.[dev,mutation]' -c constraints.txt
    python tests/mutations.py ops --number 12 --seed 1

Cosmic Ray makes the changes, in a clone of the last commit. A mutant is killed where a test fails; one that survives
is shown as a diff, for a person to say whether it computes anything else.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import click
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, TestOutcome

ROOT = Path(__file__).resolve().parents[1]
# What is changed, and the tests that are likely to notice it, which run first.
LAYERS = {
    "state_spaces": ("s4_fast/state_spaces/*.py", "tests/state_spaces"),
    "layers": ("s4_fast/layers/*.py", "tests/layers"),
    "ssm": ("s4_fast/ssm/*.py", "tests/ssm"),
    "ops": ("s4_fast/ops/**/*.py", "tests/ops"),
    "dispatch": ("s4_fast/*.py", "tests/test_*.py"),
    "export": ("s4_fast/export/*.py", "tests/export"),
    "bench": ("s4_fast/bench/*.py", "tests/bench"),
}
# These run on GPUs or with PyKeOps alone.
ELSEWHERE = re.compile(r"triton|keops")
OPERATORS = re.compile(
    r"core/(ReplaceBinary|ReplaceComparison|ReplaceUnary|ReplaceTrue|ReplaceFalse|ReplaceAnd|ReplaceOr|AddNot|Number|ZeroIter)"
)
# Not evaluated, or words for people: a type, a message, a docstring.
NO_CODE = re.compile(r"^\s*(raise|def|class|@|\"\"\"|#)|->|\bError\(")
LIMIT_S = 900


def places(files: list[Path]) -> dict[tuple[Path, int], list[MutationSpec]]:
    """The mutations of every line that computes."""
    with tempfile.TemporaryDirectory() as folder:
        work = WorkDB(Path(folder, "session.sqlite"), WorkDB.Mode.create)
        init(files, work, {})
        mutations = [mutation for item in work.work_items for mutation in item.mutations]
        work.close()
    found = defaultdict[tuple[Path, int], list[MutationSpec]](list)
    lines = {path: path.read_text("utf-8").splitlines() for path in files}
    for mutation in mutations:
        path, number = mutation.module_path, mutation.start_pos[0]
        if OPERATORS.match(mutation.operator_name) and not NO_CODE.search(lines[path][number - 1]):
            found[path, number].append(mutation)
    return found


@click.command()
@click.argument("layers", nargs=-1, type=click.Choice(list(LAYERS)), required=True)
@click.option("--number", default=12, show_default=True, help="How many places of each layer.")
@click.option("--seed", default=0, show_default=True, help="Which places, and what becomes of them.")
def main(layers: tuple[str, ...], number: int, seed: int) -> None:
    """Change NUMBER places of each of LAYERS and see whether the default tests fail."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        if (ROOT / "s4_fast/_native").is_dir():
            shutil.copytree(ROOT / "s4_fast/_native", Path(folder, "s4_fast/_native"))
        os.chdir(folder)
        os.environ["PYTHONPATH"] = folder
        for layer in layers:
            run(layer, number, random.Random(f"{seed} {layer}"))


def run(layer: str, number: int, draw: random.Random) -> None:
    pattern, first = LAYERS[layer]
    found = places([path for path in sorted(Path().glob(pattern)) if not ELSEWHERE.search(str(path))])
    run_tests = "python -m pytest -x -n auto"
    command = f"sh -c '{run_tests} {first} && {run_tests}'"
    killed = 0
    for place in draw.sample(sorted(found), number):
        mutation = draw.choice(found[place])
        result = mutate_and_test([mutation], command, LIMIT_S)
        survived = result.test_outcome == TestOutcome.SURVIVED
        killed += not survived
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", result.output or "", re.MULTILINE)
        verdict = "survived" if survived else f"killed by {failed[1] if failed else result.test_outcome}"
        click.echo(f"{place[0]}:{place[1]} {mutation.operator_name.removeprefix('core/')}: {verdict}")
        if survived:
            click.echo(result.diff)
    click.secho(f"{layer}: {killed} of {number} killed", bold=True)


if __name__ == "__main__":
    main()
