"""Vandermonde products as fused Triton kernels: tables of powers made in registers, multiplied on tensor cores.

With l = l_m + t, l_m = m T, a tile of M x T outputs is one real matrix product over the states,

    K[m, t] = sum_n Re(v_n lambda_n^{l_m}) Re(lambda_n^t) - Im(v_n lambda_n^{l_m}) Im(lambda_n^t),

and the moments sum_l u_l lambda^l and sum_l l u_l lambda^l are the transposed one, with u as an M x T matrix.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, conj_physical

from s4_fast.ops._triton import LAUNCH, load_complex, log_node, pairs, power, product_precision, store_complex


def log_vandermonde(v: Tensor, x: Tensor, L: int) -> Tensor:
    """v (c, H, n), x (H, n) -> (c, H, L)."""
    return _synthesize(v, x, L, 2.0)


def log_vandermonde_backward(
    grad: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """grad_v = 2 (sum_l g_l lambda^l)*, grad_x = sum_c 2 v* (sum_l l g_l lambda^l)*."""
    zeroth, first = _moments(grad, x, first=needs[1])
    grad_x = None if first is None else conj_physical((2 * v * first).sum(0))
    return conj_physical(2 * zeroth), grad_x


def log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """u (c, H, L), v (c, H, n), x (H, n) -> (c, H, n)."""
    return v * _moments(u, x, first=False)[0]


def log_vandermonde_transpose_backward(
    grad: Tensor, u: Tensor, v: Tensor, x: Tensor, L: int, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """grad_u = Re sum_n g* v lambda^l, grad_v = g (sum_l u_l lambda^l)*, grad_x = sum_c g (v sum_l l u_l lambda^l)*."""
    grad_u = _synthesize(conj_physical(grad) * v, x, L, 1.0) if needs[0] else None
    if not (needs[1] or needs[2]):
        return grad_u, None, None
    zeroth, first = _moments(u, x, first=needs[2])
    grad_x = None if first is None else (grad * conj_physical(v * first)).sum(0)
    return grad_u, grad * conj_physical(zeroth), grad_x


# Programs that fill the largest GPU a few times over. A constant, so that sums do not depend on where they run.
_PROGRAMS = 1024


def _synthesize(v: Tensor, x: Tensor, L: int, scale: float) -> Tensor:
    """scale Re sum_n v_n lambda_n^l: v (c, H, n), x (H, n) -> (c, H, L)."""
    c, H, n = v.shape
    out = v.new_empty(c, H, L, dtype=v.real.dtype)
    M, T, K, warps = synthesis_tile(L, out.dtype)
    grid = (c * H, triton.cdiv(L, M * T))
    synthesis_kernel[grid](
        *(pairs(v), pairs(x), out, H, n, L, scale, M, T, K, product_precision(out.dtype)), num_warps=warps, **LAUNCH
    )
    return out


def _moments(u: Tensor, x: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
    """sum_l u_l lambda^l and, if ``first``, sum_l l u_l lambda^l: u (c, H, L), x (H, n) -> (c, H, n)."""
    (c, H, L), n = u.shape, x.shape[-1]
    M, T, K, warps = moments_tile(L, u.dtype)
    tiles, blocks = triton.cdiv(L, M * T), triton.cdiv(n, K)
    splits = min(tiles, max(1, _PROGRAMS // (c * H * blocks)))
    each = triton.cdiv(tiles, splits)
    splits = triton.cdiv(tiles, each)
    parts = u.new_empty(1 + first, splits, c, H, n, 2)
    moments_kernel[(c * H, splits, blocks)](
        *(u, pairs(x), parts, H, n, L, each, M, T, K, product_precision(u.dtype), first),
        num_warps=warps,
        num_stages=1,
        **LAUNCH,
    )
    sums = torch.view_as_complex(parts[:, 0] if splits == 1 else parts.sum(1))
    return sums[0], sums[1] if first else None


def synthesis_tile(L: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """M, T, the states of one product, and warps. A tile costs (M + T) powers per state for M T outputs.

    M stays below 64, where the compiler would change to the asynchronous matrix units of sm_90 and sm_100: for
    operands made in registers, each split in two, that costs more than it gains, and it spills.
    """
    if dtype == torch.float64:
        return 32, 32, 16, 4
    if L <= 2048:
        return (16, 16, 16, 1) if L <= 256 else (32, 32, 16, 2)
    return (32, 64, 16, 4) if L <= 8192 else (32, 256, 16, 8)


def moments_tile(L: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """M, T, the states of one program, and warps. The T powers of a state stay in registers."""
    if dtype == torch.float64:
        return 16, 32, 16, 4
    return (16, 16, 16, 1) if L <= 256 else (32, 32, 16, 4)


@triton.jit
def synthesis_kernel(
    v, x, out, H, n, L, scale,
    M: tl.constexpr, T: tl.constexpr, K: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """One tile of M x T consecutive outputs of one row (c, h)."""
    row = tl.program_id(0).to(tl.int64)
    start = (tl.program_id(1).to(tl.int64) * M + tl.arange(0, M)) * T
    t = tl.arange(0, T).to(tl.int64)
    dtype: tl.constexpr = out.dtype.element_ty
    sums = tl.zeros((M, T), dtype)
    for k in range(0, n, K):
        state = k + tl.arange(0, K)
        x_re, x_im = load_complex(x, row % H * n + state, state < n)
        v_re, v_im = load_complex(v, row * n + state, state < n)
        phase, high, low = log_node(x_re, x_im)
        coarse_re, coarse_im = power(phase[None, :], high[None, :], low[None, :], start[:, None])
        fine_re, fine_im = power(phase[:, None], high[:, None], low[:, None], t[None, :])
        v_re, v_im = scale * v_re[None, :], scale * v_im[None, :]
        left_re = v_re * coarse_re - v_im * coarse_im
        left_im = v_re * coarse_im + v_im * coarse_re
        sums = tl.dot(left_re, fine_re, sums, input_precision=precision, out_dtype=dtype)
        sums = tl.dot(-left_im, fine_im, sums, input_precision=precision, out_dtype=dtype)
    l = start[:, None] + t[None, :]
    tl.store(out + row * L + l, sums, l < L)


@triton.jit
def moments_kernel(
    u, x, out, H, n, L, each,
    M: tl.constexpr, T: tl.constexpr, K: tl.constexpr, precision: tl.constexpr, first: tl.constexpr,
):  # fmt: skip
    """The sums of K states over ``each`` tiles of one row (c, h), into out[moment, split, row, state].

    A tile is first summed over t, which is a product with one table for all tiles, then over m.
    """
    rows = tl.num_programs(0).to(tl.int64)
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    state = tl.program_id(2) * K + tl.arange(0, K)
    dtype: tl.constexpr = u.dtype.element_ty
    x_re, x_im = load_complex(x, row % H * n + state, state < n)
    phase, high, low = log_node(x_re, x_im)
    phase, high, low = phase[None, :], high[None, :], low[None, :]
    t = tl.arange(0, T).to(tl.int64)
    # Powers beyond L are not needed, and those of a growing node could overflow.
    fine_re, fine_im = power(phase, high, low, tl.minimum(t, L - 1)[:, None])
    zeroth_re, zeroth_im = tl.zeros((K,), dtype), tl.zeros((K,), dtype)
    first_re, first_im = tl.zeros((K,), dtype), tl.zeros((K,), dtype)
    for tile in range(split * each, (split + 1) * each):
        start = (tile * M + tl.arange(0, M).to(tl.int64)) * T
        l = start[:, None] + t[None, :]
        block = tl.load(u + row * L + l, l < L, 0.0)
        coarse_re, coarse_im = power(phase, high, low, tl.minimum(start, L - 1)[:, None])
        inner_re = tl.dot(block, fine_re, input_precision=precision, out_dtype=dtype)
        inner_im = tl.dot(block, fine_im, input_precision=precision, out_dtype=dtype)
        product_re = coarse_re * inner_re - coarse_im * inner_im
        product_im = coarse_re * inner_im + coarse_im * inner_re
        zeroth_re += tl.sum(product_re, 0)
        zeroth_im += tl.sum(product_im, 0)
        if first:
            block *= t.to(dtype)[None, :]
            inner_re = tl.dot(block, fine_re, input_precision=precision, out_dtype=dtype)
            inner_im = tl.dot(block, fine_im, input_precision=precision, out_dtype=dtype)
            offset = start.to(dtype)[:, None]
            first_re += tl.sum(coarse_re * inner_re - coarse_im * inner_im + offset * product_re, 0)
            first_im += tl.sum(coarse_re * inner_im + coarse_im * inner_re + offset * product_im, 0)
    index = (split * rows + row) * n + state
    store_complex(out, index, zeroth_re, zeroth_im, state < n)
    if first:
        store_complex(out, index + splits * rows * n, first_re, first_im, state < n)
