"""A diagonal SSM from its continuous parameters by the native library's kernels for tensor cores."""

from __future__ import annotations

from s4_fast.ops.diagonal.native import Diagonal, functions

_DIAGONAL = Diagonal(*functions("tensor_diagonal"))
diagonal_ssm = _DIAGONAL.diagonal_ssm
diagonal_ssm_backward = _DIAGONAL.diagonal_ssm_backward
