"""The convolution layer of state-spaces/s4: a kernel, an FFT convolution, a skip and an activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s4_fast.checkpoint import AllOrNothing
from s4_fast.layers import padding
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.padding import Lengths
from s4_fast.layers.path import choose
from s4_fast.ops import fft_conv
from s4_fast.state_spaces.activation import Activation, halves
from s4_fast.state_spaces.arguments import check_shape, per_row
from s4_fast.state_spaces.kernels import KERNELS, SSMKernelDiag, SSMKernelDPLR, check_rate


class FFTConv(AllOrNothing):
    """``activation(dropout(k * x + D x))`` on (batch, d_model, length), or (batch, length, d_model).

    The ``FFTConv`` of state-spaces/s4 with its options and names: ``D`` (channels, d_model), and the parameters of the
    kernel under ``kernel``.

    Args:
        d_model: number of features.
        l_max: the longest kernel; None for one as long as the input.
        channels: number of outputs per feature. They become features of the output, in the order (channels, d_model).
        swap_channels: whether the order is (d_model, channels).
        bidirectional: whether a second kernel runs from the end; output l then sees every input, the next one with the
            kernel's first sample, as in the original.
        activation: see :func:`~s4_fast.state_spaces.activation.Activation`; ``"glu"`` doubles the channels inside.
        transposed: whether inputs and outputs are (batch, features, length).
        dropout: probability of a zero before the activation.
        tie_dropout: whether all time steps share one mask.
        drop_kernel: probability of a zero in the kernel.
        mode, kernel: the kernel, ``"dplr"`` (``"nplr"``, ``"s4"``) or ``"diag"`` (``"s4d"``); two names of one option.
        **kernel_args: options of :class:`~s4_fast.state_spaces.kernels.SSMKernel`.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an option's value is unknown or out of range, or two contradict each other.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int | None = None,
        channels: int = 1,
        swap_channels: bool = False,
        bidirectional: bool = False,
        activation: str | None = "gelu",
        transposed: bool = True,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        drop_kernel: float = 0.0,
        mode: str | None = "dplr",
        kernel: str | None = None,
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        if kernel is not None and mode not in (None, "dplr", kernel):
            raise ValueError(f"mode and kernel are two names of one option, got mode={mode!r} and kernel={kernel!r}")
        name = mode if kernel is None else kernel
        if name not in KERNELS:
            raise ValueError(f"unknown kernel {name!r}; expected one of {', '.join(KERNELS)}")
        self.d_model, self.channels, self.l_max = d_model, channels, l_max
        self.swap_channels, self.bidirectional, self.transposed = swap_channels, bidirectional, transposed
        inner = 2 * channels if halves(activation) else channels
        self.activation = Activation(activation, dim=1 if transposed else -1, size=inner * d_model)
        self.D = nn.Parameter(torch.randn(inner, d_model))
        self.kernel: SSMKernelDiag | SSMKernelDPLR = KERNELS[name](
            d_model=d_model, channels=2 * inner if bidirectional else inner, l_max=l_max, **kernel_args
        )
        drop = DropoutNd(dropout, transposed=True) if tie_dropout else nn.Dropout(dropout)
        self.drop = nn.Identity() if dropout == 0 else drop
        self.drop_kernel = nn.Identity() if drop_kernel == 0 else nn.Dropout(drop_kernel)

    def forward(
        self, x: Tensor, state: Tensor | None = None, rate: float = 1.0, lengths: Lengths | int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The layer over a sequence, from state to state.

        Args:
            x: (batch, d_model, length), or (batch, length, d_model) where not ``transposed``.
            state: the state before, as :meth:`default_state` or a call with ``state`` returns it. Its outputs are not
                cut at ``l_max``, which bounds the kernel alone.
            rate: the sampling rate of x relative to the one that the parameters were trained for.
            lengths: the lengths of right-padded rows, integers from 1 to ``length``: (batch,), (1,), or one int for all
                rows. What lies in the padding is not read, and the outputs there are those of a zero input.

        Returns:
            y like x with ``d_output`` features, and the state after the (row's) last input; None where none was given.

        Raises:
            RuntimeError: a state is given to a bidirectional layer, or one whose kernel has no recurrence.
            TypeError: lengths are not integers, or x or the state has the wrong dtype.
            ValueError: x, lengths or the state has the wrong shape or is out of range.
        """
        check_shape(x, self.d_model, self.transposed)
        if state is not None and self.bidirectional:
            raise RuntimeError("a bidirectional layer needs the whole sequence; it has no state to start from")
        check_rate(rate)
        u = x if self.transposed else x.mT
        rows = padding.rows(per_row(lengths, u.shape[0]), u.mT)
        if rows is not None:
            u = rows.cut(u.mT).mT
        batch, L = u.shape[0], u.shape[-1]
        taps = L if self.l_max is None else min(L, max(1, round(self.l_max / rate)))
        kernel, after = self.kernel, None
        before = None if state is None else kernel.read_state(state, batch)
        with kernel.computed_once():
            if isinstance(kernel, SSMKernelDiag) and taps == L and self._scans(kernel, batch, L):
                y, after = kernel.scan(u, self.D[0], before, rate=rate, bidirectional=self.bidirectional)
                y = y[:, None]
            else:
                y = self._convolve(u, self.drop_kernel(kernel(L=taps, rate=rate)[0]))
                if before is not None:
                    y = y + kernel.free_response(before, L, rate)
            if state is None:
                after = None
            elif after is None or rows is not None:
                after = kernel.forward_state(u, state, None if rows is None else rows.lengths, rate)
            else:
                after = kernel.write_state(after, state)
        y = self.drop(self._flat(y))
        return self.activation(y if self.transposed else y.mT), after

    def _scans(self, kernel: SSMKernelDiag, batch: int, L: int) -> bool:
        """Whether the recurrence computes the same as a kernel of length L, and faster."""
        return (
            kernel.disc != "dss"
            and kernel.backend is None
            and len(self.D) == 1
            and not (self.training and isinstance(self.drop_kernel, nn.Dropout))
            and choose(kernel, batch, L).name == "scan"
        )

    def _convolve(self, u: Tensor, k: Tensor) -> Tensor:
        """u (batch, d_model, length), k (channels, d_model, taps) -> (batch, channels, d_model, length)."""
        u = u.contiguous()
        if not self.bidirectional:
            return fft_conv(u, k, self.D)
        forwards, backwards = k.chunk(2)
        return fft_conv(u, forwards, self.D) + fft_conv(u.flip(-1), pad(backwards, (1, 0))).flip(-1)

    def _flat(self, y: Tensor) -> Tensor:
        """(batch, channels, d_model, ...) -> (batch, features, ...)."""
        return (y.transpose(1, 2) if self.swap_channels else y).flatten(1, 2)

    def setup_length(self, L: int) -> None:
        """Make kernels up to length L available; see the kernel's method."""
        self.kernel.setup_length(L if self.l_max is None else min(L, self.l_max))

    def setup_step(self, **kwargs: Any) -> None:
        """Prepare :meth:`step`; ``mode`` as the kernel has it."""
        self.kernel._setup_step(**kwargs)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: x (batch, d_model), state -> y (batch, d_output), the next state.

        From :meth:`default_state` the outputs equal those of :meth:`forward` without dropout, and without ``l_max``,
        which a recurrence does not know.

        Raises:
            RuntimeError: the layer is bidirectional, or its kernel has no recurrence.
        """
        if self.bidirectional:
            raise RuntimeError("a bidirectional layer needs the whole sequence; it cannot step")
        if len(self.D) == 1:
            y, after = self.kernel.step(x, state, self.D[0])
        else:
            y, after = self.kernel.step(x, state)
            y = y + self.D * x[:, None]
        return self.activation(self._flat(y)), after

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """The kernel's zero state, (*batch_shape, d_model, states), on ``device``, or where the parameters are."""
        return self.kernel.default_state(*batch_shape).to(device)

    @property
    def d_output(self) -> int:
        """The number of features of the output."""
        return self.d_model * self.channels

    def extra_repr(self) -> str:
        return f"l_max={self.l_max}, channels={self.channels}, bidirectional={self.bidirectional}"
