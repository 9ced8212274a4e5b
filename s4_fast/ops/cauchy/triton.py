"""Cauchy sums as fused Triton kernels: every reciprocal is made in registers and used for all rows of v.

A sum over pairs is sum_n v/d + v*/d' with d = z - w and d' = z - w*. At the L-th roots of unity it is, with
s = sin(pi k / L) and c = cos(pi k / L),

    rho_k = (c + i s) sum_n v/d + v*/d',   d = 2 i s - w c,   d' = 2 i s - w* c,

where no z is read. There d is formed in float64, as 2 s - Im(w) c cancels near a pole.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, conj_physical

from s4_fast.ops._triton import LAUNCH, half_angle, load_complex, pairs, store_complex

# Nodes of a forward program; states and nodes that a backward program holds at once.
NODES, STATES, LANES = 128, 4, 32

# Programs that fill the largest GPU a few times over. A constant, so that sums do not depend on where they run.
_PROGRAMS = 1024


def cauchy_mult(v: Tensor, z: Tensor, w: Tensor, symmetric: bool) -> Tensor:
    """v (c, H, n), z (1 or H, Lz), w (H, n) -> (c, H, Lz)."""
    return _sums(v, z, w, z.shape[1], "pairs" if symmetric else "single")


def cauchy_mult_backward(
    grad: Tensor, v: Tensor, z: Tensor, w: Tensor, symmetric: bool, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With r = 1/d, r' = 1/d': grad_v = sum_z g r* + g* r', grad_w = v* sum_z g r*^2 + g* r'^2.

    grad_z = -g (sum_n v r^2 + v* r'^2)*, summed over what shares z.
    """
    form = "pairs" if symmetric else "single"
    grad_v = grad_z = grad_w = None
    if needs[0] or needs[2]:
        grad_v, grad_w = _sums_backward(grad, v, z, w, z.shape[1], form)
    if needs[1]:
        grad_z = -(grad * conj_physical(_sums(v, z, w, z.shape[1], form, power=2))).sum(0)
        grad_z = grad_z if z.shape[0] > 1 else grad_z.sum(0, keepdim=True)
    return grad_v, grad_z, grad_w


def cauchy_bilinear(v: Tensor, w: Tensor, L: int) -> Tensor:
    """v (c, H, n), w (H, n) -> (c, H, L//2 + 1)."""
    return _sums(v, w, w, L, "bilinear")


def cauchy_bilinear_backward(
    grad: Tensor, v: Tensor, w: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor, Tensor]:
    """With g' = (c - i s) g: grad_v = sum_k g' r* + g'* r', grad_w = v* sum_k c (g' r*^2 + g'* r'^2)."""
    return _sums_backward(grad, v, w, w, L, "bilinear")


def _sums(v: Tensor, z: Tensor, w: Tensor, L: int, form: str, power: int = 1) -> Tensor:
    """The sums with v/d^power for all rows, (rows, H, nodes). The bilinear form reads no z."""
    rows, H, n = v.shape
    nodes = L // 2 + 1 if form == "bilinear" else L
    out = v.new_empty(rows, H, nodes)
    R = min(4, triton.next_power_of_2(rows))
    sums_kernel[(H * triton.cdiv(nodes, NODES), triton.cdiv(rows, R))](
        *(pairs(v), pairs(z), pairs(w), torch.view_as_real(out)),
        *(rows, H, n, L, z.shape[0], form, power, R, NODES),
        num_warps=4,
        **LAUNCH,
    )
    return out


