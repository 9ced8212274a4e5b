"""Backends: which exist, which one runs this call, and why.

An op registers, per backend, the module that implements it and a predicate that says what that module serves. Nothing
is imported until a backend is used. Choosing is a pure function of the ``Call``, of what is asked for and of what
is on the machine. It remembers nothing, so nothing can be out of date; a call of a layer feels every microsecond of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch

from s4_fast import backend_requests, gpu_choices, torch_private
from s4_fast.backend_requests import ENVIRONMENT_VARIABLE as ENVIRONMENT_VARIABLE
from s4_fast.backend_requests import Request
from s4_fast.backend_requests import use_backend as use_backend
from s4_fast.backend_status import Backends, Status, wrapped
from s4_fast.backend_table import AUTOMATIC_ORDER, BACKENDS, check_name


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot serve the call. The message names the cause and the fix.

    Attributes:
        cause: the part of the message that does not depend on who asked, and for which op.

    Examples:
        >>> x = torch.zeros(8, 4, dtype=torch.complex64)
        >>> try:
        ...     s4_fast.fft_conv(torch.zeros(1, 8, 9), torch.zeros(8, 9), backend="triton")
        ... except BackendUnavailableError as error:
        ...     print("triton" in str(error))
        True
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause or message


class Call(NamedTuple):
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


class Choice(NamedTuple):
    """The backend that runs a call, and why it was chosen.

    Attributes:
        backend: its name.
        reason: who asked for it, or how it was chosen.
        replaces: the backend that was preferred, where that does not serve the call; else None.

    Examples:
        >>> choice = s4_fast.explain("fft_conv", torch.zeros(1, 8, 9), torch.zeros(8, 9), backend="pytorch")
        >>> choice.backend, choice.reason
        ('pytorch', 'requested by backend=')
    """

    backend: str
    reason: str
    replaces: str | None = None

    def __str__(self) -> str:
        return wrapped(f"{self.backend}: {self.reason}")


def _serves_everything(call: Call) -> str | None:
    return None


def _always(call: Call) -> bool:
    return True


@dataclass(frozen=True)
class Implementation:
    """One backend of one op; see ``register``."""

    module: str
    refuses: Callable[[Call], str | None] = _serves_everything
    preferred: Callable[[Call], bool] = _always
    offers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# Not a backend: operations of PyTorch alone, which an op has for derivatives, transforms and exported programs.
PLAIN = "plain"
_ORDER = ", ".join(AUTOMATIC_ORDER)
_implementations: dict[str, dict[str, Implementation]] = {}
_describers: dict[str, Callable[..., Call]] = {}


def register_op(op: str, describe: Callable[..., Call]) -> None:
    """Declare an op. ``describe`` takes the public function's arguments and returns its ``Call``."""
    _describers[op] = describe
    _implementations[op] = {}


