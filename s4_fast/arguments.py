"""What users pass to constructors and calls: sizes, numbers and options, as PyTorch takes them, or one clear error."""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn


def kind(value: object) -> str:
    """What ``value`` is, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor, {str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    if is_array(value):
        return "a NumPy array (torch.from_numpy makes a tensor of it)"
    name = type(value).__name__
    return f"an {name}" if name[:1] in "aeio" else f"a {name}"


def is_array(value: object) -> bool:
    """Whether ``value`` is a NumPy array; asked without importing NumPy."""
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def from_array(array: Any) -> Tensor:
    """A tensor in the memory of a NumPy array, or of a copy: no tensor shares it where it is read-only or reversed."""
    shares = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if shares else array.copy())


def signal(name: str, value: Any, module: nn.Module) -> Tensor:
    """``value`` as a tensor: itself, or ``from_array``, copied where ``module`` is on another device.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, Tensor):
        return value
    if is_array(value):
        return from_array(value).to(next(module.parameters()).device)
    raise TypeError(f"expected {name} to be a tensor, got {kind(value)}")


def integer(name: str, value: Any, least: int | None = None) -> int:
    """``value`` as an int: an int, or what stands for one without loss, such as a NumPy integer.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is less than ``least``.
    """
    try:
        if isinstance(value, bool) or (is_array(value) and value.ndim):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(_not(name, "an int", value)) from None
    if least is not None and found < least:
        raise ValueError(f"{name} must be at least {least}, got {found}")
    return found


def number(name: str, value: Any) -> float:
    """``value`` as a float: a real number, of NumPy or in a tensor or array of one entry too.

    Raises:
        TypeError: it is not a number.
    """
    single = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    if is_array(value) and value.size == 1 and value.dtype.kind in "iuf":
        return float(value.item())
    if isinstance(value, bool) or not (single or isinstance(value, Real)):
        raise TypeError(_not(name, "a number", value))
    return float(value)


def _not(name: str, expected: str, value: Any) -> str:
    got = kind(value) if isinstance(value, Tensor) or is_array(value) else f"{type(value).__name__} {value!r}"
    return f"{name} must be {expected}, got {got}"


def sizes(**given: Any) -> tuple[int, ...]:
    """Integers of at least 1.

    Raises:
        TypeError: one is not an integer.
        ValueError: one is less than 1.
    """
    return tuple(integer(name, value, 1) for name, value in given.items())


def state_size(d_state: Any) -> int:
    """``d_state`` as an even int of at least 2."""
    (found,) = sizes(d_state=d_state)
    if found % 2:
        raise ValueError(f"d_state must be even (conjugate pairs are stored as halves), got {found}")
    return found


def choice(option: str, value: Any, known: Iterable[str], caller: str = "") -> str:
    """The one of ``known``, which are in lower case, that ``value`` is in upper or lower case.

    Raises:
        ValueError: there is none; the message begins with the ``caller``.
    """
    found = value.lower() if isinstance(value, str) else None
    known = list(known)
    if found not in known:
        said = f"unknown {option} {value!r}; expected one of {', '.join(known)}"
        raise ValueError(f"{caller}: {said}" if caller else said)
    return found


def options_of(*takers: Callable[..., Any]) -> list[str]:
    """The names of the arguments that ``takers`` take, in their order, each once."""
    names: dict[str, None] = {}
    for taker in takers:
        for name, parameter in inspect.signature(taker).parameters.items():
            if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                names[name] = None
    return list(names)


class UnknownOptionError(TypeError):
    """What was called does not take ``names``; ``known`` is what it takes."""

    def __init__(self, message: str, names: Iterable[str] = (), known: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.names, self.known = list(names), list(known)

    @classmethod
    def of(cls, owner: str, names: Iterable[str], known: Iterable[str]) -> UnknownOptionError:
        names, known = list(names), list(dict.fromkeys(known))
        word = "option" if len(names) == 1 else "options"
        meant = [close for name in names for close in difflib.get_close_matches(name, known, 1)]
        hint = f" (did you mean {', '.join(meant)}?)" if meant else ""
        return cls(f"{owner}: unknown {word} {', '.join(names)}{hint}; it takes {', '.join(known)}", names, known)

    def through(self, owner: type) -> UnknownOptionError:
        """The error of ``owner``, which was called with the options and handed them on."""
        own = options_of(owner.__init__)  # type: ignore[misc]
        return self.of(owner.__name__, self.names, (*own, *self.known))


def refuse_unknown(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise UnknownOptionError, a TypeError, where ``given`` has an option that is not in ``known``.

    The message names ``owner``, the layer that was called, and lists what it takes.
    """
    known = list(known)
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UnknownOptionError.of(owner, unknown, known)