def _sums_backward(grad: Tensor, v: Tensor, z: Tensor, w: Tensor, L: int, form: str) -> tuple[Tensor, Tensor]:
    """The gradients of v and w."""
    rows, H, n = v.shape
    R = min(4, triton.next_power_of_2(rows))
    chunks, blocks, steps = triton.cdiv(rows, R), triton.cdiv(n, STATES), triton.cdiv(grad.shape[-1], LANES)
    splits = min(steps, max(1, _PROGRAMS // (H * blocks * chunks)))
    grad_v, grad_w = v.new_empty(splits, rows, H, n), v.new_empty(splits, chunks, H, n)
    sums_backward_kernel[(H, blocks, splits * chunks)](
        *(pairs(grad), pairs(v), pairs(z), pairs(w), torch.view_as_real(grad_v), torch.view_as_real(grad_w)),
        *(rows, H, n, L, z.shape[0], splits, form, R, STATES, LANES),
        num_warps=4,
        **LAUNCH,
    )
    return grad_v.sum(0), grad_w.sum((0, 1)).to(w.dtype)


@triton.jit
def _nodes(z, z_rows, h, k, L, form: tl.constexpr):
    """Real and imaginary parts of the nodes k, or cos and sin of pi k / L in the bilinear form."""
    if form == "bilinear":
        a, b = half_angle(tl.minimum(k, L // 2), L)
    else:
        a, b = load_complex(z, h % z_rows * L + tl.minimum(k, L - 1), k >= 0)
    return a, b


@triton.jit
def _reciprocals(w_re, w_im, a, b, form: tl.constexpr, dtype: tl.constexpr):
    """1/d and 1/d' in ``dtype``, for nodes a, b of ``_nodes``."""
    if form == "bilinear":
        w_re, w_im = w_re.to(tl.float64), w_im.to(tl.float64)
        re, first, second = (-w_re * a).to(dtype), (2.0 * b - w_im * a).to(dtype), (2.0 * b + w_im * a).to(dtype)
    else:
        re, first, second = a - w_re, b - w_im, b + w_im
    r = 1.0 / (re * re + first * first)
    q = r * 0.0 if form == "single" else 1.0 / (re * re + second * second)
    return re * r, -first * r, re * q, -second * q


@triton.jit
def row_sums(
    v, w, row, present, h, H, n, a, b, form: tl.constexpr, power: tl.constexpr, R: tl.constexpr, F: tl.constexpr
):  # fmt: skip
    """The sums of R rows over the states of feature h at F nodes, (R, F); 0 where a row is not ``present``."""
    dtype: tl.constexpr = v.dtype.element_ty
    sums_re, sums_im = tl.zeros((R, F), dtype), tl.zeros((R, F), dtype)
    for state in range(n):
        index = h * n + state
        w_re, w_im = tl.load(w + 2 * index), tl.load(w + 2 * index + 1)
        v_re, v_im = load_complex(v, row * H * n + index, present)
        v_re, v_im = v_re[:, None], v_im[:, None]
        r_re, r_im, q_re, q_im = _reciprocals(w_re, w_im, a, b, form, dtype)
        if power == 2:
            r_re, r_im = r_re * r_re - r_im * r_im, 2.0 * r_re * r_im
            q_re, q_im = q_re * q_re - q_im * q_im, 2.0 * q_re * q_im
        sums_re += v_re * (r_re + q_re)[None, :] - v_im * (r_im - q_im)[None, :]
        sums_im += v_re * (r_im + q_im)[None, :] + v_im * (r_re - q_re)[None, :]
    if form == "bilinear":
        cos, sin = a.to(dtype)[None, :], b.to(dtype)[None, :]
        sums_re, sums_im = cos * sums_re - sin * sums_im, cos * sums_im + sin * sums_re
    return sums_re, sums_im


@triton.jit
def sums_kernel(
    v, z, w, out, rows, H, n, L, z_rows,
    form: tl.constexpr, power: tl.constexpr, R: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """F nodes of R rows of one feature."""
    nodes = L // 2 + 1 if form == "bilinear" else L
    blocks = tl.cdiv(nodes, F)
    h = (tl.program_id(0) // blocks).to(tl.int64)
    k = (tl.program_id(0) % blocks).to(tl.int64) * F + tl.arange(0, F)
    row = tl.program_id(1).to(tl.int64) * R + tl.arange(0, R)
    a, b = _nodes(z, z_rows, h, k, L, form)
    re, im = row_sums(v, w, row, row < rows, h, H, n, a, b, form, power, R, F)
    row, k = row[:, None], k[None, :]
    store_complex(out, (row * H + h) * nodes + k, re, im, (row < rows) & (k < nodes))


@triton.jit
def sums_backward_kernel(
    grad, v, z, w, grad_v, grad_w, rows, H, n, L, z_rows, splits,
    form: tl.constexpr, R: tl.constexpr, N: tl.constexpr, F: tl.constexpr,
):  # fmt: skip
    """The sums over every ``splits``-th block of F nodes, for N states of one feature and R rows.

    Into grad_v[split, row, h, state] and grad_w[split, chunk of rows, h, state].
    """
    dtype: tl.constexpr = v.dtype.element_ty
    h = tl.program_id(0).to(tl.int64)
    state = tl.program_id(1) * N + tl.arange(0, N)
    split, chunk = (tl.program_id(2) % splits).to(tl.int64), (tl.program_id(2) // splits).to(tl.int64)
    row = chunk * R + tl.arange(0, R)
    present = (row < rows)[:, None] & (state < n)[None, :]
    index = (row[:, None] * H + h) * n + state[None, :]
    v_re, v_im = load_complex(v, index, present)
    v_re, v_im = v_re[:, :, None], v_im[:, :, None]
    w_re, w_im = load_complex(w, h * n + state, state < n, 1.0)
    w_re, w_im = w_re[:, None], w_im[:, None]
    nodes = L // 2 + 1 if form == "bilinear" else L
    dv_re, dv_im = tl.zeros((R, N, F), dtype), tl.zeros((R, N, F), dtype)
    dw_re, dw_im = tl.zeros((N, F), dtype), tl.zeros((N, F), dtype)
    for start in range(tl.program_id(2) % splits * F, nodes, splits * F):
        k = start + tl.arange(0, F).to(tl.int64)
        a, b = _nodes(z, z_rows, h, k, L, form)
        inside = (row < rows)[:, None] & (k < nodes)[None, :]
        g_re, g_im = load_complex(grad, (row[:, None] * H + h) * nodes + k[None, :], inside)
        r_re, r_im, q_re, q_im = _reciprocals(w_re, w_im, a[None, :], b[None, :], form, dtype)
        if form == "bilinear":
            cos, sin = a.to(dtype)[None, :], b.to(dtype)[None, :]
            g_re, g_im = cos * g_re + sin * g_im, cos * g_im - sin * g_re
        g_re, g_im = g_re[:, None, :], g_im[:, None, :]
        dv_re += g_re * (r_re + q_re)[None, :, :] + g_im * (r_im + q_im)[None, :, :]
        dv_im += g_im * (r_re - q_re)[None, :, :] - g_re * (r_im - q_im)[None, :, :]
        # Contract the rows first: sum v* g goes with r*^2, sum v* g* with r'^2.
        first_re, first_im = tl.sum(v_re * g_re + v_im * g_im, 0), tl.sum(v_re * g_im - v_im * g_re, 0)
        second_re, second_im = tl.sum(v_re * g_re - v_im * g_im, 0), -tl.sum(v_re * g_im + v_im * g_re, 0)
        r_re, r_im = r_re * r_re - r_im * r_im, -2.0 * r_re * r_im
        q_re, q_im = q_re * q_re - q_im * q_im, 2.0 * q_re * q_im
        step_re = first_re * r_re - first_im * r_im + second_re * q_re - second_im * q_im
        step_im = first_re * r_im + first_im * r_re + second_re * q_im + second_im * q_re
        if form == "bilinear":
            step_re, step_im = cos * step_re, cos * step_im
        dw_re += step_re
        dw_im += step_im
    store_complex(grad_v, split * rows * H * n + index, tl.sum(dv_re, 2), tl.sum(dv_im, 2), present)
    chunks = tl.num_programs(2) // splits
    index = ((split * chunks + chunk) * H + h) * n + state
    store_complex(grad_w, index, tl.sum(dw_re, 1), tl.sum(dw_im, 1), state < n)
