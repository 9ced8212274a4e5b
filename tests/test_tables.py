from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text

import s4_fast
from s4_fast.__main__ import main
from s4_fast.backend_status import Status
from s4_fast.state_spaces import S4Block
from s4_fast.tables import Column, Paragraph, Rows

LONG = "/a/path/of/more/than/forty/characters/in/one/word"
COLUMNS = (Column("backend"), Column("ms", right=True), Column("why not", wraps=True))
ROWS = [
    (Text("native"), Text("1.5"), Text("there is no compiler, and several more words that do not fit a line")),
    (Text("tensor_cores"), Text("12.25"), Text(LONG)),
    (Text("keops"), Text(""), Text("")),
]


def lines(renderable: Rows | Paragraph, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable, crop=False)
    return capture.get().splitlines()


def test_a_table_that_fits_has_a_line_per_row_and_its_last_column_wraps() -> None:
    assert lines(Rows(COLUMNS, ROWS), 60) == [
        "backend          ms  why not",
        "native          1.5  there is no compiler, and several more",
        "                     words that do not fit a line",
        f"tensor_cores  12.25  {LONG}",
        "keops",
    ]


def test_a_table_that_does_not_fit_names_every_value() -> None:
    assert lines(Rows(COLUMNS, ROWS), 40) == [
        "native",
        "  ms: 1.5",
        "  why not: there is no compiler, and",
        "           several more words that do",
        "           not fit a line",
        "tensor_cores",
        "  ms: 12.25",
        f"  why not: {LONG}",
        "keops",
    ]
    short = [(Text("native"), Text("1.5"), Text("no compiler")), (Text("keops"), Text(""), Text("none"))]
    assert lines(Rows(COLUMNS, short), 24) == [
        "native",
        "  ms: 1.5",
        "  why not: no compiler",
        "keops",
        "  why not: none",
    ]
    assert lines(Rows(COLUMNS, short[:1]), 20)[1:] == ["  ms: 1.5", "  why not: no", "           compiler"]


def test_wide_characters_keep_columns_straight() -> None:
    rows = [(Text("層"), Text("a")), (Text("abcd"), Text("b"))]
    assert lines(Rows((Column("x"), Column("y")), rows), 40) == ["x     y", "層    a", "abcd  b"]


def test_a_paragraph_breaks_between_words() -> None:
    assert lines(Paragraph(Text(f"one two {LONG} three"), hang=4), 20) == ["one two", f"    {LONG}", "    three"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("prefix", ["", "model.backbone.encoder.stages.0.blocks.7."])
def test_commands_keep_to_the_width(width: int, prefix: str, tmp_path: Path) -> None:
    old = tmp_path / "old.pt"
    state = {f"{prefix}{name}": t for name, t in S4Block(4, d_state=8).state_dict().items()}
    torch.save({"state_dict": {**state, f"{prefix}layer.kernel.z": torch.ones(2)}}, old)
    environment = {"COLUMNS": str(width)}
    for command, headings in (
        (
            ["convert", str(old), str(tmp_path / "new.safetensors"), "--prefix="],
            ("written as", "shape", "dtype", "note"),
        ),
        (["inspect", str(old)], ("what", "release", "speed-up", "sizes")),
    ):
        output = CliRunner().invoke(main, command, env=environment).stdout
        assert all(heading in output for heading in headings), output
        assert all(len(line) <= width or " " not in line.strip() for line in output.splitlines()[:-1]), output
        assert "…" not in output and (prefix or "S4Block" in output or "layer.D" in output)


def test_a_pipe_is_not_folded_to_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    torch.save({f"{'a' * 60}.weight": torch.ones(2)}, tmp_path / "old.pt")
    output = CliRunner().invoke(main, ["convert", str(tmp_path / "old.pt"), str(tmp_path / "new")]).stdout
    assert f"{'a' * 60}.weight  {'a' * 60}.weight  (2,)" in output


def test_backends_print_as_a_table_and_stay_a_mapping() -> None:
    found = s4_fast.backends()
    found["keops"] = Status(False, ("fft_conv",), "the package 'pykeops' is not installed", "pip install pykeops")
    for same in (found, copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        heading, *rows = repr(same).splitlines()
        assert heading.split()[:3] == ["backend", "usable", "ops,"]
        assert [row.split()[0] for row in rows if row[0] != " " and not row.startswith("To use ")] == list(same)
        assert all(len(row) <= 80 for row in rows)
        assert "keops         no      the package 'pykeops' is not installed" in rows
        assert "To use keops: pip install pykeops" in rows
        assert dict(same) == dict(found) and same["pytorch"].usable


def test_a_choice_prints_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S4_FAST_BACKEND", "keops")
    u = torch.zeros(1, 2, 3)
    found = s4_fast.explain("fft_conv", u, u[0])
    shown = str(found).splitlines()
    assert len(shown) > 1 and all(len(line) <= 80 for line in shown)
    assert " ".join(" ".join(shown).split()) == f"{found.backend}: {found.reason}"
