"""Samples that are not finite, which a matrix product or an FFT would spread over outputs before them: 0 * NaN is NaN.

Where ``suspected``, evaluate on ``without`` them, and add ``spoilt``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def suspected(*tensors: Tensor) -> bool:
    """Whether some number on the CPU may not be finite. Elsewhere False: to look would make the host wait."""
    return any(t.is_cpu and not torch.isfinite(t.sum()) for t in tensors)


def without(t: Tensor) -> Tensor:
    """``t`` with zeros for what is not finite."""
    return torch.nan_to_num(t, 0.0, 0.0, 0.0)


def spoilt(t: Tensor) -> Tensor:
    """Zeros, and along the last dimension NaN from the first number on that is not finite."""
    return torch.cumsum(t * 0, -1)
