"""What keeps a module from being exported: whatever would change its outputs and is not in the exported form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s4_fast import torch_private
from s4_fast.time_split import TimeSplittable


class ExportError(ValueError):
    """What cannot be exported, and why, in one line.

    Examples:
        >>> try:
        ...     s4_fast.export.to_c(nn.Linear(2, 2), "model.c")
        ... except ExportError as error:
        ...     print(isinstance(error, ValueError))
        True
    """


def refuse_changed(model: nn.Module, *, whole_sequences: bool = False) -> None:
    """Raise ExportError where a module computes something else than its class says, or cannot be read.

    Modules that need the whole sequence are refused too, unless ``whole_sequences``.
    """
    for name, module in model.named_modules():
        what = called(name, module)
        if parametrize.is_parametrized(module):
            raise ExportError(
                f"{what} has parametrizations; torch.nn.utils.parametrize.remove_parametrizations(module, name) keeps "
                "the present numbers"
            )
        if torch_private.has_hooks(module):
            raise ExportError(f"{what} has hooks, which an export would leave out; remove them before")
        if own := [method for method in ("forward", "step") if method in vars(module)]:
            raise ExportError(f"{what} has a {own[0]} of its own, which an export would leave out")
        if torch_private.is_sharded(module):
            raise ExportError(f"{what} is sharded by FSDP; export a model that holds all of its parameters")
        if isinstance(module, TimeSplittable) and module.time_split is not None:
            raise ExportError(
                f"{what} is split over processes along the time; call s4_fast.distributed.join_time(model) before"
            )
        if getattr(module, "bidirectional", False) and not whole_sequences:
            raise ExportError(f"{what} is bidirectional: it needs the whole sequence, and has no step to export")
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if type(t) not in (nn.Parameter, Tensor) or t.layout != torch.strided or t.is_quantized:
            raise ExportError(f"{name} is no plain tensor, but of type {type(t).__name__}, {t.dtype}")
        if t.is_meta:
            raise ExportError(f"{name} is on the meta device and has no numbers")
        if not bool(torch.isfinite(t.detach()).all()):
            raise ExportError(f"{name} has numbers that are not finite")


def called(name: str, module: nn.Module) -> str:
    """A module, for messages."""
    kind = torch_private.written_class(module).__name__
    return f"{name} ({kind})" if name else f"the {kind}"
