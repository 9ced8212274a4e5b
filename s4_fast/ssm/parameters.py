"""The parameters that diagonal and DPLR state space models share: dt, A, B and C in conjugate-pair storage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn

from s4_fast import torch_private
from s4_fast.checkpoint import AllOrNothing
from s4_fast.ops.direct import operations_are_seen
from s4_fast.ssm import initialization
from s4_fast.ssm.discretization import check_stable
from s4_fast.ssm.stepping import Stepper

T = TypeVar("T")

_COMPLEX = {
    torch.float16: torch.complex64,
    torch.bfloat16: torch.complex64,
    torch.float32: torch.complex64,
    torch.float64: torch.complex128,
}
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


class SSMParameters(AllOrNothing):
    r"""``x' = A x + B u, y = 2 Re C x`` for ``d_model`` independent features with ``n = d_state / 2`` pairs each.

    Stored with the names and shapes of state-spaces/s4, so that its checkpoints load:

    - ``inv_dt`` (d_model, 1): ``log dt``,
    - ``A_real``, ``A_imag`` (n_ssm, n): ``A = -exp(A_real) - i A_imag``, so Re A < 0 always,
    - ``B`` (1, n_ssm, n, 2) and ``C`` (channels, d_model, n, 2): real pairs.

    ``n_ssm`` independent copies of (A, B) are shared by the features in turn. ``inv_dt``, ``A_real``, ``A_imag`` and
    ``B`` carry ``_optim = {"weight_decay": 0.0}``, with ``"lr"`` where ``lr`` is given; see
    :func:`s4_fast.get_ssm_param_groups`.

    A subclass that stores something else defines ``_dt``, ``_A``, ``_B`` and ``_C``, from which the rest follows.
    """

    inv_dt: Tensor
    A_real: Tensor
    A_imag: Tensor
    B: Tensor
    C: Tensor

    def __init__(self, d_model: int, d_state: int, *, channels: int, n_ssm: int | None) -> None:
        super().__init__()
        n_ssm = d_model if n_ssm is None else n_ssm
        _positive(d_model=d_model, d_state=d_state, channels=channels, n_ssm=n_ssm)
        if d_model % n_ssm:
            raise ValueError(f"n_ssm must divide d_model, got n_ssm = {n_ssm}, d_model = {d_model}")
        self.d_model, self.d_state, self.channels, self.n_ssm = d_model, d_state, channels, n_ssm
        self._given_marks: dict[str, dict[str, Any]] = {}
        self._cache: tuple[Any, Any, dict[str, Any]] | None = None
        self._once: dict[str, Any] | None = None

    def _create(
        self, A: Tensor, B: Tensor, *, dt_min: float, dt_max: float, lr: float | None, generator: Generator | None
    ) -> None:
        """Make the parameters, from A and B (n,) or (n_ssm, n)."""
        if lr is not None and not lr >= 0:
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
        device = torch.device("cpu") if generator is None else generator.device
        log_dt = initialization.log_dt((d_model, 1), dt_min, dt_max, generator)
        C = torch.randn(channels, d_model, n, 2, dtype=torch.float64, generator=generator, device=device)
        # The official code stores log(-Re A) of at least 1e-4: modes without decay would be log(0).
        decay = (-A.real).clamp(min=1e-4).expand(n_ssm, n)
        self.inv_dt = new_parameter(log_dt)
        self.A_real = new_parameter(decay.log())
        self.A_imag = new_parameter(-A.imag.expand(n_ssm, n))
        self.B = new_parameter(to_pairs(B.expand(n_ssm, n)[None]))
        self.C = new_parameter(C * math.sqrt(0.5))
        mark = {"weight_decay": 0.0} if lr is None else {"weight_decay": 0.0, "lr": float(lr)}
        self._set_marks(dict.fromkeys(("inv_dt", "A_real", "A_imag", "B"), mark))

    # A copy, a move to another kind of device, load_state_dict(assign=True) and fully_shard make new parameters, which
    # have no marks.

    def marks(self) -> dict[str, dict[str, Any]]:
        """The marks for the optimiser by the parameters' names: those they carry, or were given when they were made."""
        carried = {name: p._optim for name, p in self.named_parameters(recurse=False) if hasattr(p, "_optim")}
        return {**self._given_marks, **carried}

    def _set_marks(self, marks: dict[str, dict[str, Any]]) -> None:
        self._given_marks = {**self._given_marks, **marks}
        own = torch_private.own_parameters(self)
        for name, mark in marks.items():
            if (parameter := own.get(name)) is not None:  # parametrizations have it elsewhere
                parameter._optim = dict(mark)  # type: ignore[attr-defined]

    def _register(self, name: str, value: Tensor, lr: float | None, wd: float | None) -> None:
        """A parameter with its mark for the optimiser, or a buffer where the learning rate is 0."""
        value = value.to(torch.empty(0).device, torch.get_default_dtype(), copy=True).contiguous()
        if lr == 0:
            self.register_buffer(name, value)
            return
        self.register_parameter(name, nn.Parameter(value))
        mark = {key: float(given) for key, given in (("lr", lr), ("weight_decay", wd)) if given is not None}
        if mark:
            self._set_marks({name: mark})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_given_marks": self.marks()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_marks(self._given_marks)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        marks = self.marks()
        super()._apply(*args, **kwargs)
        self._set_marks(marks)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        marks = self.marks()
        super()._load_from_state_dict(*args, **kwargs)
        self._set_marks(marks)
        self._cache = None  # inference tensors have no version that would show the change

    def _is_sharded(self) -> bool:
        """Whether FSDP swaps the parameters: inside its forward pass they are copies, gathered for the time."""
        return torch_private.is_sharded(self)

    def dt(self, rate: float = 1.0) -> Tensor:
        """Step sizes, (d_model, 1) or (d_model, n), at a sampling that is ``rate`` times as coarse."""
        dt = self._dt()
        return dt if rate == 1 else rate * dt

    def A(self) -> Tensor:
        """The diagonal (part) of A, (d_model, n), complex."""
        if torch.is_grad_enabled():
            self._cache = None  # an optimiser's step may follow, and fused ones do not raise the version
        return self._shared(self._A())

    def B_vector(self) -> Tensor:
        """The input vectors, (d_model, n), complex."""
        return self._shared(self._B())

    def _dt(self) -> Tensor:
        return self.inv_dt.exp()

    def _A(self) -> Tensor:
        """(n_ssm, n), complex."""
        return torch.complex(-self.A_real.exp(), -self.A_imag)

    def _B(self) -> Tensor:
        """(n_ssm, n), complex."""
        return torch.view_as_complex(self.B)[0]

    def _C(self) -> Tensor:
        """(channels, d_model, n), complex."""
        return torch.view_as_complex(self.C)

    def _shared(self, t: Tensor) -> Tensor:
        """(..., n_ssm, n) -> (..., d_model, n), the copies taken in turn."""
        repeats = self.d_model // self.n_ssm
        return t if repeats == 1 else t.repeat(*([1] * (t.ndim - 2)), repeats, 1)

    def _cached(self, compute: Callable[[], T]) -> T:
        """``compute()``, remembered without its graph while no parameter changes and no gradient is recorded.

        A change is seen by a tensor's memory or version, and by a call that recorded gradients in between. Writing
        into ``.data`` leaves no trace, nor does what FSDP writes, under which nothing is remembered.
        """
        if not self._remembers():
            return compute() if self._once is None else _found(self._once, compute)
        if torch_private.own_modules(self):  # those of parametrizations
            tensors: tuple[Any, ...] = (*self.parameters(), *self.buffers())
        else:
            tensors = torch_private.own_tensors(self)
        try:
            key: tuple[Any, ...] = (*map(Tensor.data_ptr, tensors), *torch_private.versions(tensors))
        except RuntimeError:  # an inference tensor has no version
            key = tuple((t.data_ptr(), () if t.is_inference() else torch_private.versions((t,))) for t in tensors)
        if self._cache is None or self._cache[0] != key:
            # The aliases keep the memory, so that no other tensor can come to lie at its address.
            self._cache = (key, [t.detach() for t in tensors], {})
        return _found(self._cache[2], compute)

    def computed_once(self) -> AbstractContextManager[None]:
        """A block in which what depends on the parameters alone is computed once, with its graph."""
        # Compilers merge what is equal themselves, and that of PyTorch 2.6 cannot follow the block.
        return nullcontext() if torch.compiler.is_compiling() else self._computing_once()

    @contextmanager
    def _computing_once(self) -> Iterator[None]:
        self._once = {}
        try:
            yield
        finally:
            self._once = None

    def _remembers(self) -> bool:
        """Whether :meth:`_cached` does."""
        return not (torch.is_grad_enabled() or operations_are_seen() or self._is_sharded())

    def _complex_dtype(self) -> torch.dtype:
        return _COMPLEX[self.C.dtype]

    def prepare(self, L: int) -> None:
        """Make kernels up to length L available, where that takes anything."""

    def sizes(self) -> dict[str, int]:
        """What must be the same in every process that shares a sequence."""
        return {"d_model": self.d_model, "d_state": self.d_state, "channels": self.channels, "n_ssm": self.n_ssm}

    def init_state(self, batch: int) -> Tensor:
        """The zero state, (batch, d_model, n), complex."""
        shape = (batch, self.d_model, self.d_state // 2)
        return torch.zeros(shape, dtype=self._complex_dtype(), device=self.C.device)

    def kernel(self, L: int, rate: float = 1.0) -> Tensor:
        """The convolution kernel, (channels, d_model, L). Differentiable in every parameter."""
        raise NotImplementedError

    def forward_state(
        self, u: Tensor, state: Tensor | None = None, lengths: Tensor | None = None, rate: float = 1.0
    ) -> Tensor:
        """The state after u (batch, d_model, L) from ``state`` (batch, d_model, n), or from zero.

        With ``lengths`` (batch,), integers up to L, the state after as many samples of each row.
        """
        raise NotImplementedError

    def response(self, state: Tensor, L: int, rate: float = 1.0) -> Tensor:
        """``2 Re C s_l``, 0 <= l < L, from s_0 = ``state`` (batch, d_model, n) without input.

        (batch, channels, d_model, L).
        """
        raise NotImplementedError

    def propagator(self, rate: float = 1.0) -> Callable[[Tensor, int], Tensor]:
        """``advance(state, L)``: the state (batch, d_model, n) after L samples of 0, in complex64 or complex128."""
        raise NotImplementedError

    def free_response(self, state: Tensor, L: int, rate: float = 1.0) -> Tensor:
        """The L outputs after ``state`` (batch, d_model, n) where the input is 0, (batch, channels, d_model, L)."""
        return self.response(self.propagator(rate)(state, 1).to(state.dtype), L, rate)

    def step(self, u: Tensor, state: Tensor, D: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step from ``state`` (batch, d_model, n), as :meth:`init_state` or :meth:`forward_state` returns it.

        What depends on the parameters alone is remembered while none of them changes, except where gradients are
        recorded. Without gradients a step of the native library takes a few microseconds.

        Args:
            u: input, (batch, d_model), real.
            state: the state before, complex. It is not changed.
            D: skip coefficients, (d_model,), real, or None.

        Returns:
            y (batch, channels, d_model), with D u in every channel, and the state after. Differentiable in u, the
            state, D and every parameter.

        Raises:
            TypeError: u, state or D has the wrong dtype.
            ValueError: u, state or D has the wrong shape, or is not where the parameters are.
            BackendUnavailableError: the backend asked for (:func:`s4_fast.use_backend`) cannot step.
        """
        self.check(u, state)
        real = _REAL[state.dtype]
        if D is not None and not (D.shape == u.shape[1:] and D.dtype is real and D.device == u.device):
            raise _wrong_skip(D, real, u)
        return self._cached(self._stepper).step(u if u.dtype is real else u.to(real), state, D)

    def _stepper(self) -> Stepper:
        raise NotImplementedError

    def check(self, u: Tensor, state: Tensor, *positions: str) -> None:
        """Raise unless u is (batch, d_model, *positions) and state is a state of this module for that batch."""
        C = self.C
        if (
            u.ndim == 2 + len(positions)
            and u.shape[1] == self.d_model
            and state.shape == (u.shape[0], self.d_model, self.d_state // 2)
            and u.dtype is C.dtype
            and state.dtype is _COMPLEX[C.dtype]
            and u.device == state.device == C.device
        ):
            return
        if u.ndim != 2 + len(positions) or u.shape[1] != self.d_model:
            expected_u = ", ".join(("batch", str(self.d_model), *positions))
            raise ValueError(f"expected u of shape ({expected_u}), got {tuple(u.shape)}")
        expected = (u.shape[0], self.d_model, self.d_state // 2)
        if tuple(state.shape) != expected:
            raise ValueError(f"expected state of shape {expected} for u {tuple(u.shape)}, got {tuple(state.shape)}")
        if state.dtype != self._complex_dtype():
            raise TypeError(f"expected state to be {self._complex_dtype()}, got {state.dtype}")
        if torch.promote_types(u.dtype, self.C.dtype) != self.C.dtype:
            raise TypeError(f"expected u to be {self.C.dtype}, got {u.dtype}")
        if not u.device == state.device == C.device:
            where = f"u on {u.device}, state on {state.device}"
            raise ValueError(f"expected u and state on {C.device}, where the parameters are, got {where}")

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, d_state={self.d_state}, channels={self.channels}, n_ssm={self.n_ssm}"


def _found(results: dict[str, Any], compute: Callable[[], T]) -> T:
    if compute.__name__ not in results:
        results[compute.__name__] = compute()
    return results[compute.__name__]


def _wrong_skip(D: Tensor, dtype: torch.dtype, u: Tensor) -> Exception:
    if D.dtype is not dtype:
        return TypeError(f"expected D to be {dtype}, got {D.dtype}")
    if D.shape != u.shape[1:]:
        return ValueError(f"expected D of shape {tuple(u.shape[1:])}, got {tuple(D.shape)}")
    return ValueError(f"expected u and D on one device, got u on {u.device}, D on {D.device}")


def reversed_rows(u: Tensor, lengths: Tensor | None) -> Tensor:
    """u (batch, H, L) with the first ``lengths`` (batch,) samples of each row in reversed order, and zeros behind."""
    if lengths is None:
        return u.flip(-1)
    source = lengths[:, None] - 1 - torch.arange(u.shape[-1], device=u.device)
    source = source[:, None].expand_as(u)
    return torch.where(source < 0, 0, u.gather(-1, source.clamp(min=0)))


def new_parameter(value: Tensor) -> nn.Parameter:
    """A parameter in PyTorch's default dtype, on its default device, that shares no memory with ``value``."""
    device = torch.empty(0).device  # before PyTorch 2.7, get_default_device() does not see `with torch.device(...)`
    return nn.Parameter(value.to(device, torch.get_default_dtype(), copy=True))


def to_pairs(t: Tensor) -> Tensor:
    return torch.view_as_real(t.to(torch.complex128).resolve_conj())


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if sizes["d_state"] % 2:
        raise ValueError(f"d_state must be even (conjugate pairs are stored as halves), got {sizes['d_state']}")


def given_tensors(init: Any, names: str) -> Sequence[Tensor]:
    """``init`` if it is the tensors ``names``; TypeError otherwise."""
    if isinstance(init, Sequence) and len(init) == len(names.split(", ")) and all(isinstance(t, Tensor) for t in init):
        return init
    raise TypeError(f"init must be a name or the tensors ({names}), got {type(init).__name__}")
