"""The minimal S4D layer of state-spaces/s4 (``models/s4/s4d.py``): its signature, parameters and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s4_fast.arguments import integer, number, signal
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.sequence_module import SequenceModule
from s4_fast.ssm import initialization
from s4_fast.ssm.diagonal import DiagonalModel
from s4_fast.ssm.layout import turned
from s4_fast.ssm.parameters import Stored
from s4_fast.ssm.sequence import Way, as_autocast, described
from s4_fast.state_spaces.arguments import flattened, refuse_requests


class S4DKernel(DiagonalModel):
    r"""The convolution kernel of a diagonal SSM per feature, S4D-Lin at the start, discretised by zero-order hold.

    ``K[l] = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l)`` with B = 1 (S4D; Gu et al. 2022, arXiv 2206.11893).
    Parameters, for ``n = N // 2`` conjugate pairs: ``C`` (d_model, n, 2), real pairs; ``log_dt`` (d_model,);
    ``log_A_real`` and ``A_imag`` (d_model, n), where ``A = -exp(log_A_real) + i A_imag``.

    Args:
        d_model: number of features.
        N: real state size, at least 2; an odd one counts as the even one below.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        lr: learning rate mark of log_dt, log_A_real and A_imag, whose weight decay is marked 0
            (``s4_fast.get_ssm_param_groups``). None leaves it to the optimiser's group; 0 makes them buffers.

    Raises:
        ValueError: N < 2, a negative lr, or not 0 < dt_min <= dt_max.

    Examples:
        >>> S4DKernel(8, N=16)(100).shape
        torch.Size([8, 100])
    """

    discretization = "zoh"
    log_dt: Tensor
    log_A_real: Tensor

    def __init__(
        self, d_model: int, N: int = 64, dt_min: float = 0.001, dt_max: float = 0.1, lr: float | None = None
    ) -> None:
        N = integer("N", N, 2)
        if lr is not None and not number("lr", lr) >= 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        super().__init__(d_model, N // 2 * 2, channels=1, n_ssm=None)
        dtype = torch.get_default_dtype()
        log_dt = initialization.log_dt((d_model,), dt_min, dt_max, dtype=dtype)
        A, _ = initialization.diagonal("lin", self.d_state)
        self.C = nn.Parameter(torch.view_as_real(torch.randn(d_model, A.shape[-1], dtype=dtype.to_complex())))
        self.add_parameter("log_dt", log_dt, lr, 0.0)
        self.add_parameter("log_A_real", (-A.real).log().expand(d_model, -1), lr, 0.0)
        self.add_parameter("A_imag", A.imag.expand(d_model, -1), lr, 0.0)

    def stored(self) -> Stored:
        return Stored(
            self.read("log_dt"),
            self.read("log_A_real"),
            self.read("A_imag"),
            None,
            self.read("C"),
            log_dt=True,
            log_decay=True,
        )

    def _dt(self) -> Tensor:
        return self.read("log_dt").exp()[:, None]

    def _A(self) -> Tensor:
        return torch.complex(-self.read("log_A_real").exp(), self.read("A_imag"))

    def _B(self) -> Tensor:
        return torch.ones_like(self._C()[0])

    def _C(self) -> Tensor:
        return torch.view_as_complex(self.read("C"))[None]

    def forward(self, L: int) -> Tensor:  # type: ignore[override]
        """The first L samples of the kernel, (d_model, L), differentiable in every parameter."""
        return self.impulse_response(L)[0]

    if TYPE_CHECKING:
        __call__ = forward

    def seen_response(self, L: int, rate: float = 1.0) -> Tensor:
        found: Tensor = self(L)
        return found[None]


class S4D(SequenceModule):
    """``GLU(W dropout(gelu(SSM(u) + D u)))`` on (batch, d_model, length), or (batch, length, d_model).

    The SSM runs as a scan or as a convolution with ``kernel(L)``, whichever is faster (``s4_fast.ssm.sequence``).
    The same seed gives the initial weights of the original on the CPU, but for rounding. Names and shapes in the
    ``state_dict`` are the original's: those of ``S4DKernel`` under ``kernel``, ``D`` and ``output_linear.0``.

    Args:
        d_model: number of features.
        d_state: real state size N per feature.
        dropout: probability that ``s4_fast.DropoutNd`` drops a feature, at all positions at once.
        transposed: whether features come before the positions.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        lr: learning rate mark of the kernel's parameters but C (``s4_fast.get_ssm_param_groups``); None leaves it to
            the optimiser's group, 0 makes them buffers.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: a value out of range.

    Examples:
        >>> layer = S4D(8, d_state=16, dropout=0.1, transposed=False)
        >>> y, _ = layer(torch.randn(2, 100, 8))
        >>> y.shape
        torch.Size([2, 100, 8])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        dropout: float = 0.0,
        transposed: bool = True,
        *,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        lr: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        d_model, d_state = integer("d_model", d_model, 1), integer("d_state", d_state)
        self.h, self.n, self.d_output, self.transposed = d_model, d_state, d_model, transposed
        self.D = nn.Parameter(torch.randn(d_model))
        self.kernel = S4DKernel(d_model, d_state, dt_min, dt_max, lr)
        self.activation = nn.GELU()
        self.dropout = nn.Identity() if dropout == 0 else DropoutNd(dropout, transposed=True)
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, kernel_size=1), nn.GLU(dim=-2))
        if (device, dtype) != (None, None):
            self.to(device, dtype)

    def forward(self, u: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """u of shape (batch, d_model, length), or without the batch; with d_model last if not ``transposed``.

        Further keyword arguments may be None or False, for the sake of callers that pass the same ones to every layer.

        Returns:
            y like u, and None in the place of a state.

        Raises:
            TypeError: u is not of the parameters' dtype, or a keyword argument asks for something.
            ValueError: u has the wrong shape.
        """
        refuse_requests(kwargs, "S4D takes u alone and has no state to pass")
        given = u
        u = self.given(lambda: as_autocast(signal("u", given, self)))
        single = u.ndim == 2
        batch = u[None] if single else u
        way = Way(time_major=not self.transposed)
        y, _ = self._through(self.kernel, batch, self.D, way, lambda least: self._check(u, least))
        # The map takes (batch, d_model, length).
        y = y if self.transposed else turned(y)
        y = self.dropout(self.activation(y))
        # No convolution takes an empty slice; its parameters have a part in the backward pass still.
        y = self.output_linear(y) if y.shape[-1] else self.output_linear(pad(y, (0, 1)))[..., :0]
        y = y if self.transposed else turned(y)
        return (y[0] if single else y), None

    if TYPE_CHECKING:
        __call__ = forward

    @property
    def d_state(self) -> int:
        """How many numbers a state of this system has, over the features."""
        return self.h * self.n

    @property
    def state_to_tensor(self) -> Callable[[Tensor], Tensor]:
        """What makes (..., d_state) of a state (..., d_model, states)."""
        return flattened

    def extra_repr(self) -> str:
        path = described(self.kernel, Way(time_major=not self.transposed))
        return f"{self.h}, d_state={self.n}, transposed={self.transposed}, {path}"

    def _check(self, u: Tensor, least: int) -> None:
        features = -2 if self.transposed else -1
        if u.ndim not in (2, 3) or u.shape[features] != self.h or u.shape[-3 - features] < least:
            sizes = f"{self.h}, length" if self.transposed else f"length, {self.h}"
            raise ValueError(
                f"expected u of shape (batch, {sizes}) or ({sizes}) with length >= {least}, got {tuple(u.shape)}"
            )
