"""Drop-in replacements for the layers of state-spaces/s4: official signatures, state_dicts and outputs."""

from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.kernels import SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.s4d import S4D, S4DKernel

__all__ = ["S4D", "FFTConv", "S4DKernel", "SSMKernelDPLR", "SSMKernelDiag"]
