"""Fast kernels of structured state space models (S4, S4D) as functions of tensors, and PyTorch layers on top.

``s4_fast.state_spaces``, ``s4_fast.distributed`` and ``s4_fast.export`` are imported when they are first used.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from s4_fast._version import __version__
from s4_fast.allocator import keep_pages
from s4_fast.dispatch import BackendUnavailableError, backends, explain, use_backend
from s4_fast.layers import DropoutNd, FrozenStep, ModelState, S4DLayer, S4Layer, S4SequenceModel, SSMBlock
from s4_fast.ops import (
    cauchy_bilinear,
    cauchy_mult,
    diagonal_ssm,
    dplr_kernel,
    dplr_scan,
    dplr_step,
    fft_conv,
    log_vandermonde,
    log_vandermonde_transpose,
    ssm_scan,
    ssm_step,
)
from s4_fast.optim import get_ssm_param_groups
from s4_fast.ssm import DPLRSSM, DiagonalSSM

if TYPE_CHECKING:
    from s4_fast import distributed as distributed
    from s4_fast import export as export
    from s4_fast import state_spaces as state_spaces

_LAZY = ("distributed", "export", "state_spaces")

__all__ = [
    "DPLRSSM",
    "BackendUnavailableError",
    "DiagonalSSM",
    "DropoutNd",
    "FrozenStep",
    "ModelState",
    "S4DLayer",
    "S4Layer",
    "S4SequenceModel",
    "SSMBlock",
    "__version__",
    "backends",
    "cauchy_bilinear",
    "cauchy_mult",
    "diagonal_ssm",
    "dplr_kernel",
    "dplr_scan",
    "dplr_step",
    "explain",
    "fft_conv",
    "get_ssm_param_groups",
    "keep_pages",
    "log_vandermonde",
    "log_vandermonde_transpose",
    "ssm_scan",
    "ssm_step",
    "use_backend",
]


if not TYPE_CHECKING:  # which would take every name for an attribute

    def __getattr__(name: str) -> ModuleType:
        if name in _LAZY:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, "layers", "ops", "ssm"})
