"""Backends: which exist, which one runs this call, and why.

An op registers, per backend, the module that implements it and a predicate that says what that module
serves. Choosing is a pure function of the :class:`Call`; nothing is imported until a backend is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

BACKENDS = ("reference", "pytorch", "keops", "triton", "native")
ENVIRONMENT_VARIABLE = "S4_FAST_BACKEND"

_AUTOMATIC_ORDER = ("native", "triton", "pytorch")


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot serve the call. The message names the cause and the fix."""


@dataclass(frozen=True)
class Call:
    """What the choice of a backend may depend on.

    ``shape`` holds the op's canonical sizes by name, ``grads`` the inputs whose gradient is needed. ``watched`` is set
    by ops for which it matters whether something else than autograd sees the operations.
    """

    op: str
    device: str
    dtype: torch.dtype
    shape: dict[str, int]
    grads: tuple[str, ...] = ()
    watched: bool = False


@dataclass(frozen=True)
class Choice:
    """The backend that runs a call, and why it was chosen."""

    backend: str
    reason: str


@dataclass(frozen=True)
class Implementation:
    """One backend of one op.

    ``module`` is imported at first use. ``refuses(call)`` returns why the backend cannot serve the call,
    or None; ``preferred(call)`` says whether the automatic choice may take it.
    """

    module: str
    refuses: Callable[[Call], str | None]
    preferred: Callable[[Call], bool]


@dataclass(frozen=True)
class Status:
    """Whether a backend is usable on this machine; if not, the cause and the command that fixes it."""

    usable: bool
    ops: tuple[str, ...]
    cause: str = ""
    fix: str = ""


@dataclass(frozen=True)
class _Requirement:
    """``missing()`` says what a backend lacks on this machine, or returns the empty string.

    ``fix()`` is the command that provides it, or the empty string where none does.
    """

    missing: Callable[[], str]
    fix: Callable[[], str]


def _package(name: str) -> Callable[[], str]:
    return lambda: "" if importlib.util.find_spec(name) else f"the package {name!r} is not installed"


def _cxx_compiler() -> str:
    """KeOps compiles with ``$CXX`` or ``g++`` (``clang++`` on macOS), at its first use of a formula."""
    names = [os.environ.get("CXX"), "g++", *(["clang++"] if sys.platform == "darwin" else [])]
    found = any(name and shutil.which(name) for name in names)
    return "" if found else "it compiles its formulas, and there is no C++ compiler"


def _native_library(function: str) -> Callable[[], str]:
    """``cause`` or ``fix`` of the native library, which is loaded when it is asked for."""
    return lambda: getattr(importlib.import_module("s4_fast.native_library"), function)()


_REQUIREMENTS = {
    "keops": (
        _Requirement(_package("pykeops"), lambda: "pip install 's4_fast[keops]'"),
        _Requirement(_cxx_compiler, lambda: "apt-get install g++ (or set CXX to another C++ compiler)"),
    ),
    "triton": (_Requirement(_package("triton"), lambda: "pip install 's4_fast[triton]'"),),
    "native": (_Requirement(_native_library("cause"), _native_library("fix")),),
}

_implementations: dict[str, dict[str, Implementation]] = {}
_describers: dict[str, Callable[..., Call]] = {}
_override: list[str | None] = [None]


def _serves_everything(call: Call) -> str | None:
    return None


def register_op(op: str, describe: Callable[..., Call]) -> None:
    """Declare an op. ``describe`` takes the public function's arguments and returns its :class:`Call`."""
    _describers[op] = describe
    _implementations[op] = {}


def register(
    op: str,
    backend: str,
    module: str,
    *,
    refuses: Callable[[Call], str | None] = _serves_everything,
    preferred: Callable[[Call], bool] = lambda call: True,
) -> None:
    """Declare that ``module`` implements ``op`` for ``backend``."""
    _implementations[op][backend] = Implementation(module, refuses, preferred)


def ops() -> tuple[str, ...]:
    """The names of the registered ops."""
    return tuple(_implementations)


def implementations(op: str) -> tuple[str, ...]:
    """The backends that implement ``op``, usable here or not."""
    return tuple(_implementations[op])


