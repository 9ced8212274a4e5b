"""S4D and S4 as sequence layers on (batch, length, features): a convolution in training, a recurrence in stepping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s4_fast.checkpoint import AllOrNothing
from s4_fast.layers import padding
from s4_fast.layers.padding import Lengths
from s4_fast.layers.path import PATHS, Path, choose
from s4_fast.ops import fft_conv
from s4_fast.ssm import DPLRSSM, DiagonalSSM

if TYPE_CHECKING:
    from s4_fast.distributed import Slices, TimeSplit


class SSMLayer(AllOrNothing):
    """``y = SSM(u) + D u`` per feature on (batch, length, d_model); linear, without activation or mixing.

    Bidirectional layers add a second kernel that runs from the end: output l sees every input.
    """

    time_split: TimeSplit | None = None  # s4_fast.distributed.split_time sets it

    def __init__(self, kernel: DiagonalSSM | DPLRSSM, bidirectional: bool) -> None:
        super().__init__()
        self.d_model, self.d_state, self.bidirectional = kernel.d_model, kernel.d_state, bidirectional
        self.kernel = kernel
        self.D = nn.Parameter(torch.randn(kernel.d_model))

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
            u: inputs, (batch, length, d_model). Any length >= 1, in any order of lengths.
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
        slices = None
        if self.time_split is None:
            self._check(u, state, return_state)
        else:
            slices = self._agree(self.time_split, u, state, lengths, return_state)
        rows = padding.rows(lengths, u)
        if rows is not None:
            u = rows.cut(u)
        u = u.mT
        with self.kernel.computed_once():
            if slices is None:
                y, after = self._run(u, state, None if rows is None else rows.lengths, return_state)
            else:
                y, after = self._run_slice(slices, u, state, return_state)
        # No copy after a scan, which keeps the layout of its input.
        y = y.mT.contiguous()
        if rows is not None:
            y = rows.cut(y)
        if not return_state:
            return y
        assert after is not None
        return y, after

    def prefill(
        self, u: Tensor, state: Tensor | None = None, *, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` with ``return_state``: (y, state). :meth:`step` goes on where it stopped."""
        y, after = self(u, state, lengths=lengths, return_state=True)
        return y, after

    def _check(self, u: Tensor, state: Tensor | None, return_state: bool, least: int = 1) -> None:
        if u.ndim != 3 or u.shape[-1] != self.d_model or u.shape[1] < least:
            expected = f"(batch, length, {self.d_model}) with length >= {least}"
            raise ValueError(f"expected u of shape {expected}, got {tuple(u.shape)}")
        if self.bidirectional and (state is not None or return_state):
            raise RuntimeError(
                "a bidirectional layer needs the whole sequence; it has no state to start from or return"
            )
        if state is not None:
            self.kernel.check(u.mT, state, "length")

    def _agree(
        self, split: TimeSplit, u: Tensor, state: Tensor | None, lengths: Lengths | None, return_state: bool
    ) -> Slices:
        """The slices of which u is this rank's, checked on all ranks."""
        same = {"return_state": return_state, **self.kernel.sizes(), "bidirectional": self.bidirectional}
        return split.agree(
            type(self).__name__,
            lambda: self._check(u, state, return_state, least=0),
            u,
            lengths,
            state=state is not None,
            needs_grad=any(t is not None and t.requires_grad for t in (u, state, *self.parameters())),
            **same,
        )

    def _run_slice(
        self, slices: Slices, u: Tensor, state: Tensor | None, return_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`_run` for this rank's slice u, from the state before the whole sequence to that after it."""
        kernel, L = self.kernel, u.shape[-1]
        kernel.prepare(max(slices.lengths))  # what it changes must change alike on all ranks
        # 0, for the graph: a rank without samples has its part in the backward pass, and gradients of 0.
        ties = sum(t.flatten()[:0].sum() for t in (u, *self.parameters())) if L == 0 else 0
        advance = kernel.propagator()
        start, last = slices.carry(kernel.forward_state(u) + ties, advance, state, return_state=return_state)
        ahead = None
        if self.bidirectional:
            ahead, _ = slices.carry(kernel.forward_state(u.flip(-1)) + ties, advance, reverse=True)
        if L:
            y, _ = self._run(u, start, None, False, ahead)
        else:
            y = u + start.real[..., :0] + ties
            y = y if ahead is None else y + ahead.real[..., :0]
        return y, last if return_state else None

    def _run(
        self,
        u: Tensor,
        state: Tensor | None,
        lengths: Tensor | None,
        return_state: bool,
        ahead: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """u (batch, d_model, length), zero beyond the rows' ends -> y like u, the state after each row if wanted.

        ``ahead`` is the state that what follows u has left behind at its end, in reversed time.
        """
        # One copy each way: strided operands cost more in the FFTs here and in the activation behind.
        u, L = u.contiguous(), u.shape[-1]
        k = self.kernel.kernel(L)
        y = fft_conv(u, k[0], self.D)
        if self.bidirectional:
            y = y + fft_conv(u.flip(-1), pad(k[1], (1, -1))).flip(-1)
        if ahead is not None:
            y = y + self.kernel.response(ahead, L)[:, 1].flip(-1)
        if state is not None:
            y = y + self.kernel.free_response(state, L)[:, 0]
        return y, self.kernel.forward_state(u, state, lengths) if return_state else None

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
        y, state = self.kernel.step(u, state, self.D)
        return y.squeeze(1), state

    def extra_repr(self) -> str:
        return f"bidirectional={self.bidirectional}"


class S4DLayer(SSMLayer):
    r"""The S4D layer: a diagonal SSM per feature plus a skip, on (batch, length, d_model).

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even. ``state_dim`` is accepted as another name.
        dt_min, dt_max: the range of the log-uniform initial step size.
        bidirectional: whether a second kernel runs from the end.
        path: ``"scan"`` (:func:`s4_fast.ssm_scan`), ``"convolution"`` (kernel and FFT), or ``"auto"``: whichever is
            faster for the shape and the device, see :meth:`explain`. Both compute the same.
        **kernel: further options of :class:`s4_fast.ssm.DiagonalSSM` (``init``, ``discretization``, ``lr``, ...).
    """

    kernel: DiagonalSSM

    def __init__(
        self,
        d_model: int,
        d_state: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        bidirectional: bool = False,
        path: str = "auto",
        state_dim: int | None = None,
        **kernel: Any,
    ) -> None:
        if path not in PATHS:
            raise ValueError(f"unknown path {path!r}; expected one of {', '.join(PATHS)}")
        ssm = DiagonalSSM(
            d_model, _state_size(d_state, state_dim), dt_min=dt_min, dt_max=dt_max, channels=1 + bidirectional, **kernel
        )
        super().__init__(ssm, bidirectional)
        self.path = path

    def explain(self, u: Tensor) -> Path:
        """The path that ``self(u)`` takes through u (batch, length, d_model), and why. Nothing is computed.

        ``s4_fast.layers.path.THRESHOLDS`` holds what the automatic choice goes by, and may be changed.
        """
        return self._choose(u.shape[0], u.shape[1])

    def _choose(self, batch: int, L: int) -> Path:
        return choose(self.kernel, batch, L) if self.path == "auto" else Path(self.path, "requested by path=")

    def _run(
        self,
        u: Tensor,
        state: Tensor | None,
        lengths: Tensor | None,
        return_state: bool,
        ahead: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        if self._choose(u.shape[0], u.shape[-1]).name == "convolution":
            return super()._run(u, state, lengths, return_state, ahead)
        y, after = self.kernel.scan(u, self.D, state, ahead, bidirectional=self.bidirectional)
        if ahead is not None:
            y = y + pad(self.kernel.response(ahead, 1)[:, 1], (u.shape[-1] - 1, 0))
        if return_state and lengths is not None:
            after = self.kernel.forward_state(u, state, lengths)
        return y, after if return_state else None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, path={self.path}"


class S4Layer(SSMLayer):
    r"""The S4 layer: a diagonal-plus-low-rank SSM per feature plus a skip, on (batch, length, d_model).

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even. ``state_dim`` is accepted as another name.
        dt_min, dt_max: the range of the log-uniform initial step size.
        bidirectional: whether a second kernel runs from the end.
        **kernel: further options of :class:`s4_fast.ssm.DPLRSSM` (``init``, ``rank``, ``l_max``, ``lr``, ...).
    """

    kernel: DPLRSSM

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
