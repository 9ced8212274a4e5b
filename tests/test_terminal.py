from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import s4_fast
from s4_fast import export, memory
from s4_fast.__main__ import main
from s4_fast.state_spaces import S4D

# What moves the cursor, sets the title, turns the direction of text, and what rich takes for markup and emoji.
NAME = "a\x1b[31m\x1b]0;title\x07\r\n\u202e[red]b[red]:smile:"
SHOWN = "a\\x1b[31m\\x1b]0;title\\x07\\r\\n\\u202e[red]b[red]:smile:"


def output(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.output + result.stderr


def assert_tame(text: str) -> None:
    assert all(c.isprintable() or c == "\n" for c in text)
    assert SHOWN in text.replace("\n", ""), text


def test_names_in_files_steer_no_terminal(tmp_path: Path) -> None:
    old, new = tmp_path / "old.pt", tmp_path / "new.safetensors"
    torch.save({NAME: torch.ones(2)}, old)
    assert_tame(output("convert", old, new))
    assert list(load_file(new)) == [NAME]
    assert_tame(output("convert", old, tmp_path / NAME))
    torch.save({NAME: "no tensor"}, old)
    assert_tame(output("convert", old, new, "--force"))
    torch.save({f"{NAME}.{name}": t for name, t in S4D(2, 4).state_dict().items()}, old)
    assert_tame(output("inspect", old, "--no-time"))
    assert_tame(output("inspect", tmp_path / NAME / "missing"))
    assert_tame(output("export", tmp_path / NAME, tmp_path / "out.c", "--to", "c"))


LIMITED = """
import resource, sys
from s4_fast.__main__ import main
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]) * 2**20,) * 2)
main(sys.argv[2:])
"""


def limited(mebibytes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(s4_fast.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(mebibytes), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def assert_too_little(found: subprocess.CompletedProcess[str], folder: Path, before: list[str]) -> None:
    (line,) = found.stderr.splitlines()
    assert line.startswith("Error: too little memory"), line
    assert found.returncode == 1
    assert sorted(os.listdir(folder)) == before


REPORTS = [
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1024 bytes."),
    MemoryError("Unable to allocate 3.5 GiB for an array"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
@pytest.mark.parametrize("command", ["convert", "inspect", "export"])
def test_too_little_memory_is_one_line(
    command: str, report: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **options: object) -> None:
        raise report

    torch.save({"D": torch.ones(2)}, tmp_path / "old")
    monkeypatch.setattr(torch, "load", load)
    arguments = {"convert": ["new"], "inspect": [], "export": ["out.c", "--to", "c"]}[command]
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path)
        result = CliRunner().invoke(main, [command, "old", *arguments])
    wanted = memory.wanted(report)
    more = f": {wanted} more were asked for" if wanted else ""
    assert (result.exit_code, result.output) == (1, f"Error: too little memory{more}\n")
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the address space as this does")
@pytest.mark.parametrize("mebibytes", [20, 80, 130, 160, 200, 260, 330, 400])
def test_an_address_space_too_small_for_convert_is_one_line(mebibytes: int, tmp_path: Path) -> None:
    old, new = tmp_path / "old.pt", tmp_path / "new.safetensors"
    # A view that must be copied to be written.
    torch.save({"a": torch.zeros(2**24).view(2, -1).mT, "b": torch.zeros(2**24, dtype=torch.complex64).conj()}, old)
    found = limited(mebibytes, "convert", old, new)
    if mebibytes > 100 and found.returncode == 0:
        assert load_file(new)["b"].shape == (2**24, 2)
    else:
        assert_too_little(found, tmp_path, ["old.pt"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the address space as this does")
@pytest.mark.parametrize("mebibytes", [30, 100])
@pytest.mark.parametrize("command", ["inspect", "c", "onnx"])
def test_an_address_space_too_small_for_other_commands_is_one_line(
    command: str, mebibytes: int, tmp_path: Path
) -> None:
    old, out = tmp_path / "old.safetensors", tmp_path / "out.c"
    export.save_model(s4_fast.S4SequenceModel(1, 1024, 1, 1, 64, task="regression"), old)
    arguments = ["inspect", old] if command == "inspect" else ["export", old, out, "--to", command]
    found = limited(mebibytes, *arguments)
    if found.returncode:
        assert_too_little(found, tmp_path, ["old.safetensors"])
