"""What depends on a module's numbers alone, remembered while these are the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from s4_fast import native_library

T = TypeVar("T")

_address = Tensor.data_ptr


class Memo:
    """Values by name, for the numbers that they were computed from.

    The numbers are kept in a copy and compared bit by bit at every use: whoever writes them, and however, it is seen.
    Threads may share it: what is kept is replaced and never changed.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def get(self, name: str, tensors: Sequence[Tensor], settings: Hashable, compute: Callable[[], T]) -> T:
        """The value ``name`` for these tensors, on the CPU, and settings; computed where it is not remembered."""
        kept = self._kept
        if kept is None or not kept.fits(tensors, settings):
            # The copy comes first: numbers that are written meanwhile differ from it at the next use.
            self._kept = kept = _Kept(tensors, settings)
        if name not in kept.values:
            kept.values[name] = compute()
        result: T = kept.values[name]
        return result


class _Kept:
    """A copy of the numbers, and the values for them."""

    def __init__(self, tensors: Sequence[Tensor], settings: Hashable) -> None:
        self.copies = [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]
        self.settings = settings
        self.values: dict[str, Any] = {}
        self.forms = [(t.dtype, t.shape) for t in self.copies]
        native = not native_library.cause()
        self.comparison = native_library.Comparison(self.copies) if native else None

    def fits(self, tensors: Sequence[Tensor], settings: Hashable) -> bool:
        if settings != self.settings or [(t.dtype, t.shape) for t in tensors] != self.forms:
            return False
        if self.comparison is not None and all([t.is_contiguous() for t in tensors]):
            return self.comparison.same(list(map(_address, tensors)))
        return all(map(torch.equal, tensors, self.copies))
