"""Every block of code in README and guides runs as printed, and every command has the options that it is given."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from torch import nn

from s4_fast import S4SequenceModel, dispatch
from s4_fast.__main__ import main
from s4_fast.export import to_onnx
from s4_fast.state_spaces import S4Block
from tests.documentation import PAGES, ROOT, Block, blocks
from tests.state_spaces import lookalikes, lookalikes_functions

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

Namespace = dict[str, Any]
# These take tens of seconds: they compile, or start processes.
SLOW = ("docs/compile-and-export.md", "docs/several-processes.md")
PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]
SHELL = [block for page in PAGES for block in blocks(page) if block.language in ("bash", "sh")]


def old_checkpoint(namespace: Namespace, folder: Path) -> None:
    torch.save(S4Block(64, mode="diag", transposed=False).state_dict(), folder / "old.pt")


def official_model(namespace: Namespace, folder: Path) -> None:
    namespace["model"] = nn.Sequential(lookalikes.s4_block(6))


def official_file(namespace: Namespace, folder: Path) -> None:
    file = lookalikes_functions.official("4")
    file.__name__ = "models.s4.s4"
    package = ModuleType("models.s4")
    package.s4 = file  # type: ignore[attr-defined]
    sys.modules.update({"models": ModuleType("models"), "models.s4": package, "models.s4.s4": file})


def model(namespace: Namespace, folder: Path) -> None:
    namespace["model"] = S4SequenceModel(1, 8, 1, n_layers=1, task="regression").eval()


def sensor(namespace: Namespace, folder: Path) -> None:
    model(namespace, folder)
    for graph in ("step", "prefill"):
        to_onnx(namespace["model"], folder / f"{graph}.onnx", graph=graph, force=True)
    samples = torch.randn(20, 1, 1).numpy()
    namespace["sensor"], namespace["recording"] = list(samples), samples.swapaxes(0, 1)


SURROUNDINGS: dict[str, Callable[[Namespace, Path], None]] = {
    "old.pt": old_checkpoint,
    "an official model": official_model,
    "an official file": official_file,
    "a model": model,
    "a sensor": sensor,
}


def runs() -> Iterator[Any]:
    """The blocks of a page run one after the other, as a reader would; those of the README each by itself."""
    for page in dict.fromkeys(block.page for block in PYTHON):
        chosen = [block for block in PYTHON if block.page == page]
        marks = [pytest.mark.slow] if page in SLOW else []
        for part in [[block] for block in chosen] if page == "README.md" else [chosen]:
            yield pytest.param(part, id=f"{page}:{part[0].line}", marks=marks)


@pytest.fixture
def surrounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """An empty folder to run in; modules that a block adds are gone afterwards, and nothing asks for a backend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE, raising=False)
    yield {"__name__": "__main__"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]


@pytest.mark.parametrize("part", [*runs()])
def test_python(part: list[Block], surrounded: Namespace, tmp_path: Path) -> None:
    for block in part:
        if block.needs is not None:
            SURROUNDINGS[block.needs](surrounded, tmp_path)
        if "torchrun" in block.code.partition("\n")[0]:
            by_torchrun(block, tmp_path)
        else:
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(ROOT / block.page), "exec"), surrounded)


def by_torchrun(block: Block, folder: Path) -> None:
    (folder / "train.py").write_text(block.code, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def commands(block: Block) -> Iterator[list[str]]:
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((index for index, word in enumerate(words) if word in ("&&", ";")), len(words))
            yield [word for word in words[:end] if "=" not in word or word.startswith("-")]
            words = words[end + 1 :]


@pytest.mark.parametrize("block", [pytest.param(block, id=f"{block.page}:{block.line}") for block in SHELL])
def test_shell(block: Block) -> None:
    """Options, extras and files exist. Nothing is run: tests of the commands do that."""
    for command in commands(block):
        program, *arguments = command
        if command[:3] == ["python", "-m", "s4_fast"]:
            parsed(main, arguments[2:])
        elif program == "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
            for named in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
                assert set(named.split(",")) <= set(extras)
            assert (ROOT / arguments[arguments.index("-c") + 1]).is_file() if "-c" in arguments else True
        for word in (program, *arguments):
            if re.fullmatch(r"[\w.-]+(/[\w.-]+)+(\.\w+)?", word) and (ROOT / word.partition("/")[0]).is_dir():
                assert (ROOT / word).exists(), word


def parsed(command: click.Command, arguments: list[str]) -> None:
    """Raises for what ``command`` does not take; what files hold is not looked at."""
    context = click.Context(command, resilient_parsing=True)
    if isinstance(command, click.Group):
        name, *rest = arguments
        found = command.get_command(context, name)
        assert found is not None, name
        parsed(found, rest)
    else:
        _, unused, _ = command.make_parser(context).parse_args([*arguments])
        assert not unused
