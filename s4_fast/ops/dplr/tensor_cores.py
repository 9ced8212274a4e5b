"""The DPLR kernel by the native library's kernels for tensor cores.

All sums are of doubles. The adjoint takes the gradient of the spectrum rounded to float32, which is 1e-7 of the
gradients where other backends have 3e-8, also of weakly damped poles.
"""

from __future__ import annotations

import torch

from s4_fast.ops.dplr.native import Kernel

_KERNEL = Kernel("tensor_dplr_spectrum", torch.complex64)
dplr_kernel = _KERNEL.dplr_kernel
dplr_kernel_backward = _KERNEL.dplr_kernel_backward
