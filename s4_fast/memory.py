"""Too little memory, in whichever way it is reported."""

from __future__ import annotations

import errno
import re

# PyTorch's allocators raise RuntimeErrors on a CPU; std::bad_alloc arrives as one too.
_REPORTS = re.compile(r"(?i)can't allocate memory|not enough memory|cannot allocate memory|bad_alloc|out of memory")
_WANTED = re.compile(r"(?i)allocate ([\d.]+ (?:bytes|[KMGT]i?B))")


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` says that there is too little memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_REPORTS.search(str(error))))


def wanted(error: BaseException) -> str:
    """How much was asked for at once, such as "1024 bytes", or the empty string."""
    found = _WANTED.search(str(error))
    return found[1] if found else ""


def explained(error: RuntimeError | MemoryError, what: str) -> RuntimeError | MemoryError:
    """An error of the same kind that says what there was too little memory for."""
    said = (str(error).splitlines() or [""])[0]
    return type(error)(f"{what}: too little memory" + (f": {said}" if said else ""))
