"""The diagonal-plus-low-rank state space model (S4): convolution kernel, recurrence, and state after a sequence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from s4_fast import dispatch, torch_private
from s4_fast.arguments import integer
from s4_fast.dispatch import BackendUnavailableError
from s4_fast.ops import _checks, dplr_kernel
from s4_fast.ops.diagonal.form import Arguments
from s4_fast.ops.dplr_scan import stored_dplr_scan
from s4_fast.ops.dplr_scan.discretization import Discretized
from s4_fast.ssm import initialization, opaque
from s4_fast.ssm.marks import new_parameter
from s4_fast.ssm.model import Scan, SSMModel, ended
from s4_fast.ssm.parameters import STORED, Stored, given_tensors, to_pairs
from s4_fast.ssm.powers import row_power
from s4_fast.ssm.stepping import DPLRStepper

log = logging.getLogger(__name__)

_WIDE = torch.complex128


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
        for r in range(self.G.shape[0]):
            out = out + self.G[r] * -_overlap(self.V[r], state)
        return out

    def transition(self) -> Tensor:
        """A_bar as (d_model, N, N) real matrices on (Re s, Im s)."""
        H, n = self.increment.shape
        eye = torch.eye(2 * n, dtype=self.B.real.dtype, device=self.B.device)
        basis = torch.complex(eye[:, None, :n], eye[:, None, n:]).expand(-1, H, -1)
        return _real(self.advance(basis)).permute(1, 2, 0)

    def to(self, dtype: torch.dtype) -> DPLRRecurrence:
        """In ``dtype``, but for the increment. Contiguous, as every step would otherwise copy what it reads."""
        increment, *rest = self
        return DPLRRecurrence(increment.contiguous(), *(t.to(dtype).contiguous() for t in rest))


def recurrence(stored: Stored, P: Tensor, C: Tensor, rate: float = 1.0) -> DPLRRecurrence:
    """The recurrence in complex128, for P (rank, n_ssm, n, 2) and C (channels, d_model, n). Differentiable."""
    dt, A_real, A_imag, B, *_ = stored
    pairs = None if B is None else B.view(*A_real.shape, 2)
    found = Discretized(dt.view(C.shape[-2], -1), A_real, A_imag, P, pairs, stored.form(rate))
    return DPLRRecurrence(found.step * found.A * found.M, found.G, found.V, found.B_bar, C.to(_WIDE))


def truncated(C: Tensor, A_bar: Tensor, length: int) -> Tensor:
    """``C (I - A_bar^length)``, which makes the infinite kernel of C one of ``length`` samples, for C (c, H, n)."""
    row = _row(C)
    return _unrow(row - row_power(row, A_bar, length))


def untruncated(C: Tensor, A_bar: Tensor, length: int) -> Tensor:
    """The plain C of what ``truncated`` makes of it; NaN in a feature that has none, as where its step is 0."""
    eye = torch.eye(A_bar.shape[-1], dtype=A_bar.dtype, device=A_bar.device)
    row, singular = torch.linalg.solve_ex(eye - torch.linalg.matrix_power(A_bar, length), _row(C), left=False)
    return _unrow(torch.where((singular != 0)[:, None, None], torch.nan, row))


class DPLRModel(SSMModel):
    """What an SSM with ``A = Lambda - P P*`` computes from dt, Lambda, P, B and C, however these are stored.

    ``C`` holds the plain output vectors, which know no length. ``rate`` is how many times as coarse as in training the
    sampling is: dt is multiplied by it.
    """

    P: Tensor
    scan_op = "dplr_scan"

    def discretize(self) -> DPLRRecurrence:
        """The recurrence in the parameters' precision, the increment in complex128. Differentiable in every one."""
        return self.recurrence().to(self.state_dtype())

    def recurrence(self, rate: float = 1.0) -> DPLRRecurrence:
        """The recurrence in complex128."""
        return recurrence(self.stored(), self.read("P"), self._C(), rate)

    def _transition(self, rate: float) -> Tensor:
        return self.recurrence(rate).transition()

    def impulse_response(self, L: int, rate: float = 1.0) -> Tensor:
        """The convolution kernel, (channels, d_model, L). Differentiable in every parameter."""
        L = _checks.length("kernel", L)
        by_scan = self._impulse_response(L, rate)
        if by_scan is not None:
            return by_scan
        found = self.recurrence(rate)
        return self._kernel_of(truncated(found.C, found.transition(), L), L, rate)

    def _impulse_response(self, L: int, rate: float) -> Tensor | None:
        """The kernel by the native recurrence, which has fewer operations than the sums of the spectrum, or in an
        exported program by operations that take any length."""
        if not self.C.is_cpu and not torch_private.is_exporting():
            return None
        impulse = pad(torch.ones((1, self.d_model, 1), dtype=self.real_dtype(), device=self.C.device), (0, L - 1))
        try:
            scan = self.prepared_scan(impulse, None, rate=rate)
        except BackendUnavailableError:
            return None
        if scan.choice.backend not in ("native", dispatch.PLAIN):
            return None
        return scan.run()[0].view(self.channels, self.d_model, L)

    def _kernel_of(self, C: Tensor, length: int, rate: float) -> Tensor:
        """The kernel of C that is truncated for ``length``, as long as that."""
        dt, B, P = self.dt(rate), self.B_vector()[None], self._shared(self._P())
        return dplr_kernel(dt * self.A(), P, P, B, C.to(P.dtype), dt, length, backend=self.backend)[0]

    def _P(self) -> Tensor:
        """(rank, n_ssm, n), complex."""
        return torch.view_as_complex(self.read("P"))

    def scans(self) -> bool:
        return True

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
        options = {"time_major": time_major, "bidirectional": bidirectional}
        return self._scan_of(self._outputs(), u, D, state, ahead, rate, **options)

    def _outputs(self) -> Tensor:
        """The plain C, (channels, d_model, n, 2), in the precision that is computed with."""
        return self.stored().C

    def _scan_of(
        self,
        C: Tensor,
        u: Tensor,
        D: Tensor | None = None,
        state: Tensor | None = None,
        ahead: Tensor | None = None,
        rate: float = 1.0,
        **options: bool,
    ) -> Scan:
        """The scan whose outputs are of C (channels, d_model, n, 2)."""
        dt, A_real, A_imag, B, *_ = stored = self.stored()
        form = stored.form(rate, bilinear=True, **options)
        given = Arguments(u, dt, A_real, A_imag, B, C, D, state, ahead, form, self.read("P"))
        choice = dispatch.choose(given.call(), self.backend)
        return Scan(choice, lambda: stored_dplr_scan(given, choice.backend))

    def state_after(self, u: Tensor, state: Tensor | None, lengths: Tensor | None, rate: float) -> Tensor:
        if state is not None:
            self.check(u, state, "L")
        if u.shape[-1] == 0:
            return self.init_state(u.shape[0]) if state is None else state
        C = self.stored().C[:1]  # whose outputs nobody reads
        if lengths is None:
            return self._scan_of(C, u, state=state, rate=rate).run()[1]
        after = self._scan_of(C, ended(u, lengths), rate=rate).run()[1]
        if state is None:
            return after
        return after + _complex(_advanced(self._transition(rate), _real(state), lengths, u.shape[-1])).to(after.dtype)

    def response(self, state: Tensor, L: int, rate: float = 1.0) -> Tensor:
        first = 2 * (self.discretize().C * state[:, None]).sum(-1, keepdim=True).real
        return first if L == 1 else torch.cat((first, self.free_response(state, L - 1, rate)), -1)

    def free_response(self, state: Tensor, L: int, rate: float = 1.0) -> Tensor:
        silence = torch.zeros((len(state), self.d_model, L), dtype=state.real.dtype, device=state.device)
        y, _ = self.prepared_scan(silence, None, state, rate=rate).run()
        return y.unflatten(1, (self.channels, self.d_model))

    def propagator(self, rate: float = 1.0) -> Callable[[Tensor, int], Tensor]:
        A_bar = self._transition(rate)

        def advance(state: Tensor, L: int) -> Tensor:
            power = torch.linalg.matrix_power(A_bar, L).to(state.real.dtype)
            return _complex(torch.einsum("hij,bhj->bhi", power, _real(state)))

        return advance

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "rank": self.P.shape[0]}

    def _stepper(self) -> DPLRStepper:
        return _stepper_of(self.discretize())


