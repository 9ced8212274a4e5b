"""S4D and S4 as sequence layers on (batch, length, features): a convolution in training, a recurrence in stepping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s4_fast.checkpoint import AllOrNothing
from s4_fast.ops import fft_conv
from s4_fast.ssm import DPLRSSM, DiagonalSSM


class SSMLayer(AllOrNothing):
    """``y = SSM(u) + D u`` per feature on (batch, length, d_model); linear, without activation or mixing.

    Bidirectional layers add a second kernel that runs from the end: output l sees every input.
    """

    def __init__(self, kernel: DiagonalSSM | DPLRSSM, bidirectional: bool) -> None:
        super().__init__()
        self.d_model, self.d_state, self.bidirectional = kernel.d_model, kernel.d_state, bidirectional
        self.kernel = kernel
        self.D = nn.Parameter(torch.randn(kernel.d_model))

    def forward(self, u: Tensor) -> Tensor:
        """(batch, length, d_model) -> the same shape. Any length, in any order of lengths."""
        if u.ndim != 3 or u.shape[-1] != self.d_model:
            raise ValueError(f"expected u of shape (batch, length, {self.d_model}), got {tuple(u.shape)}")
        # One copy each way: strided operands cost more in the FFTs here and in the activation behind.
        u = u.transpose(1, 2).contiguous()
        k = self.kernel.kernel(u.shape[-1])
        y = fft_conv(u, k[0], self.D)
        if self.bidirectional:
            y = y + fft_conv(u.flip(-1), pad(k[1], (1, -1))).flip(-1)
        return y.transpose(1, 2).contiguous()

    def init_state(self, batch: int) -> Tensor:
        """The zero state, (batch, d_model, d_state / 2), complex."""
        return self.kernel.init_state(batch)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: u (batch, d_model), state -> y (batch, d_model), state.

        From :meth:`init_state` the outputs equal :meth:`forward` on the whole sequence.

        Raises:
            RuntimeError: the layer is bidirectional.
            ValueError: u or state has the wrong shape.
        """
        if self.bidirectional:
            raise RuntimeError("a bidirectional layer needs the whole sequence; it cannot step")
        y, state = self.kernel.step(u, state)
        return y[:, 0] + self.D * u, state

    def extra_repr(self) -> str:
        return f"bidirectional={self.bidirectional}"


class S4DLayer(SSMLayer):
    r"""The S4D layer: a diagonal SSM per feature plus a skip, on (batch, length, d_model).

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even. ``state_dim`` is accepted as another name.
        dt_min, dt_max: the range of the log-uniform initial step size.
        bidirectional: whether a second kernel runs from the end.
        **kernel: further options of :class:`s4_fast.ssm.DiagonalSSM` (``init``, ``discretization``, ``lr``, ...).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        bidirectional: bool = False,
        state_dim: int | None = None,
        **kernel: Any,
    ) -> None:
        ssm = DiagonalSSM(
            d_model, _state_size(d_state, state_dim), dt_min=dt_min, dt_max=dt_max, channels=1 + bidirectional, **kernel
        )
        super().__init__(ssm, bidirectional)


class S4Layer(SSMLayer):
    r"""The S4 layer: a diagonal-plus-low-rank SSM per feature plus a skip, on (batch, length, d_model).

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even. ``state_dim`` is accepted as another name.
        dt_min, dt_max: the range of the log-uniform initial step size.
        bidirectional: whether a second kernel runs from the end.
        **kernel: further options of :class:`s4_fast.ssm.DPLRSSM` (``init``, ``rank``, ``l_max``, ``lr``, ...).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        bidirectional: bool = False,
        state_dim: int | None = None,
        **kernel: Any,
    ) -> None:
        ssm = DPLRSSM(
            d_model, _state_size(d_state, state_dim), dt_min=dt_min, dt_max=dt_max, channels=1 + bidirectional, **kernel
        )
        super().__init__(ssm, bidirectional)


def _state_size(d_state: int | None, state_dim: int | None) -> int:
    if d_state is not None and state_dim is not None and d_state != state_dim:
        raise ValueError(f"d_state and state_dim name the same size, got {d_state} and {state_dim}")
    return next((size for size in (d_state, state_dim) if size is not None), 64)
