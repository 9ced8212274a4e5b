"""A residual block around an S4D or S4 layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu
from typing_extensions import Unpack

from s4_fast import torch_private
from s4_fast.arguments import signal
from s4_fast.checkpoint import AllOrNothing
from s4_fast.layers import padding
from s4_fast.layers.calls import SequenceCall
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.options import LayerOptions, layer_class
from s4_fast.layers.padding import Lengths
from s4_fast.layers.s4_layer import S4Layer
from s4_fast.layers.s4d_layer import S4DLayer
from s4_fast.layers.sequence_module import one_sample


class SSMBlock(AllOrNothing):
    """``x + dropout(GLU(W dropout(gelu(layer(norm(x))))))`` on (batch, length, d_model).

    Pre-norm residual block with a position-wise gated output mix, as in S4D (Gu et al. 2022, arXiv 2206.11893,
    appendix). Calls, ``prefill`` and ``step`` are differentiable in the input, the state and every parameter.

    Args:
        d_model: number of features.
        d_state: real state size per feature.
        dropout: probability for ``DropoutNd`` after the activation and after the mix.
        layer: ``"s4d"`` (``S4DLayer``) or ``"s4"`` (``S4Layer``).
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
        **options: of the layer, by name: ``dt_min=0.001``, ``dt_max=0.1``, ``init="lin"`` (S4D) or ``"legs"`` (S4),
            ``discretization="zoh"`` (S4D alone), ``rank=1`` (S4 alone), ``n_ssm=None``, ``lr=None``,
            ``bidirectional=False``, ``path="auto"``, ``generator=None``, ``state_dim=None``. The layer's class says
            what they mean.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an option's value is unknown or out of range.

    Examples:
        >>> block = SSMBlock(8, d_state=16, layer="s4", dropout=0.1)
        >>> block(torch.randn(2, 100, 8)).shape
        torch.Size([2, 100, 8])
    """

    layer: S4DLayer | S4Layer

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        dropout: float = 0.0,
        *,
        layer: str = "s4d",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        made = layer_class(type(self), layer, options)
        self.layer = made(d_model, d_state, device=device, dtype=dtype, **options)
        features = self.layer.d_model
        self.norm = nn.LayerNorm(features, device=device, dtype=dtype)
        self.dropout = DropoutNd(dropout)
        self.mix = nn.Linear(features, 2 * features, device=device, dtype=dtype)

    if TYPE_CHECKING:
        __call__: SequenceCall[Tensor]

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The block over a sequence, from state to state.

        Args:
            x: inputs, (batch, length, d_model). Any length >= 1.
            state: the layer's state before, (batch, d_model, d_state / 2), complex; None for zero.
            lengths: the lengths of right-padded rows, integers from 1 to ``length``, (batch,). Outputs and state are
                then those of each row alone, with zeros where a row has ended; what lies in the padding is not read.
            return_state: whether to return the state after the (row's) last input too.

        Returns:
            y like x, or (y, state).

        Raises:
            RuntimeError: a state is given to or asked of a bidirectional block.
            TypeError: x or state has the wrong dtype, or lengths are not integers.
            ValueError: x, state or lengths has the wrong shape, lies on another device, or is out of range.
        """
        x = signal("x", x, self)
        rows = padding.rows(lengths, x)
        if rows is not None:
            x = rows.cut(x)
        found = self.layer(self.norm(x), state, lengths=rows, return_state=return_state)
        y, after = found if isinstance(found, tuple) else (found, None)
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
