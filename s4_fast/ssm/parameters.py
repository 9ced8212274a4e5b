"""The parameters that diagonal and DPLR state space models share: dt, A, B and C in conjugate-pair storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from s4_fast.arguments import number, sizes, state_size
from s4_fast.ops.diagonal.discretization import system
from s4_fast.ops.diagonal.form import Form
from s4_fast.ssm import initialization
from s4_fast.ssm.discretization import check_stable
from s4_fast.ssm.marks import MarkedModule, new_parameter
from s4_fast.torch_private import own_parameters

COMPLEX = {
    torch.float16: torch.complex64,
    torch.bfloat16: torch.complex64,
    torch.float32: torch.complex64,
    torch.float64: torch.complex128,
}
REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
HALF = (torch.float16, torch.bfloat16)


def full(t: Tensor) -> Tensor:
    """t in the precision that is computed with: float32 where it is stored in half."""
    return t.float() if t.dtype in HALF else t


STORED = ("inv_dt", "A_real", "A_imag", "B", "C")
"""The names under which ``SSMParameters`` stores what is in ``Stored``."""


class Stored(NamedTuple):
    """The parameters as ``s4_fast.ops.diagonal.stored_diagonal_ssm`` takes them."""

    dt: Tensor
    A_real: Tensor
    A_imag: Tensor
    B: Tensor | None
    C: Tensor
    log_dt: bool = False  # dt holds log dt
    log_decay: bool = False  # A_real holds log(-Re A)
    conjugate: bool = False  # A_imag holds -Im A

    def form(self, rate: float = 1.0, **options: bool) -> Form:
        """How the op is to read them."""
        return Form(log_dt=self.log_dt, log_decay=self.log_decay, conjugate=self.conjugate, rate=rate, **options)

    def system(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Steps (d_model, 1) or (d_model, n) in float64, A and B (d_model, n) in complex128; no B stands for 1.

        float32's rounding of ``dt A`` would be multiplied by the number of steps.
        """
        pairs = None if self.B is None else self.B.view(*self.A_real.shape, 2)
        dt = self.dt.view(self.C.shape[-3], -1)
        return system(dt, self.A_real, self.A_imag, pairs, self.form(rate))


def logarithms(dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor) -> Stored:
    """What ``SSMParameters`` stores."""
    return Stored(dt, A_real, A_imag, B, C, True, True, True)