@torch.compiler.assume_constant_result
def _missing(backend: str) -> str:
    """Why ``backend`` cannot be used on this machine, or the empty string."""
    for requirement in _REQUIREMENTS.get(backend, ()):
        if cause := requirement.missing():
            return cause
    if not any(backend in table for table in _implementations.values()):
        return "this version of s4_fast has no implementation for it"
    return ""


@torch.compiler.assume_constant_result
def _fix(backend: str) -> str:
    """The command that provides the first thing ``backend`` lacks on this machine, or the empty string."""
    return next((requirement.fix() for requirement in _REQUIREMENTS.get(backend, ()) if requirement.missing()), "")


def backends() -> dict[str, Status]:
    """Every backend by name: usable here or not, the ops it implements, the cause and the fixing command."""
    found = {}
    for name in BACKENDS:
        served = tuple(op for op, table in _implementations.items() if name in table)
        cause = _missing(name)
        found[name] = Status(not cause, served, cause, _fix(name) if cause else "")
    return found


def _check_name(backend: str, where: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r} in {where}; expected one of {', '.join(BACKENDS)}")


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run every op in this block with ``backend``; ``"auto"`` restores the automatic choice.

    The setting is process-wide, as ``torch.backends.cudnn.flags`` is, so compiled functions see it too.

    Raises:
        ValueError: ``backend`` is not a backend's name.
    """
    if backend != "auto":
        _check_name(backend, "use_backend()")
    previous = _override[0]
    _override[0] = backend
    try:
        yield
    finally:
        _override[0] = previous


def requested() -> str | None:
    """What :func:`use_backend`, or else ``S4_FAST_BACKEND``, asks for; None or "auto" for the automatic choice."""
    return _override[0] if _override[0] is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None


def _requested(argument: str | None) -> tuple[str | None, str]:
    if argument is not None:
        return argument, "backend="
    where = "use_backend()" if _override[0] is not None else f"the environment variable {ENVIRONMENT_VARIABLE}"
    return requested(), where


def _refusal(call: Call, backend: str) -> str:
    """Why ``backend`` cannot serve ``call``, with the fixing command where there is one; else empty."""
    cause = _missing(backend)
    if cause:
        fix = _fix(backend)
        return f"{cause}; run: {fix}" if fix else cause
    implementation = _implementations[call.op].get(backend)
    if implementation is None:
        have = ", ".join(_implementations[call.op])
        return f"it does not implement {call.op}; backends that do: {have}"
    return implementation.refuses(call) or ""


def choose(call: Call, backend: str | None = None) -> Choice:
    """The backend that runs ``call``.

    Order of say: ``backend``, :func:`use_backend`, ``S4_FAST_BACKEND``, then the automatic choice. An
    explicit choice is never replaced by another one.

    Raises:
        ValueError: the requested name is not a backend.
        BackendUnavailableError: the requested backend cannot serve this call.
    """
    requested, where = _requested(backend)
    if requested is not None and requested != "auto":
        _check_name(requested, where)
        refusal = _refusal(call, requested)
        if refusal:
            raise BackendUnavailableError(f"backend {requested!r} (from {where}) cannot run {call.op}: {refusal}")
        return Choice(requested, f"requested by {where}")
    for name in _AUTOMATIC_ORDER:
        implementation = _implementations[call.op].get(name)
        if implementation is None or not implementation.preferred(call) or _refusal(call, name):
            continue
        return Choice(name, f"automatic: first of {', '.join(_AUTOMATIC_ORDER)} that serves {call.op} here")
    raise AssertionError(f"no backend serves {call.op}")  # pytorch serves everything


def load(op: str, backend: str) -> ModuleType:
    """The module that implements ``op`` for ``backend``."""
    return importlib.import_module(_implementations[op][backend].module)


def explain(op: str | Callable[..., Any], *args: Any, backend: str | None = None, **kwargs: Any) -> Choice:
    """The backend that ``op(*args, **kwargs)`` would run here, and why. Nothing is computed.

    ``op`` is the public function or its name. Raises what the call itself would raise for bad arguments.
    """
    name = op if isinstance(op, str) else op.__name__
    if name not in _describers:
        raise ValueError(f"unknown op {name!r}; expected one of {', '.join(_describers)}")
    return choose(_describers[name](*args, **kwargs), backend)
