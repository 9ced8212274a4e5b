"""How the arguments of a diagonal SSM are to be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """The options of :func:`s4_fast.diagonal_ssm` as its backends take them.

    ``flags`` is their sum in the native library's header (``S4_FAST_TIME_MAJOR`` and the following).
    """

    time_major: bool = False  # u is (batch, L, H) and y (batch, L, c, H)
    bidirectional: bool = False  # the last half of C's channels runs from the end
    bilinear: bool = False  # instead of zero-order hold
    log_dt: bool = False  # dt holds log dt
    log_decay: bool = False  # A_real holds log(-Re A)
    conjugate: bool = False  # A_imag holds -Im A
    rate: float = 1.0  # dt is multiplied by it

    @property
    def flags(self) -> int:
        names = ("time_major", "bidirectional", "bilinear", "log_dt", "log_decay", "conjugate")
        return sum(1 << i for i, name in enumerate(names) if getattr(self, name))

    def channels(self, of_C: int) -> int:
        """The number of outputs per feature, for that many channels of C."""
        return of_C // 2 if self.bidirectional else of_C
