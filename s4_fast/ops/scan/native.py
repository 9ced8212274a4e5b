"""The recurrence of a diagonal SSM by the native library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from s4_fast import native_library
from s4_fast.ops.scan import pytorch

__all__ = ["ssm_scan", "ssm_scan_backward", "ssm_step", "ssm_step_backward"]


@dataclass(frozen=True)
class Scan:
    """The functions of a module by the C functions ``<name>`` and ``<name>_backward``."""

    name: str

    def ssm_scan(
        self, u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, time_major: bool
    ) -> tuple[Tensor, Tensor]:
        """u (Bt, H, L), or (Bt, L, H) if ``time_major``, x, B, C (H, n), D (H,) or empty, state (Bt, H, n) or empty
        -> y like u, the state after u."""
        y, final = torch.empty_like(u), x.new_empty(len(u), *x.shape)
        inputs = (u, x, B, C, _given(D), _given(state))
        native_library.call(self.name, u, *_sizes(u, x, time_major), *inputs, y, final, time_major)
        return y, final

    def ssm_scan_backward(
        self,
        grad_y: Tensor | None,
        grad_final: Tensor | None,
        u: Tensor,
        x: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        state: Tensor,
        time_major: bool,
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        tensors = (u, x, B, C, D, state)
        grads = [torch.empty_like(t) if needed else None for t, needed in zip(tensors, needs, strict=True)]
        # The library always writes the gradient of u: the adjoint passes over its samples anyway.
        grad_u = torch.empty_like(u) if grads[0] is None else grads[0]
        given = [None if g is None else _given(g) for g in grads[1:]]
        grad_y = torch.zeros_like(u) if grad_y is None else grad_y
        inputs = (grad_y, grad_final, u, x, B, C, _given(D), _given(state))
        native_library.call(f"{self.name}_backward", u, *_sizes(u, x, time_major), *inputs, grad_u, *given, time_major)
        return tuple(grads)


_SCAN = Scan("scan")
ssm_scan = _SCAN.ssm_scan
ssm_scan_backward = _SCAN.ssm_scan_backward


def ssm_step(u: Tensor, state: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """u (Bt, H), state (Bt, H, n), x, B, C (H, n), D (H,) or empty -> y (Bt, H), the state after (Bt, H, n)."""
    return step(u, state, exponentials(x), B, C, D)


def ssm_step_backward(
    grad_y: Tensor | None,
    grad_next: Tensor | None,
    u: Tensor,
    state: Tensor,
    x: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    if not u.is_cpu:
        return pytorch.ssm_step_backward(grad_y, grad_next, u, state, x, B, C, D, needs)
    tensors = (u, state, x, B, C, D)
    grads = [torch.empty_like(t) if needed else None for t, needed in zip(tensors, needs, strict=True)]
    given = [None if g is None else _given(g) for g in grads]
    inputs = (grad_y, grad_next, u, state, exponentials(x), B, C, _given(D))
    native_library.call("step_backward", u, u.dtype, *state.shape, *inputs, *given)
    return tuple(grads)


def exponentials(x: Tensor) -> Tensor:
    """exp(x) in complex128, as ``step`` takes it."""
    out = torch.empty_like(x, dtype=torch.complex128)
    native_library.call("exp", x, x.dtype, x.numel(), x, out)
    return out


def step(u: Tensor, state: Tensor, lam: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """``ssm_step`` for lam = exp(x) in complex128."""
    y, after = torch.empty_like(u), torch.empty_like(state)
    native_library.call("step", u, u.dtype, *state.shape, u, state, lam, B, C, _given(D), y, after)
    return y, after


def prepared_step(
    lam: Tensor, B: Tensor, C: Tensor
) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """``step`` on the CPU as a function of u, state and D, contiguous in B's precision, of a batch >= 1.

    C has channels, (c, H, n), which become features of y, (Bt, c H).
    """
    c, H, n = C.shape
    lam, B = lam.contiguous(), B.contiguous()
    runs = [
        native_library.Prepared(
            "step", B.dtype, int, H, n, Tensor, Tensor, lam, B, channel.contiguous(), Tensor, Tensor, Tensor
        )
        for channel in C
    ]

    def step(u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
        batch = u.shape[0]
        after = torch.empty_like(state)
        given = (batch, u.data_ptr(), state.data_ptr(), None if D is None else D.data_ptr())
        if c == 1:
            y = torch.empty_like(u)
            runs[0](*given, y.data_ptr(), after.data_ptr())
            return y, after
        rows = u.new_empty((c, batch, H))
        for run, row in zip(runs, rows, strict=True):
            run(*given, row.data_ptr(), after.data_ptr())
        return rows.transpose(0, 1).flatten(1), after

    return step


def _sizes(u: Tensor, x: Tensor, time_major: bool) -> tuple[torch.dtype, int, int, int, int]:
    return u.dtype, len(u), *x.shape, u.shape[1 if time_major else 2]


def _given(t: Tensor) -> Tensor | None:
    return t if t.numel() else None
