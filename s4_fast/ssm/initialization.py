"""Initial values of the continuous-time parameters of S4D and S4.

Source: "On the Parameterization and Initialization of Diagonal State Space Models" (S4D; Gu et al. 2022,
arXiv 2206.11893), and for the HiPPO measures the sources of `s4_fast.ssm.hippo`. `n = N / 2` modes are stored, one of
each conjugate pair, with `Im A >= 0`. Everything is float64 or complex128 on the CPU, or on the generator's device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from s4_fast.arguments import choice
from s4_fast.ssm import hippo

# Im A of the modes k (...) at the real state size N.
IMAGINARY: dict[str, Callable[[Tensor, int], Tensor]] = {
    "lin": lambda k, N: math.pi * k,
    "inv": lambda k, N: N / math.pi * (N / (2 * k + 1) - 1),
    "inv2": lambda k, N: N / math.pi * (N / (k + 1) - 1),
    "quad": lambda k, N: (2 * k + 1) ** 2 / math.pi,
    "real": lambda k, N: 0 * k,
}
_HIPPO = ("legs", "legt", "lagt", "fout", "fourier")
_INITS = (*IMAGINARY, *_HIPPO, "rand")


def _uniform(shape: Sequence[int], generator: Generator | None, dtype: torch.dtype = torch.float64) -> Tensor:
    device = torch.device("cpu") if generator is None else generator.device
    return torch.rand(tuple(shape), dtype=dtype, device=device, generator=generator)


def diagonal(
    init: str, N: int, *, real_scale: float = 1.0, imag_scale: float = 1.0, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Initial `A` and `B` of a diagonal state space model (S4D).

    `A_k = real_scale * Re + i * imag_scale * Im`, with `k = 0 .. n-1` and

    - `"lin"`: `-1/2 + i pi k` (S4D-Lin),
    - `"inv"`: `-1/2 + i (N / pi) (N / (2k + 1) - 1)` (S4D-Inv),
    - `"inv2"`: `-1/2 + i (N / pi) (N / (k + 1) - 1)` (S4D-Inv2),
    - `"quad"`: `-1/2 + i (2k + 1)^2 / pi` (S4D-Quad),
    - `"real"`: `-(k + 1)` (S4D-Real),
    - `"legs"`: the eigenvalues of the normal part of HiPPO-LegS, `Im A` descending (S4D-LegS),
    - `"legt"`, `"lagt"`, `"fout"` (or `"fourier"`): likewise, with real part -1/2 where the normal part has none,
    - `"rand"`: real part -1/2, imaginary parts independent and uniform on `[0, pi n)`, the range of S4D-Lin.

    `B` is 1; for the HiPPO measures it is the input matrix in the basis of the modes, `hippo.nplr(...).B`, real and
    positive (the S4D paper's limit of HiPPO-LegS has half of it, a factor that `C` absorbs).

    Args:
        init: one of the names above.
        N: real state size, even.
        real_scale: positive factor of the real parts.
        imag_scale: factor of the imaginary parts.
        generator: source of random numbers for `"rand"`; the default one if None.

    Returns:
        `A (n,)` and `B (n,)`, complex128.

    Raises:
        ValueError: for an unknown `init`, an `N` that is not a positive even number, or `real_scale <= 0`.

    Examples:
        >>> A, B = diagonal("lin", 8)
        >>> A.imag / torch.pi
        tensor([0., 1., 2., 3.], dtype=torch.float64)
    """
    init = choice("init", init, _INITS)
    hippo.check_even(N)
    if not real_scale > 0:
        raise ValueError(f"real_scale must be positive, so that A is stable, got {real_scale}")
    k = torch.arange(N // 2, dtype=torch.float64, device="cpu")
    if init in _HIPPO:
        w, _, B, _ = hippo.nplr(init, N, rank=hippo.MINIMAL_RANK[hippo.canonical_measure(init)])
        imag = w.imag
    else:
        imag = math.pi * (N // 2) * _uniform((N // 2,), generator) if init == "rand" else IMAGINARY[init](k, N)
        B = torch.ones_like(imag, dtype=torch.complex128)
    real = -(k + 1) if init == "real" else torch.full_like(imag, -0.5)
    return torch.complex(real_scale * real, imag_scale * imag), B


def log_dt(
    shape: Sequence[int],
    dt_min: float = 0.001,
    dt_max: float = 0.1,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Logarithms of step sizes, uniform on `[log dt_min, log dt_max]` (as in S4 and S4D).

    Args:
        shape: shape of the result.
        dt_min: smallest step, positive.
        dt_max: largest step, at least `dt_min`.
        generator: source of random numbers; the default one if None.
        dtype: precision of the random numbers, and so which numbers a seed gives.

    Returns:
        `log(dt)` of the given shape and dtype.

    Raises:
        ValueError: unless `0 < dt_min <= dt_max` and both are finite.

    Examples:
        >>> dt = log_dt((8, 1), 0.001, 0.1).exp()
        >>> bool(((dt >= 0.00099) & (dt <= 0.101)).all())
        True
    """
    if not 0 < dt_min <= dt_max < math.inf:
        raise ValueError(f"expected 0 < dt_min <= dt_max, got dt_min = {dt_min}, dt_max = {dt_max}")
    return math.log(dt_min) + (math.log(dt_max) - math.log(dt_min)) * _uniform(shape, generator, dtype)


def dplr(init: str, N: int, rank: int = 1, *, generator: Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Initial `w`, `P`, `B` of a diagonal plus low-rank state space model (S4), `A = diag(w) - sum_r P_r P_r^*`.

    For a HiPPO measure this is `hippo.nplr(init, N, rank)` without the basis; `Re w` is then 0 for LegT, LagT and FouT,
    whose damping comes from `P` alone. `"diag-NAME"` is `diagonal(NAME, N)` with `P = 0`: the same function as S4D at
    the start, but `P` stays at 0 in training, because it enters the kernel through its products with itself.

    Args:
        init: `"legs"`, `"legt"`, `"lagt"`, `"fout"` (or `"fourier"`), or `"diag-"` followed by an init of `diagonal`.
        N: real state size, even.
        rank: rows of `P`; at least 2 for `"legt"`.
        generator: source of random numbers for `"diag-rand"`.

    Returns:
        `w (n,)`, `P (rank, n)`, `B (n,)`, complex128.

    Raises:
        ValueError: for an unknown `init`, an `N` that is not a positive even number, or a rank that is too small.

    Examples:
        >>> w, P, B = dplr("legt", 8, rank=2)
        >>> w.shape, P.shape, B.shape
        (torch.Size([4]), torch.Size([2, 4]), torch.Size([4]))
    """
    init = choice("init", init, [*_HIPPO, *(f"diag-{name}" for name in _INITS)])
    if init.startswith("diag-"):
        if rank < 1:
            raise ValueError(f"expected rank >= 1, got rank = {rank}")
        w, B = diagonal(init.removeprefix("diag-"), N, generator=generator)
        return w, w.new_zeros(rank, N // 2), B
    w, P, B, _ = hippo.nplr(init, N, rank)
    return w, P, B
