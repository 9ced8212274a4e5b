"""A checkout of state-spaces/s4 whose layers are measured beside ours. Its files are imported from where they are."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from s4_fast.bench.cases import Case
from s4_fast.state_spaces.releases import older_parts

_CLONE = "git clone https://github.com/state-spaces/s4"


def _minimal(module: ModuleType, case: Case) -> nn.Module:
    return module.S4D(case.H, d_state=2 * case.n)


def _older(module: ModuleType, case: Case) -> nn.Module:
    return module.S4(case.H, d_state=2 * case.n, l_max=case.L)


def _block(mode: str, init: str) -> Callable[[ModuleType, Case], nn.Module]:
    return lambda module, case: module.S4Block(case.H, d_state=2 * case.n, l_max=case.L, mode=mode, init=init)


@dataclass(frozen=True)
class _Layout:
    """Where a release has its standalone files, and which measured layers are made of each."""

    releases: str
    folder: str
    builders: Mapping[str, tuple[str, Callable[[ModuleType, Case], nn.Module]]]


_LAYOUTS = (
    _Layout(
        "4",
        "models/s4",
        {
            "S4D": ("s4d.py", _minimal),
            "S4Block-diag": ("s4.py", _block("diag", "diag-lin")),
            "S4Block-dplr": ("s4.py", _block("dplr", "legs")),
        },
    ),
    _Layout("3", "src/models/s4", {"S4D": ("s4d.py", _minimal), "S4": ("s4.py", _older)}),
    _Layout("1 and 2", "src/models/sequence/ss/standalone", {"S4": ("s4.py", _older)}),
)


@dataclass(frozen=True)
class Checkout:
    """The layers of one release, which fall back on plain PyTorch as they do without extension and PyKeOps."""

    path: Path
    release: str
    layout: _Layout = field(repr=False, hash=False, compare=False)
    broken: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)
    """The measured layers that cannot be made here, and why."""

    @property
    def name(self) -> str:
        """What its rows are called."""
        return f"official {self.release} naive"

    @property
    def version(self) -> str:
        """The release and, where git tells it, the commit."""
        return f"state-spaces/s4 {_described(self.path) or self.release}"

    @property
    def ops(self) -> tuple[str, ...]:
        """The measured layers that it has."""
        return tuple(self.layout.builders)

    def build(self, case: Case) -> nn.Module:
        """Its layer for ``case``, on the CPU, with new weights."""
        file, builder = self.layout.builders[case.op]
        return builder(_module(self.path, self.path / self.layout.folder / file), case)


@cache
def load(path: Path) -> Checkout:
    """The checkout at ``path``.

    Raises:
        ValueError: there is none, its files lie elsewhere, or none of its layers can be made; with what to do.
    """
    path = path.resolve()
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; {_CLONE} {path}")
    layout = next((known for known in _LAYOUTS if (path / known.folder / "s4.py").is_file()), None)
    if layout is None:
        places = ", ".join(f"{known.folder}/s4.py (release {known.releases})" for known in _LAYOUTS)
        raise ValueError(f"{path} has none of the files {places}; pass the top of a checkout, as {_CLONE} makes it")
    unnamed, layers, broken = Checkout(path, "", layout), dict[str, Any](), dict[str, str]()
    for op in layout.builders:
        try:
            layers[op] = unnamed.build(Case(op, 2, 2, 8))
        except Exception as error:  # other people's code, with another PyTorch than it was written for
            broken[op] = _cause(error)
    if not layers:
        raise ValueError(f"{path}: {'; '.join(dict.fromkeys(broken.values()))}")
    return Checkout(path, _release(layout, layers), layout, broken)


def _cause(error: Exception) -> str:
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return f"does not run with PyTorch {torch.__version__}, {type(error).__name__}: {error}; try another release"
    top = error.name.partition(".")[0]
    if top in ("src", "models"):
        return f"the checkout is incomplete, {error}; {_CLONE}"
    return f"does not import, {error}; pip install {top}"


def _release(layout: _Layout, layers: Mapping[str, Any]) -> str:
    """As the attributes and names of its layers tell it."""
    if "S4" in layers:
        older = next(iter(older_parts(layers["S4"].state_dict()).values()))
        return str(older.release)
    block = layers.get("S4Block-diag")
    if block is None:
        return layout.releases
    return "4.1" if hasattr(block.layer.kernel, "backend") else "4.0"


def _described(path: Path) -> str:
    if not (path / ".git").exists():
        return ""
    command = ["git", "-C", str(path), "describe", "--tags", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def _module(path: Path, file: Path) -> ModuleType:
    """A standalone file, imported with the packages of its checkout, without PyKeOps, which it asks to run on GPUs."""
    spec = importlib.util.spec_from_file_location(f"official_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = dict(sys.modules)
    sys.path.insert(0, str(path))
    sys.modules["pykeops"] = None  # type: ignore[assignment]
    logging.disable(logging.CRITICAL)  # it warns of what is left out on purpose
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
    finally:
        logging.disable(logging.NOTSET)
        sys.path.remove(str(path))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("src", "pykeops")]:
            del sys.modules[name]
        sys.modules.update(before)
    return module
