"""The diagonal state space model (S4D): convolution kernel, recurrence, and state after a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from s4_fast import dispatch
from s4_fast.arguments import choice, integer
from s4_fast.ops import log_vandermonde
from s4_fast.ops.diagonal import stored_diagonal_ssm
from s4_fast.ops.diagonal.form import Arguments
from s4_fast.ssm import initialization, opaque
from s4_fast.ssm.discretization import bilinear_diagonal, zoh_diagonal
from s4_fast.ssm.model import Scan, SSMModel, ended
from s4_fast.ssm.parameters import Stored, given_tensors
from s4_fast.ssm.stepping import DiagonalStepper

_DISCRETIZATIONS = {"zoh": zoh_diagonal, "bilinear": bilinear_diagonal}


class DiagonalModel(SSMModel):
    """What a diagonal SSM computes from dt, A, B and C, however these are stored.

    ``rate`` is how many times as coarse as in training the sampling is: dt is multiplied by it.
    """

    discretization: str

    def discretize(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """``x = log(lambda)`` (d_model, n), ``B_bar`` (d_model, n) and ``C`` (channels, d_model, n)."""
        (x, B_bar), C = self._discretize(rate), self._C()
        return x.to(C.dtype), B_bar.to(C.dtype), C

    def _discretize(self, rate: float) -> tuple[Tensor, Tensor]:
        """x and B_bar in complex128."""
        return _discretized(self.stored(), self.discretization, rate)

    def impulse_response(self, L: int, rate: float = 1.0) -> Tensor:
        x, B, C = self.discretize(rate)
        return log_vandermonde(C * B, x, L, backend=self.backend)

    def scans(self) -> bool:
        return True

    def settings(self) -> tuple[Any, ...]:
        return (*super().settings(), self.discretization)

    def prepared_scan(
        self,
        u: Tensor,
        D: Tensor | None,
        state: Tensor | None = None,
        ahead: Tensor | None = None,
        *,
        rate: float = 1.0,
        bidirectional: bool = False,
        time_major: bool = False,
    ) -> Scan:
        stored = self.stored()
        bilinear = self.discretization == "bilinear"
        form = stored.form(rate, time_major=time_major, bidirectional=bidirectional, bilinear=bilinear)
        given = Arguments(u, *stored[:5], D, state, ahead, form)
        choice = dispatch.choose(given.call(), self.backend)
        return Scan(choice, lambda: stored_diagonal_ssm(given, choice.backend))

    def state_after(self, u: Tensor, state: Tensor | None, lengths: Tensor | None, rate: float) -> Tensor:
        L = u.shape[-1]
        if state is not None:
            self.check(u, state, "L")
        if L == 0:
            return self.init_state(u.shape[0]) if state is None else state
        if lengths is None:
            return self.prepared_scan(u, None, state, rate=rate).run()[1]
        after = self.prepared_scan(ended(u, lengths), None, rate=rate).run()[1]
        if state is None:
            return after
        wide, _ = self._discretize(rate)
        return torch.exp(wide * lengths[:, None, None]).to(state.dtype) * state + after

    def response(self, state: Tensor, L: int, rate: float = 1.0) -> Tensor:
        x, _, C = self.discretize(rate)
        return log_vandermonde(C * state[:, None], x, L, backend=self.backend)

    def propagator(self, rate: float = 1.0) -> Callable[[Tensor, int], Tensor]:
        x, _ = self._discretize(rate)
        return lambda state, L: torch.exp(x * L) * state

    def _stepper(self) -> DiagonalStepper:
        return _stepper_of(*self._discretize(1.0), self._C())


def _stepper_of(x: Tensor, B_bar: Tensor, C: Tensor) -> DiagonalStepper:
    return DiagonalStepper(x, B_bar.to(C.dtype), C.clone())  # no view of what may be written or swapped


def _discretized(stored: Stored, discretization: str, rate: float = 1.0) -> tuple[Tensor, Tensor]:
    """x and B_bar in complex128."""
    step, A, weight = stored.system(rate)
    return _DISCRETIZATIONS[discretization](A, torch.ones_like(A) if weight is None else weight, step)


def _maker(discretization: str) -> opaque.Maker:
    def make(stored: Stored, P: Tensor | None) -> DiagonalStepper:
        return _stepper_of(*_discretized(stored, discretization), torch.view_as_complex(stored.C))

    return make


for _name in _DISCRETIZATIONS:
    opaque.register(_name, _maker(_name))


class DiagonalSSM(DiagonalModel):
    r"""A diagonal SSM per feature, ``x' = A x + B u, y = 2 Re C x`` (S4D; Gu et al. 2022, arXiv 2206.11893).

    Calling the model with a length L gives the kernel ``K[l] = 2 Re sum_n C_n B_bar_n lambda_n^l``, (channels, d_model,
    L). Kernel, states and steps are differentiable in every parameter; ``SSMParameters`` says how these are stored.

    Args:
        d_model: number of features H.
        d_state: real state size N, even; n = N/2 conjugate pairs are stored.
        channels: number of outputs per feature.
        init: a name known to ``s4_fast.ssm.initialization.diagonal``, or tensors (A, B) of shape (n,) or
            (n_ssm, n).
        discretization: ``"zoh"`` or ``"bilinear"``.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        n_ssm: number of independent (A, B), a divisor of ``d_model``; None for one per feature.
        lr: learning rate mark of dt, A and B; None leaves it to the optimiser's group.
        generator: source of the initial random numbers.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an unknown name, a size that does not fit, or an unstable ``A`` (Re A > 0).

    Examples:
        >>> model = DiagonalSSM(8, 16, init="inv", discretization="bilinear")
        >>> model(100).shape
        torch.Size([1, 8, 100])
        >>> y, state = model.step(torch.randn(2, 8), model.init_state(2))
        >>> y.shape, state.shape
        (torch.Size([2, 1, 8]), torch.Size([2, 8, 8]))
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        discretization = choice("discretization", discretization, _DISCRETIZATIONS)
        d_state = integer("d_state", d_state)
        if isinstance(init, str):
            A, B = initialization.diagonal(init, d_state, generator=generator)
        else:
            A, B = given_tensors(init, "A, B")
        super().__init__(d_model, d_state, channels=channels, n_ssm=n_ssm)
        self._create(A, B, dt_min=dt_min, dt_max=dt_max, lr=lr, generator=generator, device=device, dtype=dtype)
        self.discretization = discretization

    if TYPE_CHECKING:

        def __call__(self, L: int, rate: float = 1.0) -> Tensor: ...

    def step_kind(self) -> str | None:
        return self.discretization if type(self) is DiagonalSSM else None
