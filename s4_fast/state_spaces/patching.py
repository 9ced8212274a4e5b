"""The kernels of an imported official module of state-spaces/s4, replaced by the ops of this package."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from s4_fast.ops import cauchy_mult, log_vandermonde, log_vandermonde_transpose

Function = Callable[..., Tensor]


def patch(module: ModuleType) -> Patch:
    """Replace the Cauchy and Vandermonde functions of an official module by the ops of this package.

    ``module`` is the file whose classes call them: the standalone ``models/s4/s4.py``, or
    ``src/models/sequence/kernels/ssm.py`` of the package (for code that calls the functions directly, also
    ``src/models/functional/cauchy.py`` and ``vandermonde.py``). All of these are replaced that it has, whichever
    ``backend=`` the model asks for: ``cauchy_cuda``, ``cauchy_keops``, ``cauchy_naive``, ``cauchy_mult``,
    ``cauchy_conj``, ``cauchy_conj2``, ``cauchy``, and ``log_vandermonde`` and ``log_vandermonde_transpose``, alone or
    with ``_cuda``, ``_keops``, ``_naive`` behind. The replacements take the same arguments, have gradients in all of
    them, and run on the backend chosen for the call (:func:`s4_fast.use_backend`).

    Returns:
        What was replaced, which can be undone, also by leaving a ``with`` block. What is replaced already is left.

    Raises:
        TypeError: ``module`` is not a module.
        ValueError: it has none of the functions, or one that computes something else, as in releases before 4.0.
            Nothing is replaced then.
    """
    if not isinstance(module, ModuleType):
        raise TypeError(f"expected an imported module of state-spaces/s4, got {type(module).__name__}")
    found = {name: getattr(module, name) for name in _REPLACEMENTS if callable(getattr(module, name, None))}
    if not found:
        raise ValueError(
            f"{module.__name__} has none of the functions {', '.join(_REPLACEMENTS)}; expected a file that calls them, "
            "as models/s4/s4.py and src/models/sequence/kernels/ssm.py do"
        )
    originals = {name: function for name, function in found.items() if function is not _REPLACEMENTS[name]}
    for name, function in originals.items():
        _check_convention(module.__name__, name, function)
    for name in originals:
        setattr(module, name, _REPLACEMENTS[name])
    return Patch(module, originals)


class Patch:
    """What :func:`patch` replaced; a context manager that undoes it at the end of its block.

    Attributes:
        module: the patched module.
        replaced: the original functions by their names.
    """

    def __init__(self, module: ModuleType, replaced: dict[str, Function]) -> None:
        self.module, self.replaced = module, replaced

    def undo(self) -> None:
        """Put the original functions back, except where something else has been put since. Can be repeated."""
        for name, function in self.replaced.items():
            if getattr(self.module, name, None) is _REPLACEMENTS[name]:
                setattr(self.module, name, function)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"Patch({self.module.__name__}: {', '.join(self.replaced) or 'nothing was left to replace'})"


def _complex(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common precision, complex; models with ``is_real`` pass real ones."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return [t.to(dtype if dtype.is_complex else dtype.to_complex()) for t in tensors]


def _cauchy(v: Tensor, z: Tensor, w: Tensor, conj: bool = True) -> Tensor:
    """``sum_n v_n / (z - w_n)``, with ``conj`` over the conjugates of the pairs too."""
    v, z, w = _complex(v, z, w)
    return cauchy_mult(v, z, w, symmetric=conj)


def _cauchy_plain(v: Tensor, z: Tensor, w: Tensor, conj: bool = False) -> Tensor:
    """:func:`_cauchy` with the default of ``functional.cauchy.cauchy``."""
    return _cauchy(v, z, w, conj)


def _cauchy_conj(v: Tensor, z: Tensor, w: Tensor, num: int = 2, denom: int = 2) -> Tensor:
    """:func:`_cauchy` over pairs; ``num`` and ``denom`` choose among equal formulas of KeOps."""
    return _cauchy(v, z, w)


def _log_vandermonde(v: Tensor, x: Tensor, L: int, conj: bool = True) -> Tensor:
    """``sum_n v_n exp(x_n l)``, or twice its real part with ``conj``, for 0 <= l < L."""
    v, x = _complex(v, x)
    if conj:
        return log_vandermonde(v, x, L)
    # 2 Im s = 2 Re(-i s)
    real, imag = log_vandermonde(torch.stack(torch.broadcast_tensors(v, -1j * v)), x, L) / 2
    return torch.complex(real, imag)


def _log_vandermonde_transpose(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    """``sum_l u_l v_n exp(x_n l)``, real where x is; u is real, or complex as the layers pass it."""
    v, z = _complex(v.to(x), x)
    if u.is_complex() and x.is_complex():
        u = u.to(z)
        real, imag = log_vandermonde_transpose(torch.stack((u.real, u.imag)), v, z, L)
        return real + 1j * imag
    y = log_vandermonde_transpose(u.to(z.real), v, z, L)
    return y if x.is_complex() else y.real


_REPLACEMENTS: dict[str, Function] = {
    "cauchy_cuda": cauchy_mult,
    "cauchy_keops": _cauchy,
    "cauchy_naive": _cauchy,
    "cauchy_mult": cauchy_mult,
    "cauchy_conj": _cauchy_conj,
    "cauchy_conj2": _cauchy_conj,
    "cauchy": _cauchy_plain,
    **{f"log_vandermonde{end}": _log_vandermonde for end in ("", "_cuda", "_keops", "_naive")},
    **{f"log_vandermonde_transpose{end}": _log_vandermonde_transpose for end in ("", "_cuda", "_keops", "_naive")},
}


def _check_convention(where: str, name: str, function: Function) -> None:
    """ValueError if ``function`` visibly differs from what replaces it: in its arguments, or in its values on a CPU."""
    replacement, arguments = _REPLACEMENTS[name], _example(name)
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{where}.{name} does not take the arguments of state-spaces/s4 4.0: {error}") from error
    # The others need a GPU, or a compiler and half a minute.
    if not name.endswith("_naive"):
        return
    with torch.no_grad():
        expected, actual = replacement(*arguments), function(*arguments)
    if not (actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-9)):
        raise ValueError(f"{where}.{name} computes something else than that of state-spaces/s4 4.0")


def _example(name: str) -> list[Any]:
    """Arguments for the function of that name: 2 features, 3 pairs, 5 positions, complex128."""
    pairs = torch.arange(6.0, dtype=torch.float64, device="cpu").view(2, 3)
    v, x = torch.complex(1 + pairs, -pairs), torch.complex(-0.1 * (1 + pairs), 0.3 * pairs)
    points = torch.arange(5.0, dtype=torch.float64, device="cpu")
    if name.startswith("cauchy"):
        return [v, torch.complex(points.cos(), points), x]
    if "transpose" in name:
        return [torch.stack((points.cos(), points)).to(v), v, x, 5]
    return [v, x, 5]
