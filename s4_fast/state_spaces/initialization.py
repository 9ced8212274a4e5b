"""How the parameters of state-spaces/s4's kernels start, by the names of its option ``init``.

Everything is float64 or complex128, of the member of each conjugate pair that has Im A <= 0, as the original stores it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s4_fast.ssm import hippo
from s4_fast.ssm.initialization import IMAGINARY

COMBINATIONS = {
    "hippo": ("legs", "fourier"),
    "diag": ("diag-inv", "diag-lin"),
    "all": ("legs", "fourier", "diag-inv", "diag-lin"),
}
_MEASURES = ("legs", "legt", "lagt", "fourier", "fout")
_ALIASES = {
    "linear": "lin",
    "inverse": "inv",
    "inverse2": "inv2",
    "quadratic": "quad",
    "random": "rand",
    "legs": "hippo",
}
_MODES = (*IMAGINARY, "rand", "hippo", *_ALIASES)
_B_INITS = ("constant", "random", "alternating", "unit-cw", "unit-ccw", "legs", "hippo")
_MEASURE_ARGS = ("B_clip",)
_MODE_ARGS = (
    "real_random", "real_scale", "imag_random", "imag_scale", "B_random", "B_init", "B_scale", "P_scale", "normalize",
)  # fmt: skip


class Initial(NamedTuple):
    """A = diag(A) - sum_r P_r P_r*; V is the basis of the stored modes, of which ``V* x`` are the coordinates."""

    A: Tensor  # (copies, n)
    P: Tensor  # (rank, copies, n)
    B: Tensor  # (copies, n)
    V: Tensor  # (copies, N, n)


def initial(
    init: str | Sequence[str], N: int, rank: int, copies: int, low_rank: bool = True, /, **args: Any
) -> Initial:
    r"""The start of ``copies`` systems with ``n = N // 2`` stored modes each.

    ``init`` is one of

    - ``"legs"``, ``"legt"``, ``"lagt"``, ``"fourier"`` (``"fout"``): the normal-plus-low-rank form of a HiPPO matrix,
      ``s4_fast.ssm.hippo.nplr``;
    - ``"diag-NAME"``: modes without a low-rank part, and ``"dplr-NAME"``: the same with a random one. NAME is one of
      ``lin``, ``inv``, ``inv2``, ``quad``, ``real`` (``s4_fast.ssm.initialization.diagonal``), ``legs`` or
      ``hippo``, and ``rand`` (imaginary parts ``exp(z)``, z normal). ``"dplr"`` is ``"dplr-hippo"``;
    - ``"hippo"``, ``"diag"``, ``"all"``, or a sequence of the above: equal shares of each.

    Args:
        init: see above.
        N: real state size, at least 2; even for HiPPO matrices.
        rank: rows of P.
        copies: number of systems, a multiple of the number of inits.
        low_rank: whether P is used, and must have the rank that the HiPPO matrix needs.
        **args: for HiPPO matrices ``B_clip``: Im B is clamped to [-B_clip, B_clip], by default [-2, 2], in the
            original's basis, where B of LegS is almost imaginary; None for no clamp. For modes ``real_random``,
            ``real_scale``, ``imag_random``, ``imag_scale``, ``B_init`` (``"constant"``, ``"random"``,
            ``"alternating"``, ``"unit-cw"``, ``"unit-ccw"``, ``"hippo"``), ``B_random`` (older form of
            ``B_init="random"``), ``B_scale``, ``P_scale`` and ``normalize``, which scales B so that a step is answered
            by variance 1.

    Raises:
        UnknownArgumentError: a TypeError.
        ValueError: an unknown name, or a size that does not fit.
    """
    inits = _names(init)
    if not inits:
        raise ValueError("init must not be empty")
    if copies % len(inits):
        raise ValueError(f"n_ssm must be a multiple of the {len(inits)} inits {', '.join(inits)}, got n_ssm = {copies}")
    if N < 2:
        raise ValueError(f"d_state must be at least 2, one conjugate pair, got {N}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    parts = [_one(name, N, rank, copies // len(inits), low_rank, args) for name in inits]
    A, P, B, V = zip(*parts, strict=True)
    return Initial(torch.cat(A), torch.cat(P, 1), torch.cat(B), torch.cat(V))


def is_hippo(init: str | Sequence[str]) -> bool:
    """Whether ``init`` names HiPPO matrices alone."""
    return all(name in _MEASURES for name in _names(init))


def _names(init: str | Sequence[str]) -> tuple[str, ...]:
    """The single names that ``init`` stands for, in lower case."""
    if isinstance(init, str):
        return COMBINATIONS.get(init.lower(), (init.lower(),))
    return tuple(name.lower() if isinstance(name, str) else name for name in init)


def _one(init: str, N: int, rank: int, copies: int, low_rank: bool, args: dict[str, Any]) -> Initial:
    if init in _MEASURES:
        _check_names(init, args, _MEASURE_ARGS)
        needed = hippo.MINIMAL_RANK[hippo.canonical_measure(init)]
        found = _hippo(init, N, rank if low_rank else max(rank, needed), copies, **args)
        return found._replace(P=found.P[:rank])
    kind, _, name = init.partition("-") if isinstance(init, str) else ("", "", "")
    name = _ALIASES.get(name, name or "hippo")
    if kind not in ("diag", "dplr") or name not in _MODES:
        modes = ", ".join(_MODES)
        known = ", ".join((*_MEASURES, *COMBINATIONS, "dplr"))
        raise ValueError(f"unknown init {init!r}; expected {known}, diag-NAME or dplr-NAME with NAME one of {modes}")
    _check_names(init, args, _MODE_ARGS)
    return _modes(name, N, rank, copies, **{**args, **({"P_scale": 0.0} if kind == "diag" else {})})


class UnknownArgumentError(TypeError):
    """``names`` are no arguments of the init, of which ``known`` are all."""

    def __init__(self, init: str, names: Sequence[str], known: Sequence[str]) -> None:
        super().__init__(f"unknown argument {', '.join(names)}; init {init!r} takes {', '.join(known)}")
        self.names, self.known = names, known


def _check_names(init: str, args: dict[str, Any], known: Sequence[str]) -> None:
    unknown = [name for name in args if name not in known]
    if unknown:
        raise UnknownArgumentError(init, unknown, known)


def _hippo(measure: str, N: int, rank: int, copies: int, B_clip: float | None = 2.0) -> Initial:
    w, P, B, V = (t.conj_physical() for t in hippo.nplr(measure, N, rank))
    turn = _turns(measure, N, rank, w, V)
    P, B, V = P * turn.conj(), B * turn.conj(), V * turn
    if B_clip is not None:
        B = torch.complex(B.real, B.imag.clamp(-B_clip, B_clip))
    P = P[:, None].expand(-1, copies, -1)
    return Initial(w.expand(copies, -1), P, B.expand(copies, -1), V.expand(copies, -1, -1))


def _turns(measure: str, N: int, rank: int, w: Tensor, V: Tensor) -> Tensor:
    """The phases (n,) that make of V (N, n) the eigenvectors that the original gets from ``torch.linalg.eigh``.

    LAPACK reduces a Hermitian matrix that is given by its lower triangle to a real tridiagonal one and leaves the first
    coordinate alone, so the first row of V is real there, in every implementation. Im B is positive where that row is.
    The signs are the implementation's own. They are asked for here, because a seed then gives the layer that it gives
    the original; the clamp is symmetric and does not see them. In FouT the first row is 0 but for rounding: there the
    phases are multiples of a quarter turn, and |B| is at most 1 whichever they are.
    """
    theirs = torch.linalg.eigh(_normal_part(measure, N, rank) * -1j)[1][:, : N // 2]
    if hippo.canonical_measure(measure) == "fout":
        overlap = (V.conj() * theirs).sum(0)
        axis = torch.where(overlap.real.abs() >= overlap.imag.abs(), overlap.real, 1j * overlap.imag)
        return torch.where(w == 0, 1, axis.sgn())
    turn = V[0].sgn().conj()
    return torch.where(((V * turn).conj() * theirs).sum(0).real < 0, -turn, turn)


def _normal_part(measure: str, N: int, rank: int) -> Tensor:
    """A + P P* as the original rounds it, which decides about signs: square roots and sum in float32."""
    A, P = hippo.transition(measure, N)[0], hippo.low_rank_correction(measure, N, rank)
    twice = 2 if measure == "legt" else 1
    P = (twice * P.square()).float().sqrt() * twice**-0.5
    return (A.float() + (P[:, None] * P[..., None]).sum(0)).double()


def _modes(
    name: str,
    N: int,
    rank: int,
    copies: int,
    *,
    real_random: bool = False,
    real_scale: float = 1.0,
    imag_random: bool = False,
    imag_scale: float = 1.0,
    B_random: bool = False,
    B_init: str = "constant",
    B_scale: float = 1.0,
    P_scale: float = 1.0,
    normalize: bool = False,
) -> Initial:
    if B_init not in _B_INITS:
        raise ValueError(f"unknown B_init {B_init!r}; expected one of {', '.join(_B_INITS)}")
    if not (real_scale > 0 and imag_scale >= 0):
        raise ValueError(f"expected real_scale > 0 and imag_scale >= 0, got {real_scale} and {imag_scale}")
    n, shape = N // 2, (copies, N // 2)
    k = torch.arange(n, dtype=torch.float64)
    real = _rand(shape) if real_random else torch.full(shape, 0.5, dtype=torch.float64)
    order = n * _rand(shape) if imag_random else k.expand(shape)
    if name == "real":
        real = n * _rand(shape) if real_random else (k + 1).expand(shape)
    if name == "hippo":
        imag = _hippo("legs", N, 1, copies).A.imag.neg()
    else:
        imag = _randn(shape).exp() if name == "rand" else IMAGINARY[name](order, N)
    A = -torch.complex(real_scale * real, imag_scale * imag)

    P = None
    if name == "hippo" or B_init in ("legs", "hippo"):
        _, P, B, _ = _hippo("legs", N, rank, copies)
    elif B_init == "random" or B_random:
        B = _complex_randn(shape)
    else:
        B = _B_VALUES[B_init](k, N).to(A.dtype).expand(shape)
    B = B_scale * B
    if normalize:
        B = B / (2 * (B / A).abs().square().sum(-1, keepdim=True)).sqrt()
    # The low-rank part belongs to the B that it is given with, and is random where that is not HiPPO's.
    P = P if P is not None and B_init in ("legs", "hippo") else _complex_randn((rank, *shape))
    V = torch.eye(N, dtype=A.dtype)[:, :n].expand(copies, -1, -1)
    return Initial(A, P_scale * P, B, V)


_B_VALUES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "constant": lambda k, N: torch.ones_like(k),
    "alternating": lambda k, N: 1 - 2 * (k % 2),
    "unit-cw": lambda k, N: torch.polar(torch.ones_like(k), -2 * math.pi / N * k),
    "unit-ccw": lambda k, N: torch.polar(torch.ones_like(k), 2 * math.pi / N * k),
}


# In the default precision, so that a seed gives the numbers that it gives the original.


def _rand(shape: Sequence[int]) -> Tensor:
    return torch.rand(*shape, device="cpu").double()


def _randn(shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape, device="cpu").double()


def _complex_randn(shape: Sequence[int]) -> Tensor:
    return torch.randn(*shape, dtype=torch.get_default_dtype().to_complex(), device="cpu").to(torch.complex128)