def register(
    op: str,
    backend: str,
    module: str,
    *,
    refuses: Callable[[Call], str | None] = _serves_everything,
    preferred: Callable[[Call], bool] = _always,
    offers: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Declare that ``module`` implements ``op`` for ``backend``.

    Args:
        op: the name of an op that ``register_op`` has declared.
        backend: a name of the table of backends (``s4_fast.backend_table``).
        module: the module's name; it is imported at first use.
        refuses: why the backend cannot serve a call, or None. Devices that the table does not name are refused before.
        preferred: whether the automatic choice may take it for a call.
        offers: what the module does beyond the op, by name, with the types of devices on which it does:
            see ``offers``.

    Raises:
        ValueError: there is no such op or backend; the known ones are named.
    """
    if op not in _implementations:
        raise ValueError(f"unknown op {op!r} in register(); expected one of {', '.join(_implementations)}")
    check_name(backend, "register()")
    _implementations[op][backend] = Implementation(module, refuses, preferred, offers or {})


def ops() -> tuple[str, ...]:
    """The names of the registered ops."""
    return tuple(_implementations)


def implementations(op: str) -> tuple[str, ...]:
    """The backends that implement ``op``, usable here or not."""
    return tuple(_implementations[op])


def offers(op: str, backend: str, feature: str, device: str) -> bool:
    """Whether the module of ``backend`` for ``op`` has ``feature`` on devices of this type, as it has registered."""
    return device in _implementations[op][backend].offers.get(feature, ())


@torch_private.constant_in_graphs
def _missing(backend: str) -> str:
    """Why ``backend`` cannot be used on this machine, or the empty string."""
    for requirement in BACKENDS[backend].requirements:
        if cause := requirement.missing():
            return cause
    return ""


@torch_private.constant_in_graphs
def _fix(backend: str) -> str:
    """The command that provides the first thing ``backend`` lacks on this machine, or the empty string."""
    return next((requirement.fix() for requirement in BACKENDS[backend].requirements if requirement.missing()), "")


def backends() -> Backends:
    """Every backend by name: usable here or not, the ops it implements, the cause and the fixing command.

    Printed, the result is a table.

    Examples:
        >>> found = backends()
        >>> list(found)
        ['reference', 'pytorch', 'keops', 'triton', 'native', 'tensor_cores']
        >>> found["pytorch"].usable, "ssm_scan" in found["pytorch"].ops
        (True, True)
    """
    found = Backends()
    for name in BACKENDS:
        served = tuple(op for op, table in _implementations.items() if name in table)
        cause = _missing(name)
        found[name] = Status(not cause, served, cause, _fix(name) if cause else "")
    return found


def requested(op: str | None = None) -> str | None:
    """The backend that ``use_backend``, or else ``S4_FAST_BACKEND``, asks for; None for the automatic choice.

    With ``op`` it is None as well where that backend is only preferred, and does not implement ``op``.

    Raises:
        ValueError: the name is not a backend's.
        BackendUnavailableError: the backend does not implement ``op``, nor could it be used on this machine if it did.
    """
    request = backend_requests.find()
    if request is None:
        return None
    if op is not None and not request.strict and request.backend not in _implementations[op]:
        _check_usable(op, request)
        return None
    return request.backend


def _check_usable(op: str, request: Request) -> None:
    if cause := _missing(request.backend):
        fix = _fix(request.backend)
        _fail(op, request, f"{cause}; run: {fix}" if fix else cause)


def _fail(op: str, request: Request, cause: str) -> None:
    message = f"backend {request.backend!r} (from {request.where}) cannot run {op}: {cause}"
    raise BackendUnavailableError(message, cause)


def _refusal(call: Call, backend: str, implementation: Implementation) -> str | None:
    """Why ``backend``, which is there, does not serve ``call``; or None."""
    devices = BACKENDS[backend].devices
    if devices and call.device not in devices:
        return f"it serves {' and '.join(devices)}, not {call.device}"
    return implementation.refuses(call)


def choose(call: Call, backend: str | None = None) -> Choice:
    """The backend that runs ``call``.

    Order of say: ``backend``, ``use_backend``, ``S4_FAST_BACKEND``, then the automatic choice. What ``backend``, or
    a strict block, asks for is never replaced by another one; what the others ask for runs where it serves the call.
    The automatic choice is ``PLAIN`` in exported programs and under transforms of ``torch.func``. There, and for
    tangents and second derivatives, those operations take the place of a requested backend too, but for
    ``"reference"``, which has its own; an exported program has the op of a requested backend.

    Raises:
        ValueError: the requested name is not a backend.
        BackendUnavailableError: the requested backend cannot be used on this machine, or cannot serve this call and
            must not be replaced.
    """
    request = backend_requests.find(backend)
    if request is None:
        return _automatic(call)
    _check_usable(call.op, request)
    implementation = _implementations[call.op].get(request.backend)
    if implementation is None:
        if request.strict:
            have = ", ".join(_implementations[call.op])
            _fail(call.op, request, f"it does not implement {call.op}; backends that do: {have}")
        why = f"{request.where} prefers {request.backend}, which does not implement {call.op}; "
        return _automatic(call, why, request.backend)
    refusal = _refusal(call, request.backend, implementation)
    if not refusal:
        return Choice(request.backend, f"requested by {request.where}")
    if request.strict:
        _fail(call.op, request, refusal)
    why = f"{request.where} prefers {request.backend}, which refuses this call ({refusal}); "
    return _automatic(call, why, request.backend)


def _automatic(call: Call, preface: str = "", replaces: str | None = None) -> Choice:
    if torch_private.is_exporting():
        return Choice(PLAIN, f"{preface}an exported program holds operations of PyTorch alone", replaces)
    compiling = torch.compiler.is_compiling()
    if torch_private.is_transformed_in_graph() if compiling else torch_private.innermost_transform() is not None:
        return Choice(PLAIN, f"{preface}transforms of torch.func go through operations of PyTorch alone", replaces)
    first = _first(call)
    asked = gpu_choices.question(call, first) if call.device == "cuda" else None
    if asked is not None:
        for name in gpu_choices.order(AUTOMATIC_ORDER, *asked).split():
            if name == first or _takes(call, name):
                return Choice(name, f"{preface}automatic: {gpu_choices.reason(name, *asked)}", replaces)
    return Choice(first, f"{preface}automatic: first of {_ORDER} that serves {call.op} here", replaces)


def _first(call: Call) -> str:
    for name in AUTOMATIC_ORDER:
        if _takes(call, name):
            return name
    raise AssertionError(f"no backend serves {call.op}")  # pytorch serves everything


def _takes(call: Call, name: str) -> bool:
    """Whether the automatic choice may take ``name`` for ``call``."""
    implementation = _implementations[call.op].get(name)
    if implementation is None or not implementation.preferred(call):
        return False
    return not (_missing(name) or _refusal(call, name, implementation))


def load(op: str, backend: str) -> ModuleType:
    """The module that implements ``op`` for ``backend``."""
    name = _implementations[op][backend].module
    return sys.modules.get(name) or importlib.import_module(name)


def explain(op: str | Callable[..., Any], *args: Any, backend: str | None = None, **kwargs: Any) -> Choice:
    """The backend that ``op(*args, **kwargs)`` would run here, and why. Nothing is computed.

    Args:
        op: the public function or its name.
        *args: the call's arguments.
        backend: the call's ``backend``.
        **kwargs: the call's other keyword arguments.

    Raises:
        ValueError: there is no such op, or no such backend.
        BackendUnavailableError: as the call itself would; and so for its other errors.

    Examples:
        >>> u, k = torch.randn(2, 8, 100), torch.randn(8, 100)
        >>> explain(s4_fast.fft_conv, u, k, backend="pytorch").backend
        'pytorch'
        >>> with s4_fast.use_backend("reference"):
        ...     explain("fft_conv", u, k).reason
        'requested by use_backend()'
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", type(op).__name__)
    if name not in _describers:
        raise ValueError(f"unknown op {name!r}; expected one of {', '.join(_describers)}")
    return choose(_describers[name](*args, **kwargs), backend)
