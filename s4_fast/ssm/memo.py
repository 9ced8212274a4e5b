"""What depends on a module's tensors alone, remembered while they do not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from s4_fast.torch_private import versions

T = TypeVar("T")

_address = Tensor.data_ptr


class Memo:
    """Values by name, for one state of the tensors that they were computed from.

    A change is seen by a tensor's memory or version. Writing into ``.data`` leaves no trace.
    """

    def __init__(self) -> None:
        self._key: Any = None
        self._alive: list[Tensor] = []
        self._values: dict[str, Any] = {}

    def get(self, name: str, tensors: Sequence[Tensor | None], compute: Callable[[], T]) -> T:
        """The value ``name`` for ``tensors``, computed where it is not remembered."""
        given = [t for t in tensors if t is not None]
        try:
            key = (*map(_address, given), *versions(given))
        except RuntimeError:  # an inference tensor has no version
            key = (*map(_address, given), *(0 if t.is_inference() else versions((t,))[0] for t in given))
        if key != self._key:
            # The aliases keep the memory, so that no other tensor can come to lie at its address.
            self._key, self._alive, self._values = key, [t.detach() for t in given], {}
        return found(self._values, name, compute)

    def forget(self) -> None:
        """Forget everything."""
        self._key, self._alive, self._values = None, [], {}


def found(values: dict[str, Any], name: str, compute: Callable[[], T]) -> T:
    """``values[name]``, which is ``compute()`` where it is missing."""
    if name not in values:
        values[name] = compute()
    result: T = values[name]
    return result
