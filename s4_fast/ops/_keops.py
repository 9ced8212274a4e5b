"""Sums that KeOps evaluates without storing their terms. It compiles a formula at its first use and caches it on disk.

KeOps prints at import and at every compilation. Here the former goes to stderr and the latter is turned off, unless
``PYKEOPS_VERBOSE`` is set.
"""

from __future__ import annotations

import contextlib
import os
import sys

import torch
from torch import Tensor

from s4_fast.dispatch import BackendUnavailableError

with contextlib.redirect_stdout(sys.stderr):
    import pykeops
    from pykeops.torch import Genred

if "PYKEOPS_VERBOSE" not in os.environ:
    pykeops.set_verbose(False)


def sum_over_j(formula: str, i: dict[str, Tensor], j: dict[str, Tensor]) -> Tensor:
    """``sum_j formula`` for every i, (..., I, D).

    The variables of the formula are real, (..., I, d) or (..., J, d), complex numbers pairs in the last dimension.
    Leading dimensions, of which all have the same number and at least one, broadcast.
    """
    variables = {**i, **j}
    aliases = [f"{name} = {'Vi' if name in i else 'Vj'}({t.shape[-1]})" for name, t in variables.items()]
    on_gpu = next(iter(variables.values())).is_cuda
    if on_gpu and not pykeops.config.gpu_available:
        raise BackendUnavailableError(
            "backend 'keops' cannot run on CUDA tensors: KeOps found no CUDA toolkit (libcuda, libnvrtc) when it was "
            "imported; install one and start a new process"
        )
    # Compensated sums, because a gradient adds L terms in a row. No fast math, because on a GPU it takes sines from
    # hardware that does not reduce large arguments.
    options = {"sum_scheme": "kahan_scheme", "use_fast_math": False}
    reduction = Genred(formula, aliases, reduction_op="Sum", axis=1, **options)
    try:
        return reduction(*(t.contiguous() for t in variables.values()), backend="GPU" if on_gpu else "CPU")
    except ModuleNotFoundError as error:
        # What KeOps does when its compiler fails: it goes on, and then cannot import the result.
        raise BackendUnavailableError(
            f"backend 'keops' could not compile {formula!r}; PYKEOPS_VERBOSE=1 shows what the compiler said "
            "(a frequent cause: the headers of Python are not installed)"
        ) from error


def pairs(t: Tensor) -> Tensor:
    """Complex (..., m) as real (..., m, 2)."""
    return torch.view_as_real(t.resolve_conj())
