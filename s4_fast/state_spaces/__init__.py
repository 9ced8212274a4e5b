"""Drop-in replacements for the layers of state-spaces/s4: official signatures, state_dicts and outputs."""

from s4_fast.state_spaces.activation import Activation, LinearActivation
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.components import DropoutNd, OptimModule, TransposedLinear
from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.inspection import Inspected, inspect
from s4_fast.state_spaces.kernels import SSMKernel, SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.older_kernels import HippoSSKernel, SSKernel, SSKernelDiag, SSKernelNPLR
from s4_fast.state_spaces.patching import Patch, patch
from s4_fast.state_spaces.replacing import Replacement, replace_layers, replacement
from s4_fast.state_spaces.s4 import S4
from s4_fast.state_spaces.s4d import S4D, S4DKernel

__all__ = [
    "S4",
    "S4D",
    "Activation",
    "DropoutNd",
    "FFTConv",
    "HippoSSKernel",
    "Inspected",
    "LinearActivation",
    "OptimModule",
    "Patch",
    "Replacement",
    "S4Block",
    "S4DKernel",
    "SSKernel",
    "SSKernelDiag",
    "SSKernelNPLR",
    "SSMKernel",
    "SSMKernelDPLR",
    "SSMKernelDiag",
    "TransposedLinear",
    "inspect",
    "patch",
    "replace_layers",
    "replacement",
]
