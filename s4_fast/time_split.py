"""The types of modules that must know when their input is a slice of the time axis; see ``s4_fast.distributed``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from s4_fast.named_errors import NamedErrors

if TYPE_CHECKING:
    from s4_fast.distributed import TimeSplit


T = TypeVar("T")


class TimeSplittable(NamedErrors):
    """A module that does something else where its input is a slice."""

    time_split: TimeSplit | None = None  # s4_fast.distributed.split_time sets it

    def given(self, read: Callable[[], T]) -> T:
        """``read()`` of what the caller gave. What it raises, the ranks that wait for this one raise too."""
        if self.time_split is None:
            return read()
        try:
            return read()
        except BaseException as error:
            self.time_split.fail(type(self).__name__, error)
            raise


class SplittableSequence(TimeSplittable):
    """A module in which samples meet others of their sequence."""

    def refuses_split(self) -> str:
        """Why the module cannot take a slice as its input, or the empty string."""
        return ""
