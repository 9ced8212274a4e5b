"""The classes of state-spaces/s4: how each is told, and the layer of this package that is made of one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from s4_fast import torch_private
from s4_fast.state_spaces import building, building_older
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.comparing import Trial
from s4_fast.state_spaces.convolution import FFTConv
from s4_fast.state_spaces.copying import Weights, under_the_same_names
from s4_fast.state_spaces.kernels import SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.s4 import S4


class Official(NamedTuple):
    """One class of state-spaces/s4, and what takes its place.

    Attributes:
        name: the class's name.
        parts: attributes that tell it from other classes of this name, dots between those of attributes.
        build: makes a layer of this package, with weights of its own, of an instance.
        trial: how to call that layer, and the instance, to compare them.
        weights: what the layer's ``state_dict`` takes from the instance's.
    """

    name: str
    parts: tuple[str, ...]
    build: Callable[[Any], nn.Module]
    trial: Callable[[Any], Trial]
    weights: Weights = under_the_same_names

    def lacks(self, module: nn.Module) -> str:
        """The first part that ``module`` lacks, "" where it has all."""
        return next((part for part in self.parts if not _has(module, part)), "")


def class_name(module: nn.Module) -> str:
    """The name of the module's class, without what FSDP and parametrizations make of it."""
    return torch_private.written_class(module).__name__


def is_own(module: nn.Module) -> bool:
    """Whether the module's class is of this package, or derived from one."""
    return any(c.__module__.partition(".")[0] == "s4_fast" for c in type(module).__mro__)


def recognized(module: nn.Module) -> Official | None:
    """The row of the official class that ``module`` is an instance of; None where it is of none."""
    return None if is_own(module) else next((row for row in _rows(module) if not row.lacks(module)), None)


def looks_official(module: nn.Module) -> bool:
    """Whether ``module`` might be a layer of some release of state-spaces/s4, or be meant as one.

    A common name alone does not count: something inside must be called as the parameters of a state space are.
    """
    name = class_name(module)
    if is_own(module) or not (_CERTAIN_NAMES.fullmatch(name) or name in _COMMON_NAMES):
        return False
    tensors = (*module.named_parameters(), *module.named_buffers())
    inside = {path.rpartition(".")[2] for path, _ in tensors}
    return name not in _COMMON_NAMES or bool(inside & _PARAMETERS)


def why_not(module: nn.Module) -> str:
    """Why ``recognized`` knows no row for ``module``."""
    lacking = [row.lacks(module) for row in _rows(module)]
    if not lacking:
        return f"there is no layer here for a {class_name(module)}"
    return f"is no {class_name(module)} of state-spaces/s4: it has no {' or '.join(dict.fromkeys(lacking))}"


_CERTAIN_NAMES = re.compile(r"(Hippo)?SSKernel\w*|SSMKernel\w*|S4DKernel|S4ND")
_COMMON_NAMES = ("S4", "S4Block", "S4D", "FFTConv")
_PARAMETERS = {"A_imag", "A_real", "C", "D", "inv_dt", "inv_A_real", "inv_w_real", "l_kernel", "log_A_real", "log_dt"}


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


def _rows(module: nn.Module) -> list[Official]:
    return [row for row in OFFICIAL if row.name == class_name(module)]


def _kernel_trial(new: SSMKernelDiag | SSMKernelDPLR) -> Trial:
    # The original steps with all of a DPLR kernel's band, and runs with a part of it.
    steps = isinstance(new, SSMKernelDiag) or new.bandlimit is None
    return Trial(new.d_model, transposed=None, steps=steps)


def _convolution_trial(new: FFTConv) -> Trial:
    # The original's step leaves the channels where they are.
    swaps = new.swap_channels and len(new.D) > 1
    return Trial(new.d_model, new.transposed, steps=_kernel_trial(new.kernel).steps and not swaps)


def _block_trial(new: S4Block) -> Trial:
    return Trial(new.d_model, new.transposed, _convolution_trial(new.layer).steps)


def _older_trial(new: S4) -> Trial:
    # Steps of the original leave out the gate, the bottleneck and hyper_act, and need more than setup_step before 3.
    plain = new.gate is None and new.bottleneck is None and len(new.D) == new.layer.channels
    return Trial(new.d_model, new.transposed, steps=plain and new.release == 3)


_OLDER_PARTS = ("transposed", "D", "activation", "dropout", "output_linear")

# A class may have several rows, the first that fits counts.
OFFICIAL = (
    *(
        Official(name, (*_OLDER_PARTS, *parts), building_older.s4, _older_trial, building_older.layer_weights)
        for name, parts in (
            ("S4", ("h", "hyper", "kernel.krylov.log_dt")),
            ("S4", ("h", "channels", "bidirectional", "kernel.kernel.log_dt")),
            ("S4", ("d_model", "gate", "bottleneck", "channels", "bidirectional", "kernel.kernel.log_dt")),
            ("S4D", ("h", "channels", "bidirectional", "kernel.kernel.log_dt")),
        )
    ),
    Official(
        "SSKernel",
        ("H", "kernel.log_dt", "kernel.C"),
        building_older.kernel_wrapper,
        lambda new: Trial(new.H, transposed=None, steps=isinstance(new.kernel, SSMKernelDiag)),
        building_older.kernel_weights,
    ),
    Official(
        "S4D",
        ("h", "n", "transposed", "D", "kernel", "activation", "dropout", "output_linear"),
        building.s4d,
        lambda new: Trial(new.h, new.transposed, steps=False),
    ),
    Official(
        "S4Block",
        ("d_model", "transposed", "gate", "bottleneck", "layer", "mult_activation", "drop", "output_linear"),
        building.s4_block,
        _block_trial,
    ),
    Official(
        "FFTConv",
        ("d_model", "transposed", "channels", "bidirectional", "activation", "D", "kernel"),
        building.fft_conv,
        _convolution_trial,
    ),
    Official(
        "SSMKernelDPLR", ("H", "N", "inv_dt", "A_real", "B", "C", "P", "l_kernel"), building.kernel, _kernel_trial
    ),
    Official("SSMKernelDiag", ("H", "N", "inv_dt", "A_real", "B", "C"), building.kernel, _kernel_trial),
    Official(
        "S4DKernel",
        ("log_dt", "log_A_real", "A_imag", "C"),
        building.s4d_kernel,
        lambda new: Trial(new.d_model, transposed=None, steps=False),
    ),
)
