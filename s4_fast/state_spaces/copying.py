"""The weights of one layer for another, with all that hangs on them: marks, gradients' switches, training modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class Weight(NamedTuple):
    """What a new layer's parameter or buffer starts from: a value, and the old one's name in the old layer."""

    source: str
    value: Tensor


Weights = Callable[[nn.Module], dict[str, Weight]]
"""From an old layer to the weights of the new one, by their names there."""


def under_the_same_names(old: nn.Module) -> dict[str, Weight]:
    """The weights of a layer whose ``state_dict`` is that of the new one."""
    return {name: Weight(name, value) for name, value in old.state_dict().items()}


def copy_weights(old: nn.Module, new: nn.Module, weights: Weights = under_the_same_names) -> None:
    """Give ``new`` the weights of ``old``, their ``requires_grad`` and marks (``_optim``), and its training modes.

    Raises:
        ValueError: names or shapes do not fit, or a parameter is a buffer on the other side.
    """
    found = weights(old)
    try:
        new.load_state_dict({name: weight.value for name, weight in found.items()})
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    odd = [name for name, weight in found.items() if (weight.source in before) != (name in after)]
    if odd:
        raise ValueError(f"{', '.join(sorted(odd))}: a parameter on one side and a buffer on the other")
    for name, parameter in after.items():
        source = before[found[name].source]
        parameter.requires_grad_(source.requires_grad)
        if mark := getattr(source, "_optim", None):  # the original marks C with nothing, an empty one
            parameter._optim = dict(mark)  # type: ignore[attr-defined]
    modes = {name: module.training for name, module in old.named_modules()}
    for name, module in new.named_modules():
        module.training = modes.get(name, old.training)
