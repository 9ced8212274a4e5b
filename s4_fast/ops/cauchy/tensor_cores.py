"""Cauchy sums at the roots of unity: the FFT of Vandermonde products by the kernels for tensor cores."""

from __future__ import annotations

from s4_fast.ops.cauchy.fft_form import BilinearSums
from s4_fast.ops.cauchy.rounded_nodes import RoundedNodes
from s4_fast.ops.vandermonde.tensor_cores import TensorCoreNodes

_SUMS = BilinearSums(RoundedNodes(TensorCoreNodes))
cauchy_bilinear = _SUMS.cauchy_bilinear
cauchy_bilinear_backward = _SUMS.cauchy_bilinear_backward
