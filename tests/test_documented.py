"""Every public name has an example that runs, and a place in the reference."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import s4_fast
from s4_fast import dispatch, distributed, export, ops, ssm, state_spaces
from s4_fast.ssm import discretization, hippo, initialization

REFERENCE = Path(__file__).parents[1] / "docs/reference"
LISTED = (s4_fast, ops, ssm, export, state_spaces)
# What modules without an __all__ have for users.
WRITTEN: dict[ModuleType, tuple[str, ...]] = {
    distributed: ("scan", "split_time", "join_time"),
    hippo: ("transition", "low_rank_correction", "nplr"),
    discretization: ("bilinear", "zoh", "bilinear_diagonal", "zoh_diagonal", "check_stable"),
    initialization: ("diagonal", "dplr", "log_dt"),
    dispatch: ("Choice", "Status"),
}
# Nobody else calls their constructors.
MADE_HERE = (dispatch.Status, state_spaces.Patch)
ROLE = re.compile(r":[a-z]+:`")


def public() -> dict[str, Any]:
    """What users call by name, each once."""
    found: dict[int, tuple[str, Any]] = {}
    for module, names in [*((module, module.__all__) for module in LISTED), *WRITTEN.items()]:
        for name in names:
            if not name.startswith("__"):
                value = getattr(module, name)
                found.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(found.values())


PUBLIC = public()


@pytest.fixture
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def example(name: str) -> doctest.DocTest:
    module = importlib.import_module(name.rpartition(".")[0])
    names = {"torch": torch, "nn": torch.nn, "s4_fast": s4_fast, **vars(module)}
    text = inspect.getdoc(PUBLIC[name]) or ""
    return doctest.DocTestParser().get_doctest(text, names, name, inspect.getsourcefile(PUBLIC[name]), 0)


@pytest.mark.parametrize("name", PUBLIC)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    test = example(name)
    assert test.examples, f"{name} has no example"
    monkeypatch.chdir(tmp_path)
    if name.startswith(distributed.__name__):
        request.getfixturevalue("process_group")
    if name.endswith("to_onnx"):
        pytest.importorskip("onnx")
    report: list[str] = []
    with torch.random.fork_rng(devices=[]):
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not result.failed, "".join(report)


def described(name: str) -> Iterator[str]:
    """The docstrings that a page shows for a name: its own and those of its methods."""
    value = PUBLIC[name]
    yield inspect.getdoc(value) or ""
    if inspect.isclass(value):
        for member, method in inspect.getmembers(value, inspect.isfunction):
            if not member.startswith("_") and method.__module__.startswith("s4_fast"):
                yield method.__doc__ or ""


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_are_markdown(name: str) -> None:
    for text in described(name):
        assert not ROLE.search(text)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_described(name: str) -> None:
    value = PUBLIC[name]
    if inspect.isclass(value) and (issubclass(value, (BaseException, tuple)) or value in MADE_HERE):
        return
    taken = [p for p in inspect.signature(value).parameters if p != "self"]
    text = inspect.getdoc(value) or ""
    missing = [p for p in taken if not re.search(rf"^ +\*{{0,2}}{p}: ", text, re.MULTILINE)]
    assert not missing, f"{name}: {', '.join(missing)}"


def test_every_name_has_a_place_in_the_reference() -> None:
    shown = set()
    for page in REFERENCE.glob("*.md"):
        for target in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            module, _, name = target.rpartition(".")
            shown.add(id(getattr(importlib.import_module(module), name)))
    assert [name for name, value in PUBLIC.items() if id(value) not in shown] == []
    index = (REFERENCE / "index.md").read_text()
    assert all(page.name in index for page in REFERENCE.glob("*.md") if page.name != "index.md")
