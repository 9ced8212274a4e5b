"""The minimal S4D layer of state-spaces/s4 (``models/s4/s4d.py``): its signature, parameters and outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from s4_fast.checkpoint import AllOrNothing
from s4_fast.layers.dropout import DropoutNd
from s4_fast.layers.path import choose
from s4_fast.ops import fft_conv
from s4_fast.ssm import initialization
from s4_fast.ssm.diagonal import DiagonalModel
from s4_fast.state_spaces.arguments import refuse_requests

_KERNEL_OPTIONS = ("dt_min", "dt_max", "lr")


class S4DKernel(DiagonalModel):
    r"""The convolution kernel of a diagonal SSM per feature, S4D-Lin at the start, discretised by zero-order hold.

    ``K[l] = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l)`` with B = 1 (S4D; Gu et al. 2022, arXiv 2206.11893).
    Parameters, for ``n = N // 2`` conjugate pairs: ``C`` (d_model, n, 2), real pairs; ``log_dt`` (d_model,);
    ``log_A_real`` and ``A_imag`` (d_model, n), where ``A = -exp(log_A_real) + i A_imag``.

    Args:
        d_model: number of features.
        N: real state size, at least 2; an odd one counts as the even one below.
        dt_min, dt_max: the range of the log-uniform initial step size.
        lr: learning rate mark of log_dt, log_A_real and A_imag, whose weight decay is marked 0
            (:func:`s4_fast.get_ssm_param_groups`). None leaves it to the optimiser's group; 0 makes them buffers.

    Raises:
        ValueError: N < 2, a negative lr, or not 0 < dt_min <= dt_max.
    """

    discretization = "zoh"
    log_dt: Tensor
    log_A_real: Tensor

    def __init__(
        self, d_model: int, N: int = 64, dt_min: float = 0.001, dt_max: float = 0.1, lr: float | None = None
    ) -> None:
        if N < 2:
            raise ValueError(f"N must be at least 2, got {N}")
        if lr is not None and not lr >= 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        super().__init__(d_model, N // 2 * 2, channels=1, n_ssm=None)
        dtype = torch.get_default_dtype()
        log_dt = initialization.log_dt((d_model,), dt_min, dt_max, dtype=dtype)
        A, _ = initialization.diagonal("lin", self.d_state)
        self.C = nn.Parameter(torch.view_as_real(torch.randn(d_model, A.shape[-1], dtype=dtype.to_complex())))
        self._register("log_dt", log_dt, lr, 0.0)
        self._register("log_A_real", (-A.real).log().expand(d_model, -1), lr, 0.0)
        self._register("A_imag", A.imag.expand(d_model, -1), lr, 0.0)

    def _dt(self) -> Tensor:
        return self.log_dt.exp()[:, None]

    def _A(self) -> Tensor:
        return torch.complex(-self.log_A_real.exp(), self.A_imag)

    def _B(self) -> Tensor:
        return torch.ones_like(torch.view_as_complex(self.C))

    def _C(self) -> Tensor:
        return torch.view_as_complex(self.C)[None]

    def forward(self, L: int) -> Tensor:
        """The first L samples of the kernel, (d_model, L), differentiable in every parameter."""
        return self.kernel(L)[0]


class S4D(AllOrNothing):
    """``GLU(W dropout(gelu(SSM(u) + D u)))`` on (batch, d_model, length), or (batch, length, d_model).

    The SSM runs as a scan or as a convolution with ``kernel(L)``, whichever is faster (:mod:`s4_fast.layers.path`).
    The same seed gives the initial weights of the original on the CPU, but for rounding. Names and shapes in the
    ``state_dict`` are the original's: those of :class:`S4DKernel` under ``kernel``, ``D`` and ``output_linear.0``.

    Args:
        d_model: number of features.
        d_state: real state size N per feature.
        dropout: probability that :class:`s4_fast.DropoutNd` drops a feature, at all positions at once.
        transposed: whether features come before the positions.
        **kernel_args: ``dt_min``, ``dt_max`` and ``lr`` of :class:`S4DKernel`.

    Raises:
        TypeError: another option.
        ValueError: a value out of range.
    """

    def __init__(
        self, d_model: int, d_state: int = 64, dropout: float = 0.0, transposed: bool = True, **kernel_args: Any
    ) -> None:
        super().__init__()
        unknown = [name for name in kernel_args if name not in _KERNEL_OPTIONS]
        if unknown:
            raise TypeError(
                f"unknown option {', '.join(unknown)}; S4D takes d_model, d_state, dropout, transposed, "
                f"{', '.join(_KERNEL_OPTIONS)}"
            )
        self.h, self.n, self.d_output, self.transposed = d_model, d_state, d_model, transposed
        self.D = nn.Parameter(torch.randn(d_model))
        self.kernel = S4DKernel(d_model, N=d_state, **kernel_args)
        self.activation = nn.GELU()
        self.dropout = nn.Identity() if dropout == 0 else DropoutNd(dropout, transposed=True)
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, kernel_size=1), nn.GLU(dim=-2))

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
        features = -2 if self.transposed else -1
        if u.ndim not in (2, 3) or u.shape[features] != self.h or u.shape[-3 - features] < 1:
            sizes = f"{self.h}, length" if self.transposed else f"length, {self.h}"
            raise ValueError(
                f"expected u of shape (batch, {sizes}) or ({sizes}) with length >= 1, got {tuple(u.shape)}"
            )
        if not self.transposed:
            u = u.mT
        batch, L = u.reshape(-1, *u.shape[-2:]), u.shape[-1]
        if choose(self.kernel, batch.shape[0], L).name == "scan":
            y, _ = self.kernel.scan(batch, self.D)
        else:
            y = fft_conv(batch, self.kernel(L=L), self.D)
        y = self.output_linear(self.dropout(self.activation(y))).view(u.shape)
        return y if self.transposed else y.mT, None
