"""Cauchy sums as fused Triton kernels: the nodes and every reciprocal are made in registers.

At the L-th roots of unity, with s = sin(pi k / L) and c = cos(pi k / L),

    rho_k = (c + i s) sum_n v/d + v*/d',   d = 2 i s - w c,   d' = 2 i s - w* c.

Each d is formed in float64, where 2 s - Im(w) c cancels near a pole, and inverted in the precision of the sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s4_fast.ops._triton import LAUNCH, half_angle, load_complex, pairs, store_complex


def cauchy_bilinear(v: Tensor, w: Tensor, L: int) -> Tensor:
    """v (c, H, n), w (H, n) -> (c, H, L//2 + 1)."""
    rows, H, n = v.shape
    out = v.new_empty(rows, H, L // 2 + 1)
    if out.numel() > 0:
        R = min(4, triton.next_power_of_2(rows))
        grid = (H, triton.cdiv(L // 2 + 1, NODES), triton.cdiv(rows, R))
        bilinear_kernel[grid](pairs(v), pairs(w), torch.view_as_real(out), rows, H, n, L, R, NODES, num_warps=4, **LAUNCH)
    return out


def cauchy_bilinear_backward(
    grad: Tensor, v: Tensor, w: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor, Tensor]:
    """grad_v = sum_k g' r* + g'* r', grad_w = v* sum_k c (g' r*^2 + g'* r'^2), r = 1/d, r' = 1/d', g' = (c - i s) g."""
    rows, H, n = v.shape
    R = min(4, triton.next_power_of_2(rows))
    chunks, blocks, steps = triton.cdiv(rows, R), triton.cdiv(n, STATES), triton.cdiv(L // 2 + 1, LANES)
    # Enough programs for the largest GPU. A constant, so that sums do not depend on where they run.
    splits = min(steps, max(1, 1024 // max(1, H * blocks * chunks)))
    grad_v, grad_w = v.new_empty(splits, rows, H, n), v.new_empty(splits, chunks, H, n)
    if grad_v.numel() > 0:
        grid = (H, blocks, splits * chunks)
        bilinear_backward_kernel[grid](
            *(pairs(grad), pairs(v), pairs(w), torch.view_as_real(grad_v), torch.view_as_real(grad_w)),
            *(rows, H, n, L, splits, R, STATES, LANES),
            num_warps=4,
            **LAUNCH,
        )
    return grad_v.sum(0), grad_w.sum((0, 1)).to(w.dtype)


# Nodes of a forward program; states and nodes that a backward program holds at once.
NODES, STATES, LANES = 128, 4, 32


@triton.jit
def resolvents(w_re, w_im, cos, sin, dtype: tl.constexpr):
    """1/d and 1/d' as real and imaginary parts: w and the half angle in float64, the result in ``dtype``."""
    re = (-w_re * cos).to(dtype)
    first, second = (2.0 * sin - w_im * cos).to(dtype), (2.0 * sin + w_im * cos).to(dtype)
    r = 1.0 / (re * re + first * first)
    q = 1.0 / (re * re + second * second)
    return re * r, -first * r, re * q, -second * q


@triton.jit
def bilinear_sums(v, w, row, present, h, H, n, cos, sin, R: tl.constexpr, F: tl.constexpr):
    """The sums of R rows over the states of feature h at F nodes, (R, F); 0 where a row is not ``present``."""
    dtype: tl.constexpr = v.dtype.element_ty
    sums_re, sums_im = tl.zeros((R, F), dtype), tl.zeros((R, F), dtype)
    for state in range(n):
        index = h * n + state
        w_re, w_im = tl.load(w + 2 * index).to(tl.float64), tl.load(w + 2 * index + 1).to(tl.float64)
        v_re, v_im = load_complex(v, row * H * n + index, present)
        r_re, r_im, q_re, q_im = resolvents(w_re, w_im, cos, sin, dtype)
        v_re, v_im = v_re[:, None], v_im[:, None]
        sums_re += v_re * (r_re + q_re)[None, :] - v_im * (r_im - q_im)[None, :]
        sums_im += v_re * (r_im + q_im)[None, :] + v_im * (r_re - q_re)[None, :]
    cos, sin = cos.to(dtype)[None, :], sin.to(dtype)[None, :]
    return cos * sums_re - sin * sums_im, cos * sums_im + sin * sums_re


@triton.jit
def bilinear_kernel(v, w, out, rows, H, n, L, R: tl.constexpr, F: tl.constexpr):
    """F nodes of R rows of one feature."""
    h = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * F + tl.arange(0, F)
    chunk = tl.program_id(2).to(tl.int64)
    last = L // 2
    cos, sin = half_angle(tl.minimum(k, last), L)
    row = chunk * R + tl.arange(0, R)
    re, im = bilinear_sums(v, w, row, row < rows, h, H, n, cos, sin, R, F)
    row = row[:, None]
    store_complex(out, (row * H + h) * (last + 1) + k[None, :], re, im, (row < rows) & (k <= last)[None, :])


@triton.jit
def bilinear_backward_kernel(
    grad, v, w, grad_v, grad_w, rows, H, n, L, splits, R: tl.constexpr, N: tl.constexpr, F: tl.constexpr
):  # fmt: skip
    """The sums of N states of one feature and R rows, over every ``splits``-th block of F nodes.

    Into grad_v[split, row, h, state] and grad_w[split, chunk, h, state].
    """
    dtype: tl.constexpr = v.dtype.element_ty
    h = tl.program_id(0).to(tl.int64)
    state = tl.program_id(1) * N + tl.arange(0, N)
    split, chunk = tl.program_id(2) % splits, (tl.program_id(2) // splits).to(tl.int64)
    row = chunk * R + tl.arange(0, R)
    present = (row < rows)[:, None] & (state < n)[None, :]
    index = (row[:, None] * H + h) * n + state[None, :]
    v_re, v_im = load_complex(v, index, present)
    v_re, v_im = v_re[:, :, None], v_im[:, :, None]
    # No state is 0: at the node k = 0 that is a pole.
    w_re, w_im = load_complex(w, h * n + state, state < n, 1.0)
    w_re, w_im = w_re.to(tl.float64)[:, None], w_im.to(tl.float64)[:, None]
    last = L // 2
    dv_re, dv_im = tl.zeros((R, N, F), dtype), tl.zeros((R, N, F), dtype)
    dw_re, dw_im = tl.zeros((N, F), dtype), tl.zeros((N, F), dtype)
    for start in range(split * F, last + 1, splits * F):
        k = start + tl.arange(0, F).to(tl.int64)
        cos, sin = half_angle(tl.minimum(k, last), L)
        inside = (row < rows)[:, None] & (k <= last)[None, :]
        a, b = load_complex(grad, (row[:, None] * H + h) * (last + 1) + k[None, :], inside)
        r_re, r_im, q_re, q_im = resolvents(w_re, w_im, cos[None, :], sin[None, :], dtype)
        cos, sin = cos.to(dtype)[None, :], sin.to(dtype)[None, :]
        g_re, g_im = (cos * a + sin * b)[:, None, :], (cos * b - sin * a)[:, None, :]
        dv_re += g_re * (r_re + q_re)[None, :, :] + g_im * (r_im + q_im)[None, :, :]
        dv_im += g_im * (r_re - q_re)[None, :, :] - g_re * (r_im - q_im)[None, :, :]
        # The rows are contracted first: G = sum v* g' goes with r*^2, G' = sum v* g'* with r'^2.
        first_re, first_im = tl.sum(v_re * g_re + v_im * g_im, 0), tl.sum(v_re * g_im - v_im * g_re, 0)
        second_re, second_im = tl.sum(v_re * g_re - v_im * g_im, 0), -tl.sum(v_re * g_im + v_im * g_re, 0)
        r_square_re, r_square_im = r_re * r_re - r_im * r_im, -2.0 * r_re * r_im
        q_square_re, q_square_im = q_re * q_re - q_im * q_im, 2.0 * q_re * q_im
        dw_re += cos * (first_re * r_square_re - first_im * r_square_im)
        dw_im += cos * (first_re * r_square_im + first_im * r_square_re)
        dw_re += cos * (second_re * q_square_re - second_im * q_square_im)
        dw_im += cos * (second_re * q_square_im + second_im * q_square_re)
    split = split.to(tl.int64)
    store_complex(grad_v, split * rows * H * n + index, tl.sum(dv_re, 2), tl.sum(dv_im, 2), present)
    chunks = tl.cdiv(rows, R)
    index = ((split * chunks + chunk) * H + h) * n + state
    store_complex(grad_w, index, tl.sum(dw_re, 1), tl.sum(dw_im, 1), state < n)
