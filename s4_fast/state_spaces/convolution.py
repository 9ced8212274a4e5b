"""The convolution layer of state-spaces/s4: a kernel, an FFT convolution, a skip and an activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from s4_fast import torch_private
from s4_fast.arguments import UnknownOptionError, choice, integer, signal
from s4_fast.layers import padding
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.padding import Lengths
from s4_fast.layers.sequence_module import SequenceModule
from s4_fast.ssm.sequence import Way, as_autocast, described
from s4_fast.state_spaces.activation import Activation, halves
from s4_fast.state_spaces.arguments import check_shape, flattened, longest, per_row
from s4_fast.state_spaces.kernels import KERNELS, SSMKernelDiag, SSMKernelDPLR, check_rate
from s4_fast.state_spaces.options import KernelOptions


class FFTConv(SequenceModule):
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
        activation: see ``Activation``; ``"glu"`` doubles the channels inside.
        transposed: whether inputs and outputs are (batch, features, length).
        dropout: probability of a zero before the activation.
        tie_dropout: whether all time steps share one mask.
        drop_kernel: probability of a zero in the kernel.
        mode: the kernel, ``"dplr"`` (``"nplr"``, ``"s4"``) or ``"diag"`` (``"s4d"``).
        kernel: another name of ``mode``.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
        **kernel_args: of the kernel: ``d_state=64``, ``lr=None``, ``wd=0.0``, ``verbose=True``,
            ``deterministic=False``, ``dt_min=0.001``, ``dt_max=0.1``, ``dt_tie=True``, ``dt_transform="exp"``,
            ``rank=1``, ``n_ssm=None``, ``measure=None``, ``init="legs"``, ``dt_fast=False``, ``real_transform="exp"``,
            ``imag_transform="none"``, ``bandlimit=None``, ``backend="cuda"``, and what ``init`` takes (``SSMKernel``);
            ``disc="zoh"`` and ``is_real=False`` of S4D (``SSMKernelDiag``).

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an option's value is unknown or out of range, or two contradict each other.

    Examples:
        >>> layer = FFTConv(8, channels=2, d_state=16, mode="diag", transposed=False)
        >>> y, state = layer(torch.randn(2, 100, 8), state=layer.default_state(2))
        >>> y.shape, state.shape
        (torch.Size([2, 100, 16]), torch.Size([2, 8, 8]))
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
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kernel_args: Unpack[KernelOptions],
    ) -> None:
        super().__init__()
        d_model, channels = integer("d_model", d_model, 1), integer("channels", channels, 1)
        if kernel is not None and mode not in (None, "dplr", kernel):
            raise ValueError(f"mode and kernel are two names of one option, got mode={mode!r} and kernel={kernel!r}")
        name = choice("kernel", mode if kernel is None else kernel, KERNELS)
        self.d_model, self.channels, self.l_max = d_model, channels, longest(l_max)
        self.swap_channels, self.bidirectional, self.transposed = swap_channels, bidirectional, transposed
        inner = 2 * channels if halves(activation) else channels
        self.activation = Activation(activation, dim=1 if transposed else -1, size=inner * d_model)
        self.D = nn.Parameter(torch.randn(inner, d_model))
        try:
            made: Any = KERNELS[name]
            self.kernel: SSMKernelDiag | SSMKernelDPLR = made(
                d_model=d_model, channels=2 * inner if bidirectional else inner, l_max=self.l_max, **kernel_args
            )
        except UnknownOptionError as error:
            raise error.through(FFTConv) from None
        drop = DropoutNd(dropout, transposed=transposed) if tie_dropout else nn.Dropout(dropout)
        self.drop = nn.Identity() if dropout == 0 else drop
        self.drop_kernel = nn.Identity() if drop_kernel == 0 else nn.Dropout(drop_kernel)
        if (device, dtype) != (None, None):
            self.to(device, dtype)

    def forward(
        self, x: Tensor, state: Tensor | None = None, rate: float = 1.0, lengths: Lengths | int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The layer over a sequence, from state to state.

        Args:
            x: (batch, d_model, length), or (batch, length, d_model) where not ``transposed``.
            state: the state before, as ``default_state`` or a call with ``state`` returns it. Its outputs are not
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
        given, asked = x, rate
        x = self.given(lambda: as_autocast(signal("x", given, self)))
        rate = self.given(lambda: check_rate(asked))
        rows = None
        if lengths is not None:
            check_shape(x, self.d_model, self.transposed)
            u = x.mT if self.transposed else x
            rows = padding.rows(per_row(lengths, len(u)), u)
            assert rows is not None
            x = rows.cut(u).mT if self.transposed else rows.cut(u)
        kernel = self.kernel
        way = self._way(rate)
        before = None if state is None else self.given(lambda: kernel.read_state(state, len(x)))
        y, after = self._through(
            kernel,
            x,
            self.D,
            way,
            lambda least: self._check(x, state, least),
            state=before,
            rows=rows,
            return_state=state is not None,
        )
        if state is not None and after is not None:
            after = kernel.write_state(after.detach() if isinstance(kernel, SSMKernelDPLR) else after, state)
        y = self.drop(self._ordered(y, 1 if self.transposed else -1))
        return self.activation(y), after

    if TYPE_CHECKING:
        __call__ = forward

    def _way(self, rate: float = 1.0) -> Way:
        return Way(
            time_major=not self.transposed,
            bidirectional=self.bidirectional,
            rate=rate,
            taps=None if self.l_max is None else max(1, round(self.l_max / rate)),
            change=self.drop_kernel if self.training and isinstance(self.drop_kernel, nn.Dropout) else None,
        )

    def _check(self, x: Tensor, state: Tensor | None, least: int) -> None:
        check_shape(x, self.d_model, self.transposed, least)
        if state is not None and self.bidirectional:
            raise RuntimeError("a bidirectional layer needs the whole sequence; it has no state to start from")

    def _ordered(self, y: Tensor, dim: int) -> Tensor:
        """Outputs with their features, in ``dim``, in the order that was asked for, from (channels, d_model)."""
        if not self.swap_channels or len(self.D) == 1:
            return y
        dim = dim % y.ndim
        return y.unflatten(dim, (-1, self.d_model)).transpose(dim, dim + 1).flatten(dim, dim + 1)

    def refuses_split(self) -> str:
        if self.l_max is not None:
            return f"its kernel is cut at l_max={self.l_max}, and a recurrence has no end; l_max=None has none"
        if isinstance(self.drop_kernel, nn.Dropout):
            return "drop_kernel draws a mask for a kernel of the whole length"
        if isinstance(self.kernel, SSMKernelDiag) and not self.kernel.scans():
            return "disc='dss' has no recurrence"
        return ""

    def setup_length(self, L: int) -> None:
        """Set the kernel up for a length of at least L; nothing needs it, see ``SSMKernelDPLR.setup_length``."""
        self.kernel.setup_length(L if self.l_max is None else min(L, self.l_max))

    def setup_step(self, **kwargs: Any) -> None:
        """Prepare ``step``, which does so itself: nothing needs it but ``mode`` of an S4 kernel.

        ``mode="linear"`` lets ``default_state`` return one of each conjugate pair, ``"dense"`` (the default) and
        ``"diagonal"`` both. The modes compute the same.
        """
        self.kernel._setup_step(**kwargs)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: x (batch, d_model), state -> y (batch, d_output), the next state.

        From ``default_state`` the outputs equal those of ``forward`` without dropout, and without ``l_max``,
        which a recurrence does not know.

        Raises:
            RuntimeError: the layer is bidirectional, or its kernel has no recurrence.
        """
        if self.bidirectional:
            raise RuntimeError("a bidirectional layer needs the whole sequence; it cannot step")
        if torch_private.has_hooks(self):
            return one_sample(self, x, state)
        x = as_autocast(signal("x", x, self))
        if len(self.D) == 1:
            y, after = self.kernel.step(x, state, self.D[0])
        else:
            y, after = self.kernel.step(x, state)
            y = (y + self.D * x[:, None]).to(y.dtype)
        return self.activation(self._ordered(y.flatten(1), 1)), after

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """The kernel's zero state, (*batch_shape, d_model, states), on ``device``, or where the parameters are."""
        return self.kernel.default_state(*batch_shape).to(device)

    @property
    def d_output(self) -> int:
        """The number of features of the output."""
        return self.d_model * self.channels

    @property
    def d_state(self) -> int:
        """How many numbers the state of one sequence has."""
        return self.kernel.default_state().numel()

    @property
    def state_to_tensor(self) -> Callable[[Tensor], Tensor]:
        """What makes (..., d_state) of a state (..., d_model, states)."""
        return flattened

    def extra_repr(self) -> str:
        sizes = f"{self.d_model}, d_state={self.kernel.d_state}, l_max={self.l_max}, channels={self.channels}"
        return f"{sizes}, bidirectional={self.bidirectional}, {described(self.kernel, self._way())}"


def one_sample(module: Any, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A step (batch, d_model) of ``module`` as a call with one sample, in which its hooks take part."""
    y, after = module(x[:, :, None] if module.transposed else x[:, None], state=state)
    return (y[..., 0] if module.transposed else y[:, 0]), after
