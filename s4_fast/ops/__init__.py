"""Functions of tensors, one folder per op. Each public function checks, dispatches and differentiates."""

from s4_fast.ops.cauchy import cauchy_bilinear, cauchy_mult
from s4_fast.ops.diagonal import diagonal_ssm
from s4_fast.ops.dplr import dplr_kernel, dplr_step
from s4_fast.ops.dplr_scan import dplr_scan
from s4_fast.ops.long_conv import fft_conv
from s4_fast.ops.scan import ssm_scan, ssm_step
from s4_fast.ops.vandermonde import log_vandermonde, log_vandermonde_transpose

__all__ = [
    "cauchy_bilinear",
    "cauchy_mult",
    "diagonal_ssm",
    "dplr_kernel",
    "dplr_scan",
    "dplr_step",
    "fft_conv",
    "log_vandermonde",
    "log_vandermonde_transpose",
    "ssm_scan",
    "ssm_step",
]
