"""The DPLR convolution kernel as fused Triton kernels: Cauchy sums and Woodbury correction in registers.

One kernel writes the finished spectrum, the Schur complement of M (factors.py). Its adjoint recomputes the sums and
writes their gradients, which the backward kernel of the Cauchy sums reduces over the nodes. All of it is float64: the
Woodbury quotient amplifies the rounding of the sums, for the gradient of weakly damped poles (LegT) by up to 10^6.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s4_fast.ops._triton import LAUNCH, half_angle, load_complex, pairs, store_complex, times
from s4_fast.ops.cauchy.fft_form import adjoint_irfft
from s4_fast.ops.cauchy.triton import cauchy_bilinear_backward, row_sums
from s4_fast.ops.dplr.factors import Factors


def dplr_kernel(w: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: Tensor, L: int) -> Tensor:
    """w (H, n), P, Q (r, H, n), B (b, H, n), C (c, H, n), dt (H, 1 or n) -> (b, c, H, L)."""
    factors = Factors(P, Q, B, C, dt)
    spectrum = w.new_empty(B.shape[0], C.shape[0], w.shape[0], L // 2 + 1)
    _launch(spectrum_kernel, factors, w, L, torch.view_as_real(spectrum))
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
    spectrum = adjoint_irfft(grad.double(), L)
    grad_rho = spectrum.new_empty(factors.v.shape[0], w.shape[0], L // 2 + 1)
    _launch(spectrum_backward_kernel, factors, w, L, pairs(spectrum), torch.view_as_real(grad_rho))
    grad_v, grad_w = cauchy_bilinear_backward(grad_rho, factors.v, w, L, (True, needs[0]))
    return (grad_w, *factors.backward(grad_v))


def _launch(kernel: triton.JITFunction, factors: Factors, w: Tensor, L: int, *tensors: Tensor) -> None:
    """Run ``kernel`` on every node of every feature."""
    b, c, rank = factors.b, factors.c, factors.rank
    H, n = w.shape
    rows, columns = (triton.next_power_of_2(size + rank) for size in (c, b))
    # A thread keeps the whole M of its node where that is small, and half of it where it is not.
    nodes = 128 if rows * columns <= 8 else 64
    kernel[(H * triton.cdiv(L // 2 + 1, nodes),)](
        *(pairs(factors.v), pairs(w), factors.shift, *tensors, H, n, L),
        *(b, c, rank, rows, columns, nodes),
        num_warps=4,
        **LAUNCH,
    )


@triton.jit
def _take(re, im, here, axis: tl.constexpr):
    """The one entry along ``axis`` where ``here`` is true, with the axis kept."""
    re, im = tl.where(here, re, 0.0), tl.where(here, im, 0.0)
    return tl.expand_dims(tl.sum(re, axis), axis), tl.expand_dims(tl.sum(im, axis), axis)


@triton.jit
def _pivot(re, im, i, j, p, q):
    """Column q, row p and the reciprocal of entry (p, q) of M (I, J, F)."""
    column_re, column_im = _take(re, im, j == q, 1)
    row_re, row_im = _take(re, im, i == p, 0)
    pivot_re, pivot_im = _take(row_re, row_im, j == q, 1)
    scale = 1.0 / (pivot_re * pivot_re + pivot_im * pivot_im)
    return column_re, column_im, row_re, row_im, pivot_re * scale, -pivot_im * scale


@triton.jit
def _nodes(L, F: tl.constexpr):
    """The program's feature and F nodes k (beyond the last one: the last one's values), cos and sin of pi k / L."""
    blocks = tl.cdiv(L // 2 + 1, F)
    k = (tl.program_id(0) % blocks).to(tl.int64) * F + tl.arange(0, F)
    cos, sin = half_angle(tl.minimum(k, L // 2), L)
    return (tl.program_id(0) // blocks).to(tl.int64), k, cos, sin


@triton.jit
def _eliminated(
    v, w, shift, h, H, n, cos, sin,
    b: tl.constexpr, c: tl.constexpr, rank: tl.constexpr, I: tl.constexpr, J: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """M (I, J, F) after elimination: k where i < c and j < b, and what each step read where it read it."""
    r = tl.arange(0, I * J).to(tl.int64)
    row = (r // J) * (b + rank) + r % J
    present = (r // J < c + rank) & (r % J < b + rank)
    re, im = row_sums(v, w, row, present, h, H, n, cos, sin, "bilinear", 1, I * J, F)
    lower = (r // J >= c)[:, None]
    half_re, half_im = (cos * cos)[None, :], (-cos * sin)[None, :]
    re, im = tl.where(lower, half_re * re - half_im * im, re), tl.where(lower, half_re * im + half_im * re, im)
    re += tl.load(shift + row * H + h, present, 0.0)[:, None]
    re, im = tl.reshape(re, (I, J, F)), tl.reshape(im, (I, J, F))
    i, j = tl.arange(0, I)[:, None, None], tl.arange(0, J)[None, :, None]
    for step in tl.static_range(rank):
        p = c + rank - 1 - step
        q = b + rank - 1 - step
        column_re, column_im, row_re, row_im, inverse_re, inverse_im = _pivot(re, im, i, j, p, q)
        row_re, row_im = times(row_re, row_im, inverse_re, inverse_im)
        left = (i < p) & (j < q)
        re -= tl.where(left, column_re * row_re - column_im * row_im, 0.0)
        im -= tl.where(left, column_re * row_im + column_im * row_re, 0.0)
    return re, im


@triton.jit
def spectrum_kernel(
    v, w, shift, out, H, n, L,
    b: tl.constexpr, c: tl.constexpr, rank: tl.constexpr, I: tl.constexpr, J: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """F nodes of the spectrum (b, c, H, L//2 + 1) of one feature."""
    h, k, cos, sin = _nodes(L, F)
    re, im = _eliminated(v, w, shift, h, H, n, cos, sin, b, c, rank, I, J, F)
    i, j = tl.arange(0, I)[:, None, None], tl.arange(0, J)[None, :, None]
    last = L // 2
    k = k[None, None, :]
    dtype: tl.constexpr = out.dtype.element_ty
    index = ((j * c + i) * H + h) * (last + 1) + k
    store_complex(out, index, re.to(dtype), im.to(dtype), (i < c) & (j < b) & (k <= last))


@triton.jit
def spectrum_backward_kernel(
    v, w, shift, grad, grad_rho, H, n, L,
    b: tl.constexpr, c: tl.constexpr, rank: tl.constexpr, I: tl.constexpr, J: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """The gradients of all sums, ((c + rank) (b + rank), H, L//2 + 1), for that of the spectrum, at F nodes."""
    h, k, cos, sin = _nodes(L, F)
    re, im = _eliminated(v, w, shift, h, H, n, cos, sin, b, c, rank, I, J, F)
    i, j = tl.arange(0, I)[:, None, None], tl.arange(0, J)[None, :, None]
    last = L // 2
    k = k[None, None, :]
    inside = (i < c) & (j < b) & (k <= last)
    g_re, g_im = load_complex(grad, ((j * c + i) * H + h) * (last + 1) + k, inside)
    # Each step of the elimination backwards: d row = -(column / pivot)^H dM, then d column = -dM (row / pivot)^H.
    for step in tl.static_range(rank):
        p = c + step
        q = b + step
        column_re, column_im, row_re, row_im, inverse_re, inverse_im = _pivot(re, im, i, j, p, q)
        a_re, a_im = times(column_re, column_im, inverse_re, inverse_im)
        d_re, d_im = times(a_re, -a_im, g_re, g_im)
        d_re, d_im = tl.expand_dims(tl.sum(d_re, 0), 0), tl.expand_dims(tl.sum(d_im, 0), 0)
        g_re, g_im = tl.where(i == p, -d_re, g_re), tl.where(i == p, -d_im, g_im)
        a_re, a_im = times(row_re, row_im, inverse_re, inverse_im)
        d_re, d_im = times(a_re, -a_im, g_re, g_im)
        d_re, d_im = tl.expand_dims(tl.sum(d_re, 1), 1), tl.expand_dims(tl.sum(d_im, 1), 1)
        g_re, g_im = tl.where(j == q, -d_re, g_re), tl.where(j == q, -d_im, g_im)
    lower = i >= c
    half_re, half_im = (cos * cos)[None, None, :], (cos * sin)[None, None, :]
    out_re = tl.where(lower, half_re * g_re - half_im * g_im, g_re)
    out_im = tl.where(lower, half_re * g_im + half_im * g_re, g_im)
    present = (i < c + rank) & (j < b + rank) & (k <= last)
    store_complex(grad_rho, ((i * (b + rank) + j) * H + h) * (last + 1) + k, out_re, out_im, present)
