"""The S4 layer."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from s4_fast.layers.ssm_layer import SSMLayer, state_size
from s4_fast.ssm import DPLRSSM


class S4Layer(SSMLayer):
    r"""The S4 layer: a diagonal-plus-low-rank SSM per feature plus a skip, on (batch, length, d_model).

    ``x'(t) = A x(t) + B u(t)``, ``y(t) = 2 Re C x(t) + D u(t)`` with ``A = Lambda - P P*``, for each feature by itself,
    under the bilinear discretisation (S4: Gu, Goel, Re 2022, arXiv 2111.00396). The layer is linear and mixes no
    features; ``SSMBlock`` does. Calls, ``prefill`` and ``step`` are differentiable in the input, the state and every
    parameter.

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even; N/2 conjugate pairs are stored.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        init: how Lambda, P and B start: ``"legs"``, ``"legt"``, ``"lagt"``, ``"fout"``, or ``"diag-"`` and a name that
            ``S4DLayer`` takes (``s4_fast.ssm.initialization.dplr``), or the tensors (Lambda (N/2,), P (rank, N/2),
            B (N/2,)), complex.
        rank: rank of the correction P; ``"legt"`` needs 2.
        n_ssm: number of independent (Lambda, P, B), a divisor of ``d_model``; None for one per feature.
        lr: the learning rate of dt, A, B and P in ``get_ssm_param_groups``; None for that of its ``ssm_lr``.
        bidirectional: whether a second kernel runs from the end. There are no states then.
        path: ``"scan"`` (``dplr_scan``), ``"convolution"`` (kernel and FFT), or ``"auto"``: whichever is faster for the
            shape and the device, see ``explain``. Both compute the same.
        generator: source of the initial random numbers; None for PyTorch's default one.
        state_dim: another name of ``d_state``; None where that is given.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default. Half types are stored as such, and computed with in
            float32.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an unknown name, a size that does not fit, or an unstable Lambda (Re > 0).

    Examples:
        >>> layer = S4Layer(8, d_state=16, init="legt", rank=2)
        >>> layer(torch.randn(2, 100, 8)).shape
        torch.Size([2, 100, 8])
    """

    kernel: DPLRSSM

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        init: str | tuple[Tensor, Tensor, Tensor] = "legs",
        rank: int = 1,
        n_ssm: int | None = None,
        lr: float | None = None,
        bidirectional: bool = False,
        path: str = "auto",
        generator: Generator | None = None,
        state_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = DPLRSSM(
            d_model,
            state_size(d_state, state_dim),
            channels=1 + bidirectional,
            init=init,
            rank=rank,
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            lr=lr,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        super().__init__(kernel, bidirectional, path, device, dtype)
