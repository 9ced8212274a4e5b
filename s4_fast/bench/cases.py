"""What is measured: the sizes and goals of every case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_STEPS = ("ssm_step", "dplr_step", "S4DLayer.step", "S4Layer.step")
_WITHOUT_BATCH = ("log_vandermonde", "log_vandermonde_transpose", "cauchy_mult", "cauchy_bilinear", "dplr_kernel")
_WITH_RANK = ("dplr_kernel", "dplr_scan", "dplr_step")


@dataclass(frozen=True)
class Case:
    """One op or one whole layer at one size.

    ``L`` is the sequence length; ``cauchy_mult`` gets the L//2 + 1 nodes that a kernel of that length needs.
    ``decay`` replaces -Re x of S4D-Lin, to keep late terms as large as early ones. With ``state``, scans
    start from a state and return the last one. ``direct`` is False where the direct evaluation would
    need more memory than most machines have. ``quick`` cases are those of the short run, and ``sweep`` ones those of
    the sweep alone.

    ``goals`` are met or missed by the automatic choice on a CPU. ``"forward"`` and ``"forward+backward"`` are the least
    ratio direct/ours of the medians, ``"forward against NAME"`` that to another evaluation; ``"forward ms"`` is the
    longest time, and ``"memory"`` the largest fraction ours/direct of the peak memory.
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
    sweep: bool = False
    direct: bool = True
    goals: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def sizes(self) -> str:
        """The sizes in words, as shown in reports."""
        parts = [] if self.op in _WITHOUT_BATCH else [f"B={self.batch}"]
        parts.append(f"H={self.H}")
        if self.op != "fft_conv":
            parts.append(f"n={self.n}")
        if self.op in _WITH_RANK:
            parts.append(f"r={self.rank}")
        if self.op not in _STEPS:
            parts.append(f"L={self.L}")
        if self.state and self.op not in _STEPS:
            parts.append("with state")
        return " ".join(parts)

    @property
    def label(self) -> str:
        """Op, sizes and precision in one line; float32 goes without saying."""
        return f"{self.op} {self.sizes} {self.dtype}".removesuffix(" float32")


OP_CASES = (
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
    Case("cauchy_mult", 128, 32, 16),
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
    Case("dplr_scan", 128, 32, 1024, batch=16, quick=True, goals={"forward against ssm_scan": 1 / 1.6}),
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
