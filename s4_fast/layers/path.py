"""Which way an S4D layer takes through a sequence: the linear-time scan, or the kernel and an FFT convolution."""

from __future__ import annotations

from typing import NamedTuple

from s4_fast import dispatch
from s4_fast.backend_table import SCAN_THRESHOLDS as THRESHOLDS
from s4_fast.dispatch import BackendUnavailableError, Call
from s4_fast.ssm.diagonal import DiagonalModel

PATHS = ("auto", "scan", "convolution")


class Path(NamedTuple):
    """``"scan"`` or ``"convolution"``, and why."""

    name: str
    reason: str


def choose(kernel: DiagonalModel, batch: int, L: int) -> Path:
    """The faster path for ``kernel`` over (batch, d_model, L). Backends are chosen as for every op."""
    n, C = kernel.d_state // 2, kernel.C
    shape = {"batch": batch, "H": kernel.d_model, "n": n, "L": L}
    try:
        backend = dispatch.choose(Call("ssm_scan", C.device.type, C.dtype, shape)).backend
    except BackendUnavailableError as error:
        return Path("convolution", f"the requested backend has no scan: {error}")
    threshold = THRESHOLDS.get((C.device.type, backend))
    if threshold is None:
        where = f"{C.device.type} with backend {backend}"
        return Path("convolution", f"automatic: the scan has not been measured on {where}")
    least = 1 if n <= threshold.states else threshold.length * n
    faster = f"automatic: for n = {n} the {backend} scan is the faster path from L = {least} on"
    return Path("scan" if L >= least else "convolution", faster)
