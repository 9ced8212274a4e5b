"""HiPPO state matrices and their normal plus low-rank (NPLR) forms.

Sources: HiPPO (Gu et al. 2020, arXiv 2008.07669), S4 (Gu, Goel, Re 2022, arXiv 2111.00396), "How to Train Your HiPPO"
(Gu et al. 2022, arXiv 2206.12037). Everything is computed in float64 on the CPU, whatever PyTorch's default dtype
and device, so that an initialisation is the same on every machine up to rounding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from s4_fast import torch_private
from s4_fast.arguments import choice

MINIMAL_RANK = {"legs": 1, "legt": 2, "lagt": 1, "fout": 1}
_ALIASES = {"fourier": "fout"}


class NPLR(NamedTuple):
    """`A = U (diag(w, w*) - sum_r p_r p_r^*) U^*` with `U = [V, V*]` unitary; one of each conjugate pair is stored."""

    w: Tensor
    P: Tensor
    B: Tensor
    V: Tensor


def canonical_measure(measure: str) -> str:
    """The measure's own name: `"legs"`, `"legt"`, `"lagt"` or `"fout"` (alias `"fourier"`); ValueError otherwise."""
    name = choice("measure", measure, [*MINIMAL_RANK, *_ALIASES])
    return _ALIASES.get(name, name)


def check_even(N: int) -> None:
    """Raise ValueError unless the real state size `N` is a positive even number, i.e. made of conjugate pairs."""
    if N < 2 or N % 2:
        raise ValueError(f"d_state = N must be a positive even number (a mode is stored per conjugate pair), got {N}")


def _index(N: int) -> Tensor:
    if N < 1:
        raise ValueError(f"N must be at least 1, got {N}")
    return torch.arange(N, dtype=torch.float64, device="cpu")


