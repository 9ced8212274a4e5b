"""The kernels of releases 1 to 3 of state-spaces/s4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s4_fast.arguments import choice, integer
from s4_fast.checkpoint import AllOrNothing
from s4_fast.ssm.parameters import to_pairs
from s4_fast.state_spaces import older_arguments
from s4_fast.state_spaces.kernels import SSMKernelDiag, SSMKernelDPLR
from s4_fast.state_spaces.transforms import untransformed

# What gives the kernels of tensors a shape, before the tensors give them their values.
_ANY_START: dict[str, Any] = {"init": "legs", "verbose": False}


class SSKernel(AllOrNothing):
    """A kernel by its options, as release 3 makes it: ``k, k_state = kernel(L=L)`` with k (channels, H, L).

    Args:
        H: number of features.
        N: real state size per feature.
        L: the length that training sets up for; None for that of the first call.
        measure: how it starts, see ``s4_fast.state_spaces.initialization.initial``.
        rank: rank of the low-rank part; LegT needs 2.
        channels: number of kernels per feature.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        deterministic: whether C picks out the first coordinate, and dt is spaced logarithmically over the features.
        lr: learning rate mark of all parameters, or of those that a mapping names.
        n_ssm: number of independent (A, B), a divisor of ``H``; None for one per feature.
        verbose: whether to log sizes, at level INFO.
        mode: ``"nplr"`` (S4) or ``"diag"`` (S4D).
        measure_args: options of ``measure``.
        **kernel_args: ``real_type``, ``bandlimit``, ``keops``, and ``disc`` of a diagonal kernel, ``"bilinear"`` by
            default.

    ``kernel`` is the ``SSMKernelDPLR`` or ``SSMKernelDiag`` that computes; parameters have its names.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an option's value is unknown or out of range, or two contradict each other.

    Examples:
        >>> k, _ = SSKernel(8, N=16, measure="legs")(L=100)
        >>> k.shape
        torch.Size([1, 8, 100])
    """

    def __init__(
        self,
        H: int,
        N: int = 64,
        L: int | None = None,
        measure: str = "legs",
        rank: int = 1,
        channels: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        deterministic: bool = False,
        lr: float | Mapping[str, float | None] | None = None,
        mode: str = "nplr",
        n_ssm: int | None = None,
        verbose: bool = False,
        measure_args: Mapping[str, Any] | None = None,
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        options = older_arguments.translated({"lr": lr, "n_ssm": n_ssm, "measure_args": measure_args, **kernel_args})
        mode = choice("mode", mode, ("nplr", "diag"))
        older_arguments.put_defaults(options, measure, mode == "diag")
        self.H, self.N = integer("H", H, 1), integer("N", N)
        self.channels = integer("channels", channels, 1)
        made = SSMKernelDiag if mode == "diag" else SSMKernelDPLR
        self.kernel: SSMKernelDiag | SSMKernelDPLR = made(
            d_model=self.H,
            d_state=self.N,
            l_max=L,
            init=measure,
            rank=rank,
            channels=self.channels,
            dt_min=dt_min,
            dt_max=dt_max,
            deterministic=deterministic,
            verbose=verbose,
            **options,
        )
        if isinstance(self.kernel, SSMKernelDiag):
            self.kernel.multiply_C_by_B()

    def forward(
        self, state: Tensor | None = None, L: int | None = None, rate: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The kernel, and the outputs that a state leaves; see the kernel's own call. ``rate=None`` is 1."""
        found: tuple[Tensor, Tensor | None] = self.kernel(L=L, state=state, rate=1.0 if rate is None else rate)
        return found

    def forward_state(self, u: Tensor, state: Tensor) -> Tensor:
        """The state after u (batch, H, L)."""
        return self.kernel.forward_state(u, state)

    def setup_step(self, **kwargs: Any) -> None:
        """Prepare ``step`` with the present parameters; nothing needs it."""
        self.kernel._setup_step(**kwargs)

    _setup_step = setup_step

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: u (batch, H), state -> y (batch, channels, H), the next state."""
        return self.kernel.step(u, state)

    def default_state(self, *batch_shape: int) -> Tensor:
        """The zero state, (*batch_shape, H, states)."""
        return self.kernel.default_state(*batch_shape)


class HippoSSKernel(SSKernel):
    """A kernel by its options, as release 2 makes it: ``k = kernel(L=L)``, (channels, H, L), alone.

    Args:
        H: number of features.
        N: real state size per feature.
        L: the length that training sets up for.
        length_correction: whether C starts as that of an infinite kernel, or as the truncated one of length ``L``.
        *args: further options of ``SSKernel``.
        trainable: see ``s4_fast.state_spaces.older_arguments.translated``.
        **kwargs: further options of ``SSKernel``, ``hurwitz`` and ``tie_state``.

    Examples:
        >>> HippoSSKernel(8, N=16, L=100)(L=100).shape
        torch.Size([1, 8, 100])
    """

    def __init__(
        self,
        H: int,
        N: int = 64,
        L: int | None = 1,
        *args: Any,
        trainable: bool | Mapping[str, Any] | None = None,
        length_correction: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(H, N, L or 1, *args, trainable=trainable, **kwargs)
        if isinstance(self.kernel, SSMKernelDPLR) and not length_correction:
            self.kernel.take_as_truncated(L or 1)

    def forward(  # type: ignore[override]
        self, state: Tensor | None = None, L: int | None = None, rate: float | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """The kernel; with a state, the outputs that it leaves too."""
        k, k_state = super().forward(state, L, rate)
        return k if state is None else (k, k_state)


class SSKernelNPLR(SSMKernelDPLR):
    """The S4 kernel of given tensors, as release 3 makes it: ``A = diag(w) - P P*``, ``k, k_state = kernel(L=L)``.

    Args:
        w: (n_ssm, n), complex, of one of each conjugate pair.
        P: (rank, n_ssm, n).
        B: (n_ssm, n).
        C: (channels, H, n), plain.
        log_dt: (H,).
        L: the length that training sets up for.
        **kernel_args: ``lr``, ``verbose``, ``keops``, ``real_type`` and ``bandlimit`` of ``SSKernel``.

    Raises:
        ValueError: shapes that do not fit, or a w that is not stable.

    Examples:
        >>> w, P, B = (t.unsqueeze(-2) for t in s4_fast.ssm.initialization.dplr("legs", 16))
        >>> kernel = SSKernelNPLR(w, P, B, torch.randn(1, 8, 8, dtype=torch.complex64), torch.full((8,), -4.0))
        >>> kernel(L=100)[0].shape
        torch.Size([1, 8, 100])
    """

    def __init__(
        self, w: Tensor, P: Tensor, B: Tensor, C: Tensor, log_dt: Tensor, L: int | None = None, **kernel_args: Any
    ) -> None:
        _check_shapes(w, B, C, log_dt, P)
        super().__init__(**_sizes(w, C, L), rank=len(P), **older_arguments.translated(kernel_args), **_ANY_START)
        _start(self, w, B, C, log_dt)
        _put(self.P, to_pairs(P))


class SSKernelDiag(SSMKernelDiag):
    """The S4D kernel of given tensors, as release 3 makes it: ``k, k_state = kernel(L=L)``.

    Args:
        A: (n_ssm, n), complex, of one of each conjugate pair.
        B: (n_ssm, n).
        C: (channels, H, n).
        log_dt: (H,).
        L: accepted, and without effect, as in the original.
        disc: ``"bilinear"``, ``"zoh"`` or ``"dss"``.
        **kernel_args: ``real_type``, ``lr`` and ``bandlimit`` of ``SSKernel``.

    Raises:
        ValueError: shapes that do not fit, or an A that is not stable.

    Examples:
        >>> A, B = (t[None] for t in s4_fast.ssm.initialization.diagonal("lin", 16))
        >>> kernel = SSKernelDiag(A, B, torch.randn(1, 8, 8, dtype=torch.complex64), torch.full((8,), -4.0))
        >>> kernel(L=100)[0].shape
        torch.Size([1, 8, 100])
    """

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        log_dt: Tensor,
        L: int | None = None,
        disc: str = "bilinear",
        **kernel_args: Any,
    ) -> None:
        _check_shapes(A, B, C, log_dt)
        super().__init__(**_sizes(A, C, L), disc=disc, **older_arguments.translated(kernel_args), **_ANY_START)
        _start(self, A, B, C, log_dt)

    def forward(  # type: ignore[override]
        self, L: int | None = None, state: Tensor | None = None, rate: float = 1.0, u: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """As ``s4_fast.state_spaces.kernels.SSMKernel.forward``; ``u`` is not read, as in the original."""
        return super().forward(L, state, rate)


def _check_shapes(A: Tensor, B: Tensor, C: Tensor, log_dt: Tensor, P: Tensor | None = None) -> None:
    fits = (
        A.ndim == 2
        and B.shape == A.shape
        and C.ndim == 3
        and C.shape[1:] == (*log_dt.shape, A.shape[1])
        and len(log_dt) % len(A) == 0
        and (P is None or (P.ndim == 3 and P.shape[1:] == A.shape))
    )
    if not fits:
        given = {"A": A, "B": B, "C": C, "log_dt": log_dt, "P": P}
        listed = ", ".join(f"{name} {tuple(t.shape)}" for name, t in given.items() if t is not None)
        raise ValueError(f"expected A, B (n_ssm, n), P (rank, n_ssm, n), C (channels, H, n), log_dt (H,), got {listed}")


def _sizes(A: Tensor, C: Tensor, L: int | None) -> dict[str, Any]:
    return {"d_model": C.shape[1], "channels": len(C), "d_state": 2 * A.shape[1], "n_ssm": len(A), "l_max": L}


def _start(kernel: SSMKernelDiag | SSMKernelDPLR, A: Tensor, B: Tensor, C: Tensor, log_dt: Tensor) -> None:
    _put(kernel.A_real, untransformed(-A.real, kernel.real_transform, "-Re A"))
    _put(kernel.A_imag, -A.imag)
    _put(kernel.B, to_pairs(B[None]))
    _put(kernel.C, to_pairs(C))
    _put(kernel.inv_dt, log_dt[:, None])


@torch.no_grad()
def _put(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value)
