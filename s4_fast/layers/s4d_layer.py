"""The S4D layer."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from s4_fast.layers.ssm_layer import SSMLayer, state_size
from s4_fast.ssm import DiagonalSSM


class S4DLayer(SSMLayer):
    r"""The S4D layer: a diagonal SSM per feature plus a skip, on (batch, length, d_model).

    ``x'(t) = A x(t) + B u(t)``, ``y(t) = 2 Re C x(t) + D u(t)`` with A diagonal, for each feature by itself (S4D: Gu et
    al. 2022, arXiv 2206.11893). The layer is linear and mixes no features; ``SSMBlock`` does. Calls, ``prefill`` and
    ``step`` are differentiable in the input, the state and every parameter.

    Args:
        d_model: number of features.
        d_state: real state size N per feature, even; N/2 conjugate pairs are stored.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        init: how A and B start: ``"lin"``, ``"inv"``, ``"inv2"``, ``"quad"``, ``"real"``, ``"legs"``, ``"legt"``,
            ``"lagt"``, ``"fout"`` or ``"rand"`` (``s4_fast.ssm.initialization.diagonal``), or the tensors (A, B), each
            (N/2,) or (n_ssm, N/2), complex.
        discretization: ``"zoh"`` (zero-order hold) or ``"bilinear"``.
        n_ssm: number of independent (A, B), a divisor of ``d_model``; None for one per feature.
        lr: the learning rate of dt, A and B in ``get_ssm_param_groups``; None for that of its ``ssm_lr``.
        bidirectional: whether a second kernel runs from the end. There are no states then.
        path: ``"scan"`` (``diagonal_ssm``), ``"convolution"`` (kernel and FFT), or ``"auto"``: whichever is faster for
            the shape and the device, see ``explain``. Both compute the same.
        generator: source of the initial random numbers; None for PyTorch's default one.
        state_dim: another name of ``d_state``; None where that is given.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default. Half types are stored as such, and computed with in
            float32.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an unknown name, a size that does not fit, or an unstable A (Re A > 0).

    Examples:
        >>> layer = S4DLayer(8, d_state=16)
        >>> y, state = layer.prefill(torch.randn(2, 100, 8))
        >>> y.shape, state.shape
        (torch.Size([2, 100, 8]), torch.Size([2, 8, 8]))
        >>> y, state = layer.step(torch.randn(2, 8), state)
        >>> y.shape
        torch.Size([2, 8])
    """

    kernel: DiagonalSSM

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        *,
        init: str | tuple[Tensor, Tensor] = "lin",
        discretization: str = "zoh",
        n_ssm: int | None = None,
        lr: float | None = None,
        bidirectional: bool = False,
        path: str = "auto",
        generator: Generator | None = None,
        state_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = DiagonalSSM(
            d_model,
            state_size(d_state, state_dim),
            channels=1 + bidirectional,
            init=init,
            discretization=discretization,
            dt_min=dt_min,
            dt_max=dt_max,
            n_ssm=n_ssm,
            lr=lr,
            generator=generator,
            device=device,
            dtype=dtype,
        )
        super().__init__(kernel, bidirectional, path, device, dtype)
