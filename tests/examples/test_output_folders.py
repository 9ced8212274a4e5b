"""Where the examples write when nobody says where: below runs/, which git ignores, never among the sources."""

from __future__ import annotations

import re

import pytest

from tests.examples.running import ROOT

PROGRAMS = {
    path.stem: text
    for path in sorted((ROOT / "examples").glob("*.py"))
    if "run_command(main)" in (text := path.read_text(encoding="utf-8"))
}


def test_there_are_programs() -> None:
    assert {"adding_problem", "digits", "stream", "train_mini_s4d"} <= PROGRAMS.keys()
    assert "runs/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", PROGRAMS)
def test_default_is_a_folder_of_its_own_in_runs(name: str) -> None:
    (folder,) = re.findall(r'"--out",[^@]*?\bdefault="([^"]*)"', PROGRAMS[name])
    assert re.fullmatch(r"runs/\w+", folder)
    others = (text for other, text in PROGRAMS.items() if other != name)
    assert not any(f'default="{folder}"' in text for text in others)
