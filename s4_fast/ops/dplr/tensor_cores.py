"""The DPLR kernel by the native library's kernels for tensor cores.

The sums are of doubles. Poles and the spectrum's gradient are rounded to float32: the poles are so already, and the
gradient's rounding shows as 4e-7 of any gradient at most, with those of the HiPPO measures at their weakest damping.
"""

from __future__ import annotations

import torch

from s4_fast.ops.dplr.native import Kernel

_KERNEL = Kernel("tensor_dplr_spectrum", torch.complex64)
dplr_kernel = _KERNEL.dplr_kernel
dplr_kernel_backward = _KERNEL.dplr_kernel_backward
