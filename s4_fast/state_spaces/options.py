"""The options that the layers of state-spaces/s4 hand on to the layers and kernels inside them, with their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class _CommonOptions(TypedDict, total=False):
    """What a kernel takes: ``disc`` and ``is_real`` are of the S4D kernel, and from ``B_clip`` on of ``init``."""

    lr: float | Mapping[str, float | None] | None
    wd: float | Mapping[str, float | None] | None
    deterministic: bool
    dt_min: float
    dt_max: float
    dt_tie: bool
    dt_transform: str
    rank: int
    n_ssm: int | None
    measure: str | None
    init: str | Sequence[str] | None
    dt_fast: bool
    real_transform: str
    imag_transform: str
    bandlimit: float | None
    backend: str
    disc: str
    is_real: bool
    B_clip: float | None
    real_random: bool
    real_scale: float
    imag_random: bool
    imag_scale: float
    B_random: bool
    B_init: str
    B_scale: float
    P_scale: float
    normalize: bool


class KernelOptions(_CommonOptions, total=False):
    """What ``FFTConv`` takes for its kernel."""

    d_state: int | None
    verbose: bool


class _OlderOptions(_CommonOptions, total=False):
    """What kernels of releases 1 to 3 take besides; ``older_arguments.translated`` says what it means."""

    H: int

    measure_args: Mapping[str, Any] | None
    keops: bool
    hurwitz: bool
    tie_state: bool
    trainable: bool | Mapping[str, Any] | None
    lr_dt: float | None
    real_type: str
    fast_gate: bool


class BlockOptions(_OlderOptions, total=False):
    """What ``S4Block`` takes for its ``FFTConv``."""

    d_state: int | None
    verbose: bool
    hyper_act: str | None
    l_max: int | None
    channels: int
    swap_channels: bool
    bidirectional: bool
    activation: str | None
    drop_kernel: float
    mode: str | None
    kernel: str | None


class OlderBlockOptions(_OlderOptions, total=False):
    """What ``S4`` takes for its kernel, and what a release alone has."""

    mode: str
    drop_kernel: float
    swap_channels: bool
    stride: int
    weight_decay: float
    cache: bool
    input_linear: bool
    use_state: bool
    length_correction: bool
    precision: int
    resample: bool
