"""Who asks for which backend: a call, the innermost ``use_backend`` block, or the environment."""

from __future__ import annotations

import os
import threading
from contextlib import ContextDecorator
from typing import NamedTuple

import torch

from s4_fast.backend_table import check_name

ENVIRONMENT_VARIABLE = "S4_FAST_BACKEND"


class Request(NamedTuple):
    """A backend's name, who asks for it, and whether nothing else may run."""

    backend: str
    where: str
    strict: bool


_lock = threading.Lock()
_blocks: tuple[Request, ...] = ()  # in the order in which they were entered
_innermost: Request | None = None
# The blocks that stand inside the function being traced. In the lists above, a compiled function would put back the
# blocks of other threads that it has found there.
_traced: list[Request] = []


class use_backend(ContextDecorator):
    """Run the ops in this block with ``backend`` where it serves them; ``"auto"`` restores the automatic choice.

    An op that ``backend`` does not implement, or a call that it refuses for its device, sizes, precision or gradients,
    runs on what is chosen automatically; ``s4_fast.explain`` says so. With ``strict`` it raises instead.

    The setting is process-wide, as ``torch.backends.cudnn.flags`` is, so compiled functions see it too. Of the blocks
    that threads are in, the one that was entered last holds.

    Args:
        backend: a backend's name, or ``"auto"``.
        strict: whether a call that ``backend`` does not serve raises.

    Raises:
        ValueError: ``backend`` is not a backend's name.
        BackendUnavailableError: from the ops, where ``backend`` cannot be used on this machine at all, or, with
            ``strict``, does not serve a call.

    Examples:
        >>> layer, u = s4_fast.S4DLayer(8), torch.randn(2, 100, 8)
        >>> with use_backend("pytorch"):
        ...     y = layer(u)
    """

    # A class and no generator: Dynamo traces those of contextlib from PyTorch 2.7 on alone.

    def __init__(self, backend: str, *, strict: bool = False) -> None:
        if backend != "auto":
            check_name(backend, "use_backend()")
        self._request = Request(backend, "use_backend()", strict)

    def __enter__(self) -> None:
        if torch.compiler.is_compiling():
            _traced.append(self._request)
        else:
            _enter(self._request)

    def __exit__(self, *raised: object) -> None:
        if torch.compiler.is_compiling():
            _traced.pop()
        else:
            _leave(self._request)

    def _recreate_cm(self) -> use_backend:
        """One for each call of a decorated function, as several may be at work."""
        return use_backend(self._request.backend, strict=self._request.strict)


def _enter(request: Request) -> None:
    global _blocks, _innermost
    with _lock:
        _blocks = (*_blocks, request)
        _innermost = request


def _leave(request: Request) -> None:
    global _blocks, _innermost
    with _lock:
        _blocks = tuple(block for block in _blocks if block is not request)
        _innermost = _blocks[-1] if _blocks else None


def find(argument: str | None = None) -> Request | None:
    """What is asked for, ``argument`` being the call's ``backend=``; None for the automatic choice.

    Raises:
        ValueError: it is not a backend's name.
    """
    if argument is not None:
        request = Request(argument, "backend=", True)
    elif _traced:
        request = _traced[-1]
    elif _innermost is not None:
        request = _innermost
    else:
        name = os.environ.get(ENVIRONMENT_VARIABLE)
        if not name:
            return None
        request = Request(name, f"the environment variable {ENVIRONMENT_VARIABLE}", False)
    if request.backend == "auto":
        return None
    check_name(request.backend, request.where)
    return request
