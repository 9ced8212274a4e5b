"""The options that blocks and models hand on to their layers."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from s4_fast.arguments import choice, options_of, refuse_unknown
from s4_fast.layers.s4_layer import S4Layer
from s4_fast.layers.s4d_layer import S4DLayer

LAYERS: dict[str, type[S4DLayer] | type[S4Layer]] = {"s4d": S4DLayer, "s4": S4Layer}


class LayerOptions(TypedDict, total=False):
    """What an ``SSMBlock`` and an ``S4SequenceModel`` take beside their own options: those of their layers.

    ``discretization`` is an option of ``S4DLayer`` alone, ``rank`` of ``S4Layer``; both have the others.
    """

    dt_min: float
    dt_max: float
    init: str | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
    discretization: str
    rank: int
    n_ssm: int | None
    lr: float | None
    bidirectional: bool
    path: str
    generator: torch.Generator | None
    state_dim: int | None


def layer_class(owner: type[nn.Module], layer: str, options: LayerOptions) -> Any:
    """The class that ``layer`` names; ``owner`` is what was called with its ``options``.

    Raises:
        TypeError: the class does not take the options.
        ValueError: there is no such class.
    """
    found = LAYERS[choice("layer", layer, LAYERS)]
    refuse_unknown(owner.__name__, options, options_of(owner.__init__, found.__init__))
    return found
