"""Which Cauchy and Vandermonde functions the layers of a module call, read from their code."""

from __future__ import annotations

import dis
import functools
import re
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from torch import nn

from s4_fast.state_spaces.replaced_functions import codes, replacement

_NAME = re.compile("cauchy|vandermonde")


class Use(NamedTuple):
    """A function that a layer calls.

    Attributes:
        name: as it is reached from the module (``"cauchy_mult"``, ``"cauchy.cauchy_conj"``), or None where the layer
            has it in another way than by a name of the module.
        about: the function's own name.
        there: whether the module has it.
        how: a sentence on who calls it.
    """

    name: str | None
    about: str
    there: bool
    how: str


def uses(module: ModuleType) -> list[Use]:
    """What the layers that ``module`` defines call, in any of their branches, also through functions of the module."""
    layers = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    found: list[Use] = []
    for layer in layers:
        for name, value in vars(layer).items():
            functions = _functions(value)
            inner = [use for f in functions for use in _Reading(module, f"{layer.__name__}.{name}").function(f)]
            found += inner or [
                Use(None, a, True, f"{layer.__name__} has {name} of its own") for a in _about(name, functions)
            ]
    return list(dict.fromkeys(found))


class _Reading:
    """The uses in functions that are reached from one place."""

    def __init__(self, module: ModuleType, where: str) -> None:
        self.module, self.where = module, where
        self.seen: set[CodeType | str] = set()

    def function(self, function: Any) -> Iterator[Use]:
        code = getattr(function, "__code__", None)
        if code is None or code in self.seen or function.__globals__ is not vars(self.module):
            return
        self.seen.add(code)
        defaults = _functions([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()])
        for about in _about("", defaults):
            yield Use(None, about, True, f"{self.where} holds {about} as a default")
        for part in codes(code):
            if part is not code and _NAME.search(part.co_name):
                yield Use(None, part.co_name, True, f"{self.where} makes {part.co_name} itself")
            yield from self._code(part)

    def _code(self, code: CodeType) -> Iterator[Use]:
        path, owner = "", None
        for step in dis.get_instructions(code):
            name = step.argval
            if step.opname == "LOAD_GLOBAL":
                path, owner = name, vars(self.module).get(name)
                if not isinstance(owner, ModuleType):
                    yield from self._global(name, owner)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(owner, ModuleType):
                path, owner = f"{path}.{name}", getattr(owner, name, None)
                if _NAME.search(name) and not isinstance(owner, ModuleType):
                    yield Use(path, name, callable(owner), f"{self.where} calls {path}")
            else:
                owner = None
                if step.opname.startswith("IMPORT_") and _NAME.search(str(name)):
                    yield Use(None, name.rpartition(".")[2], True, f"{self.where} imports {name} itself")

    def _global(self, name: str, value: Any) -> Iterator[Use]:
        if name in self.seen:
            return
        self.seen.add(name)
        how = f"{self.where} calls {name}"
        if value is None and _NAME.search(name):
            yield Use(name, name, False, how)
            return
        functions = _functions(value)
        if replacement(name) is not None and functions:
            yield Use(name, name, True, how)
            return
        # A function of the module that only passes its arguments on is none itself.
        inner = [use for f in functions for use in self.function(f)]
        yield from inner or [Use(name, about, True, how) for about in _about(name, functions)]


def _functions(value: Any, seen: tuple[int, ...] = ()) -> list[Any]:
    """The functions in what a class or a module holds: itself, those that it wraps, and those in containers."""
    if id(value) in seen:
        return []
    seen = (*seen, id(value))
    inside: list[Any] = []
    if isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set):
        inside = list(value)
    elif isinstance(value, staticmethod | classmethod):
        inside = [value.__func__]
    elif isinstance(value, property):
        inside = [value.fget, value.fset]
    elif isinstance(value, functools.partial | functools.cached_property):
        inside = [value.func]
    elif isinstance(value, FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        inside = [f for f in (*inside, getattr(value, "__wrapped__", None)) if isinstance(f, FunctionType)]
    found = [function for item in inside for function in _functions(item, seen)]
    if callable(value) and not isinstance(value, type | ModuleType | nn.Module | staticmethod | classmethod):
        found.append(value)
    return found


def _about(name: str, functions: list[Any]) -> list[str]:
    """The names that say that these are Cauchy or Vandermonde functions; ``name`` is what holds them."""
    if functions and _NAME.search(name):
        return [name]
    names = (getattr(function, "__name__", "") for function in functions)
    return [n for n in dict.fromkeys(names) if _NAME.search(n)]
