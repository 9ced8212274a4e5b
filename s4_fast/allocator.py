"""Telling the C allocator to keep the memory that tensors give back."""

from __future__ import annotations

import ctypes
import platform
import warnings

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_pages() -> bool:
    """Make glibc's ``malloc`` keep freed memory for the next allocation of this process.

    By default glibc maps every large block from the kernel and unmaps it when it is freed, so each large CPU tensor
    is paged in again, zeroed page by page, every time. After this call such blocks come from the heap, which is
    never given back: the same as starting the process with ``MALLOC_MMAP_MAX_=0
    MALLOC_TRIM_THRESHOLD_=1000000000000``. Results do not change. CUDA tensors are not affected. On a virtual machine
    with two cores, ``x + 1`` on 64 MiB took 27 ms before this call and 4 ms after it.

    The price: the process keeps the most memory it ever used, and a heap with holes can need somewhat more than
    that. Call it once, early, in a program that trains or serves on the CPU and owns its machine; do not call it
    in a library, or where several processes share the memory.

    Returns:
        True when it took effect. Elsewhere (another operating system, musl, or a preloaded jemalloc, tcmalloc or
        mimalloc) nothing is changed, one warning says so and the result is False.

    Examples:
        >>> if __name__ == "__main__":  # in a program, before it allocates
        ...     keep_pages()
    """
    cause = _unsupported()
    if not cause:
        mallopt = ctypes.CDLL(None).mallopt
        # The threshold is a C int here: -1 is the largest size_t, "never trim".
        if mallopt(_M_MMAP_MAX, 0) == 1 and mallopt(_M_TRIM_THRESHOLD, -1) == 1:
            return True
        cause = "mallopt() refused the settings"
    warnings.warn(f"keep_pages() changed nothing: {cause}", RuntimeWarning, stacklevel=2)
    return False


def _unsupported() -> str:
    """Why glibc's malloc is not what serves this process, or the empty string."""
    if platform.system() != "Linux":
        return f"it needs glibc on Linux, and this is {platform.system()}"
    process = ctypes.CDLL(None)
    if not hasattr(process, "gnu_get_libc_version"):
        return "it needs glibc, and this process uses another C library"
    # A preloaded allocator overrides malloc but rarely mallopt, which then silently does nothing.
    libc = ctypes.CDLL("libc.so.6")
    if _address(process, "malloc") != _address(libc, "malloc"):
        return "another allocator (jemalloc, tcmalloc, mimalloc) replaces glibc's malloc in this process"
    return ""


def _address(library: ctypes.CDLL, name: str) -> int | None:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
