"""Which calls the native library serves. Importing this does not load it."""

from __future__ import annotations

from s4_fast import native_library
from s4_fast.dispatch import Call


def refuses(call: Call) -> str | None:
    """Why the library cannot run ``call`` where its tensors are, or None."""
    return native_library.refusal(call.device)
