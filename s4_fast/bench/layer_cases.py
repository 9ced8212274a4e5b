"""What is measured of whole layers: their sizes and goals."""

from __future__ import annotations

from s4_fast.bench.cases import Case

# The state sizes N of the layers are 2 n.
LAYER_CASES = (
    Case(
        *("S4DLayer", 128, 32, 1024),
        batch=16,
        quick=True,
        goals={"forward+backward": 6, "memory": 1 / 3, "forward+backward against ssm_scan": 1 / 1.15},
    ),
    Case("S4DLayer", 128, 32, 1024, batch=16, dtype="bfloat16", goals={"forward+backward against float32": 1}),
    Case("S4DLayer", 4, 2, 16, goals={"forward+backward": 5, "forward+backward ms": 0.13}),
    Case("S4DLayer", 4, 4, 64, batch=2, goals={"forward+backward ms": 0.2}),
    Case("S4DLayer", 64, 32, 64, batch=8),
    Case(
        *("S4Layer", 128, 32, 1024),
        batch=16,
        quick=True,
        goals={"forward+backward against torch.fft": 1},
    ),
    Case("S4Layer", 4, 32, 16, goals={"forward+backward ms": 0.25}),
    Case("S4Layer", 128, 32, 16384, direct=False, goals={"forward+backward against torch.fft": 1}),
    Case("S4Layer", 64, 32, 65536, direct=False, goals={"forward+backward against torch.fft": 1}),
    Case("S4DLayer.step", 128, 32, 1, quick=True, goals={"forward ms": 0.03}),
    Case("S4Layer.step", 128, 32, 1, quick=True, goals={"forward ms": 0.06}),
    Case("S4DLayer.prefill", 16, 32, 100_000),
    Case("S4Layer.prefill", 16, 32, 100_000),
    Case("S4SequenceModel", 4, 2, 16, goals={"forward+backward ms": 1.5}),
    Case("S4D", 64, 32, 1024, batch=8, quick=True),
    Case("S4Block-diag", 64, 32, 1024, batch=8),
    Case("S4Block-diag", 128, 32, 1024, batch=16, goals={"forward+backward against S4D": 1 / 1.1}),
    Case("S4Block-dplr", 64, 32, 1024, batch=8),
    Case("S4", 64, 32, 1024, batch=8),
)
