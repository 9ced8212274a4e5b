"""What every state space model offers to the layers above: a kernel, its recurrence over a sequence, and a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from s4_fast import torch_private
from s4_fast.dispatch import BackendUnavailableError, Choice
from s4_fast.ops.direct import operations_are_seen
from s4_fast.ssm import opaque, real
from s4_fast.ssm.memo import Memo
from s4_fast.ssm.parameters import COMPLEX, HALF, REAL, SSMParameters, full, logarithms
from s4_fast.ssm.stepping import Stepper
from s4_fast.torchscript import refuse_tracing

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
    scan_op = "diagonal_ssm"
    is_part_of_layer = True

    def __init__(self, d_model: int, d_state: int, *, channels: int, n_ssm: int | None) -> None:
        super().__init__(d_model, d_state, channels=channels, n_ssm=n_ssm)
        self._memo = Memo()

    def forward(self, L: int, rate: float = 1.0) -> Tensor:
        """The first L samples of the kernel, (channels, d_model, L), differentiable in every parameter."""
        return self.impulse_response(L, rate)

    def seen_response(self, L: int, rate: float = 1.0) -> Tensor:
        """``impulse_response``, by a call, which hooks see and may change."""
        found: Tensor = self(L, rate)
        return found

    def refresh(self) -> None:
        """Let hooks that run before a call set what they set: masks, norms; steps do it, and users need not."""
        if torch_private.has_hooks(self):
            self.seen_response(1)

    def sizes(self) -> dict[str, int]:
        """What must be the same in every process that shares a sequence."""
        return {"d_model": self.d_model, "d_state": self.d_state, "channels": self.channels, "n_ssm": self.n_ssm}

    def init_state(self, batch: int) -> Tensor:
        """The zero state, (batch, d_model, n), complex."""
        return torch.zeros((batch, self.d_model, self.d_state // 2), dtype=self.state_dtype(), device=self.C.device)

    def impulse_response(self, L: int, rate: float = 1.0) -> Tensor:
        """The convolution kernel, (channels, d_model, L). Differentiable in every parameter."""
        raise NotImplementedError

    def scans(self) -> bool:
        """Whether ``prepared_scan`` computes what the kernel of any length does, as the parameters are now."""
        return False

    def prepare(self, L: int, rate: float = 1.0) -> None:
        """What is to be done before a sequence of L samples; layers do it, and users need not."""

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
        """``forward_state``, in one form whatever a subclass makes of that."""
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
        """One step from ``state`` (batch, d_model, n), as ``init_state`` or ``forward_state`` returns it.

        A step of the native library takes tens of microseconds. Without gradients, on a CPU, it remembers what depends
        on the parameters alone, and compares their numbers with those that it was computed from.

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
            BackendUnavailableError: the backend asked for (``s4_fast.use_backend``) cannot step.
        """
        y, after = self.stepped(u, state, D)
        return y.view(len(u), self.channels, self.d_model), after

    def stepped(self, u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
        """``step`` with y (batch, channels d_model), as a layer's output over a sequence is."""
        refuse_tracing()
        self.refresh()
        self.check(u, state)
        real = REAL[state.dtype]
        if D is not None:
            D = full(D)
            if not (D.shape == u.shape[1:] and D.dtype is real and D.device == u.device):
                raise _wrong_skip(D, real, u)
        wide = u if u.dtype is real else u.to(real)
        found = self._in_graph(wide, state, D) if torch.compiler.is_compiling() else self._scanned(wide, state, D)
        y, after = self.remembered("stepper", self._stepper).step(wide, state, D) if found is None else found
        return (y.to(u.dtype) if u.dtype in HALF else y), after

    def step_kind(self) -> str | None:
        """What ``s4_fast.ssm.opaque`` and ``s4_fast.ssm.real`` call steps of this model, None where they know
        none: a subclass may compute anything."""
        return None

    def _in_graph(self, u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """A step of a compiled graph by an op that remembers, or of an exported one in real arithmetic."""
        kind = self.step_kind()
        if kind is None or torch_private.own_modules(self) or torch_private.is_sharded(self):
            return None
        values, P = self.as_stored(), getattr(self, "P", None)
        if torch_private.is_exporting():
            found = real.coefficients(logarithms(*map(full, values)), None if P is None else full(P), kind)
            y, after = found.step(u, torch.view_as_real(state.resolve_conj()), D)
            return y, torch.view_as_complex(after)
        read = [*values, *(t for t in (u, state, D, P) if t is not None)]
        return opaque.step(u, state, D, values, P, kind) if opaque.runs(read) else None

    def _scanned(self, u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """A step as a scan over one sample, by the native library, where nothing is remembered for steps."""
        if (u.is_cpu and not torch.is_grad_enabled()) or operations_are_seen() or not self.scans():
            return None
        skip = D if D is None or self.channels == 1 else D.expand(self.channels, -1)
        try:
            scan = self.prepared_scan(u[..., None], skip, state)
        except BackendUnavailableError:  # there may be one that only steps
            return None
        if scan.choice.backend != "native":
            return None
        y, after = scan.run()
        return y[..., 0], after

    def _stepper(self) -> Stepper:
        raise NotImplementedError

    def check(self, u: Tensor, state: Tensor, *positions: str) -> None:
        """Raise unless u is (batch, d_model, *positions) and state is a state of this model for that batch."""
        if not isinstance(state, Tensor):
            raise TypeError(f"expected state to be a tensor, as init_state() returns it, got {type(state).__name__}")
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
        """``compute()``, of the parameters alone, remembered without its graph while their numbers are the same.

        Nothing is remembered where gradients are recorded, operations are seen, or the parameters are made of others or
        sharded; nor on other devices than CPUs, which a comparison would wait for.
        """
        tensors = [t for t in torch_private.own_tensors(self) if t is not None]
        if (
            torch.is_grad_enabled()
            or operations_are_seen()
            or torch_private.has_dual_level()
            or not all([t.is_cpu for t in tensors])
            or torch_private.has_hooks(self)
            or torch_private.own_modules(self)
            or torch_private.is_sharded(self)
        ):
            return compute()
        return self._memo.get(name, tensors, self.settings(), compute)

    def settings(self) -> tuple[Any, ...]:
        """What, besides tensors, decides what is computed of the parameters."""
        return ()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **self._uncopied()}

    def _uncopied(self) -> dict[str, Any]:
        return {"_memo": Memo()}


def _wrong_skip(D: Tensor, dtype: torch.dtype, u: Tensor) -> Exception:
    if D.dtype is not dtype:
        return TypeError(f"expected D to be {dtype}, got {D.dtype}")
    if D.shape != u.shape[1:]:
        return ValueError(f"expected D of shape {tuple(u.shape[1:])}, got {tuple(D.shape)}")
    return ValueError(f"expected u and D on one device, got u on {u.device}, D on {D.device}")


def ended(u: Tensor, lengths: Tensor) -> Tensor:
    """u (batch, H, L), whose rows are ``lengths`` (batch,) long, with zeros before them, so that they end together."""
    source = torch.arange(-u.shape[-1], 0, device=u.device) + lengths[:, None]
    source = source[:, None].expand_as(u)
    return torch.where(source < 0, 0, u.gather(-1, source.clamp(min=0)))
