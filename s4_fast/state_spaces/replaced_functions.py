"""The Cauchy and Vandermonde functions of state-spaces/s4: what replaces each, and what one that is found computes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from s4_fast.ops import cauchy_mult, log_vandermonde, log_vandermonde_transpose

Function = Callable[..., Tensor]
Verdict = Literal["right", "unchecked", "half", "unlike", "ours"]

PAIRS = "sum over conjugate pairs"
HALF = "sum over one of each pair (the conjugate half is missing)"


class Examined(NamedTuple):
    """What a function computes, in words, and whether it may be replaced."""

    computes: str
    verdict: Verdict


def _complex(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common precision, complex; models with ``is_real`` pass real ones."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return [t.to(dtype if dtype.is_complex else dtype.to_complex()) for t in tensors]


def _cauchy(v: Tensor, z: Tensor, w: Tensor, conj: bool = True) -> Tensor:
    """``sum_n v_n / (z - w_n)``, with ``conj`` over the conjugates of the pairs too."""
    v, z, w = _complex(v, z, w)
    return cauchy_mult(v, z, w, symmetric=conj)


def _cauchy_plain(v: Tensor, z: Tensor, w: Tensor, conj: bool = False) -> Tensor:
    """``_cauchy`` with the default of ``functional.cauchy.cauchy``."""
    return _cauchy(v, z, w, conj)


def _cauchy_conj(v: Tensor, z: Tensor, w: Tensor, num: int = 2, denom: int = 2) -> Tensor:
    """``_cauchy`` over pairs; ``num`` and ``denom`` choose among equal formulas of KeOps."""
    return _cauchy(v, z, w)


# Functions of their own, so that a later patch sees which of the two took the place of a fallback.
def mended(v: Tensor, z: Tensor, w: Tensor, conj: bool = True) -> Tensor:
    """``_cauchy`` in place of a fallback that leaves out the conjugate half."""
    return _cauchy(v, z, w, conj)


def kept(v: Tensor, z: Tensor, w: Tensor, conj: bool = False) -> Tensor:
    """What a fallback that leaves out the conjugate half computes."""
    return _cauchy(v, z, w, conj)


def _log_vandermonde(v: Tensor, x: Tensor, L: int, conj: bool = True) -> Tensor:
    """``sum_n v_n exp(x_n l)``, or twice its real part with ``conj``, for 0 <= l < L."""
    v, x = _complex(v, x)
    if conj:
        return log_vandermonde(v, x, L)
    # 2 Im s = 2 Re(-i s)
    real, imag = log_vandermonde(torch.stack(torch.broadcast_tensors(v, -1j * v)), x, L) / 2
    return torch.complex(real, imag)


def _log_vandermonde_lazy(v: Tensor, x: Tensor, L: int, conj: bool = True) -> Tensor:
    """``_log_vandermonde``, complex with ``conj`` too."""
    y = _log_vandermonde(v, x, L, conj)
    return y.to(y.dtype.to_complex())


def _log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """``sum_l u_l v_n exp(x_n l)``, real where x is; u is real, or complex as the layers pass it."""
    v, z = _complex(v.to(x), x)
    if u.is_complex() and x.is_complex():
        u = u.to(z)
        real, imag = log_vandermonde_transpose(torch.stack((u.real, u.imag)), v, z, L)
        return real + 1j * imag
    y = log_vandermonde_transpose(u.to(z.real), v, z, L)
    return y if x.is_complex() else y.real


REPLACEMENTS: dict[str, Function] = {
    "cauchy_cuda": cauchy_mult,
    "cauchy_mult": cauchy_mult,
    **{f"cauchy_{end}": _cauchy for end in ("keops", "naive", "slow", "lazy")},
    **{f"cauchy_{end}": _cauchy_conj for end in ("conj", "conj2", "conj_slow")},
    "cauchy": _cauchy_plain,
    **{f"log_vandermonde{end}": _log_vandermonde for end in ("", "_cuda", "_fast", "_keops", "_naive")},
    "log_vandermonde_lazy": _log_vandermonde_lazy,
    **{f"log_vandermonde_transpose{end}": _log_vandermonde_transpose for end in ("", "_cuda", "_keops", "_naive")},
}


def replacement(name: str) -> Function | None:
    """What replaces the function of this name, which may be dotted; None where nothing does."""
    return REPLACEMENTS.get(name.rpartition(".")[2])


def family(name: str) -> str:
    """The product that a function of this name is about; a layer calls one of a family."""
    if "vandermonde" not in name:
        return "cauchy"
    return "log_vandermonde_transpose" if "transpose" in name else "log_vandermonde"


def is_ours(name: str, function: Function) -> bool:
    """Whether the function of this name is replaced already."""
    return any(function is ours for ours in (replacement(name), mended, kept))


def examine(name: str, function: Function) -> Examined:
    """What ``function`` computes, seen in its arguments, and on a CPU in its values beside a direct sum in float64."""
    if is_ours(name, function):
        return Examined("replaced already", "ours")
    arguments = _example(name)
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:  # a function without a signature
        pass
    except TypeError as error:
        return Examined(f"does not take the arguments of state-spaces/s4: {error}", "unlike")
    if _needs_device(name, function):
        return Examined("not evaluated, for it needs a GPU or KeOps", "unchecked")
    try:
        with torch.no_grad():
            value = function(*arguments)
    except Exception as error:
        return Examined(f"fails with {type(error).__name__}: {error}", "unlike")
    return _compared(name, value, arguments)


def _compared(name: str, value: object, arguments: list[Any]) -> Examined:
    (words, expected), *others = _sums(name, arguments)
    if not isinstance(value, Tensor) or value.shape != expected.shape or value.is_complex() != expected.is_complex():
        what = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        return Examined(f"something else ({what} instead of {tuple(expected.shape)}, {expected.dtype})", "unlike")
    if _difference(value, expected) <= 1e-9:
        return Examined(words, "right")
    for words, sum_ in others:
        if _difference(value, sum_) <= 1e-9:
            return Examined(words, "half" if words == HALF else "unlike")
    return Examined(f"something else, relative difference {_difference(value, expected):.2g}", "unlike")


def _difference(value: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.vector_norm(value - expected) / torch.linalg.vector_norm(expected))


def _sums(name: str, arguments: list[Any]) -> list[tuple[str, Tensor]]:
    """What a function of this name may compute, the right one first, in words and in values."""
    last = name.rpartition(".")[2]
    if family(name) == "cauchy":
        v, z, w = (t.unsqueeze(dim) for t, dim in zip(arguments, (-1, -2, -1), strict=True))
        half = (v / (z - w)).sum(-2)
        pairs = half + (v.conj() / (z - w.conj())).sum(-2)
        return [("plain sum", half), (PAIRS, pairs)] if last == "cauchy" else [(PAIRS, pairs), (HALF, half)]
    *u, v, x, L = arguments
    powers = torch.exp(x.unsqueeze(-1) * torch.arange(L, dtype=torch.float64, device="cpu"))
    if u:
        return [("sum over time", (u[0].unsqueeze(-2) * v.unsqueeze(-1) * powers).sum(-1))]
    real = (v.unsqueeze(-1) * powers).sum(-2).real
    if last == "log_vandermonde_lazy":
        return [(PAIRS, 2 * real + 0j)]
    return [(PAIRS, 2 * real), ("half the sum over conjugate pairs", real)]


def _needs_device(name: str, function: Function) -> bool:
    """Whether the function needs a GPU, or a compiler and half a minute."""
    if name.endswith(("cauchy_mult", "_cuda", "_keops", "_fast")):
        return True
    code = getattr(function, "__code__", None)
    return code is not None and any(not {"Genred", "LazyTensor"}.isdisjoint(c.co_names) for c in codes(code))


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code and that of the functions made in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def _example(name: str) -> list[Any]:
    """Arguments for the function of that name: 2 features, 3 pairs, 5 positions, complex128."""
    pairs = torch.arange(6.0, dtype=torch.float64, device="cpu").view(2, 3)
    v, x = torch.complex(1 + pairs, -pairs), torch.complex(-0.1 * (1 + pairs), 0.3 * pairs)
    points = torch.arange(5.0, dtype=torch.float64, device="cpu")
    if family(name) == "cauchy":
        return [v, torch.complex(points.cos(), points), x]
    if "transpose" in name:
        return [torch.stack((points.cos(), points)).to(v), v, x, 5]
    return [v, x, 5]
