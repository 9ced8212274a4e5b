"""Errors of modules that begin with the module's name, and with its path where it is inside another."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import nn

from s4_fast import torch_private
from s4_fast.arguments import UnknownOptionError

# What users call with arguments of their own.
_CALLS = (
    "forward", "prefill", "step", "generate", "explain", "init_state", "default_state", "forward_state",
    "impulse_response", "setup_length", "setup_step",
)  # fmt: skip
_KINDS = (TypeError, ValueError, RuntimeError)


class NamedErrors(nn.Module):
    """A module whose name stands before the message of what its methods raise.

    It is put there here, as most checks are shared by modules and know none of them. Compiled graphs hold the methods
    as they are written: a ``try`` would keep a graph from breaking inside.
    """

    is_part_of_layer = False  # whether the name of the layer around the module says more

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, named in (("__init__", _constructed), *((call, _called) for call in _CALLS)):
            if isinstance(method := cls.__dict__.get(name), FunctionType):
                setattr(cls, name, named(method))


def _called(method: FunctionType) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: NamedErrors, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        try:
            return method(self, *args, **kwargs)
        except _KINDS as error:
            _put_name(error, self)
            raise

    # A code object of its own: Dynamo counts compilations by code objects, and all methods would share one.
    call.__code__ = call.__code__.replace(co_name=method.__name__)  # type: ignore[attr-defined]
    return call


def _constructed(method: FunctionType) -> Callable[..., None]:
    @functools.wraps(method)
    def construct(self: NamedErrors, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except _KINDS as error:
            if type(error) is TypeError:
                _refuse_unknown(self, method, kwargs)
            _put_name(error, self, constructs=True)
            raise

    return construct


def _refuse_unknown(module: NamedErrors, method: FunctionType, given: Mapping[str, Any]) -> None:
    """Raise UnknownOptionError where ``given`` has what the constructor does not take: Python names one, not all."""
    taken = inspect.signature(method).parameters
    unknown = [name for name in given if name not in taken]
    if unknown and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in taken.values()):
        known = [name for name in taken if name != "self"]
        raise UnknownOptionError.of(torch_private.written_class(module).__name__, unknown, known) from None


def _put_name(error: Exception, module: NamedErrors, constructs: bool = False) -> None:
    """Put the name of ``module`` before the message; in the place of a part's, or with the path of what is inside."""
    own = type(error) in _KINDS or type(error).__module__.startswith("s4_fast.")
    if not own or isinstance(error, UnknownOptionError) or not (error.args and isinstance(error.args[0], str)):
        return
    said, inner = getattr(error, "_said", None) or (error.args[0], None)
    if inner is None or constructs or inner.is_part_of_layer:
        inner = module
    error._said = said, inner  # type: ignore[attr-defined]
    name, within = (torch_private.written_class(m).__name__ for m in (module, inner))
    said = said.removeprefix(f"{within}: ")
    path = next((path for path, m in module.named_modules() if m is inner), "") if inner is not module else ""
    error.args = (f"{name}.{path} ({within}): {said}" if path else f"{name}: {said}", *error.args[1:])
