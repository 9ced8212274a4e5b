"""One step of a module's recurrence: by a backend that converts its arguments once, or by an op."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from s4_fast import backend_requests, dispatch
from s4_fast.backend_requests import Request
from s4_fast.ops import dplr_step, ssm_step
from s4_fast.ops.direct import plain, runs_directly
from s4_fast.ops.scan.pytorch import following

Outputs = tuple[Tensor, Tensor]
Prepared = Callable[[Tensor, Tensor, "Tensor | None"], Outputs]


class Stepper(ABC):
    """Coefficients, and the backend that steps with them, chosen once for everything that may be asked for.

    ``step(u, state, D)`` takes u (batch, d_model), state (batch, d_model, n), and D (d_model,) or None, all of the
    coefficients' precision and device. It returns y (batch, channels d_model), with D u in every channel, and the
    next state.
    """

    def __init__(self) -> None:
        self._prepared: dict[Request | None, Prepared | None] = {}  # by what is asked for; None where an op does it

    def step(self, u: Tensor, state: Tensor, D: Tensor | None) -> Outputs:
        if not torch.is_grad_enabled() and runs_directly((u, state) if D is None else (u, state, D)):
            asked = backend_requests.find()
            if asked not in self._prepared:
                self._prepared[asked] = self._prepare(u, state)
            prepared = self._prepared[asked]
            if prepared is not None and u.shape[0] and (D is None or D.is_contiguous()):
                if not (u.is_contiguous() and state.is_contiguous()) or u.is_neg() or state.is_neg() or state.is_conj():
                    u, state = map(plain, (u, state))
                return prepared(u, state, D)
        return self._step(u, state, D)

    @abstractmethod
    def _step(self, u: Tensor, state: Tensor, D: Tensor | None) -> Outputs:
        """By whatever backend is asked for, or else one that gradients, graphs and transforms can follow."""

    @abstractmethod
    def _prepare(self, u: Tensor, state: Tensor) -> Prepared | None:
        """The step of the backend that would run, if it prepares steps, whatever the batch."""


def _preparing(op: str, *args: Tensor) -> ModuleType | None:
    """The module that would run, if it prepares steps; a graph or transform would not follow those."""
    if not runs_directly(args):
        return None
    backend = dispatch.explain(op, *args).backend
    prepares = dispatch.offers(op, backend, "prepared_step", args[0].device.type)
    return dispatch.load(op, backend) if prepares else None


class DiagonalStepper(Stepper):
    """``s' = exp(x) s + B u``, ``y = 2 Re C s'``: x, in complex128, and B (d_model, n), C (channels, d_model, n).

    The product is formed in complex128, whatever the state is stored in: float32's roundings of exp(x), and of the
    product, are not random, and add up to 2e-5 over 2000 steps of a weakly damped state.
    """

    def __init__(self, x: Tensor, B: Tensor, C: Tensor) -> None:
        super().__init__()
        self.x, self.B, self.C = x.to(C.dtype), B, C
        self.lam = torch.exp(x)

    def _step(self, u: Tensor, state: Tensor, D: Tensor | None) -> Outputs:
        if dispatch.requested("ssm_step") in (None, "pytorch"):
            state = following(u, state, self.lam, self.B)
            y = 2 * (self.C * state[:, None]).sum(-1).real
            return (y if D is None else y + (D * u)[:, None]).flatten(1), state
        outputs = [ssm_step(u, state, self.x, self.B, C, D) for C in self.C]
        return torch.cat([y for y, _ in outputs], 1), outputs[0][1]

    def _prepare(self, u: Tensor, state: Tensor) -> Prepared | None:
        module = _preparing("ssm_step", u, state, self.x, self.B, self.C[0])
        return None if module is None else module.prepared_step(self.lam, self.B, self.C)


class DPLRStepper(Stepper):
    """``s' = s + increment s - sum_r G_r (2 Re V_r s) + B u``, ``y = 2 Re C s'``; see ``s4_fast.dplr_step``."""

    def __init__(self, increment: Tensor, G: Tensor, V: Tensor, B: Tensor, C: Tensor) -> None:
        super().__init__()
        self.coefficients = (increment, G, V, B, C)

    def _step(self, u: Tensor, state: Tensor, D: Tensor | None) -> Outputs:
        y, after = dplr_step(u, state, *self.coefficients, D)
        return y.flatten(1), after

    def _prepare(self, u: Tensor, state: Tensor) -> Prepared | None:
        module = _preparing("dplr_step", u, state, *self.coefficients)
        return None if module is None else module.prepared_step(*self.coefficients)
