"""The diagonal state space model (S4D): convolution kernel, recurrence, and state after a sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from s4_fast.ops import log_vandermonde, log_vandermonde_transpose, ssm_scan
from s4_fast.ssm import initialization
from s4_fast.ssm.discretization import bilinear_diagonal, zoh_diagonal
from s4_fast.ssm.parameters import SSMParameters, given_tensors, reversed_rows
from s4_fast.ssm.stepping import DiagonalStepper

_DISCRETIZATIONS = {"zoh": zoh_diagonal, "bilinear": bilinear_diagonal}


class DiagonalModel(SSMParameters):
    """What a diagonal SSM computes from dt, A, B and C, however these are stored.

    ``rate`` is how many times as coarse as in training the sampling is: dt is multiplied by it.
    """

    discretization: str
    backend: str | None = None

    def discretize(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """``x = log(lambda)`` (d_model, n), ``B_bar`` (d_model, n) and ``C`` (channels, d_model, n)."""
        x, B_bar = _DISCRETIZATIONS[self.discretization](self.A(), self.B_vector(), self.dt(rate))
        return x, B_bar, self._C()

    def kernel(self, L: int, rate: float = 1.0) -> Tensor:
        x, B, C = self.discretize(rate)
        return log_vandermonde(C * B, x, L, backend=self.backend)

    def scan(
        self,
        u: Tensor,
        D: Tensor,
        state: Tensor | None = None,
        ahead: Tensor | None = None,
        *,
        rate: float = 1.0,
        bidirectional: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """``k[0] * u + D u`` (batch, d_model, L) and the state after u, by the recurrence from ``state``.

        With ``bidirectional`` k[1] runs from the end, from ``ahead``, and meets each sample one later.
        """
        x, B, C = self.discretize(rate)
        y, after = ssm_scan(u, x, B, C[0], D, state, return_state=True)
        if bidirectional:
            y = y + pad(ssm_scan(u.flip(-1), x, B, C[1], None, ahead).flip(-1)[..., 1:], (0, 1))
        return y, after

    def forward_state(
        self, u: Tensor, state: Tensor | None = None, lengths: Tensor | None = None, rate: float = 1.0
    ) -> Tensor:
        L = u.shape[-1]
        if state is not None:
            self.check(u, state, "L")
        if L == 0:
            return self.init_state(u.shape[0]) if state is None else state
        x, B, _ = self.discretize(rate)
        after = log_vandermonde_transpose(reversed_rows(u, lengths), B, x, L, backend=self.backend)
        if state is None:
            return after
        # In float32 the phase of x L would be lost at long L.
        count = L if lengths is None else lengths[:, None, None]
        return torch.exp(x.to(torch.complex128) * count).to(state.dtype) * state + after

    def response(self, state: Tensor, L: int, rate: float = 1.0) -> Tensor:
        x, _, C = self.discretize(rate)
        return log_vandermonde(C * state[:, None], x, L, backend=self.backend)

    def propagator(self, rate: float = 1.0) -> Callable[[Tensor, int], Tensor]:
        x = self.discretize(rate)[0].to(torch.complex128)
        return lambda state, L: torch.exp(x * L) * state

    def _stepper(self) -> DiagonalStepper:
        return DiagonalStepper(*self.discretize())


class DiagonalSSM(DiagonalModel):
    r"""A diagonal SSM per feature, ``x' = A x + B u, y = 2 Re C x`` (S4D; Gu et al. 2022, arXiv 2206.11893).

    Args:
        d_model: number of features H.
        d_state: real state size N, even; n = N/2 conjugate pairs are stored.
        channels: number of outputs per feature.
        init: a name known to :func:`s4_fast.ssm.initialization.diagonal`, or tensors (A, B) of shape (n,) or
            (n_ssm, n).
        discretization: ``"zoh"`` or ``"bilinear"``.
        dt_min, dt_max: the range of the log-uniform initial step size.
        n_ssm: number of independent (A, B), a divisor of ``d_model``; None for one per feature.
        lr: learning rate mark of dt, A and B; None leaves it to the optimiser's group.
        generator: source of the initial random numbers.

    Raises:
        ValueError: an unknown name, a size that does not fit, or an unstable ``A`` (Re A > 0).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        channels: int = 1,
        init: str | tuple[Tensor, Tensor] = "lin",
        discretization: str = "zoh",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        n_ssm: int | None = None,
        lr: float | None = None,
        generator: Generator | None = None,
    ) -> None:
        if discretization not in _DISCRETIZATIONS:
            raise ValueError(
                f"unknown discretization {discretization!r}; expected one of {', '.join(_DISCRETIZATIONS)}"
            )
        if isinstance(init, str):
            A, B = initialization.diagonal(init, d_state, generator=generator)
        else:
            A, B = given_tensors(init, "A, B")
        super().__init__(d_model, d_state, channels=channels, n_ssm=n_ssm)
        self._create(A, B, dt_min=dt_min, dt_max=dt_max, lr=lr, generator=generator)
        self.discretization = discretization
