"""Vandermonde products as fused Triton kernels: tables of powers made in registers, multiplied on tensor cores.

With l = l_m + t, l_m = m T, a tile of M x T outputs is one real matrix product over the states,

    K[m, t] = sum_n Re(v_n lambda_n^{l_m}) Re(lambda_n^t) - Im(v_n lambda_n^{l_m}) Im(lambda_n^t),

and the moments sum_l u_l lambda^l and sum_l l u_l lambda^l are the transposed one, with u as an M x T matrix.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s4_fast.ops._triton import (
    LAUNCH,
    dot,
    load_complex,
    log_node,
    pairs,
    power,
    product_precision,
    store_complex,
    times,
)
from s4_fast.ops.vandermonde.products import Nodes, Products

# Programs that fill the largest GPU a few times over. A constant, so that sums do not depend on where they run.
_PROGRAMS = 1024


class _Nodes(Nodes):
    def synthesize(self, v: Tensor, scale: float) -> Tensor:
        (c, H, n), L = v.shape, self.L
        out = v.new_empty(c, H, L, dtype=v.real.dtype)
        M, T, K, warps = synthesis_tile(L, out.dtype)
        precision = product_precision(out.dtype)
        synthesis_kernel[(c * H * triton.cdiv(L, M * T),)](
            *(pairs(v), pairs(self.x), out, H, n, L, scale, M, T, K, precision), num_warps=warps, **LAUNCH
        )
        return out

    def moments(self, u: Tensor, first: bool) -> tuple[Tensor, Tensor | None]:
        (c, H, L), n = u.shape, self.x.shape[-1]
        M, T, K, warps = moments_tile(L, u.dtype)
        tiles, blocks = triton.cdiv(L, M * T), triton.cdiv(n, K)
        splits = min(tiles, max(1, _PROGRAMS // (c * H * blocks)))
        each = triton.cdiv(tiles, splits)
        splits = triton.cdiv(tiles, each)
        parts = u.new_empty(1 + first, splits, c, H, n, 2)
        moments_kernel[(c * H, splits, blocks)](
            *(u, pairs(self.x), parts, H, n, L, each, M, T, K, product_precision(u.dtype), first),
            num_warps=warps,
            num_stages=1,
            **LAUNCH,
        )
        sums = torch.view_as_complex(parts[:, 0] if splits == 1 else parts.sum(1))
        return sums[0], sums[1] if first else None


_PRODUCTS = Products(_Nodes)
log_vandermonde = _PRODUCTS.log_vandermonde
log_vandermonde_backward = _PRODUCTS.log_vandermonde_backward
log_vandermonde_transpose = _PRODUCTS.log_vandermonde_transpose
log_vandermonde_transpose_backward = _PRODUCTS.log_vandermonde_transpose_backward


def synthesis_tile(L: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """M, T, the states of one product, and warps.

    M stays below 64, where the compiler would change to the asynchronous matrix units of sm_90 and sm_100: for
    operands made in registers, each split in two, that costs more than it gains, and it spills.
    """
    if dtype == torch.float64:
        return 32, 32, 16, 4
    if L <= 256:
        return 16, 16, 16, 1
    if L <= 1024:
        return 32, 32, 16, 2
    return (32, 64, 16, 4) if L <= 4096 else (32, 256, 16, 8)


def moments_tile(L: int, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """M, T, the states of one program, and warps. The T powers of a state stay in registers."""
    if dtype == torch.float64:
        return 16, 32, 16, 4
    return (16, 16, 16, 1) if L <= 256 else (16, 64, 32, 4)


# Powers per state of the first factor of a table.
_FACTOR = tl.constexpr(16)


@triton.jit
def _table(phase, high, low, T: tl.constexpr, K: tl.constexpr):
    """lambda^t for t < T, a multiple of 16, and K states, (T, K): products of T/16 powers with 16 others."""
    t = tl.arange(0, _FACTOR).to(tl.int64)
    re, im = power(phase, high, low, t[:, None])
    if T > _FACTOR:
        t = tl.arange(0, T // _FACTOR).to(tl.int64) * _FACTOR
        step_re, step_im = power(phase, high, low, t[:, None])
        re, im = times(step_re[:, None, :], step_im[:, None, :], re[None, :, :], im[None, :, :])
        re, im = tl.reshape(re, (T, K)), tl.reshape(im, (T, K))
    return re, im


@triton.jit
def synthesis_kernel(
    v, x, out, H, n, L, scale,
    M: tl.constexpr, T: tl.constexpr, K: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """One tile of M x T consecutive outputs of one row (c, h)."""
    tiles = tl.cdiv(L, M * T)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = ((tl.program_id(0) % tiles).to(tl.int64) * M + tl.arange(0, M)) * T
    dtype: tl.constexpr = out.dtype.element_ty
    sums = tl.zeros((M, T), dtype)
    for k in range(0, n, K):
        state = k + tl.arange(0, K)
        x_re, x_im = load_complex(x, row % H * n + state, state < n)
        v_re, v_im = load_complex(v, row * n + state, state < n)
        phase, high, low = log_node(x_re, x_im)
        # One row per power, so that a thread has few states, of which each costs float64 and a reduction of its phase.
        phase, high, low = phase[None, :], high[None, :], low[None, :]
        fine_re, fine_im = _table(phase, high, low, T, K)
        coarse_re, coarse_im = power(phase, high, low, start[:, None])
        left_re, left_im = times(scale * v_re[None, :], scale * v_im[None, :], coarse_re, coarse_im)
        sums += dot(left_re, tl.trans(fine_re), precision)
        sums += dot(-left_im, tl.trans(fine_im), precision)
    l = start[:, None] + tl.arange(0, T)[None, :]
    tl.store(out + row * L + l, sums, l < L)


@triton.jit
def moments_kernel(
    u, x, out, H, n, L, each,
    M: tl.constexpr, T: tl.constexpr, K: tl.constexpr, precision: tl.constexpr, first: tl.constexpr,
):  # fmt: skip
    """The sums of K states over ``each`` tiles of one row (c, h), into out[moment, split, row, state].

    A tile is first summed over t, which is a product with one table for all tiles, and at the end over m.
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
    m = tl.arange(0, M).to(tl.int64)
    # Powers beyond L are not needed, and those of a growing node could overflow.
    fine_re, fine_im = power(phase, high, low, tl.minimum(t, L - 1)[:, None])
    base_re, base_im = power(phase, high, low, tl.minimum(m * T, L - 1)[:, None])
    zeroth_re, zeroth_im = tl.zeros((M, K), dtype), tl.zeros((M, K), dtype)
    first_re, first_im = tl.zeros((M, K), dtype), tl.zeros((M, K), dtype)
    for tile in range(split * each, (split + 1) * each):
        begin = (tl.zeros((1, 1), tl.int64) + tile) * (M * T)
        start = begin + m[:, None] * T
        l = start + t[None, :]
        block = tl.load(u + row * L + l, l < L, 0.0)
        step_re, step_im = power(phase, high, low, tl.minimum(begin, L - 1))
        coarse_re, coarse_im = times(base_re, base_im, step_re, step_im)
        coarse_re, coarse_im = tl.where(start < L, coarse_re, 0.0), tl.where(start < L, coarse_im, 0.0)
        inner_re, inner_im = dot(block, fine_re, precision), dot(block, fine_im, precision)
        product_re, product_im = times(coarse_re, coarse_im, inner_re, inner_im)
        zeroth_re += product_re
        zeroth_im += product_im
        if first:
            block *= t.to(dtype)[None, :]
            inner_re, inner_im = dot(block, fine_re, precision), dot(block, fine_im, precision)
            inner_re, inner_im = times(coarse_re, coarse_im, inner_re, inner_im)
            offset = start.to(dtype)
            first_re += inner_re + offset * product_re
            first_im += inner_im + offset * product_im
    index = (split * rows + row) * n + state
    store_complex(out, index, tl.sum(zeroth_re, 0), tl.sum(zeroth_im, 0), state < n)
    if first:
        store_complex(out, index + splits * rows * n, tl.sum(first_re, 0), tl.sum(first_im, 0), state < n)
