"""The DPLR kernel and step in the native library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s4_fast import native_library
from s4_fast.ops._derivatives import pulled_back
from s4_fast.ops.cauchy.fft_form import adjoint_irfft
from s4_fast.ops.direct import is_transformed, operations_are_seen, plain
from s4_fast.ops.dplr import pytorch
from s4_fast.ops.dplr.factors import Factors

__all__ = ["dplr_kernel", "dplr_kernel_backward", "dplr_step", "prepared_step"]

_WIDE = torch.complex128


@dataclass(frozen=True)
class Kernel:
    """The functions of a module by the C functions ``<name>`` and ``<name>_backward``, the latter of ``adjoint``.

    The adjoint amplifies rounding as the kernel does, so the gradient of the spectrum is made in float64.
    """

    name: str
    adjoint: torch.dtype

    def dplr_kernel(self, w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
        """w (H, n), P, Q (r, H, n), B (b, H, n), C (c, H, n), dt (H, 1 or n) -> (b, c, H, L)."""
        factors = Factors(P, Q, B, C, dt)
        b, c, (H, n) = factors.b, factors.c, w.shape
        spectrum = w.new_empty(b, c, H, L // 2 + 1)
        sizes = (b, c, factors.rank, H, n, L)
        native_library.call(self.name, w, w.dtype, *sizes, factors.v, w, factors.shift, spectrum)
        return torch.fft.irfft(spectrum, n=L)

    def dplr_kernel_backward(
        self,
        grad: Tensor,
        w: Tensor,
        P: Tensor,
        Q: Tensor,
        B: Tensor,
        C: Tensor,
        dt: Tensor,
        L: int,
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        factors = Factors(P, Q, B, C, dt)
        sizes = (factors.b, factors.c, factors.rank, *w.shape, L)
        spectrum = adjoint_irfft(grad.double(), L).to(self.adjoint)
        grad_v = torch.empty_like(factors.v)
        grad_w = torch.empty_like(w, dtype=_WIDE) if needs[0] else None
        inputs = (spectrum, factors.v, w.to(self.adjoint), factors.shift)
        native_library.call(f"{self.name}_backward", w, self.adjoint, *sizes, *inputs, grad_v, grad_w)
        return (None if grad_w is None else grad_w.to(w.dtype), *factors.backward(grad_v))


_KERNEL = Kernel("dplr_spectrum", _WIDE)
dplr_kernel = _KERNEL.dplr_kernel
dplr_kernel_backward = _KERNEL.dplr_kernel_backward


def dplr_step(
    u: Tensor, state: Tensor, increment: Tensor, G: Tensor, V: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor, Tensor]:
    """u (Bt, H), state (Bt, H, n), increment (H, n) in complex128, B (H, n), G, V (r, H, n), C (c, H, n), D (H,) ->
    (Bt, c, H), (Bt, H, n)."""
    tensors = (u, state, increment, G, V, B, C, D)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        y, following = _Step.apply(*tensors)
        return y, following
    return _step(*map(_plain, tensors))


def _step(*tensors: Any) -> tuple[Tensor, Tensor]:
    u, state, C = tensors[0], tensors[1], tensors[6]
    y, following = u.new_empty(u.shape[0], C.shape[0], u.shape[1]), torch.empty_like(state)
    if u.shape[0]:
        native_library.call("dplr_step", u, u.dtype, *_step_sizes(*tensors), *tensors, y, following)
    return y, following


class _Step(torch.autograd.Function):
    """The step on the CPU under autograd. Where a derivative is itself to be derived, the operations of the pytorch
    backend take its place."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return _step(*map(_plain, tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad
        if torch.is_grad_enabled() or operations_are_seen() or is_transformed((*grads, *tensors)):
            return tuple(pulled_back(lambda views: pytorch.dplr_step(*views), grads, tensors, needs))
        grads, tensors = tuple(map(_plain, grads)), tuple(map(_plain, tensors))
        found = [torch.empty_like(t) if needed else None for t, needed in zip(tensors, needs, strict=True)]
        u = tensors[0]
        if not u.numel():
            return tuple(None if g is None else g.zero_() for g in found)
        native_library.call("dplr_step_backward", u, u.dtype, *_step_sizes(*tensors), *grads, *tensors, *found)
        return tuple(found)


def _plain(t: Tensor | None) -> Tensor | None:
    return None if t is None else plain(t)


def _step_sizes(u: Tensor, state: Tensor, increment: Tensor, G: Tensor, *rest: Tensor | None) -> tuple[int, ...]:
    batch, H, n = state.shape
    *_, C, _ = rest
    assert C is not None
    return batch, C.shape[0], G.shape[0], H, n


def prepared_step(
    increment: Tensor, G: Tensor, V: Tensor, B: Tensor, C: Tensor
) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """``dplr_step`` on the CPU as a function of u, state and D, contiguous in C's precision, of a batch >= 1.

    Its y is (Bt, c H).
    """
    (c, H, n), rank = C.shape, G.shape[0]
    tensors = [plain(t) for t in (increment, G, V, B, C)]
    run = native_library.Prepared(
        "dplr_step", C.dtype, int, c, rank, H, n, Tensor, Tensor, *tensors, Tensor, Tensor, Tensor
    )

    def step(u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
        batch = u.shape[0]
        y = torch.empty_like(u) if c == 1 else u.new_empty((batch, c * H))
        following = torch.empty_like(state)
        skip = None if D is None else D.data_ptr()
        run(batch, u.data_ptr(), state.data_ptr(), skip, y.data_ptr(), following.data_ptr())
        return y, following

    return step
