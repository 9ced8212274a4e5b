"""A stack of S4D or S4 blocks between a linear encoder and a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from s4_fast import torch_private
from s4_fast.arguments import choice, integer, signal, sizes
from s4_fast.checkpoint import AllOrNothing
from s4_fast.layers import padding
from s4_fast.layers.block import SSMBlock
from s4_fast.layers.calls import SequenceCall
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.options import LayerOptions, layer_class
from s4_fast.layers.padding import Lengths, Rows
from s4_fast.time_split import TimeSplittable

if TYPE_CHECKING:
    from s4_fast.distributed import Slices, TimeSplit

TASKS = ("classification", "regression")


class ModelState(NamedTuple):
    """The state of a model between two inputs: one per block, and what mean pooling has seen.

    Attributes:
        blocks: per block its layer's state, (batch, d_model, d_state / 2), complex.
        pooled: the sum of the features so far, (batch, d_model), float64 where the device has it.
        steps: how many they were, (batch,), int64.

    Examples:
        >>> model = s4_fast.S4SequenceModel(1, 8, 10, n_layers=2, d_state=4)
        >>> y, state = model.prefill(torch.randn(3, 50, 1))
        >>> len(state.blocks), state.blocks[0].shape, state.pooled.shape, int(state.steps[0])
        (2, torch.Size([3, 8, 2]), torch.Size([3, 8]), 50)
        >>> y, state = model(torch.randn(3, 20, 1), state.detach(), return_state=True)
    """

    blocks: tuple[Tensor, ...]
    pooled: Tensor
    steps: Tensor

    def detach(self) -> ModelState:
        """The same numbers without their graph."""
        return ModelState(tuple(s.detach() for s in self.blocks), self.pooled.detach(), self.steps)


torch_private.register_namedtuple(ModelState, "s4_fast.ModelState")
torch.serialization.add_safe_globals([ModelState])

_WITHOUT_DOUBLE = ("mps",)  # the types of devices that have no float64


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype of pooled features: a float32 sum of a million of them is a few digits short."""
    return torch.float32 if device.type in _WITHOUT_DOUBLE else torch.float64


