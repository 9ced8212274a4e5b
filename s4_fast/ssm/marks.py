"""Parameters that carry marks for the optimiser, and keep them through copies, moves and loading."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from s4_fast.checkpoint import AllOrNothing

_PARTS = ("orig", "g", "v")  # what prune, spectral_norm and weight_norm append to a parameter's name


class MarkedModule(AllOrNothing):
    """A module whose parameters carry ``_optim``, a mapping of optimiser options such as ``weight_decay``.

    A copy, a move to another kind of device, ``load_state_dict(assign=True)`` and ``fully_shard`` make new parameters,
    which have no marks: the module knows them by name, and gives them again where it can.
    """

    def __init__(self) -> None:
        super().__init__()
        self._given_marks: dict[str, dict[str, Any]] = {}

    def marks(self) -> dict[str, dict[str, Any]]:
        """The marks by the names of ``named_marked``: those that parameters carry, or were given."""
        carried = {name: p._optim for name, p in self.named_marked() if hasattr(p, "_optim")}
        return {**self._given_marks, **carried}

    def named_marked(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The module's own parameters, and what parametrizations and hooks make them of, under the parameter's name.

        Where that is several tensors they have one name, and one mark.
        """
        for name, parameter in self.named_parameters(recurse=False):
            made, _, part = name.rpartition("_")
            yield made if part in _PARTS and made in self._given_marks else name, parameter
        for name, parametrized in getattr(self, "parametrizations", {}).items():
            for part, parameter in parametrized.named_parameters(recurse=False):
                if part.startswith("original"):
                    yield name, parameter

    def marked(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """The parameters that have a mark, with it."""
        marks = self.marks()
        for name, parameter in self.named_marked():
            if name in marks:
                yield parameter, marks[name]

    def set_marks(self, marks: dict[str, dict[str, Any]]) -> None:
        """Mark parameters by name, now and in copies."""
        self._given_marks = {**self._given_marks, **marks}
        for name, parameter in self.named_marked():
            if name in marks:
                parameter._optim = dict(marks[name])  # type: ignore[attr-defined]

    def add_parameter(self, name: str, value: Tensor, lr: float | None, wd: float | None) -> None:
        """A parameter with its mark for the optimiser, or a buffer where the learning rate is 0."""
        value = value.to(torch.empty(0).device, torch.get_default_dtype(), copy=True).contiguous()
        if lr == 0:
            self.register_buffer(name, value)
            return
        self.register_parameter(name, nn.Parameter(value))
        mark = {key: float(given) for key, given in (("lr", lr), ("weight_decay", wd)) if given is not None}
        if mark:
            self.set_marks({name: mark})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given_marks": self.marks()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.set_marks(self._given_marks)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # Here, because a parametrized module would get one of PyTorch's that passes __getstate__ by.
        replica = self.__new__(type(self))
        memo[id(self)] = replica
        replica.__setstate__(copy.deepcopy(MarkedModule.__getstate__(self) | self._uncopied(), memo))
        return replica

    def _uncopied(self) -> dict[str, Any]:
        """What a copy or a pickle has in place of what belongs to this object alone."""
        return {}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        marks = self.marks()
        super()._apply(*args, **kwargs)
        self.set_marks(marks)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        marks = self.marks()
        super()._load_from_state_dict(*args, **kwargs)
        self.set_marks(marks)


def new_parameter(
    value: Tensor, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> nn.Parameter:
    """A parameter that shares no memory with ``value``; None is PyTorch's default dtype, and its default device."""
    if device is None:
        device = torch.empty(0).device  # before PyTorch 2.7, get_default_device() does not see `with torch.device(...)`
    return nn.Parameter(value.to(device, torch.get_default_dtype() if dtype is None else dtype, copy=True))
