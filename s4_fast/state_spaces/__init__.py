"""Drop-in replacements for the layers of state-spaces/s4: official signatures, state_dicts and outputs."""

from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.kernels import SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.patching import Patch, patch
from s4_fast.state_spaces.replacing import Replacement, replace_layers, replacement
from s4_fast.state_spaces.s4d import S4D, S4DKernel

__all__ = [
    "S4D",
    "FFTConv",
    "Patch",
    "Replacement",
    "S4Block",
    "S4DKernel",
    "SSMKernelDPLR",
    "SSMKernelDiag",
    "patch",
    "replace_layers",
    "replacement",
]