class S4SequenceModel(TimeSplittable, AllOrNothing):
    """Encoder, ``n_layers`` ``SSMBlock``, norm and head, on (batch, length, d_input).

    Differentiable in the input, the state and every parameter.

    Args:
        d_input: features of the input.
        d_model: features inside.
        d_output: classes, or outputs per step.
        n_layers: number of blocks.
        d_state: real state size per feature.
        dropout: dropout probability of the blocks.
        task: ``"classification"``: mean over the sequence, then the head, (batch, d_output);
            ``"regression"``: the head at every step, (batch, length, d_output).
        layer: ``"s4d"`` (``S4DLayer``) or ``"s4"`` (``S4Layer``).
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
        **options: of the layers, by name, as ``SSMBlock`` takes them: ``dt_min=0.001``, ``dt_max=0.1``, ``init="lin"``
            (S4D) or ``"legs"`` (S4), ``discretization="zoh"`` (S4D alone), ``rank=1`` (S4 alone), ``n_ssm=None``,
            ``lr=None``, ``bidirectional=False``, ``path="auto"``, ``generator=None``, ``state_dim=None``.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an option's value is unknown or out of range.

    Examples:
        >>> model = S4SequenceModel(1, 16, 10, n_layers=2, d_state=8)
        >>> model(torch.randn(4, 784, 1)).shape
        torch.Size([4, 10])
        >>> model = S4SequenceModel(1, 16, 1, n_layers=2, d_state=8, task="regression")
        >>> model.generate(torch.randn(4, 50, 1), steps=20).shape
        torch.Size([4, 20, 1])
    """

    def __init__(
        self,
        d_input: int,
        d_model: int,
        d_output: int,
        n_layers: int,
        d_state: int = 64,
        dropout: float = 0.0,
        task: str = "classification",
        *,
        layer: str = "s4d",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__()
        layer_class(type(self), layer, options)
        task = choice("task", task, TASKS)
        d_input, d_model, d_output, n_layers = sizes(
            d_input=d_input, d_model=d_model, d_output=d_output, n_layers=n_layers
        )
        self.task, self.d_input, self.d_model = task, d_input, d_model
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.encoder = nn.Linear(d_input, d_model, **made)
        blocks = (SSMBlock(d_model, d_state, dropout, layer=layer, **made, **options) for _ in range(n_layers))
        self.blocks = cast("Sequence[SSMBlock]", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(d_model, **made)
        self.head = nn.Linear(d_model, d_output, **made)

    if TYPE_CHECKING:
        __call__: SequenceCall[ModelState]

    def forward(
        self,
        u: Tensor,
        state: ModelState | None = None,
        *,
        lengths: Lengths | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, ModelState]:
        """(batch, length, d_input) -> (batch, d_output) or (batch, length, d_output).

        A sequence may be cut anywhere: pass the state that the first part returns to the second, and outputs (of
        classification, those for the sequence so far), state and gradients are those of the whole.

        Args:
            u: inputs, (batch, length, d_input). Any length >= 1.
            state: the state before; None for ``init_state``.
            lengths: the lengths of right-padded rows, integers from 1 to ``length``, (batch,). Outputs, pooled features
                and state are then those of each row alone, with zero outputs where a row has ended; what lies in the
                padding is not read.
            return_state: whether to return the state after the (row's) last input too.

        Returns:
            y, or (y, state).

        Raises:
            RuntimeError: a state is given to or asked of a bidirectional model.
            TypeError: u or the state has the wrong dtype, or lengths are not integers.
            ValueError: u, state or lengths has the wrong shape, lies on another device, or is out of range.
        """
        slices, given = None, u
        u = self.given(lambda: signal("u", given, self))
        if self.time_split is None:
            self._check_sequence(u, state)
        else:
            slices = self._agree(self.time_split, u, state, lengths, return_state)
        rows = padding.rows(lengths, u)
        x = self.encoder(u if rows is None else rows.cut(u))
        states = []
        for i, block in enumerate(self.blocks):
            x = block(x, None if state is None else state.blocks[i], lengths=rows, return_state=return_state)
            if return_state:
                x, after = x
                states.append(after)
        x = self.norm(x)
        if self.task == "regression":
            y = self.head(x)
            y = y if rows is None else rows.cut(y)
            if not return_state:
                return y
        after = self._after(x, rows, slices, state, states)
        if self.task == "classification":
            y = self.head(self._mean(after, x))
        return (y, after) if return_state else y

    def prefill(
        self, u: Tensor, state: ModelState | None = None, *, lengths: Lengths | None = None
    ) -> tuple[Tensor, ModelState]:
        """``forward`` with ``return_state``: (y, state). ``step`` goes on where it stopped."""
        y, after = self(u, state, lengths=lengths, return_state=True)
        return y, after

    @torch.no_grad()
    def generate(
        self, u: Tensor, steps: int, state: ModelState | None = None, *, lengths: Lengths | None = None
    ) -> Tensor:
        """The model's own continuation of u: each output is the next input. Without gradients.

        Args:
            u: inputs to start from, (batch, length, d_input).
            steps: how many outputs to return, at least 1. The first is the output at the (row's) last input.
            state: the state before u; None for zero.
            lengths: as in ``forward``.

        Returns:
            (batch, steps, d_output).

        Raises:
            RuntimeError: the model classifies, is bidirectional, is split over processes, or drops out at random
                (call ``eval()`` first).
            TypeError: ``steps`` is not an int.
            ValueError: ``steps`` < 1, or the outputs are not as many as the inputs.
        """
        if self.time_split is not None:
            raise RuntimeError("a model that is split over processes cannot generate; call join_time(model) before")
        if self.task != "regression":
            raise RuntimeError(f"only a regression model generates; this one's task is {self.task}")
        steps = integer("steps", steps, 1)
        u = signal("u", u, self)
        if any(isinstance(m, (DropoutNd, nn.Dropout)) and m.training and m.p for m in self.modules()):
            raise RuntimeError("dropout is active: call eval() before generate()")
        rows = padding.rows(lengths, u)
        y, state = self.prefill(u, state, lengths=rows)
        if y.shape[-1] != self.d_input:
            raise ValueError(f"to generate, d_output must be d_input = {self.d_input}, got {y.shape[-1]}")
        y = y[:, -1] if rows is None else y[torch.arange(len(y), device=y.device), rows.lengths - 1]
        outputs = [y]
        for _ in range(steps - 1):
            y, state = self.step(y, state)
            outputs.append(y)
        return torch.stack(outputs, 1)

    def init_state(self, batch: int) -> ModelState:
        """The state before the first input."""
        blocks = tuple(block.init_state(batch) for block in self.blocks)
        # Encoder, norm and head are the user's to replace, quantise or shard.
        device = blocks[0].device
        return ModelState(
            blocks,
            torch.zeros(batch, self.d_model, dtype=sum_dtype(device), device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def step(self, u: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """One step: u (batch, d_input), state -> (batch, d_output), state.

        For classification the output is that of ``forward`` on the sequence so far.

        Raises:
            RuntimeError: the model is bidirectional.
            TypeError, ValueError: u or state is not of this model and batch.
        """
        u = signal("u", u, self)
        if u.ndim != 2 or u.shape[-1] != self.d_input:
            raise ValueError(f"expected u of shape (batch, {self.d_input}), got {tuple(u.shape)}")
        self._check(u, state)
        if torch_private.has_hooks(self):
            y, after = self.prefill(u[:, None], state)
            return (y if self.task == "classification" else y[:, 0]), after
        x = self.encoder(u)
        states = []
        for block, s in zip(self.blocks, state.blocks, strict=True):
            x, s = block.step(x, s)
            states.append(s)
        x = self.norm(x)
        after = ModelState(tuple(states), state.pooled + x, state.steps + 1)
        return self.head(self._mean(after, x) if self.task == "classification" else x), after

    def _check(self, u: Tensor, state: ModelState) -> None:
        """Raise unless the state has the parts of this model's; the layers check theirs."""
        if not isinstance(state, ModelState):
            raise TypeError(f"expected a ModelState, got {type(state).__name__}")
        batch, features = u.shape[0], self.d_model
        found = len(state.blocks), tuple(state.pooled.shape), tuple(state.steps.shape)
        if found != (len(self.blocks), (batch, features), (batch,)):
            raise ValueError(
                f"expected a state of {len(self.blocks)} blocks with pooled features ({batch}, {features}) and steps "
                f"({batch},), got {found[0]} blocks, {found[1]} and {found[2]}"
            )
        expected = ("pooled", state.pooled, sum_dtype(state.pooled.device)), ("steps", state.steps, torch.int64)
        for name, t, dtype in expected:
            if t.dtype != dtype:
                raise TypeError(f"expected {name} of the state to be {dtype}, got {t.dtype}")
            if t.device != u.device:
                raise ValueError(f"expected u and state on one device, got u on {u.device}, {name} on {t.device}")

    def _check_sequence(self, u: Tensor, state: ModelState | None, least: int = 1) -> None:
        if u.ndim != 3 or u.shape[-1] != self.d_input or u.shape[1] < least:
            expected = f"(batch, length, {self.d_input}) with length >= {least}"
            raise ValueError(f"expected u of shape {expected}, got {tuple(u.shape)}")
        if state is not None:
            self._check(u, state)

    def _agree(
        self, split: TimeSplit, u: Tensor, state: ModelState | None, lengths: Lengths | None, return_state: bool
    ) -> Slices:
        """The slices of which u is this rank's, checked on all ranks."""
        slices = split.agree(
            type(self).__name__,
            lambda: self._check_sequence(u, state, least=0),
            u,
            lengths,
            length=lambda: u.shape[1],
            state=state is not None,
            needs_grad=lambda: any(t.requires_grad for t in (u, *self.parameters())),
            same=lambda: {
                "presence of a state": state is not None,
                "task": self.task,
                "layers": len(self.blocks),
                "return_state": return_state,
            },
        )
        if not any(slices.lengths):
            raise ValueError("expected at least one sample on any rank, got empty slices")
        return slices

    @staticmethod
    def _after(
        x: Tensor, rows: Rows | None, slices: Slices | None, before: ModelState | None, blocks: Sequence[Tensor]
    ) -> ModelState:
        """The state after the features x (batch, length, d_model)."""
        if rows is None:
            length = x.shape[1] if slices is None else sum(slices.lengths)
            steps = torch.full(x.shape[:1], length, device=x.device)
        else:
            x, steps = rows.cut(x), rows.lengths
        pooled = x.sum(1, dtype=sum_dtype(x.device))
        if slices is not None:
            pooled = slices.sum(pooled)
        if before is not None:
            pooled, steps = before.pooled + pooled, before.steps + steps
        return ModelState(tuple(blocks), pooled, steps)

    @staticmethod
    def _mean(state: ModelState, like: Tensor) -> Tensor:
        return (state.pooled / state.steps[:, None]).to(like.dtype)
