"""A residual block around an S4D or S4 layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from s4_fast import torch_private
from s4_fast.arguments import refuse_unknown, signal
from s4_fast.checkpoint import AllOrNothing
from s4_fast.layers import padding
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.padding import Lengths
from s4_fast.layers.sequence_module import one_sample
from s4_fast.layers.ssm_layer import S4DLayer, S4Layer, options_of_layer

LAYERS = {"s4d": S4DLayer, "s4": S4Layer}


class SSMBlock(AllOrNothing):
    """``x + dropout(GLU(W dropout(gelu(layer(norm(x))))))`` on (batch, length, d_model).

    Pre-norm residual block with a position-wise gated output mix, as in S4D (Gu et al. 2022, appendix).

    Args:
        d_model: number of features.
        d_state: real state size per feature.
        dropout: probability for ``DropoutNd`` after the activation and after the mix.
        layer: ``"s4d"`` or ``"s4"``.
        device, dtype: of the parameters; None for PyTorch's defaults.
        **options: passed to ``S4DLayer`` or ``S4Layer``.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int | None = None,
        dropout: float = 0.0,
        *,
        layer: str = "s4d",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_layer_options(type(self), layer, options)
        self.layer = LAYERS[layer](d_model, d_state, device=device, dtype=dtype, **options)
        features = self.layer.d_model
        self.norm = nn.LayerNorm(features, device=device, dtype=dtype)
        self.dropout = DropoutNd(dropout)
        self.mix = nn.Linear(features, 2 * features, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(batch, length, d_model) -> the same shape, from state to state; arguments as in the layer's ``forward``."""
        x = signal("x", x, self)
        rows = padding.rows(lengths, x)
        if rows is not None:
            x = rows.cut(x)
        y, after = self.layer(self.norm(x), state, lengths=rows, return_state=return_state), None
        if return_state:
            y, after = y
        y = x + self._mix(y)
        if rows is not None:
            y = rows.cut(y)
        return y if after is None else (y, after)

    def prefill(
        self, x: Tensor, state: Tensor | None = None, *, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        """``forward`` with ``return_state``: (y, state). ``step`` goes on where it stopped."""
        y, after = self(x, state, lengths=lengths, return_state=True)
        return y, after

    def init_state(self, batch: int) -> Tensor:
        """The zero state of the layer."""
        return self.layer.init_state(batch)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x (batch, d_model), state -> (batch, d_model), state. Equals ``forward`` without dropout."""
        if torch_private.has_hooks(self):
            return one_sample(self, x, state)
        x = signal("x", x, self)
        y, state = self.layer.step(self.norm(x), state)
        return x + self._mix(y[:, None])[:, 0], state

    def _mix(self, y: Tensor) -> Tensor:
        return self.dropout(glu(self.mix(self.dropout(gelu(y))), dim=-1))


def check_layer_options(owner: type[nn.Module], layer: str, options: dict[str, Any]) -> None:
    """Raise where ``layer`` is unknown, or does not take ``options``; ``owner`` is what was called with them."""
    if layer not in LAYERS:
        raise ValueError(f"unknown layer {layer!r}; expected one of {', '.join(LAYERS)}")
    refuse_unknown(owner.__name__, options, options_of_layer(LAYERS[layer], owner))