class SSMParameters(MarkedModule):
    r"""``x' = A x + B u, y = 2 Re C x`` for ``d_model`` independent features with ``n = d_state / 2`` pairs each.

    Stored with the names and shapes of state-spaces/s4, so that its checkpoints load:

    - ``inv_dt`` (d_model, 1): ``log dt``,
    - ``A_real``, ``A_imag`` (n_ssm, n): ``A = -exp(A_real) - i A_imag``, so Re A < 0 always,
    - ``B`` (1, n_ssm, n, 2) and ``C`` (channels, d_model, n, 2): real pairs.

    ``n_ssm`` independent copies of (A, B) are shared by the features in turn. ``inv_dt``, ``A_real``, ``A_imag`` and
    ``B`` carry ``_optim = {"weight_decay": 0.0}``, with ``"lr"`` where ``lr`` is given; see
    ``s4_fast.get_ssm_param_groups``.

    A subclass that stores something else defines ``_dt``, ``_A``, ``_B`` and ``_C``, from which the rest follows.
    """

    inv_dt: Tensor
    A_real: Tensor
    A_imag: Tensor
    B: Tensor
    C: Tensor
    _stores_logarithms = True  # what is said above, and computes with nothing else

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = ("_dt", "_A", "_B", "_C")
        cls._stores_logarithms = all(getattr(cls, name) is getattr(SSMParameters, name) for name in names)

    def __init__(self, d_model: int, d_state: int, *, channels: int, n_ssm: int | None) -> None:
        super().__init__()
        d_state = state_size(d_state)
        d_model, channels = sizes(d_model=d_model, channels=channels)
        (n_ssm,) = sizes(n_ssm=d_model if n_ssm is None else n_ssm)
        if d_model % n_ssm:
            raise ValueError(f"n_ssm must divide d_model, got n_ssm = {n_ssm}, d_model = {d_model}")
        self.d_model, self.d_state, self.channels, self.n_ssm = d_model, d_state, channels, n_ssm

    def _create(
        self,
        A: Tensor,
        B: Tensor,
        *,
        dt_min: float,
        dt_max: float,
        lr: float | None,
        generator: Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make the parameters, from A and B (n,) or (n_ssm, n)."""
        if lr is not None and not number("lr", lr) >= 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        d_model, d_state, channels, n_ssm, n = (
            self.d_model, self.d_state, self.channels, self.n_ssm, self.d_state // 2,
        )  # fmt: skip
        if A.shape[-1] != n or A.shape != B.shape or A.ndim > 2:
            raise ValueError(
                f"expected A and B of shape ({n},) or (n_ssm, {n}) for d_state = {d_state}, "
                f"got A {tuple(A.shape)}, B {tuple(B.shape)}"
            )
        check_stable(A)
        source = torch.device("cpu") if generator is None else generator.device
        log_dt = initialization.log_dt((d_model, 1), dt_min, dt_max, generator)
        C = torch.randn(channels, d_model, n, 2, dtype=torch.float64, generator=generator, device=source)
        # The official code stores log(-Re A) of at least 1e-4: modes without decay would be log(0).
        decay = (-A.real).clamp(min=1e-4).expand(n_ssm, n)
        self.inv_dt = new_parameter(log_dt, device, dtype)
        self.A_real = new_parameter(decay.log(), device, dtype)
        self.A_imag = new_parameter(-A.imag.expand(n_ssm, n), device, dtype)
        self.B = new_parameter(to_pairs(B.expand(n_ssm, n)[None]), device, dtype)
        self.C = new_parameter(C * math.sqrt(0.5), device, dtype)
        mark = {"weight_decay": 0.0} if lr is None else {"weight_decay": 0.0, "lr": float(lr)}
        self.set_marks(dict.fromkeys(("inv_dt", "A_real", "A_imag", "B"), mark))

    def stored(self) -> Stored:
        """The parameters, with as little as possible between them and an op."""
        if self._stores_logarithms:
            return self._logarithms()
        A = self._A()
        return Stored(self._dt(), A.real, A.imag, torch.view_as_real(self._B()), torch.view_as_real(self._C()))

    def _logarithms(self) -> Stored:
        return logarithms(*map(self.read, STORED))

    def as_stored(self) -> list[Tensor]:
        """``STORED``, in the precision in which they are stored."""
        return [self._kept(name) for name in STORED]

    def system(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None]:
        """``Stored.system`` of the parameters."""
        return self.stored().system(rate)

    def dt(self, rate: float = 1.0) -> Tensor:
        """Step sizes, (d_model, 1) or (d_model, n), at a sampling that is ``rate`` times as coarse."""
        dt = self._dt()
        return dt if rate == 1 else rate * dt

    def A(self) -> Tensor:
        """The diagonal (part) of A, (d_model, n), complex."""
        return self._shared(self._A())

    def B_vector(self) -> Tensor:
        """The input vectors, (d_model, n), complex."""
        return self._shared(self._B())

    def read(self, name: str) -> Tensor:
        """A parameter by name, in float32 where it is stored in half precision."""
        return full(self._kept(name))

    def _kept(self, name: str) -> Tensor:
        t = own_parameters(self).get(name)
        if t is None:  # a buffer, or made of other tensors
            t = getattr(self, name)
        return t

    def _dt(self) -> Tensor:
        return self.read("inv_dt").exp()

    def _A(self) -> Tensor:
        """(n_ssm, n), complex."""
        return torch.complex(-self.read("A_real").exp(), -self.read("A_imag"))

    def _B(self) -> Tensor:
        """(n_ssm, n), complex."""
        return torch.view_as_complex(self.read("B"))[0]

    def _C(self) -> Tensor:
        """(channels, d_model, n), complex."""
        return torch.view_as_complex(self.read("C"))

    def _within_band(self, C: Tensor) -> Tensor:
        """C without what takes no part in the outputs."""
        return C

    def _shared(self, t: Tensor) -> Tensor:
        """(..., n_ssm, n) -> (..., d_model, n), the copies taken in turn."""
        repeats = self.d_model // self.n_ssm
        return t if repeats == 1 else t.repeat(*([1] * (t.ndim - 2)), repeats, 1)

    def state_dtype(self) -> torch.dtype:
        """The dtype of states: complex64, or complex128 where the parameters are float64."""
        return COMPLEX[self.C.dtype]

    def real_dtype(self) -> torch.dtype:
        """The dtype that is computed with: float32, or float64 where the parameters are float64."""
        return REAL[self.state_dtype()]

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_state={self.d_state}, channels={self.channels}, n_ssm={self.n_ssm}"


def to_pairs(t: Tensor) -> Tensor:
    return torch.view_as_real(t.to(torch.complex128).resolve_conj())


def given_tensors(init: Any, names: str) -> Sequence[Tensor]:
    """``init`` if it is the tensors ``names``; TypeError otherwise."""
    if isinstance(init, Sequence) and len(init) == len(names.split(", ")) and all(isinstance(t, Tensor) for t in init):
        return init
    raise TypeError(f"init must be a name or the tensors ({names}), got {type(init).__name__}")
