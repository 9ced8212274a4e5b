"""The types of modules that must know when their input is a slice of the time axis; see ``s4_fast.distributed``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from s4_fast.distributed import TimeSplit


class TimeSplittable(nn.Module):
    """A module that does something else where its input is a slice."""

    time_split: TimeSplit | None = None  # s4_fast.distributed.split_time sets it


class SplittableSequence(TimeSplittable):
    """A module in which samples meet others of their sequence."""

    def refuses_split(self) -> str:
        """Why the module cannot take a slice as its input, or the empty string."""
        return ""
