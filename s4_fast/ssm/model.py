"""What every state space model offers to the layers above: a kernel, its recurrence over a sequence, and a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from s4_fast import torch_private
from s4_fast.dispatch import Choice
from s4_fast.ops.direct import operations_are_seen
from s4_fast.ssm.memo import Memo, found
from s4_fast.ssm.parameters import COMPLEX, HALF, REAL, SSMParameters, full
from s4_fast.ssm.stepping import Stepper

T = TypeVar("T")


class Scan(NamedTuple):
    """A scan that may run: which backend was chosen, and ``run()``, which gives y and the state after u.

    y is (batch, c d_model, L), or (batch, L, c d_model) where u is time-major.
    """

    choice: Choice
    run: Callable[[], tuple[Tensor, Tensor]]


class SSMModel(SSMParameters):
    """``x' = A x + B u, y = 2 Re C x``: parameters, and what is computed from them.

    Calling a model gives its kernel. It is called where hooks are to see it: a model that has some goes through its
    kernel, and through nothing else, so that what a hook sets (as those of ``torch.nn.utils.prune`` do) and what it
    returns takes effect.
    """

    backend: str | None = None

    def __init__(self, d_model: int, d_state: int, *, channels: int, n_ssm: int | None) -> None:
        super().__init__(d_model, d_state, channels=channels, n_ssm=n_ssm)
        self._memo = Memo()
        self._once: dict[str, Any] | None = None
        self._steps = False  # whether kernels are those of a step

    def forward(self, L: int, rate: float = 1.0) -> Tensor:
        """The first L samples of the kernel, (channels, d_model, L), differentiable in every parameter."""
        return self.kernel(L, rate)

    def seen_kernel(self, L: int, rate: float = 1.0) -> Tensor:
        """:meth:`kernel`, by a call, which hooks see and may change."""
        found: Tensor = self(L, rate)
        return found

    def refresh(self) -> None:
        """Let hooks that run before a call set what they set: masks, norms."""
        if torch_private.has_hooks(self):
            with one_step(self):
                self.seen_kernel(1)

    def prepare(self, L: int) -> None:
        """Make kernels up to length L available, where that takes anything."""

    def sizes(self) -> dict[str, int]:
        """What must be the same in every process that shares a sequence."""
        return {"d_model": self.d_model, "d_state": self.d_state, "channels": self.channels, "n_ssm": self.n_ssm}

    def init_state(self, batch: int) -> Tensor:
        """The zero state, (batch, d_model, n), complex."""
        return torch.zeros((batch, self.d_model, self.d_state // 2), dtype=self.state_dtype(), device=self.C.device)

    def A(self) -> Tensor:
        self._expect_changes()
        return super().A()

    def _expect_changes(self) -> None:
        """Forget what is remembered where gradients are recorded.

        An optimiser's step may follow, and fused ones do not raise the version of a tensor.
        """
        if torch.is_grad_enabled():
            self._memo.forget()

    def kernel(self, L: int, rate: float = 1.0) -> Tensor:
        """The convolution kernel, (channels, d_model, L). Differentiable in every parameter."""
        raise NotImplementedError

    def scans(self) -> bool:
        """Whether :meth:`prepared_scan` computes what the kernel of any length does."""
        return False

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
        """``k * u + D u`` by the recurrence, ready to run.

        Args:
            u: (batch, d_model, L), or (batch, L, d_model) if ``time_major``.
            D: (c, d_model), or (d_model,) for one channel, or None.
            state: the state before, (batch, d_model, n), or None for 0.
            ahead: the state that what follows u leaves behind at its end, in reversed time.
            rate: the sampling rate relative to the parameters' own.
            bidirectional: whether the second half of the channels runs from the end, and meets each sample one later.
            time_major: the layout of u and y.

        Raises:
            BackendUnavailableError: the backend that is asked for has no scan.
        """
        raise NotImplementedError

    def forward_state(
        self, u: Tensor, state: Tensor | None = None, lengths: Tensor | None = None, rate: float = 1.0
    ) -> Tensor:
        """The state after u (batch, d_model, L) from ``state`` (batch, d_model, n), or from zero.

        With ``lengths`` (batch,), integers up to L, the state after as many samples of each row.
        """
        return self.state_after(u, state, lengths, rate)

    def state_after(self, u: Tensor, state: Tensor | None, lengths: Tensor | None, rate: float) -> Tensor:
        """:meth:`forward_state`, in one form whatever a subclass makes of that."""
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
        y, after = self.stepped(u, state, D)
        return y.view(len(u), self.channels, self.d_model), after

    def stepped(self, u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`step` with y (batch, channels d_model), as a layer's output over a sequence is."""
        self.refresh()
        self.check(u, state)
        real = REAL[state.dtype]
        if D is not None:
            D = full(D)
            if not (D.shape == u.shape[1:] and D.dtype is real and D.device == u.device):
                raise _wrong_skip(D, real, u)
        stepper = self.remembered("stepper", self._stepper)
        if u.dtype is real:
            return stepper.step(u, state, D)
        y, after = stepper.step(u.to(real), state, D)
        return (y.to(u.dtype) if u.dtype in HALF else y), after

    def _stepper(self) -> Stepper:
        raise NotImplementedError

    def check(self, u: Tensor, state: Tensor, *positions: str) -> None:
        """Raise unless u is (batch, d_model, *positions) and state is a state of this model for that batch."""
        C, ndim = self.C, 2 + len(positions)
        wanted = COMPLEX[C.dtype]
        real = REAL[wanted]
        if (
            u.ndim == ndim
            and u.shape[1] == self.d_model
            and state.shape == (u.shape[0], self.d_model, self.d_state // 2)
            and (u.dtype is real or u.dtype in HALF)
            and state.dtype is wanted
            and u.device == state.device == C.device
        ):
            return
        if u.ndim != ndim or u.shape[1] != self.d_model:
            expected_u = ", ".join(("batch", str(self.d_model), *positions))
            raise ValueError(f"expected u of shape ({expected_u}), got {tuple(u.shape)}")
        expected = (u.shape[0], self.d_model, self.d_state // 2)
        if tuple(state.shape) != expected:
            raise ValueError(f"expected state of shape {expected} for u {tuple(u.shape)}, got {tuple(state.shape)}")
        if state.dtype != wanted:
            raise TypeError(f"expected state to be {wanted}, got {state.dtype}")
        if torch.promote_types(u.dtype, real) != real:
            raise TypeError(f"expected u to be {real}, got {u.dtype}")
        if not u.device == state.device == C.device:
            where = f"u on {u.device}, state on {state.device}"
            raise ValueError(f"expected u and state on {C.device}, where the parameters are, got {where}")

    def remembered(self, name: str, compute: Callable[[], T]) -> T:
        """``compute()``, remembered without its graph while no parameter changes and no gradient is recorded.

        A change is seen by a tensor's memory or version, and by a call that recorded gradients in between. Writing
        into ``.data`` leaves no trace, nor does what FSDP writes, under which nothing is remembered.
        """
        if not self._remembers():
            return compute() if self._once is None else found(self._once, name, compute)
        if torch_private.own_modules(self):  # those of parametrizations
            tensors: tuple[Tensor | None, ...] = (*self.parameters(), *self.buffers())
        else:
            tensors = torch_private.own_tensors(self)
        return self._memo.get(name, tensors, compute)

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
        """Whether :meth:`remembered` does."""
        return not (torch.is_grad_enabled() or operations_are_seen() or torch_private.is_sharded(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **self._uncopied()}

    def _uncopied(self) -> dict[str, Any]:
        return {"_memo": Memo(), "_once": None, "_steps": False}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._memo.forget()  # inference tensors have no version that would show the change


def one_step(module: nn.Module) -> AbstractContextManager[None]:
    """A block in which the models inside ``module`` make kernels of one sample, for a step that hooks see.

    None is set up for them: a step without hooks sets up nothing either.
    """
    return nullcontext() if torch.compiler.is_compiling() else _one_step(module)


@contextmanager
def _one_step(module: nn.Module) -> Iterator[None]:
    models = [(m, m._steps) for m in module.modules() if isinstance(m, SSMModel)]
    try:
        for m, _ in models:
            m._steps = True
        yield
    finally:
        for m, before in models:
            m._steps = before


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
