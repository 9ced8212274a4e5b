"""How the arguments of a diagonal SSM are to be read."""

from __future__ import annotations

import functools
from typing import NamedTuple


class Form(NamedTuple):
    """The options of a diagonal SSM as its backends take them."""

    time_major: bool = False  # u is (batch, L, H) and y (batch, L, c H)
    bidirectional: bool = False  # the last half of C's channels runs from the end
    bilinear: bool = False  # instead of zero-order hold
    log_dt: bool = False  # dt holds log dt
    log_decay: bool = False  # A_real holds log(-Re A)
    conjugate: bool = False  # A_imag holds -Im A
    rate: float = 1.0  # dt is multiplied by it

    @property
    def flags(self) -> int:
        """The flags of the native library's header, ``S4_FAST_TIME_MAJOR`` and the following, as a sum."""
        a, b, c, d, e, f, _ = self
        return a | b << 1 | c << 2 | d << 3 | e << 4 | f << 5

    def channels(self, of_C: int) -> int:
        """The number of outputs per feature, for that many channels of C."""
        return of_C // 2 if self.bidirectional else of_C


@functools.lru_cache(64)
def form_of(flags: int, rate: float) -> Form:
    """The form with these flags."""
    return Form(*(bool(flags >> i & 1) for i in range(6)), rate)
