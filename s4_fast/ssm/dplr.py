"""The diagonal-plus-low-rank state space model (S4): convolution kernel, recurrence, and state after a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from s4_fast import dispatch, torch_private
from s4_fast.arguments import integer
from s4_fast.ops import _checks, dplr_kernel
from s4_fast.ssm import initialization
from s4_fast.ssm.dense import DenseRecurrence
from s4_fast.ssm.marks import new_parameter
from s4_fast.ssm.model import SSMModel, reversed_rows
from s4_fast.ssm.parameters import given_tensors, to_pairs
from s4_fast.ssm.stepping import DPLRStepper


class DPLRRecurrence(NamedTuple):
    """``s' = s + increment s - G (2 Re V s) + B u``, ``y = 2 Re C s'``: the bilinear step of A = Lambda - P P*, exact.

    G and V come from the Woodbury inverse of I - dt/2 A. The increment is lambda - 1 of the diagonal part; what float32
    would lose of it adds up over the steps, to 3e-6 of a FouT state and more of one with less damping.
    """

    increment: Tensor  # (d_model, n), complex128
    G: Tensor  # (rank, d_model, n)
    V: Tensor  # (rank, d_model, n)
    B: Tensor  # (d_model, n)
    C: Tensor  # (channels, d_model, n)

    def advance(self, state: Tensor) -> Tensor:
        """A_bar s for s (..., d_model, n)."""
        out = state + self.increment * state
        for g, v in zip(self.G, self.V, strict=True):
            out = out - g * _overlap(v, state)
        return out

    def to(self, dtype: torch.dtype) -> DPLRRecurrence:
        """In ``dtype``, but for the increment. Contiguous, as every step would otherwise copy what it reads."""
        increment, *rest = self
        return DPLRRecurrence(increment.contiguous(), *(t.to(dtype).contiguous() for t in rest))


class DPLRModel(SSMModel):
    """What an SSM with ``A = Lambda - P P*`` computes from dt, Lambda, P, B and C, however these are stored.

    ``C`` holds the plain output vectors while the buffer ``l_kernel`` is 0, and from the first kernel on the truncated
    ``C_tilde = C (I - A_bar^l_kernel)``, as in state-spaces/s4. :meth:`setup` makes that change, and doubles
    ``l_kernel`` when a longer kernel is wanted. The kernel of any length up to ``l_kernel`` is a prefix of the kernel
    of length ``l_kernel``, so what is computed for a prefix does not depend on what follows.

    ``rate`` is how many times as coarse as in training the sampling is: dt is multiplied by it, and the length that
    C is truncated for is ``round(l_kernel / rate)``.
    """

    l_kernel: Tensor
    P: Tensor
    l_max: int | None = None

    def __init__(self, d_model: int, d_state: int, *, channels: int, n_ssm: int | None) -> None:
        super().__init__(d_model, d_state, channels=channels, n_ssm=n_ssm)
        self.register_buffer("l_kernel", torch.tensor(0))
        # The buffer as a number: reading it from a GPU on every call would wait for the device.
        self._length = 0

    def discretize(self) -> DPLRRecurrence:
        """The recurrence in the parameters' precision, the increment in complex128; ``C`` is the plain C.

        Differentiable in every parameter.
        """
        return self._recurrence().to(self.state_dtype())

    def setup(self, L: int) -> None:
        """Make kernels up to length L available: C becomes C_tilde, or C_tilde of a doubled length.

        Changes the parameter ``C`` in place. Called by :meth:`kernel` when needed; call it yourself before
        compiling, or before wrapping the module in DistributedDataParallel or sharding it with ``fully_shard``.

        Raises:
            RuntimeError: FSDP has sharded the parameters.
        """
        L = _checks.length("setup", L)
        self._read_length()
        length = self._length
        if L <= length:
            return
        if torch_private.is_sharded(self):
            raise RuntimeError(f"set up for length {length}, need {L}: call setup({L}) before FSDP shards C")
        if not self._holds_C():
            raise RuntimeError("C is made of other tensors (by a parametrization, or pruning): it cannot be set up")
        with torch.no_grad():
            C, length = self._truncated(L, length, length or self.l_max or L)
            self.C.copy_(to_pairs(C))
            self.l_kernel.fill_(length)
            self._length = length

    def _holds_C(self) -> bool:
        """Whether ``C`` is the module's own, and not what a parametrization or a hook makes at every call."""
        C = self.C
        return any(C is t for t in torch_private.own_tensors(self))

    def _truncated(self, L: int, length: int, first: int, rate: float = 1.0) -> tuple[Tensor, int]:
        """C_tilde for a length of at least L, in complex128, from C that is truncated for ``length``, and that length.

        Where ``length`` is 0, ``first`` is the one to start with.
        """
        A_bar = self._transition(self._recurrence(plain=False, rate=rate))
        row = _row(torch.view_as_complex(self.read("C").double()))
        if length == 0:
            length = first
            row = row - row @ torch.linalg.matrix_power(A_bar, length)
        while length < L:
            row = row + row @ torch.linalg.matrix_power(A_bar, length)
            length *= 2
        return _unrow(row), length

    def prepare(self, L: int) -> None:
        """:meth:`setup` where it is needed, if it can be done here.

        Raises:
            RuntimeError: it is needed, but the call is being compiled, or runs under FSDP or in
                DistributedDataParallel.
        """
        if L > self._length and self._holds_C():
            if torch.compiler.is_compiling():
                # No L: a symbol cannot be formatted.
                raise RuntimeError(f"set up for length {self._length}; a longer kernel needs setup(length), eagerly")
            if torch_private.in_data_parallel():
                # Processes whose first inputs differ in length would make different parameters of C, and average them.
                raise RuntimeError(
                    f"set up for length {self._length}, need {L}: call setup with the longest length of any process "
                    "before wrapping the model in DistributedDataParallel"
                )
            self.setup(L)

    def kernel(self, L: int, rate: float = 1.0) -> Tensor:
        """The convolution kernel, (channels, d_model, L), of a length that :meth:`prepare` makes available.

        Differentiable in every parameter.
        """
        L = _checks.length("kernel", L)
        if self._steps and self._truncation(rate) == 0:
            return self._dense_at(rate).kernel(L)
        # PyTorch 2.6 shows the next line in place of the message.
        self.prepare(L if rate == 1 else _rounded(rate * L))  # compiled, a longer kernel needs setup(length), eagerly
        length = self._truncation(rate)
        automatic = self.backend is None and dispatch.requested("dplr_kernel") is None
        if L < length and rate == 1 and automatic and self._remembers():
            # dplr_kernel makes all of l_kernel samples; of a few, remembered powers make no more than those.
            return self.remembered("dense", self._dense).kernel(L)
        C = self._C()
        if L > length and not self._holds_C():
            wide, length = self._truncated(L, length, L, rate)
            C = self._within_band(wide.to(C.dtype))
        dt, B, P = self.dt(rate), self.B_vector()[None], self._shared(torch.view_as_complex(self.read("P")))
        k = dplr_kernel(dt * self.A(), P, P, B, C, dt, length, backend=self.backend)[0, ..., :L]
        return k if L <= length else pad(k, (0, L - length))  # by the roundings of rate L and l_kernel / rate

    def _truncation(self, rate: float) -> int:
        """The number of samples after which ``C`` cuts the kernel off; 0 where it is the plain C."""
        return self._length if rate == 1 or self._length == 0 else _rounded(self._length / rate)

    def state_after(self, u: Tensor, state: Tensor | None, lengths: Tensor | None, rate: float) -> Tensor:
        """As for every model; what depends on the parameters alone is remembered as in :meth:`step`."""
        if state is not None:
            self.check(u, state, "L")
        if u.shape[-1] == 0:
            return self.init_state(u.shape[0]) if state is None else state
        if lengths is not None:
            u = reversed_rows(u, lengths).flip(-1)  # so that the rows end together
        s = None if state is None else _real(state)
        return _complex(self._dense_at(rate).after(u, s, lengths))

    def response(self, state: Tensor, L: int, rate: float = 1.0) -> Tensor:
        return self._dense_at(rate).response(_real(state), L)

    def propagator(self, rate: float = 1.0) -> Callable[[Tensor, int], Tensor]:
        dense = self._dense_at(rate)
        return lambda state, L: _complex(dense.advanced(_real(state), L))

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "rank": self.P.shape[0], "l_kernel": self._length}

    def _stepper(self) -> DPLRStepper:
        return DPLRStepper(*self.discretize())

    def _recurrence(self, plain: bool = True, rate: float = 1.0) -> DPLRRecurrence:
        """The recurrence in complex128; C is the plain C, or the stored one."""
        wide = torch.complex128
        if plain:
            self._read_length()
        half = self.dt(rate).double() / 2
        A, P, B, C = (
            t.to(wide)
            for t in (
                self.A(),
                self._shared(torch.view_as_complex(self.read("P"))),
                self.B_vector(),
                self._C(),
            )
        )
        D = 1 / (1 - half * A)
        lam, G, Q = (1 + half * A) * D, D * half * P, P.conj()
        M = _overlap(Q[:, None], G).squeeze(-1).permute(2, 0, 1)
        K = torch.linalg.inv(torch.eye(P.shape[0], dtype=M.dtype, device=M.device) + M).to(wide)
        V = Q + torch.einsum("hij,jhn->ihn", K, Q * lam - torch.einsum("hij,jhn->ihn", M.to(wide), Q))
        b = 2 * half * D * B
        b = b - torch.einsum("hij,ihn,jh->hn", K, G, _overlap(Q, b).squeeze(-1).to(wide))
        increment = 2 * half * A * D
        recurrence = DPLRRecurrence(increment, G, V, b, C)
        length = self._truncation(rate)
        if not plain or length == 0:
            return recurrence
        return DPLRRecurrence(
            increment, G, V, b, self._plain_C(recurrence, length)
        )  # PyTorch 2.6 does not trace _replace

    def _plain_C(self, recurrence: DPLRRecurrence, length: int) -> Tensor:
        A_bar = self._transition(recurrence)
        truncation = torch.eye(A_bar.shape[-1], dtype=A_bar.dtype, device=A_bar.device)
        truncation = truncation - torch.linalg.matrix_power(A_bar, length)
        return _unrow(torch.linalg.solve(truncation, _row(recurrence.C), left=False))

    def _dense_at(self, rate: float) -> DenseRecurrence:
        return self.remembered("dense", self._dense) if rate == 1 else self._dense(rate)

    def _dense(self, rate: float = 1.0) -> DenseRecurrence:
        recurrence = self._recurrence(rate=rate)
        return DenseRecurrence(self._transition(recurrence), _real(recurrence.B), _row(recurrence.C), self.real_dtype())

    def _transition(self, recurrence: DPLRRecurrence) -> Tensor:
        """A_bar as (d_model, N, N) real matrices on (Re s, Im s)."""
        n = self.d_state // 2
        eye = torch.eye(2 * n, dtype=recurrence.B.real.dtype, device=recurrence.B.device)
        basis = torch.complex(eye[:, None, :n], eye[:, None, n:]).expand(-1, self.d_model, -1)
        return _real(recurrence.advance(basis)).permute(1, 2, 0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._read_length()

    def _read_length(self) -> None:
        """Follow the buffer, which others may have written (DistributedDataParallel does, from the first process)."""
        # A mode may have no numbers to read: that of fake tensors has none.
        if not (torch.compiler.is_compiling() or self.l_kernel.is_meta or torch_private.dispatch_modes()):
            self._length = int(self.l_kernel)


class DPLRSSM(DPLRModel):
    r"""An SSM with ``A = Lambda - P P*`` per feature, bilinear discretisation (S4; Gu et al. 2022, arXiv 2111.00396).

    Args:
        d_model: number of features H.
        d_state: real state size N, even; n = N/2 conjugate pairs are stored.
        channels: number of outputs per feature.
        init: a name known to :func:`s4_fast.ssm.initialization.dplr`, or tensors (Lambda (n,), P (rank, n), B (n,)).
        rank: rank of the correction; LegT needs 2.
        l_max: the length to set up for at first; None takes the first kernel's length.
        dt_min, dt_max: the range of the log-uniform initial step size.
        n_ssm: number of independent (Lambda, P, B), a divisor of ``d_model``; None for one per feature.
        lr: learning rate mark of dt, A, B and P; None leaves it to the optimiser's group.
        generator: source of the initial random numbers.
        device, dtype: of the parameters; None for PyTorch's defaults.

    Raises:
        ValueError: an unknown name, a size that does not fit, or an unstable ``Lambda`` (Re > 0).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        channels: int = 1,
        init: str | tuple[Tensor, Tensor, Tensor] = "legs",
        rank: int = 1,
        l_max: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        n_ssm: int | None = None,
        lr: float | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        l_max, d_state, rank = longest(l_max), integer("d_state", d_state), integer("rank", rank)
        if isinstance(init, str):
            w, P, B = initialization.dplr(init, d_state, rank, generator=generator)
        else:
            w, P, B = given_tensors(init, "Lambda, P, B")
        super().__init__(d_model, d_state, channels=channels, n_ssm=n_ssm)
        self.l_max = l_max
        self._create(w, B, dt_min=dt_min, dt_max=dt_max, lr=lr, generator=generator, device=device, dtype=dtype)
        if P.ndim != 2 or P.shape[-1] != d_state // 2:
            raise ValueError(f"expected P of shape (rank, {d_state // 2}), got {tuple(P.shape)}")
        self.P = new_parameter(to_pairs(P[:, None].expand(-1, self.n_ssm, -1)), device, dtype)
        self.set_marks({"P": self.marks()["A_real"]})
        self.l_kernel = self.l_kernel.to(self.P.device)


def longest(l_max: Any) -> int | None:
    """``l_max`` as an int, or None; TypeError or ValueError where it is not a length."""
    return None if l_max is None else integer("l_max", l_max, 1)


def _rounded(length: float) -> int:
    return max(1, round(length))


def _real(s: Tensor) -> Tensor:
    return torch.cat((s.real, s.imag), -1)


def _complex(s: Tensor) -> Tensor:
    return torch.complex(*s.chunk(2, -1))


def _row(C: Tensor) -> Tensor:
    """C (channels, d_model, n) as the rows of 2 Re C s, (d_model, channels, N)."""
    return _real(2 * C.conj()).transpose(0, 1)


def _unrow(row: Tensor) -> Tensor:
    return _complex(row.transpose(0, 1) / 2).conj_physical()


def _overlap(v: Tensor, s: Tensor) -> Tensor:
    """2 Re sum_n v_n s_n, keeping the last dimension."""
    return 2 * (v * s).sum(-1, keepdim=True).real
