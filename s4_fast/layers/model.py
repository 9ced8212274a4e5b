"""A stack of S4D or S4 blocks between a linear encoder and a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from s4_fast.checkpoint import AllOrNothing
from s4_fast.layers.block import S4DBlock

TASKS = ("classification", "regression")


class ModelState(NamedTuple):
    """The state of a stepping model: one per block, and the running sum that mean pooling needs."""

    blocks: tuple[Tensor, ...]
    pooled: Tensor  # (batch, d_model)
    steps: int


class S4SequenceModel(AllOrNothing):
    """Encoder, ``n_layers`` :class:`S4DBlock`, norm and head, on (batch, length, d_input).

    Args:
        d_input: features of the input.
        d_model: features inside.
        d_output: classes, or outputs per step.
        n_layers: number of blocks.
        d_state: real state size per feature.
        dropout: dropout probability of the blocks.
        task: ``"classification"``: mean over the sequence, then the head, (batch, d_output);
            ``"regression"``: the head at every step, (batch, length, d_output).
        layer: ``"s4d"`` or ``"s4"``.
        **options: passed to the layers.
    """

    def __init__(
        self,
        d_input: int,
        d_model: int,
        d_output: int,
        n_layers: int,
        d_state: int | None = None,
        dropout: float = 0.0,
        task: str = "classification",
        *,
        layer: str = "s4d",
        **options: Any,
    ) -> None:
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
        for name, size in (("d_input", d_input), ("d_output", d_output), ("n_layers", n_layers)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.task, self.d_input = task, d_input
        self.encoder = nn.Linear(d_input, d_model)
        blocks = (S4DBlock(d_model, d_state, dropout, layer=layer, **options) for _ in range(n_layers))
        self.blocks = cast("Sequence[S4DBlock]", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, d_output)

    def forward(self, u: Tensor) -> Tensor:
        """(batch, length, d_input) -> (batch, d_output) or (batch, length, d_output)."""
        if u.ndim != 3 or u.shape[-1] != self.d_input:
            raise ValueError(f"expected u of shape (batch, length, {self.d_input}), got {tuple(u.shape)}")
        x = self.encoder(u)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.task == "classification" else x)

    def init_state(self, batch: int) -> ModelState:
        """The state before the first step."""
        blocks = tuple(block.init_state(batch) for block in self.blocks)
        return ModelState(blocks, self.head.weight.new_zeros(batch, self.head.in_features), 0)

    def step(self, u: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """One step: u (batch, d_input), state -> (batch, d_output), state.

        For classification the output is that of :meth:`forward` on the sequence so far.

        Raises:
            ValueError: u or state has the wrong shape.
        """
        if u.ndim != 2 or u.shape[-1] != self.d_input:
            raise ValueError(f"expected u of shape (batch, {self.d_input}), got {tuple(u.shape)}")
        pooled_shape = (u.shape[0], self.head.in_features)
        if len(state.blocks) != len(self.blocks) or tuple(state.pooled.shape) != pooled_shape:
            raise ValueError(
                f"expected a state of {len(self.blocks)} blocks and a pooled sum of shape {pooled_shape}, "
                f"got {len(state.blocks)} blocks and {tuple(state.pooled.shape)}"
            )
        x = self.encoder(u)
        states = []
        for block, s in zip(self.blocks, state.blocks, strict=True):
            x, s = block.step(x, s)
            states.append(s)
        x = self.norm(x)
        pooled, steps = state.pooled + x, state.steps + 1
        y = self.head(pooled / steps if self.task == "classification" else x)
        return y, ModelState(tuple(states), pooled, steps)
