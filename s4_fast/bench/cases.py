"""What is measured: the sizes and goals of every case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_STEPS = ("ssm_step", "dplr_step")
_SCANS = ("ssm_scan", "diagonal_ssm", "dplr_scan")


@dataclass(frozen=True)
class Case:
    """One op at one size.

    ``L`` is the sequence length; ``cauchy_mult`` gets the L//2 + 1 nodes that a kernel of that length needs.
    ``decay`` replaces -Re x of S4D-Lin, to keep late terms as large as early ones. With ``state``, scans
    start from a state and return the last one. ``direct`` is False where the direct evaluation would
    need more memory than most machines have. ``goals`` are, on a CPU, the least ratios direct/ours of the medians
    ("forward", "forward+backward"), or those against another baseline ("forward against fft_conv"), and the largest
    fraction ours/direct of the peak memory ("memory").
    """

    op: str
    H: int
    n: int
    L: int
    batch: int = 1
    rank: int = 1
    dtype: str = "float32"
    decay: float | None = None
    state: bool = False
    quick: bool = False
    direct: bool = True
    goals: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def sizes(self) -> str:
        """The sizes in words, as shown in reports."""
        parts = [f"B={self.batch}"] if self.op in ("fft_conv", *_SCANS, *_STEPS) else []
        parts.append(f"H={self.H}")
        if self.op != "fft_conv":
            parts.append(f"n={self.n}")
        if self.op in ("dplr_kernel", "dplr_scan", "dplr_step"):
            parts.append(f"r={self.rank}")
        if self.op not in _STEPS:
            parts.append(f"L={self.L}")
        if self.state and self.op in _SCANS:
            parts.append("with state")
        return " ".join(parts)


CASES = (
    Case("log_vandermonde", 256, 32, 1024),
    Case("log_vandermonde", 256, 32, 4096, quick=True, goals={"forward": 50, "forward+backward": 25}),
    Case("log_vandermonde", 64, 32, 16384),
    Case("log_vandermonde", 64, 32, 4096, dtype="float64"),
    Case("log_vandermonde", 4, 8, 2**20, decay=1e-6, quick=True, direct=False),
    Case("log_vandermonde", 4, 32, 2**20, decay=1e-6, direct=False),
    Case("log_vandermonde_transpose", 256, 32, 1024),
    Case("log_vandermonde_transpose", 128, 32, 4096, quick=True),
    Case("log_vandermonde_transpose", 64, 32, 16384),
    Case("log_vandermonde_transpose", 64, 32, 4096, dtype="float64"),
    Case("cauchy_mult", 128, 32, 1024),
    Case("cauchy_mult", 128, 32, 4096, quick=True, goals={"forward": 15, "forward+backward": 20}),
    Case("cauchy_mult", 32, 32, 16384),
    Case("cauchy_mult", 32, 32, 4096, dtype="float64"),
    Case("cauchy_bilinear", 128, 32, 1024),
    Case("cauchy_bilinear", 128, 32, 4096, quick=True, goals={"forward": 6, "forward+backward": 8}),
    Case("cauchy_bilinear", 32, 32, 16384),
    Case("cauchy_bilinear", 32, 32, 4096, dtype="float64"),
    Case("dplr_kernel", 128, 32, 1024),
    Case("dplr_kernel", 128, 32, 4096, quick=True, goals={"forward+backward": 12, "memory": 1 / 8}),
    Case("dplr_kernel", 64, 32, 4096, rank=2),
    Case("dplr_kernel", 32, 32, 16384),
    Case("dplr_kernel", 32, 32, 4096, dtype="float64"),
    Case("fft_conv", 128, 1, 1024, batch=16, quick=True),
    Case("fft_conv", 128, 1, 16384, batch=2),
    Case("fft_conv", 128, 1, 1024, batch=16, dtype="float64"),
    Case(
        *("ssm_scan", 128, 32, 1024),
        batch=16,
        quick=True,
        goals={"forward against fft_conv": 2.5, "forward+backward against fft_conv": 2.5},
    ),
    Case(
        *("ssm_scan", 128, 32, 65536),
        direct=False,
        goals={"forward against fft_conv": 4, "forward+backward against fft_conv": 2.5},
    ),
    Case("ssm_scan", 4, 8, 2**20, decay=1e-6, direct=False),
    Case("ssm_scan", 64, 32, 4096, dtype="float64"),
    Case("diagonal_ssm", 128, 32, 1024, batch=16, quick=True, goals={"forward": 20, "forward+backward": 8}),
    Case("diagonal_ssm", 128, 32, 1024, batch=16, state=True),
    Case("diagonal_ssm", 128, 32, 65536, direct=False),
    Case("diagonal_ssm", 4, 8, 2**20, decay=1e-6, direct=False),
    Case("diagonal_ssm", 64, 32, 4096, dtype="float64"),
    Case("dplr_scan", 128, 32, 1024, batch=16, quick=True),
    Case("dplr_scan", 128, 32, 1024, batch=16, state=True),
    Case("dplr_scan", 64, 32, 4096, rank=2),
    Case("dplr_scan", 128, 32, 16384, direct=False),
    Case("dplr_scan", 64, 32, 4096, dtype="float64"),
    Case("ssm_step", 256, 32, 1, quick=True),
    Case("ssm_step", 256, 32, 1, batch=64),
    Case("ssm_step", 256, 32, 1, dtype="float64"),
    Case("dplr_step", 256, 32, 1, quick=True),
    Case("dplr_step", 256, 32, 1, batch=64),
    Case("dplr_step", 256, 32, 1, rank=2, dtype="float64"),
)


def select(op: str | None = None, quick: bool = False) -> list[Case]:
    """The registered cases, narrowed to one op or to the quick run."""
    return [case for case in CASES if op in (None, case.op) and (case.quick or not quick)]
