"""What the Triton kernels share: powers of exp(x) whose phase is exact whatever the exponent.

A phase is a 64-bit fixed-point fraction of a turn. Multiplied by an integer it wraps around modulo a turn, so the range
reduction is exact and costs nothing. No result here depends on whether a product and a sum are fused.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s4_fast.ops._triton_calls import version

# Fusing is the default up to Triton 3.9 and not after it; the kernels count on it for their speed alone.
LAUNCH = {"enable_fp_fusion": True}


def product_precision(dtype: torch.dtype) -> str:
    """How ``dot`` multiplies. Triton 3.2 aborts on tensor-core products of tables made in registers."""
    return "ieee" if dtype == torch.float64 or version() < (3, 3) else "split"


@triton.jit
def _fixed_point(turns):
    """A float64 number of turns modulo 1, in units of 2^-64."""
    return tl.floor((turns - tl.floor(turns + 0.5)) * 18446744073709551616.0 + 0.5).to(tl.int64)


@triton.jit
def _phase(y):
    """y / (2 pi) modulo 1, in units of 2^-64."""
    wide = y.to(tl.float64)
    if y.dtype == tl.float64:
        # One rounded product would be wrong by 2^-54 turns, times l. So y and 1/(2 pi) are cut into parts of 24 bits
        # and a rest, whose large products are exact.
        high = wide.to(tl.float32).to(tl.float64)
        low = wide - high
        fixed = _fixed_point(high * 0.15915493667125702) + _fixed_point(low * 0.15915493667125702)
        fixed += _fixed_point(high * 6.4206382432985265e-09)
        fixed += _fixed_point(high * 7.34273885092955e-17 + low * 6.420638316725915e-09)
    else:
        fixed = _fixed_point(wide * 0.15915494309189535)
    return fixed


@triton.jit
def _eighth(r):
    """cos r and sin r for |r| <= pi/4, by the polynomials of Cephes."""
    z = r * r
    if r.dtype == tl.float64:
        sin = 2.75573136213857245213e-6 + z * (-2.50507477628578072866e-8 + z * 1.58962301576546568060e-10)
        sin = -1.66666666666666307295e-1 + z * (8.33333333332211858878e-3 + z * (-1.98412698295895385996e-4 + z * sin))
        cos = -2.75573141792967388112e-7 + z * (2.08757008419747316778e-9 + z * -1.13585365213876817300e-11)
        cos = 4.16666666666665929218e-2 + z * (-1.38888888888730564116e-3 + z * (2.48015872888517045348e-5 + z * cos))
    else:
        sin = -1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4)
        cos = 4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5)
    return 1.0 - 0.5 * z + z * z * cos, r + r * z * sin


@triton.jit
def _turn(fixed, dtype: tl.constexpr):
    """cos and sin of 2 pi fixed / 2^64."""
    if dtype == tl.float64:
        quarter = (fixed + 2305843009213693952) >> 62
        angle = (fixed - (quarter << 62)).to(tl.float64) * 3.4061215800865545e-19
    else:
        high = (fixed >> 32).to(tl.int32)
        quarter = (high + 536870912) >> 30
        angle = (high - (quarter << 30)).to(tl.float32) * 1.4629180792671596e-09
    cos, sin = _eighth(angle)
    odd = (quarter & 1) != 0
    re, im = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return tl.where(((quarter + 1) & 2) != 0, -re, re), tl.where((quarter & 2) != 0, -im, im)


@triton.jit
def half_angle(k, L):
    """cos and sin of pi k / L for int64 0 <= k <= L / 2, in float64 and both to its relative precision."""
    near_zero = 4 * k <= L
    step = 1.5707963267948966 / tl.full((), L, tl.float64)
    cos, sin = _eighth(tl.where(near_zero, 2 * k, L - 2 * k).to(tl.float64) * step)
    return tl.where(near_zero, cos, sin), tl.where(near_zero, sin, cos)


@triton.jit
def log_node(re, im):
    """A node's logarithm re + i im as what ``power`` takes: its phase, and its decay in two parts."""
    if re.dtype == tl.float64:
        high, low = re, re
    else:
        # Twelve bits of log2 |lambda|, whose product with l is exact, and the rest times log 2.
        bits = re.to(tl.float64) * 1.4426950408889634
        high = (bits.to(tl.float32).to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
        low = ((bits - high.to(tl.float64)) * 0.6931471805599453).to(tl.float32)
    return _phase(im), high, low


@triton.jit
def power(phase, high, low, l):
    """Real and imaginary part of lambda^l, for ``log_node`` of lambda and int64 l >= 0."""
    cos, sin = _turn(phase * l, high.dtype)
    if high.dtype == tl.float64:
        size = tl.exp(high * l.to(tl.float64))
    else:
        steps = l.to(tl.float32)
        rest = low * steps
        size = tl.exp2(high * steps) * (1.0 + rest * (1.0 + 0.5 * rest))
    return size * cos, size * sin


@triton.jit
def _halves(a):
    """A float32 as the nearest one of 11 bits, which the tensor cores take as it is, and the rest of 12 bits."""
    high = ((a.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return high, a - high


@triton.jit
def dot(a, b, precision: tl.constexpr):
    """The matrix product a b. "split" makes it of three products of tensor cores and leaves out 2^-22 of each term.

    The caller sums such products itself: tensor cores truncate when they add, which a long sum would show. What Triton
    calls tf32x3 does the same and spends as many instructions again on operands that are infinite.
    """
    if precision == "split":
        a_high, a_low = _halves(a)
        b_high, b_low = _halves(b)
        out = tl.dot(a_low, b_high, input_precision="tf32")
        out = tl.dot(a_high, b_low, out, input_precision="tf32")
        out = tl.dot(a_high, b_high, out, input_precision="tf32")
    else:
        out = tl.dot(a, b, input_precision=precision, out_dtype=a.dtype)
    return out


@triton.jit
def times(a_re, a_im, b_re, b_im):
    """The product of two complex numbers."""
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def load_complex(pointer, index, mask, other=0.0):
    """Real and imaginary parts of entries of a contiguous complex tensor."""
    return tl.load(pointer + 2 * index, mask, other), tl.load(pointer + 2 * index + 1, mask, other)


@triton.jit
def store_complex(pointer, index, re, im, mask):
    """Write entries of a contiguous complex tensor."""
    tl.store(pointer + 2 * index, re, mask)
    tl.store(pointer + 2 * index + 1, im, mask)


def pairs(t: Tensor) -> Tensor:
    """A complex tensor as contiguous real pairs, (..., 2)."""
    return torch.view_as_real(t.contiguous())
