"""A step of a model with everything that depends on its parameters alone computed beforehand, for deployment."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu

from s4_fast import torch_private
from s4_fast.layers.block import SSMBlock
from s4_fast.layers.model import ModelState, S4SequenceModel, sum_dtype
from s4_fast.named_errors import NamedErrors
from s4_fast.ssm import real
from s4_fast.ssm.model import SSMModel
from s4_fast.ssm.parameters import HALF, full, logarithms

Outputs = tuple[Tensor, ...]


class FrozenStep(NamedErrors):
    """``S4SequenceModel.step`` in evaluation mode, as the parameters are when this is made.

    The coefficients of the recurrence are buffers, and no discretisation is left. Arithmetic is real, and a state is
    flat: one real tensor (batch, d_model, d_state / 2, 2) per block, then ``pooled`` and ``steps``. So
    ``torch.export``, AOTInductor, ``torch.compile`` and runtimes without complex numbers take it, and programs made of
    it need no s4_fast:

        frozen = FrozenStep(model)
        state = frozen.init_state(1)
        y, *state = frozen(u, *state)
        program = torch.export.export(frozen, (u, *state))

    Later changes of ``model`` are not seen: make another one.

    Args:
        model: a model that is not bidirectional, split over processes or sharded, and has no hooks.

    Raises:
        TypeError: ``model`` is no ``S4SequenceModel``, or has layers of other classes than s4_fast's own.
        RuntimeError: ``model`` is bidirectional, split, sharded, parametrized or has hooks.

    Examples:
        >>> model = s4_fast.S4SequenceModel(1, 8, 1, n_layers=2, d_state=4, task="regression").eval()
        >>> frozen = FrozenStep(model)
        >>> y, *state = frozen(torch.randn(1, 1), *frozen.init_state(1))
        >>> y.shape, len(state)
        (torch.Size([1, 1]), 4)
    """

    def __init__(self, model: S4SequenceModel) -> None:
        super().__init__()
        if not isinstance(model, S4SequenceModel):
            raise TypeError(f"expected an S4SequenceModel, got {type(model).__name__}")
        _check(model)
        self.task, self.d_input, self.d_model = model.task, model.d_input, model.d_model
        self.encoder, self.norm, self.head = (copy.deepcopy(m) for m in (model.encoder, model.norm, model.head))
        self.blocks = cast("Sequence[_Block]", nn.ModuleList(map(_Block, model.blocks)))
        self.requires_grad_(False).eval()

    def init_state(self, batch: int) -> Outputs:
        """The state before the first input."""
        like = self.blocks[0].C
        pooled = like.new_zeros((batch, self.d_model), dtype=sum_dtype(like.device))
        blocks = (block.C.new_zeros((batch, *block.C.shape[1:])) for block in self.blocks)
        return (*blocks, pooled, like.new_zeros(batch, dtype=torch.int64))

    @staticmethod
    def flatten(state: ModelState) -> Outputs:
        """A model's state, such as its ``prefill`` returns, as this takes it."""
        blocks = (torch.view_as_real(s.resolve_conj()) for s in state.blocks)
        return (*blocks, state.pooled, state.steps)

    @staticmethod
    def unflatten(state: Sequence[Tensor]) -> ModelState:
        """The inverse of ``flatten``."""
        *blocks, pooled, steps = state
        return ModelState(tuple(map(torch.view_as_complex, blocks)), pooled, steps)

    def forward(self, u: Tensor, *state: Tensor) -> Outputs:
        """u (batch, d_input) and the state -> y (batch, d_output) and the next state."""
        *before, pooled, steps = state
        x, after = self.encoder(u), []
        for block, s in zip(self.blocks, before, strict=True):
            x, s = block(x, s)
            after.append(s)
        x = self.norm(x)
        pooled, steps = pooled + x, steps + 1
        y = self.head((pooled / steps[:, None]).to(x.dtype) if self.task == "classification" else x)
        return (y, *after, pooled, steps)

    if TYPE_CHECKING:
        __call__ = forward


class _Block(nn.Module):
    """A block's step."""

    decay: Tensor
    B: Tensor
    C: Tensor
    G: Tensor | None
    V: Tensor | None
    D: Tensor

    def __init__(self, block: SSMBlock) -> None:
        super().__init__()
        self.norm, self.mix = copy.deepcopy(block.norm), copy.deepcopy(block.mix)
        with torch.no_grad():
            for name, value in _coefficients(block.layer.kernel)._asdict().items():
                self.register_buffer(name, None if value is None else value.clone())
            self.register_buffer("D", full(block.layer.D).clone())

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        u = self.norm(x)
        found = real.Coefficients(self.decay, self.B, self.C, self.G, self.V)
        y, after = found.step(u.to(self.C.dtype), state, self.D)
        return x + glu(self.mix(gelu(y.to(u.dtype) if u.dtype in HALF else y)), dim=-1), after


def _coefficients(kernel: SSMModel) -> real.Coefficients:
    kind = kernel.step_kind()
    if kind is None:
        raise TypeError(f"expected layers of DiagonalSSM or DPLRSSM, got {type(kernel).__name__}")
    P = getattr(kernel, "P", None)
    return real.coefficients(logarithms(*map(full, kernel.as_stored())), None if P is None else full(P), kind)


def _check(model: S4SequenceModel) -> None:
    if model.time_split is not None or any(torch_private.is_sharded(m) for m in model.modules()):
        raise RuntimeError("the model is split over processes or sharded: freeze a plain one with its state_dict()")
    for name, module in model.named_modules():
        where = name or "the model"
        if torch_private.has_hooks(module):
            raise RuntimeError(f"{where} has hooks, which a frozen step would not call: remove them before")
        if isinstance(module, SSMModel) and torch_private.own_modules(module):
            raise RuntimeError(f"{where} is parametrized: call remove_parametrizations before")
    for i, block in enumerate(model.blocks):
        if not isinstance(block, SSMBlock):
            raise TypeError(f"expected blocks to be SSMBlock, got {type(block).__name__} as number {i}")
        if block.layer.bidirectional:
            raise RuntimeError(f"block {i} is bidirectional, and needs the whole sequence; it cannot step")
