"""Optimiser parameter groups: state space parameters train with their own learning rate and without decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from s4_fast.ssm.marks import MarkedModule


def get_ssm_param_groups(
    model: nn.Module, lr: float = 1e-3, ssm_lr: float = 1e-3, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Parameter groups for a ``torch.optim`` optimiser.

    Parameters marked with ``_optim`` (dt, A, B and P of the SSM modules) train with ``ssm_lr`` and without weight
    decay, unless the mark holds an ``"lr"`` or ``"weight_decay"`` of its own (other options in a mark are passed on to
    the optimiser); all others with ``lr`` and ``weight_decay``. Frozen parameters are left out. ``fully_shard`` makes
    new parameters: the SSM modules know their marks still, those of other modules are lost.

    Args:
        model: any module.
        lr: the learning rate of what has no mark.
        ssm_lr: that of what has one.
        weight_decay: of what has no mark.

    Returns:
        The groups, ordinary parameters first, each with ``params``, ``lr`` and ``weight_decay``.

    Raises:
        ValueError: a rate or the weight decay is negative, or not a number.

    Examples:
        >>> model = s4_fast.S4SequenceModel(1, 8, 10, n_layers=2)
        >>> groups = get_ssm_param_groups(model, lr=1e-2, ssm_lr=1e-3, weight_decay=0.05)
        >>> [(group["lr"], group["weight_decay"]) for group in groups]
        [(0.01, 0.05), (0.001, 0.0)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    for name, value in (("lr", lr), ("ssm_lr", ssm_lr), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"{name} must be at least 0, got {value}")
    ordinary: list[nn.Parameter] = []
    marked: dict[tuple[tuple[str, Any], ...], list[nn.Parameter]] = {}
    known = {
        id(parameter): mark
        for module in model.modules()
        if isinstance(module, MarkedModule)
        for parameter, mark in module.marked()
    }
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        mark = getattr(parameter, "_optim", known.get(id(parameter)))
        if mark is None:
            ordinary.append(parameter)
        else:
            options = tuple(sorted({"lr": ssm_lr, "weight_decay": 0.0, **mark}.items()))
            marked.setdefault(options, []).append(parameter)
    groups: list[dict[str, Any]] = [{"params": ordinary, "lr": lr, "weight_decay": weight_decay}]
    groups += [{"params": params, **dict(options)} for options, params in marked.items()]
    return [group for group in groups if group["params"]]
