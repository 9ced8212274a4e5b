"""The convolution kernels of state-spaces/s4, S4D and S4, with the official options, parameters and shapes."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from s4_fast.arguments import UnknownOptionError, choice, integer, number
from s4_fast.checkpoint import Renewed
from s4_fast.dispatch import BACKENDS
from s4_fast.ops import log_vandermonde
from s4_fast.ops._complex import expm1
from s4_fast.ssm import initialization, with_conjugates, without_conjugates
from s4_fast.ssm.diagonal import DiagonalModel
from s4_fast.ssm.discretization import check_stable
from s4_fast.ssm.model import SSMModel
from s4_fast.ssm.parameters import Stored, to_pairs
from s4_fast.state_spaces.arguments import longest
from s4_fast.state_spaces.initialization import UnknownArgumentError, initial
from s4_fast.state_spaces.releases import older_kernel
from s4_fast.state_spaces.transforms import check_transform, transformed, untransformed
from s4_fast.state_spaces.truncation import TruncatedDPLRModel

log = logging.getLogger(__name__)

_DISCRETIZATIONS = ("zoh", "bilinear", "dss")
_STEP_MODES = ("dense", "linear", "diagonal")
_OFFICIAL_BACKENDS = {"cuda": None, "keops": "keops", "naive": "pytorch", "auto": None}
_GROUPS = ("A", "B", "C", "dt", "P")


class SSMKernel(SSMModel):
    r"""What the official S4D and S4 kernels have in common: a kernel, its recurrence, and their options.

    ``x' = A x + B u, y = 2 Re C x`` for each of ``d_model`` features. Parameters, with ``n = d_state // 2`` stored
    modes and ``S = n_ssm``:

    - ``C`` (channels, d_model, n, 2) and ``B`` (1, S, n, 2), real pairs,
    - ``inv_dt`` (d_model, 1), or (d_model, n) without ``dt_tie``: ``dt = T(inv_dt)``, T being ``dt_transform``,
    - ``A_real`` and ``A_imag`` (S, n): ``A = -T(A_real) - i T(A_imag)`` with a transform each.

    Args:
        d_model: number of features H.
        channels: number of kernels per feature.
        l_max: the length that training sets up for, where the kernel has a length.
        lr: learning rate mark (``_optim``) of all parameters, or of those that a mapping of ``"A"``, ``"P"`` (else as
            A), ``"B"``, ``"C"``, ``"dt"`` names. 0 makes buffers of them.
        wd: likewise the weight decay mark, which C never has.
        verbose: whether to log sizes and changes of the kernel's length, at level INFO.
        d_state: real state size N.
        deterministic: C picks out the first coordinate, and dt is spaced logarithmically over the features.
        dt_min: the least initial dt; they are log-uniform.
        dt_max: the largest.
        dt_tie: whether the states of a feature have one dt.
        dt_transform: of dt: ``"none"``, ``"exp"``, ``"relu"``, ``"sigmoid"`` or ``"softplus"``.
        real_transform: of -Re A, one of these too.
        imag_transform: of -Im A, one of these too.
        rank: rank of the low-rank part; LegT needs 2.
        n_ssm: number of independent (A, B), a divisor of ``d_model``; None for one per feature.
        measure: older name of ``init``.
        init: ``"legs"``, ``"legt"``, ``"lagt"``, ``"fourier"``, ``"diag-NAME"`` or ``"dplr-NAME"``, several of these,
            or ``"hippo"``, ``"diag"``, ``"all"``, see ``s4_fast.state_spaces.initialization.initial``.
        dt_fast: ``dt = T(sinh(inv_dt))``.
        bandlimit: modes of a frequency ``dt |Im A| / 2 pi`` of at least half of this take no part in the output.
        backend: ``"cuda"`` or ``"auto"`` for the automatic choice, ``"keops"``, ``"naive"`` (PyTorch), or another
            backend of this package.
        **init_args: what ``init`` takes, see ``s4_fast.state_spaces.initialization.initial``: ``B_clip=2.0`` of HiPPO
            matrices; of modes ``real_random=False``, ``real_scale=1.0``, ``imag_random=False``, ``imag_scale=1.0``,
            ``B_random=False``, ``B_init="constant"``, ``B_scale=1.0``, ``P_scale=1.0``, ``normalize=False``.

    Raises:
        TypeError: an unknown option.
        ValueError: an unknown name, a size that does not fit, or options that contradict each other.

    Examples:
        >>> from s4_fast.state_spaces import SSMKernelDiag
        >>> k, _ = SSMKernelDiag(8, channels=2, d_state=16)(L=100)
        >>> k.shape
        torch.Size([2, 8, 100])
    """

    is_real = False
    low_rank = False
    l_max: int | None
    obsolete = ("omega", "z")

    def __init__(
        self,
        d_model: int,
        channels: int = 1,
        l_max: int | None = None,
        lr: float | Mapping[str, float | None] | None = None,
        wd: float | Mapping[str, float | None] | None = 0.0,
        verbose: bool = True,
        *,
        d_state: int = 64,
        deterministic: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_tie: bool = True,
        dt_transform: str = "exp",
        rank: int = 1,
        n_ssm: int | None = None,
        measure: str | None = None,
        init: str | Sequence[str] | None = "legs",
        dt_fast: bool = False,
        real_transform: str = "exp",
        imag_transform: str = "none",
        bandlimit: float | None = None,
        backend: str = "cuda",
        **init_args: Any,
    ) -> None:
        l_max = longest(l_max)
        for option, transform in (
            ("dt_transform", dt_transform), ("real_transform", real_transform), ("imag_transform", imag_transform),
        ):  # fmt: skip
            check_transform(option, transform)
        if backend not in _OFFICIAL_BACKENDS and backend not in BACKENDS:
            known = ", ".join(dict.fromkeys((*_OFFICIAL_BACKENDS, *BACKENDS)))
            raise ValueError(f"unknown backend {backend!r}; expected one of {known}")
        d_state, rank = integer("d_state", d_state), integer("rank", rank)
        init = _one_init(init, measure)
        rates, decays = _by_group("lr", lr), _by_group("wd", wd)
        n = d_state // 2
        super().__init__(d_model, 2 * n, channels=channels, n_ssm=n_ssm)
        self.l_max, self.verbose = l_max, verbose
        self.dt_transform, self.dt_fast, self.dt_tie = dt_transform, dt_fast, dt_tie
        self.real_transform, self.imag_transform, self.bandlimit = real_transform, imag_transform, bandlimit
        self.backend = _OFFICIAL_BACKENDS.get(backend, backend)

        dt = self._initial_dt(dt_min, dt_max, deterministic)
        try:
            A, P, B, V = initial(init, d_state, rank, self.n_ssm, self.low_rank, **init_args)
        except UnknownArgumentError as error:
            options = (*self._options(), *error.known)
            raise UnknownOptionError.of(type(self).__name__, error.names, options) from None
        check_stable(A)
        if deterministic:
            C = V[None, :, 0].repeat(channels, d_model // self.n_ssm, 1)
        else:
            # The conjugate, as the original: a seed gives the same numbers.
            C = torch.randn(channels, d_model, n, dtype=torch.get_default_dtype().to_complex(), device="cpu").conj()
        inv_dt = untransformed(dt, dt_transform, "dt")
        self.add_parameter("inv_dt", inv_dt.asinh() if dt_fast else inv_dt, rates["dt"], decays["dt"])
        self.add_parameter("C", C.real if self.is_real else to_pairs(C), rates["C"], None)
        self.add_parameter("B", B[None].real if self.is_real else to_pairs(B[None]), rates["B"], decays["B"])
        self.add_parameter("A_real", untransformed(-A.real, real_transform, "-Re A"), rates["A"], decays["A"])
        if not self.is_real:
            self.add_parameter("A_imag", untransformed(-A.imag, imag_transform, "-Im A"), rates["A"], decays["A"])
        if self.low_rank:
            self.add_parameter("P", to_pairs(P), rates["P"], decays["P"])
        if verbose:
            log.info("%s: d_model=%d, states=%d, l_max=%s", type(self).__name__, d_model, n, l_max)

    @classmethod
    def _options(cls) -> list[str]:
        """The names of the constructors' arguments."""
        signatures = (inspect.signature(c.__init__).parameters for c in (SSMKernel, cls))
        names = dict.fromkeys(name for signature in signatures for name in signature)
        return [name for name in names if name not in ("self", "args", "kwargs", "init_args")]

    def _initial_dt(self, low: float, high: float, deterministic: bool) -> Tensor:
        if not 0 < low <= high < math.inf:
            raise ValueError(f"expected 0 < dt_min <= dt_max, got dt_min = {low}, dt_max = {high}")
        width = 1 if self.dt_tie else self.d_state // 2
        if deterministic:
            steps = torch.linspace(math.log(low), math.log(high), self.d_model, dtype=torch.float64, device="cpu")
            return steps.exp()[:, None].repeat(1, width)
        dtype = torch.get_default_dtype()
        return initialization.log_dt((self.d_model, width), low, high, dtype=dtype).double().exp()

    @property
    def H(self) -> int:
        """``d_model``, as the original calls it."""
        return self.d_model

    @property
    def N(self) -> int:
        """The number of stored modes, as the original calls it."""
        return self.d_state // 2

    def stored(self) -> Stored:
        options = (self.dt_transform, self.dt_fast, self.real_transform, self.imag_transform)
        if options != ("exp", False, "exp", "none") or self.is_real or self.bandlimit is not None:
            return super().stored()
        return self._logarithms()

    def settings(self) -> tuple[Any, ...]:
        transforms = (self.dt_transform, self.dt_fast, self.real_transform, self.imag_transform)
        return (*super().settings(), *transforms, self.is_real, self.bandlimit)

    def _dt(self) -> Tensor:
        inv_dt = self.read("inv_dt")
        return transformed(inv_dt.sinh() if self.dt_fast else inv_dt, self.dt_transform)

    def _A(self) -> Tensor:
        real = -transformed(self.read("A_real"), self.real_transform)
        imag = torch.zeros_like(real) if self.is_real else -transformed(self.read("A_imag"), self.imag_transform)
        return torch.complex(real, imag)

    def _B(self) -> Tensor:
        return _as_complex(self.read("B")[0]) if self.is_real else super()._B()

    def _C(self) -> Tensor:
        return self._within_band(_as_complex(self.read("C")) if self.is_real else super()._C())

    def _within_band(self, C: Tensor) -> Tensor:
        if self.bandlimit is None:
            return C
        frequencies = self.dt() * self.A().imag.abs() / (2 * math.pi)
        return C * (frequencies < self.bandlimit / 2)

    def forward(  # type: ignore[override]
        self, L: int | None = None, state: Tensor | None = None, rate: float = 1.0
    ) -> tuple[Tensor, Any]:
        """The kernel, and the outputs that a state leaves.

        Args:
            L: length; None for all that the kernel is set up for, where it has a length.
            state: the state before, (batch, d_model, states), or None.
            rate: the sampling rate relative to the parameters' own: dt is multiplied by it.

        Returns:
            ``k`` (channels, d_model, L), and the outputs (batch, channels, d_model, L) from ``state`` where the input
            is 0, or None without a state.

        Raises:
            TypeError: the state has the wrong dtype.
            ValueError: the state has the wrong shape, or L or the rate is not positive.
        """
        rate = check_rate(rate)
        L = self._whole(rate) if L is None else L
        k = self.impulse_response(L, rate)
        return k, None if state is None else self.free_response(self.read_state(state), L, rate)

    if TYPE_CHECKING:
        __call__ = forward

    def seen_response(self, L: int, rate: float = 1.0) -> Tensor:
        k: Tensor = self(L=L, rate=rate)[0]
        return k

    def _whole(self, rate: float) -> int:
        if self.l_max is None:
            raise ValueError("this kernel has no length of its own; give L")
        return max(1, round(self.l_max / rate))

    def setup_length(self, L: int) -> None:
        """Nothing for S4D; see ``SSMKernelDPLR.setup_length`` for S4."""

    def default_state(self, *batch_shape: int) -> Tensor:
        """The zero state, (*batch_shape, d_model, states), where the parameters are.

        The states are one of each conjugate pair, complex; with ``is_real`` they are real.
        """
        dtype = self.real_dtype() if self.is_real else self.state_dtype()
        return torch.zeros(*batch_shape, self.d_model, self._states(), dtype=dtype, device=self.C.device)

    def _states(self) -> int:
        return self.d_state // 2

    def renewed(self, state_dict: Mapping[str, Any], prefix: str) -> Renewed | None:
        found = older_kernel(state_dict, prefix, prefix, self.real_transform)
        if found is None:
            return None
        self.check_older()
        return found.renewed(state_dict, type(self).__name__)

    def check_older(self) -> None:
        """Raise ValueError where the options give stored numbers a meaning that releases 1 to 3 did not have."""
        if (self.dt_transform, self.imag_transform, self.dt_tie, self.is_real) != ("exp", "none", True, False):
            raise ValueError(
                "a checkpoint of a release before 4 holds log dt per feature and Im A itself: it loads where "
                "dt_transform='exp', imag_transform='none', dt_tie=True and is_real=False"
            )

    def read_state(self, state: Tensor, batch: int | None = None) -> Tensor:
        """A state (batch, d_model, states) in any form that it is passed around in -> (batch, d_model, n), complex.

        Raises:
            TypeError: it has the wrong dtype.
            ValueError: it has the wrong shape, or two halves that are not conjugate.
        """
        if state.ndim != 3:
            raise ValueError(f"expected state of shape (batch, {self.d_model}, states), got {tuple(state.shape)}")
        if state.shape[-1] == self.d_state and not self.is_real:
            state = without_conjugates(state)
        pairs = self._widened(state)
        u = pairs.real.new_empty(len(pairs) if batch is None else batch, self.d_model)
        self.check(u, pairs)
        return pairs

    def write_state(self, pairs: Tensor, like: Tensor) -> Tensor:
        """``pairs`` in the form of ``like``."""
        if self.is_real:
            return pairs.real
        return with_conjugates(pairs) if like.shape[-1] == self.d_state else pairs

    def _widened(self, state: Tensor) -> Tensor:
        if not self.is_real:
            return state
        expected = self.real_dtype()
        if state.dtype != expected:
            raise TypeError(f"expected state to be {expected} (is_real), got {state.dtype}")
        return _as_complex(state)

    def forward_state(
        self, u: Tensor, state: Tensor | None = None, lengths: Tensor | None = None, rate: float = 1.0
    ) -> Tensor:
        """The state, like ``state``, after u (batch, d_model, L), or after ``lengths`` (batch,) samples of the rows."""
        if state is None:
            state = self.default_state(u.shape[0])
        return self.write_state(self.state_after(u, self.read_state(state), lengths, rate), state)

    def _setup_step(self, mode: str = "dense") -> None:
        """Compute what ``step`` needs of the parameters, which it would do by itself."""
        mode = choice("step mode", mode, _STEP_MODES)
        with torch.no_grad():
            self.remembered("stepper", self._stepper)

    def step(self, u: Tensor, state: Tensor, D: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of the recurrence: u (batch, d_model), state -> y (batch, channels, d_model), the next state.

        From ``default_state`` the outputs equal the convolution with the kernel. D as in
        ``s4_fast.ssm.parameters.SSMParameters.step``. Of a state of both halves the first is read.
        """
        y, following = super().step(u, self._widened(state[..., : self.d_state // 2]), D)
        return y, self.write_state(following, state)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, l_max={self.l_max}"


class SSMKernelDiag(SSMKernel, DiagonalModel):
    r"""The S4D kernel, with A diagonal: ``K[l] = 2 Re sum_n C_n B_bar_n exp(dt A_n l)`` where ``disc="zoh"``.

    Args:
        disc: ``"zoh"``, ``"bilinear"``, or ``"dss"``: modes normalised by their sum over the kernel's length (DSS:
            Gupta et al. 2022, arXiv 2203.14343), so that the kernel depends on its length and has no recurrence.
        is_real: real parameters ``C`` (channels, d_model, n), ``B`` (1, S, n) and ``A_real``, of ``d_state`` real
            states (exponential moving averages); of 32 where no ``d_state`` is given, as in the original.
        d_state: real state size N; None for 64.
        *args: see ``SSMKernel``.
        **kwargs: see ``SSMKernel``.

    Examples:
        >>> kernel = SSMKernelDiag(8, d_state=16, init="diag-lin", disc="bilinear")
        >>> k, outputs = kernel(L=100, state=kernel.default_state(2))
        >>> k.shape, outputs.shape
        (torch.Size([1, 8, 100]), torch.Size([2, 1, 8, 100]))
    """

    def __init__(
        self, *args: Any, disc: str = "zoh", is_real: bool = False, d_state: int | None = None, **kwargs: Any
    ) -> None:
        disc = choice("disc", disc, _DISCRETIZATIONS)
        if d_state is None:
            d_state = 64
        elif is_real:
            d_state = 2 * d_state
        self.is_real = bool(is_real)
        super().__init__(*args, d_state=d_state, **kwargs)
        self.disc = self.discretization = disc

    def scans(self) -> bool:
        return self.disc != "dss"

    def impulse_response(self, L: int, rate: float = 1.0) -> Tensor:
        return self._normalized(L, rate) if self.disc == "dss" else super().impulse_response(L, rate)

    @torch.no_grad()
    def multiply_C_by_B(self) -> None:
        """Start as release 3 does, which has B in C, besides B itself."""
        self.C.copy_(to_pairs(torch.view_as_complex(self.C) * self.B_vector()))

    @property
    def dA(self) -> Tensor:
        """The step's factors of the states, (d_model, n)."""
        return self.discretize()[0].exp()

    @property
    def dB(self) -> Tensor:
        """The step's input vectors, (d_model, n)."""
        return self.discretize()[1]

    @property
    def dC(self) -> Tensor:
        """The step's output vectors, (channels, d_model, n): ``y = 2 Re dC s``."""
        return self.discretize()[2]

    def _discretize(self, rate: float) -> tuple[Tensor, Tensor]:
        if self.disc == "dss":
            raise RuntimeError("disc='dss' normalises the kernel by its length: there is no recurrence, and no state")
        return super()._discretize(rate)

    def _normalized(self, L: int, rate: float) -> Tensor:
        """``Re sum_n C B (exp(z) - 1) / (A (exp(z L) - 1)) exp(z l)``, z = dt A, with 1 / x as x* / (|x|^2 + 1e-7).

        Where Re A > 0, numerator and denominator are those of -z, and the power is counted from the end.
        """
        A = self.A()
        z = self.dt(rate) * A
        grows = A.real > 0
        x = torch.where(grows, -z, z)
        total = expm1(x.to(torch.complex128) * L).to(x.dtype) * A
        inverse = torch.conj_physical(total) / (total.abs().square() + 1e-7)
        v = self._C() * self.B_vector() * expm1(x) * inverse / 2
        forwards = log_vandermonde(torch.where(grows, 0, v), torch.where(grows, 0, x), L, backend=self.backend)
        if self.real_transform != "none":
            return forwards  # every other transform keeps Re A at 0 or below
        backwards = log_vandermonde(torch.where(grows, v, 0), torch.where(grows, x, 0), L, backend=self.backend)
        return forwards + backwards.flip(-1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, disc={self.disc}, is_real={self.is_real}"


class SSMKernelDPLR(SSMKernel, TruncatedDPLRModel):
    r"""The S4 kernel: ``A = diag(A) - P P*`` with P ``(rank, S, n, 2)``, bilinear discretisation.

    ``C`` is truncated, ``C (I - A_bar^l_kernel)``, for the length in the buffer ``l_kernel``, or plain while that is 0.
    The first pass of training sets a fresh kernel up for ``l_max``, or for its own length, as the original's does.
    Nothing else changes ``C``: see ``TruncatedDPLRModel``. ``rate`` is exact.

    States are one of each conjugate pair, or both, ``(s, s*)``; ``step`` and ``forward_state`` return what they
    are given. ``default_state`` makes both, unless the step mode is ``"linear"``. The modes compute the same.

    Args:
        disc: None or ``"bilinear"``.
        is_real: False; an option of the S4D kernel.
        backend: see ``SSMKernel``; ``"keops"`` is the automatic choice, as this kernel has no part for it.
        *args: see ``SSMKernel``.
        **kwargs: see ``SSMKernel``.

    Examples:
        >>> kernel = SSMKernelDPLR(8, d_state=16, init="legs")
        >>> kernel(L=100)[0].shape
        torch.Size([1, 8, 100])
        >>> y, state = kernel.step(torch.randn(2, 8), kernel.default_state(2))
        >>> y.shape, state.shape
        (torch.Size([2, 1, 8]), torch.Size([2, 8, 16]))
    """

    low_rank = True
    _step_mode = "dense"

    def __init__(
        self,
        *args: Any,
        disc: str | None = None,
        is_real: bool = False,
        backend: str = "cuda",
        **kwargs: Any,
    ) -> None:
        if disc is not None and str(disc).lower() != "bilinear":
            raise ValueError(f"the S4 kernel is discretised by the bilinear transform, got disc={disc!r}")
        if is_real:
            raise ValueError("is_real is an option of the S4D kernel; the S4 kernel is made of conjugate pairs")
        # KeOps has no part in this kernel: what the original summed with it is fused with the rest.
        backend = "cuda" if backend == "keops" else backend
        super().__init__(*args, backend=backend, **kwargs)
        self.register_buffer("l_kernel", torch.tensor(0))

    @property
    def dA(self) -> Tensor:
        """The step's transition, (d_model, d_state, d_state), on states of both halves, (s, s*)."""
        step = self.discretize()
        n = step.G.shape[-1]
        low_rank = torch.einsum("rhn,rhm->hnm", step.G, with_conjugates(step.V))
        upper = pad(torch.diag_embed(1 + step.increment), (0, n)) - low_rank
        return torch.cat((upper, torch.conj_physical(upper.roll(n, -1))), -2).to(self.state_dtype())

    @property
    def dB(self) -> Tensor:
        """The step's input vectors, (d_model, d_state), of both halves."""
        return with_conjugates(self.discretize().B)

    @property
    def dC(self) -> Tensor:
        """The step's output vectors, (channels, d_model, d_state): ``y = Re dC (s, s*)``."""
        return with_conjugates(self.discretize().C)

    def _whole(self, rate: float) -> int:
        length = self._read_length()
        return max(1, round(length / rate)) if length else super()._whole(rate)

    def setup_length(self, L: int) -> None:
        """Truncate ``C`` for a length of at least L, in samples of the parameters' own rate; nothing needs it.

        It changes ``C`` and ``l_kernel`` in place, and nothing that is computed. Not while other threads train.

        Raises:
            RuntimeError: FSDP has sharded the parameters, or C is made of other tensors.
        """
        self.setup(L)

    @torch.no_grad()
    def forward_state(
        self, u: Tensor, state: Tensor | None = None, lengths: Tensor | None = None, rate: float = 1.0
    ) -> Tensor:
        """The state after u, as ``SSMKernel.forward_state``, without gradients, as the original's."""
        return super().forward_state(u, state, lengths, rate)

    def _setup_step(self, mode: str = "dense") -> None:
        super()._setup_step(mode)
        self._step_mode = mode

    def _states(self) -> int:
        return self.d_state // 2 if self._step_mode == "linear" else self.d_state


KERNELS = {
    "s4d": SSMKernelDiag,
    "diag": SSMKernelDiag,
    "s4": SSMKernelDPLR,
    "nplr": SSMKernelDPLR,
    "dplr": SSMKernelDPLR,
}


def check_rate(rate: Any) -> float:
    """A sampling rate as a float; TypeError or ValueError unless it is a positive number."""
    rate = number("rate", rate)
    if not 0 < rate < math.inf:
        raise ValueError(f"expected a rate above 0, got {rate}")
    return rate


def _as_complex(t: Tensor) -> Tensor:
    return torch.complex(t, torch.zeros_like(t))


def _one_init(init: str | Sequence[str] | None, measure: str | None) -> str | Sequence[str]:
    if measure is None:
        if init is None:
            raise ValueError("init must be a name or a list of names, got None")
        return init
    if init not in (None, "legs", measure):
        raise ValueError(f"measure is the older name of init, got measure={measure!r} and init={init!r}")
    return measure


def _by_group(option: str, given: float | Mapping[str, float | None] | None) -> dict[str, float | None]:
    """The learning rate or weight decay of A, B, C, dt and P, which has A's where it is not named."""
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in _GROUPS]
        if unknown:
            raise ValueError(f"{option} names {', '.join(map(str, unknown))}; expected some of {', '.join(_GROUPS)}")
        found = {name: given.get(name) for name in _GROUPS} | {"P": given.get("P", given.get("A"))}
    else:
        found = dict.fromkeys(_GROUPS, given)
    values = {name: None if value is None else number(option, value) for name, value in found.items()}
    for value in values.values():
        if value is not None and not value >= 0:
            raise ValueError(f"{option} must be at least 0, got {value}")
    return values