def _stepper_of(found: DPLRRecurrence) -> DPLRStepper:
    increment, G, V, B, C = found
    return DPLRStepper(increment, G, V, B, C.clone())  # no view of what may be written or swapped


def _make(stored: Stored, P: Tensor | None) -> DPLRStepper:
    assert P is not None
    C = torch.view_as_complex(stored.C)
    return _stepper_of(recurrence(stored, P, C).to(C.dtype))


opaque.register("dplr", _make)


class DPLRSSM(DPLRModel):
    r"""An SSM with ``A = Lambda - P P*`` per feature, bilinear discretisation (S4; Gu et al. 2022, arXiv 2111.00396).

    Calling the model with a length L gives the kernel ``K[l] = 2 Re C A_bar^l B_bar``, (channels, d_model, L). Kernel,
    states and steps are differentiable in every parameter. ``C`` is the plain output vector: no length is in the
    parameters. Checkpoints of the official code and of earlier versions, where C is truncated for the length in
    ``l_kernel``, load as what they mean, with a message to the log.

    Args:
        d_model: number of features H.
        d_state: real state size N, even; n = N/2 conjugate pairs are stored.
        channels: number of outputs per feature.
        init: a name known to ``s4_fast.ssm.initialization.dplr``, or tensors (Lambda (n,), P (rank, n), B (n,)).
        rank: rank of the correction; LegT needs 2.
        dt_min: the least initial step size; they are log-uniform.
        dt_max: the largest.
        n_ssm: number of independent (Lambda, P, B), a divisor of ``d_model``; None for one per feature.
        lr: learning rate mark of dt, A, B and P; None leaves it to the optimiser's group.
        generator: source of the initial random numbers.
        device: of the parameters; None for PyTorch's default.
        dtype: of the parameters; None for PyTorch's default.

    Raises:
        TypeError: an unknown option, or one of the wrong type.
        ValueError: an unknown name, a size that does not fit, or an unstable ``Lambda`` (Re > 0).

    Examples:
        >>> model = DPLRSSM(8, 16, init="legt", rank=2, channels=3)
        >>> model(100).shape
        torch.Size([3, 8, 100])
        >>> model.forward_state(torch.randn(2, 8, 100)).shape
        torch.Size([2, 8, 8])
    """

    _version = 2  # 1 had l_kernel
    obsolete = ("l_kernel",)

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        *,
        channels: int = 1,
        init: str | tuple[Tensor, Tensor, Tensor] = "legs",
        rank: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        n_ssm: int | None = None,
        lr: float | None = None,
        generator: Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        d_state, rank = integer("d_state", d_state), integer("rank", rank)
        if isinstance(init, str):
            w, P, B = initialization.dplr(init, d_state, rank, generator=generator)
        else:
            w, P, B = given_tensors(init, "Lambda, P, B")
        super().__init__(d_model, d_state, channels=channels, n_ssm=n_ssm)
        self._create(w, B, dt_min=dt_min, dt_max=dt_max, lr=lr, generator=generator, device=device, dtype=dtype)
        if P.ndim != 2 or P.shape[-1] != d_state // 2:
            raise ValueError(f"expected P of shape (rank, {d_state // 2}), got {tuple(P.shape)}")
        self.P = new_parameter(to_pairs(P[:, None].expand(-1, self.n_ssm, -1)), device, dtype)
        self.set_marks({"P": self.marks()["A_real"]})

    if TYPE_CHECKING:

        def __call__(self, L: int, rate: float = 1.0) -> Tensor: ...

    def step_kind(self) -> str | None:
        return "dplr" if type(self) is DPLRSSM else None

    def misfits(self, state_dict: Mapping[str, Any], prefix: str, version: int | None) -> list[str]:
        found = super().misfits(state_dict, prefix, version)
        key = f"{prefix}l_kernel"
        if key in state_dict:
            problem = damage(state_dict[key])
            return [*found, f"{key}: {problem}"] if problem else found
        if version == 1 and f"{prefix}C" in state_dict:
            return [*found, f"{key}: missing beside C, which is truncated for that length or for none"]
        return found

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if not self.misfits(state_dict, prefix, local_metadata.get("version")):
            length = int(state_dict.get(f"{prefix}l_kernel", 0))
            key = f"{prefix}C"
            if length and key in state_dict:
                state_dict[key] = self._plain_C_of(state_dict, prefix, length).to(state_dict[key])
                log.warning("%s: C of the checkpoint was truncated for length %d; it is loaded as plain C", key, length)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)

    @torch.no_grad()
    def _plain_C_of(self, state_dict: dict[str, Any], prefix: str, length: int) -> Tensor:
        """The plain C of a checkpoint's C, A, P and dt, as pairs."""
        values = {name: state_dict.get(prefix + name, getattr(self, name)).double() for name in (*STORED, "P")}
        dt, A_real, A_imag, B, C, P = (value.contiguous() for value in values.values())
        stored, outputs = Stored(dt, A_real, A_imag, B, C, True, True, True), torch.view_as_complex(C)
        found = recurrence(stored, P, outputs)
        return to_pairs(untruncated(outputs, found.transition(), length))


