"""What S4D and S4 layers have in common: a kernel and a skip over (batch, length, features)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from s4_fast import torch_private
from s4_fast.arguments import choice, signal
from s4_fast.layers import padding
from s4_fast.layers.calls import SequenceCall
from s4_fast.layers.padding import Lengths
from s4_fast.layers.sequence_module import SequenceModule, one_sample
from s4_fast.ssm import DPLRSSM, DiagonalSSM
from s4_fast.ssm.sequence import PATHS, Path, Way, as_autocast, choose, described


class SSMLayer(SequenceModule):
    """``y = SSM(u) + D u`` per feature on (batch, length, d_model); linear, without activation or mixing.

    Bidirectional layers add a second kernel that runs from the end: output l sees every input.
    """

    def __init__(
        self,
        kernel: DiagonalSSM | DPLRSSM,
        bidirectional: bool,
        path: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.path = choice("path", path, PATHS)
        self.d_model, self.d_state, self.bidirectional = kernel.d_model, kernel.d_state, bidirectional
        self.kernel = kernel
        self.D = nn.Parameter(torch.randn(kernel.d_model, device=device, dtype=dtype))

    if TYPE_CHECKING:
        __call__: SequenceCall[Tensor]

    def forward(
        self,
        u: Tensor,
        state: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The layer over a sequence, from state to state.

        A sequence may be cut anywhere: pass the state that the first part returns to the second, and outputs, state
        and gradients are those of the whole. Detach it between them to cut the gradients off there.

        Args:
            u: inputs, (batch, length, d_model), in the parameters' dtype or a half type. Any length >= 1, in any order
                of lengths. Under autocast u counts as one of autocast's dtype, as for ``nn.Linear``.
            state: the state before, (batch, d_model, d_state / 2), complex; None for zero.
            lengths: the lengths of right-padded rows, integers from 1 to ``length``, (batch,). Outputs and state are
                then those of each row alone, with zeros where a row has ended; what lies in the padding is not read.
            return_state: whether to return the state after the (row's) last input too.

        Returns:
            y like u, or (y, state). Differentiable in u, the state and every parameter.

        Raises:
            RuntimeError: a state is given to or asked of a bidirectional layer.
            TypeError: u or state has the wrong dtype, or lengths are not integers.
            ValueError: u, state or lengths has the wrong shape, lies on another device, or is out of range.
        """
        given = u
        u = self.given(lambda: as_autocast(signal("u", given, self)))
        rows = self.given(lambda: padding.rows(lengths, u))
        if rows is not None:
            u = rows.cut(u)
        way = Way(bidirectional=self.bidirectional, path=self.path)
        y, after = self._through(
            self.kernel,
            u,
            self.D,
            way,
            lambda least: self._check(u, state, return_state, least),
            state=state,
            rows=rows,
            return_state=return_state,
        )
        if rows is not None:
            y = rows.cut(y)
        if not return_state:
            return y
        assert after is not None
        return y, after

    def prefill(
        self, u: Tensor, state: Tensor | None = None, *, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        """``forward`` with ``return_state``: (y, state). ``step`` goes on where it stopped."""
        y, after = self(u, state, lengths=lengths, return_state=True)
        return y, after

    def _check(self, u: Tensor, state: Tensor | None, return_state: bool, least: int) -> None:
        if u.ndim != 3 or u.shape[-1] != self.d_model or u.shape[1] < least:
            expected = f"(batch, length, {self.d_model}) with length >= {least}"
            raise ValueError(f"expected u of shape {expected}, got {tuple(u.shape)}")
        if self.bidirectional and (state is not None or return_state):
            raise RuntimeError(
                "a bidirectional layer needs the whole sequence; it has no state to start from or return"
            )
        if state is not None:
            self.kernel.check(u.mT, state, "length")

    def init_state(self, batch: int) -> Tensor:
        """The zero state, (batch, d_model, d_state / 2), complex."""
        return self.kernel.init_state(batch)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: u (batch, d_model), state -> y (batch, d_model), state.

        From ``init_state`` the outputs equal ``forward`` on the whole sequence.

        Raises:
            RuntimeError: the layer is bidirectional.
            ValueError: u or state has the wrong shape.
        """
        if self.bidirectional:
            raise RuntimeError("a bidirectional layer needs the whole sequence; it cannot step")
        if torch_private.has_hooks(self):
            return one_sample(self, u, state)
        return self.kernel.stepped(as_autocast(signal("u", u, self)), state, self.D)

    def explain(self, u: Tensor) -> Path:
        """The path that ``self(u)`` takes through u (batch, length, d_model), and why. Nothing is computed.

        ``s4_fast.backend_table.SCAN_THRESHOLDS`` holds what the automatic choice goes by, and may be changed.
        """
        way = Way(bidirectional=self.bidirectional, path=self.path)
        return choose(self.kernel, u.shape[0], u.shape[1], way)

    def extra_repr(self) -> str:
        way = Way(bidirectional=self.bidirectional, path=self.path)
        directions = ", bidirectional=True" if self.bidirectional else ""
        return f"{self.d_model}, d_state={self.d_state}{directions}, {described(self.kernel, way)}"


def state_size(d_state: int, state_dim: int | None) -> int:
    """The one size that both names are of."""
    if state_dim is None:
        return d_state
    if d_state not in (64, state_dim):  # 64 is the default
        raise ValueError(f"d_state and state_dim name the same size, got {d_state} and {state_dim}")
    return state_dim
