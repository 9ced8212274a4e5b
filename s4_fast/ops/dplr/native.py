"""The DPLR kernel and step in the native library (csrc/cpu/dplr.isa.cpp, dplr_step.isa.cpp)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from s4_fast import native_library
from s4_fast.ops.cauchy.fft_form import adjoint_irfft
from s4_fast.ops.direct import plain
from s4_fast.ops.dplr.factors import Factors

_WIDE = torch.complex128


def dplr_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """w (H, n), P, Q (r, H, n), B (b, H, n), C (c, H, n), dt (H, 1 or n) -> (b, c, H, L)."""
    factors = Factors(P, Q, B, C, dt)
    b, c, (H, n) = factors.b, factors.c, w.shape
    spectrum = w.new_empty(b, c, H, L // 2 + 1)
    sizes = (b, c, factors.rank, H, n, L)
    native_library.call("dplr_spectrum", w, w.dtype, *sizes, factors.v, w, factors.shift, spectrum)
    return torch.fft.irfft(spectrum, n=L)


def dplr_kernel_backward(
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
    # The adjoint amplifies rounding as the kernel does, so the gradient of the spectrum is float64 too.
    spectrum = adjoint_irfft(grad.double(), L)
    grad_v = torch.empty_like(factors.v)
    grad_w = torch.empty_like(w, dtype=_WIDE) if needs[0] else None
    native_library.call(
        "dplr_spectrum_backward", w, _WIDE, *sizes, spectrum, factors.v, w.to(_WIDE), factors.shift, grad_v, grad_w
    )
    return (None if grad_w is None else grad_w.to(w.dtype), *factors.backward(grad_v))


def dplr_step(
    u: Tensor, state: Tensor, increment: Tensor, G: Tensor, V: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor, Tensor]:
    """u (Bt, H), state (Bt, H, n), increment (H, n) in complex128, B (H, n), G, V (r, H, n), C (c, H, n), D (H,) ->
    (Bt, c, H), (Bt, H, n)."""
    batch, H, n = state.shape
    y, following = u.new_empty(batch, C.shape[0], H), torch.empty_like(state, memory_format=torch.contiguous_format)
    tensors = [plain(t) for t in (u, state, increment, G, V, B, C)]
    sizes = (batch, C.shape[0], G.shape[0], H, n)
    if batch:
        native_library.call("dplr_step", u, u.dtype, *sizes, *tensors, None if D is None else plain(D), y, following)
    return y, following


def prepared_step(
    increment: Tensor, G: Tensor, V: Tensor, B: Tensor, C: Tensor
) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """:func:`dplr_step` on the CPU as a function of u, state and D, contiguous in C's precision, of a batch >= 1."""
    (c, H, n), rank = C.shape, G.shape[0]
    tensors = [plain(t) for t in (increment, G, V, B, C)]
    run = native_library.Prepared(
        "dplr_step", C.dtype, int, c, rank, H, n, Tensor, Tensor, *tensors, Tensor, Tensor, Tensor
    )

    def step(u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
        batch = u.shape[0]
        y, following = u.new_empty((batch, c, H)), torch.empty_like(state)
        skip = None if D is None else D.data_ptr()
        run(batch, u.data_ptr(), state.data_ptr(), skip, y.data_ptr(), following.data_ptr())
        return y, following

    return step