def transition(measure: str, N: int) -> tuple[Tensor, Tensor]:
    """State and input matrices of the HiPPO operator `c'(t) = A c(t) + B u(t)`.

    With `r_n = sqrt(2n + 1)` and `n, k = 0 .. N-1`:

    - `"legs"`, scaled Legendre: `A_nk = -r_n r_k` for `n > k`, `-(n + 1)` for `n = k`, 0 for `n < k`; `B_n = r_n`
      (HiPPO, Theorem 2, without the factor 1/t).
    - `"legt"`, Legendre on a window of length 2: `A_nk = -r_n r_k / 2` for `n >= k`, `-(-1)^(n-k) r_n r_k / 2` for
      `n < k`; `B_n = r_n / 2` (HiPPO, Theorem 1, orthonormal polynomials).
    - `"lagt"`, Laguerre: `A_nk = -1` for `n > k`, -1/2 for `n = k`, 0 for `n < k`; `B_n = 1`
      (HiPPO, Appendix D.2, tilted so that the functions themselves are orthonormal).
    - `"fout"`, Fourier on a window of length 2, in the order cos 0, sin 0, cos 1, sin 1, ... with `b_n = 1` for
      `n = 0`, `sqrt(2)` for the other cosines and 0 for sines: `A = S - b b^T`, where `S` turns the pair (cos k, sin k)
      at the rate `pi k`; `B = b` ("How to Train Your HiPPO", S4-FouT). The pair k = 0 holds a sine that stays 0.

    Args:
        measure: `"legs"`, `"legt"`, `"lagt"`, `"fout"` (or `"fourier"`).
        N: state size, at least 1; even for `"fout"`.

    Returns:
        `A (N, N)` and `B (N,)`, float64, on the CPU.

    Raises:
        ValueError: for an unknown measure or an impossible `N`.

    Examples:
        >>> A, B = transition("legt", 2)
        >>> A
        tensor([[-0.5000,  0.8660],
                [-0.8660, -1.5000]], dtype=torch.float64)
    """
    measure = canonical_measure(measure)
    n = _index(N)
    if measure == "lagt":
        return torch.full((N, N), -1.0, dtype=n.dtype, device="cpu").tril() + torch.diag(0.5 + 0 * n), 1 + 0 * n
    if measure == "fout":
        check_even(N)
        b = math.sqrt(2) * (1 - n % 2)
        b[0] = 1
        rate = math.pi * (n[1:] // 2) * (n[1:] % 2)
        return torch.diag(rate, -1) - torch.diag(rate, 1) - torch.outer(b, b), b
    r = (2 * n + 1).sqrt()
    R = torch.outer(r, r)
    if measure == "legs":
        return -R.tril(-1) - torch.diag(n + 1), r
    sign = 1 - 2 * ((n[:, None] - n) % 2)
    return -(R.tril() + (sign * R).triu(1)) / 2, r / 2


def low_rank_correction(measure: str, N: int, rank: int = 1) -> Tensor:
    """`P` such that `A + sum_r P_r P_r^T` is a multiple of the identity plus a skew-symmetric matrix, hence normal.

    `P_n = sqrt(n + 1/2)` for LegS, `sqrt(1/2)` for LagT, `B_n` for FouT; LegT needs two rows, the odd and the even
    entries of `sqrt(n + 1/2)` (S4, Appendix C.1; "How to Train Your HiPPO" for FouT). The multiple of the identity is
    -1/2 for LegS and 0 for the others.

    Args:
        measure: `"legs"`, `"legt"`, `"lagt"`, `"fout"` (or `"fourier"`).
        N: state size, at least 1; even for `"fout"`.
        rank: number of rows; rows beyond the minimal rank (2 for LegT, 1 for the others) are 0.

    Returns:
        `P (rank, N)`, float64, on the CPU.

    Raises:
        ValueError: for an unknown measure, an impossible `N`, or a rank below the minimal one.

    Examples:
        >>> A, P = transition("lagt", 4)[0], low_rank_correction("lagt", 4)
        >>> normal = A + P.T @ P
        >>> torch.allclose(normal, -normal.T)
        True
    """
    measure = canonical_measure(measure)
    minimal = MINIMAL_RANK[measure]
    if rank < minimal:
        raise ValueError(f"measure {measure!r} needs rank >= {minimal}, got rank = {rank}")
    n = _index(N)
    P = torch.zeros(rank, N, dtype=n.dtype, device="cpu")
    if measure == "legs":
        P[0] = (n + 0.5).sqrt()
    elif measure == "legt":
        P[0, 1::2], P[1, 0::2] = (n[1::2] + 0.5).sqrt(), (n[0::2] + 0.5).sqrt()
    elif measure == "lagt":
        P[0] = math.sqrt(0.5)
    else:
        P[0] = transition(measure, N)[1]
    return P


def _skew_modes(S: Tensor) -> tuple[Tensor, Tensor]:
    """`mu (n,) >= 0`, descending, and `V (N, n)` with `S V = V diag(i mu)` and `[V, V*]` unitary; `S (N, N)`, N even.

    Householder reflections bring `S` to tridiagonal form, which couples even to odd indices only, through a bidiagonal
    `M`; a singular triple `M a = mu b` gives the eigenvector `(a, -i b) / sqrt(2)` (Ward and Gray 1978). In real
    arithmetic the conjugate pairs are exact and orthogonal even where `mu` is 0 or close to it, which a complex
    Hermitian eigensolver applied to `-iS` does not give.
    """
    N = S.shape[0]
    T, Q = S.clone(), torch.eye(N, dtype=S.dtype, device=S.device)
    for k in range(N - 2):
        v = T[k + 1 :, k].clone()
        if torch_private.has_numbers(v) and not v[1:].any():
            continue
        v[0] += torch.copysign(v.norm(), v[0])
        v /= v.norm()
        T[k + 1 :, k] -= 2 * v * (v @ T[k + 1 :, k])
        T[k, k + 1 :] = -T[k + 1 :, k]
        update = 2 * torch.outer(v, T[k + 1 :, k + 1 :] @ v)
        T[k + 1 :, k + 1 :] += update - update.T
        Q[:, k + 1 :] -= 2 * torch.outer(Q[:, k + 1 :] @ v, v)
    b, mu, aT = torch.linalg.svd(T[1::2, 0::2])
    return mu, torch.complex(Q[:, 0::2] @ aT.T, -(Q[:, 1::2] @ b)) / math.sqrt(2)


def nplr(measure: str, N: int, rank: int = 1) -> NPLR:
    """Normal plus low-rank form of a HiPPO matrix, diagonalised: `A = Lambda - P P^*` (S4, Theorem 1).

    With `U = [V, V*] (N, N)` unitary, `w_full = [w, w*]` and `P_full = [P, P*]`,

        transition(measure, N)[0] = U (diag(w_full) - sum_r P_full[r] P_full[r]^*) U^*,
        B = V^* B_real,   P[r] = V^* P_real[r].

    `Im w` is positive (FouT: one mode has `w = 0`) and descending. `Re w` is exactly the mean of the diagonal of the
    normal part: -1/2 for LegS and 0 for LegT, LagT and FouT. The phase of each eigenvector, which is free, is the one
    that makes `B` real and positive; it is unique, because (A, B) is controllable. `P` is then a positive multiple of
    `B` for the measures of rank 1, up to rounding. At FouT's `w = 0` the sign of `Im V` is free as well, and is chosen
    so that its sum is positive.

    Args:
        measure: `"legs"`, `"legt"`, `"lagt"`, `"fout"` (or `"fourier"`).
        N: real state size, even; an odd skew-symmetric matrix has an unpaired eigenvalue 0, which the storage of one
            of each conjugate pair cannot represent.
        rank: rows of `P`, at least 2 for `"legt"`; superfluous rows are 0.

    Returns:
        `NPLR(w (n,), P (rank, n), B (n,), V (N, n))`, complex128, on the CPU, `n = N / 2`.

    Raises:
        ValueError: for an unknown measure, an odd or non-positive `N`, or a rank below the minimal one.

    Examples:
        >>> w, P, B, V = nplr("legs", 8)
        >>> w.shape, P.shape, B.shape, V.shape
        (torch.Size([4]), torch.Size([1, 4]), torch.Size([4]), torch.Size([8, 4]))
    """
    check_even(N)
    measure = canonical_measure(measure)
    A, b = transition(measure, N)
    P = low_rank_correction(measure, N, rank)
    mu, V = _skew_modes((A - A.T) / 2)
    V = V * torch.sgn(b.to(V.dtype) @ V).conj()
    null = mu <= 1e-12 * mu[0]
    mu, V = mu.masked_fill(null, 0), torch.where(null & (V.imag.sum(0) < 0), V.conj(), V)
    # A constant, not the computed mean of diag(A + P^T P): rounding would leave a positive real part where it is 0.
    shift = torch.full_like(mu, -0.5 if measure == "legs" else 0.0)
    B = (b.to(V.dtype) @ V).real
    return NPLR(torch.complex(shift, mu), P.to(V.dtype) @ V.conj(), B.to(V.dtype), V)