def damage(l_kernel: Any) -> str:
    """What is wrong with a length from a checkpoint, or the empty string."""
    if not isinstance(l_kernel, Tensor) or l_kernel.numel() != 1 or l_kernel.is_complex():
        return "expected one whole number, the length that C is truncated for"
    value = float(l_kernel)
    if not (value >= 0 and value == int(value)):
        return f"expected a length of at least 0, got {value:g}"
    return ""


def _advanced(A_bar: Tensor, s: Tensor, counts: Tensor, most: int) -> Tensor:
    """A_bar^counts s for each row, counts (batch,) of at most ``most``, for s (batch, d_model, N)."""
    bit, s = 0, s.to(A_bar.dtype)
    while 1 << bit <= most:
        taken = (counts >> bit & 1).bool()[:, None, None]
        s = torch.where(taken, torch.einsum("hij,bhj->bhi", A_bar, s), s)
        A_bar, bit = A_bar @ A_bar, bit + 1
    return s


def _real(s: Tensor) -> Tensor:
    return torch.cat((s.real, s.imag), -1)


def _complex(s: Tensor) -> Tensor:
    return torch.complex(*s.chunk(2, -1))


def _row(C: Tensor) -> Tensor:
    """C (channels, d_model, n) as the rows of 2 Re C s, (d_model, channels, N)."""
    return _real(2 * C.conj()).transpose(0, 1)


def _unrow(row: Tensor) -> Tensor:
    real, imag = (row.transpose(0, 1) / 2).chunk(2, -1)
    return torch.complex(real, -imag)


def _overlap(v: Tensor, s: Tensor) -> Tensor:
    """2 Re sum_n v_n s_n, keeping the last dimension."""
    return 2 * (v * s).sum(-1, keepdim=True).real
