"""The kernels of an imported official module of state-spaces/s4, replaced by the ops of this package."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import NamedTuple

from s4_fast.state_spaces.module_calls import Use, uses
from s4_fast.state_spaces.replaced_functions import (
    REPLACEMENTS,
    Examined,
    Function,
    examine,
    family,
    is_ours,
    kept,
    mended,
    replacement,
)


def patch(module: ModuleType, names: Iterable[str] | None = None, *, keep_faults: bool = False) -> Patch:
    """Replace the Cauchy and Vandermonde functions of an official module by the ops of this package.

    ``module`` is the file whose layers call them, of any release: the standalone ``models/s4/s4.py`` (4),
    ``src/models/s4/s4.py`` (3) or ``src/models/sequence/ss/standalone/s4.py`` (1, 2), or in the package
    ``src/models/sequence/kernels/ssm.py`` (4) or ``src/models/sequence/ss/kernel.py`` (1 to 3). For code that calls
    the functions directly, it may also be ``src/models/functional/cauchy.py`` or ``vandermonde.py``. All of these are
    replaced that it has, whichever of them its flags and options choose: ``cauchy``, alone or with ``_mult``,
    ``_cuda``, ``_keops``, ``_naive``, ``_slow``, ``_lazy``, ``_conj``, ``_conj2``, ``_conj_slow`` behind;
    ``log_vandermonde`` with ``_cuda``, ``_keops``, ``_naive``, ``_fast``, ``_lazy``; ``log_vandermonde_transpose``
    with ``_cuda``, ``_keops``, ``_naive``. So are those that its layers call in another module
    (``cauchy.cauchy_conj`` in releases 1 and 2). The replacements take the same arguments, have gradients in all of
    them, and run on the backend chosen for the call (``s4_fast.use_backend``).

    The fallbacks ``cauchy_slow`` (2.1) and ``cauchy_naive`` (3) of the standalone files leave out the conjugate half of
    the sum. They are replaced by the whole sum, with a warning, for that changes what models compute.

    Args:
        module: the imported module.
        names: the functions to replace, as ``replaced`` of the result names them; None for all. Of the Cauchy
            functions that a layer may call, all or none, and likewise of the Vandermonde functions and the transposed
            ones: ``("log_vandermonde", "log_vandermonde_transpose")`` do for diagonal models of release 3.
        keep_faults: whether such fallbacks keep their numbers; they are then replaced by the half sum.

    Returns:
        What was replaced, which can be undone, also by leaving a ``with`` block. What is replaced already is left.

    Raises:
        TypeError: ``module`` is not a module, or ``names`` is one string.
        ValueError: a function computes something else or is missing, with a list of what each computes; a name in
            ``names`` is unknown or missing; a layer would still call a function that is not replaced, which might be
            the fast one that it prefers; or a fallback was replaced before with another ``keep_faults``. Nothing is
            replaced then.

    Examples:
        >>> import types
        >>> s4 = types.ModuleType("s4")  # in place of an import of state-spaces/s4
        >>> s4.cauchy_slow = lambda v, z, w: (v.unsqueeze(-1) / (z.unsqueeze(-2) - w.unsqueeze(-1))).sum(-2)
        >>> with patch(s4, keep_faults=True) as patched:
        ...     patched
        Patch(s4: cauchy_slow (without the conjugate half, as before))
    """
    if not isinstance(module, ModuleType):
        raise TypeError(f"expected an imported module of state-spaces/s4, got {type(module).__name__}")
    called = uses(module)
    found = {f.name: f for f in _found(module, called)}
    chosen = _chosen(module, found, called, names)
    examined = {name: examine(name, found[name].function) for name in chosen}
    _check_sums(module, found, called, examined, everything=names is None)
    _check_calls(module, found, called, chosen, everything=names is None)
    for name in chosen:
        _check_kept(module, found[name], keep_faults)
    replaced: dict[str, _Found] = {}
    for name, what in examined.items():
        if what.verdict == "half":
            replaced[name] = found[name]._replace(replacement=kept if keep_faults else mended)
            if not keep_faults:
                warnings.warn(_fault(module, name), UserWarning, stacklevel=2)
        elif what.verdict != "ours":
            replaced[name] = found[name]
    return Patch(module, replaced)


class Patch:
    """What ``patch`` replaced; a context manager that undoes it at the end of its block.

    Attributes:
        module: the patched module.
        replaced: the original functions by their names; those of another module with its name before a dot.

    Examples:
        >>> import types
        >>> s4 = types.ModuleType("s4")  # in place of an import of state-spaces/s4
        >>> s4.cauchy_slow = lambda v, z, w: (v.unsqueeze(-1) / (z.unsqueeze(-2) - w.unsqueeze(-1))).sum(-2)
        >>> patched = patch(s4, keep_faults=True)
        >>> list(patched.replaced)
        ['cauchy_slow']
        >>> patched.undo()
    """

    def __init__(self, module: ModuleType, found: dict[str, _Found]) -> None:
        self.module = module
        self.replaced = {name: f.function for name, f in found.items()}
        self._found = found
        for f in found.values():
            setattr(f.owner, f.attribute, f.replacement)

    def undo(self) -> None:
        """Put the original functions back, except where something else has been put since. Can be repeated."""
        for f in self._found.values():
            if getattr(f.owner, f.attribute, None) is f.replacement:
                setattr(f.owner, f.attribute, f.function)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        notes = {
            mended: " (with the conjugate half, which was missing)",
            kept: " (without the conjugate half, as before)",
        }
        names = [name + notes.get(f.replacement, "") for name, f in self._found.items()]
        return f"Patch({self.module.__name__}: {', '.join(names) or 'nothing was left to replace'})"


class _Found(NamedTuple):
    """A function that can be replaced, and where it is."""

    name: str
    owner: ModuleType
    attribute: str
    function: Function
    replacement: Function


def _found(module: ModuleType, called: list[Use]) -> Iterator[_Found]:
    """The functions of the module, then those of other modules that its layers call."""
    dotted = dict.fromkeys(use.name for use in called if use.name and "." in use.name and use.there)
    for name in (*REPLACEMENTS, *dotted):
        *path, attribute = name.split(".")
        owner = module
        for part in path:
            owner = getattr(owner, part)
        function, new = getattr(owner, attribute, None), replacement(name)
        if callable(function) and new is not None:
            yield _Found(name, owner, attribute, function, new)


def _chosen(module: ModuleType, found: dict[str, _Found], called: list[Use], names: Iterable[str] | None) -> list[str]:
    if isinstance(names, str):
        raise TypeError(f"names: expected several names of functions, as in ({names!r},), got one string")
    if not found:
        absent = ", ".join(dict.fromkeys(use.about for use in called if not use.there))
        raise ValueError(
            f"{module.__name__} has none of the functions {', '.join(REPLACEMENTS)}; expected a file that calls them, "
            "as models/s4/s4.py and src/models/sequence/kernels/ssm.py do"
            + (f". Its layers call {absent}, whose imports failed" if absent else "")
        )
    if names is None:
        return list(found)
    chosen = list(dict.fromkeys(names))
    if not chosen:
        raise ValueError(f"names: expected at least one of {', '.join(found)}")
    for name in chosen:
        if replacement(name) is None:
            raise ValueError(
                f"names: {name!r} is none of the functions that can be replaced: {', '.join(REPLACEMENTS)}"
            )
        if name not in found:
            raise ValueError(f"names: {module.__name__} has no {name}; it has {', '.join(found)}")
    return chosen


def _check_sums(
    module: ModuleType, found: dict[str, _Found], called: list[Use], examined: dict[str, Examined], everything: bool
) -> None:
    """ValueError if an examined function computes something else, or if all that a layer may call are missing."""
    absent = list(dict.fromkeys(use.about for use in called if not use.there))
    there = {family(use.about) for use in called if use.there} | {family(name) for name in found}
    wrong = [f"{name} deviates" for name, what in examined.items() if what.verdict == "unlike"]
    wrong += [f"{name} is missing" for name in absent if everything and family(name) not in there]
    if not wrong:
        return
    all_of_them = {name: examined.get(name) or examine(name, f.function) for name, f in found.items()}
    lines = [f"{name}: {what.computes}" for name, what in all_of_them.items()]
    lines += [f"{name}: not there" for name in absent]
    odd = {family(name) for name, what in all_of_them.items() if what.verdict == "unlike"}
    rest = tuple(name for name in found if family(name) not in odd)
    if rest:
        diagonal = "" if "cauchy" in map(family, rest) else ", as diagonal ones, which call no Cauchy function"
        lines.append(f"names={rest!r} replaces these alone, for models that call no others{diagonal}.")
    raise ValueError(
        f"{module.__name__}: {', '.join(wrong)}; nothing was replaced. What its functions compute:\n" + "\n".join(lines)
    )


def _check_calls(
    module: ModuleType, found: dict[str, _Found], called: list[Use], chosen: list[str], everything: bool
) -> None:
    """ValueError if a layer may call a function that is not replaced, of a family that is."""
    done = {*chosen, *(name for name, f in found.items() if is_ours(name, f.function))}
    families = {family(name) for name in chosen}
    left = [use for use in called if use.there and use.name not in done]
    left = [use for use in left if everything or family(use.about) in families]
    if not left:
        return
    missed = dict.fromkeys(use.name for use in left if use.name in found)
    raise ValueError(
        f"{module.__name__} would still call functions that are not replaced, which may be the faster ones: "
        + "; ".join(use.how for use in left)
        + ". Nothing was replaced."
        + (f" Add to names: {', '.join(map(str, missed))}." if missed else "")
    )


def _check_kept(module: ModuleType, found: _Found, keep_faults: bool) -> None:
    if found.function is (mended if keep_faults else kept):
        raise ValueError(
            f"{module.__name__}.{found.name} is replaced already, with keep_faults={not keep_faults}; "
            "undo that patch first. Nothing was replaced."
        )


def _fault(module: ModuleType, name: str) -> str:
    return (
        f"{module.__name__}.{name} leaves out the conjugate half: it sums over one of each pair. It is replaced by the "
        "sum over both, as the CUDA and KeOps functions of that release compute it, so outputs change; "
        "patch(module, keep_faults=True) keeps the old numbers"
    )
