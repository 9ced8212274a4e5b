"""Checkpoints of state-spaces/s4 before release 4: told by their names, read as release 4.

A kernel's entries differ in how they hold the poles, and that tells the release:

==================================  ==========  ================================================
entries                             release     meaning
==================================  ==========  ================================================
``w`` complex                       1, 2        ``A = w``
``log_w_real``, ``w_imag``          2           ``A = -exp(log_w_real) + i w_imag``
``inv_w_real``, ``w_imag``          3           ``A = -T(inv_w_real) + i w_imag``
``inv_A_real``, ``A_imag``          3, S4D      ``A = -T(inv_A_real) + i A_imag``
==================================  ==========  ================================================

Release 4 holds ``A = -T(A_real) - i A_imag``, ``inv_dt`` (d_model, 1) for ``log_dt``, and ``l_kernel`` for ``L`` or the
roots of unity in ``omega``. ``T`` is the transform of the option ``real_type``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s4_fast.checkpoint import Renewed
from s4_fast.state_spaces.transforms import LEAST, untransformed

log = logging.getLogger(__name__)

_POLES: dict[str, tuple[str, ...]] = {
    "w": ("w",),
    "log_w_real": ("log_w_real", "w_imag"),
    "inv_w_real": ("inv_w_real", "w_imag"),
    "inv_A_real": ("inv_A_real", "A_imag"),
}
_KERNELS = ("kernel.kernel.", "kernel.krylov.")
_MAPS = ("input_linear", "hyper_linear", "input_gate", "output_gate", "output_linear")
_CACHES = ("omega", "nodes", "z")
# What no kernel of release 4 has.
_ONLY_OLDER = {*_POLES, "w_imag", "Q", "omega", "nodes"}


class Change(NamedTuple):
    """One entry of an older checkpoint: its name, and the name and value of what is made of it; None for nothing.

    ``constant`` says that the value is not the entry's, but what the original takes for granted beside it.
    """

    old: str
    new: str | None
    value: Any
    note: str
    constant: bool = False


class Older(NamedTuple):
    """Entries of an older release as those of release 4. ``diagonal`` tells S4D from S4."""

    release: int
    diagonal: bool
    changes: list[Change]

    def applied(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """``state_dict`` with the entries replaced by what is made of them."""
        gone = {change.old for change in self.changes}
        kept = {name: value for name, value in state_dict.items() if name not in gone}
        return kept | {change.new: change.value for change in self.changes if change.new is not None}

    def renewed(self, state_dict: Mapping[str, Any], by: str) -> Renewed:
        """``applied``, as a layer or kernel of the class ``by`` loads it; the log says what it was."""
        log.info("%s: reads a checkpoint of %s", by, self)
        names = {change.new: change.old for change in self.changes if change.new is not None}
        return Renewed(self.applied(state_dict), str(self), names)

    def __str__(self) -> str:
        return f"release {self.release} of state-spaces/s4 ({'S4D' if self.diagonal else 'S4'})"


def older_parts(state_dict: Mapping[str, Any]) -> dict[str, Older]:
    """What becomes of every S4 and S4D layer of releases 1 to 3 in a checkpoint, and of every kernel without a layer.

    By the prefixes of their entries; the transforms are taken to be the default ``"exp"``.

    Raises:
        ValueError: see ``older_layer``.
    """
    folders: dict[str, set[str]] = {}
    for name in state_dict:
        path, _, own = name.rpartition(".")
        folders.setdefault(f"{path}." if path else "", set()).add(own)
    found: dict[str, Older | None] = {}
    for folder, entries in sorted(folders.items()):
        layer = next((folder.removesuffix(kernel) for kernel in _KERNELS if folder.endswith(kernel)), None)
        if layer is not None and entries & _ONLY_OLDER and _is_layer(state_dict, layer):
            found[layer] = older_layer(state_dict, layer)
        elif entries & _POLES.keys() and {"C", "log_dt"} <= entries:
            found[folder] = older_kernel(state_dict, folder, folder)
    return {prefix: older for prefix, older in found.items() if older is not None}


def _is_layer(names: Iterable[str], prefix: str) -> bool:
    """Whether what is under ``prefix`` is an S4 layer, and not a module that has a kernel among other things."""
    parts = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return bool(parts & {"D", "layer"}) and parts <= {"D", "kernel", "layer", *_MAPS}


def older_layer(state_dict: Mapping[str, Any], prefix: str, real_transform: str = "exp") -> Older | None:
    """What becomes of a layer's entries, whose names begin with ``prefix``; None where they are of release 4.

    Args:
        state_dict: the checkpoint.
        prefix: what precedes ``kernel.kernel.C``, or ``kernel.krylov.C``.
        real_transform: the option of the layer that they are for, or ``real_type`` of the one that they are from.

    Raises:
        ValueError: entries are missing, of two releases, or of a system that release 4 has no form for.
    """
    under = [name for name in state_dict if name.startswith(prefix)]
    kernel = next((k for k in _KERNELS if any(name.startswith(prefix + k) for name in under)), None)
    if kernel is None:
        return None
    newer = [name for name in under if name.startswith(f"{prefix}layer.")]
    if newer:
        raise ValueError(f"{_some(newer)}: of release 4, beside {prefix}{kernel}*, of an earlier release")
    both = [name for name in under if any(name.startswith(prefix + k) for k in _KERNELS if k != kernel)]
    if both:
        raise ValueError(f"{_some(both)}: of release 1, beside {prefix}{kernel}*, of a later one")
    found = older_kernel(state_dict, prefix + kernel, f"{prefix}layer.kernel.", real_transform)
    if found is None:
        names = _some(name for name in under if name.startswith(prefix + kernel))
        raise ValueError(f"{names}: no kernel of a release before 4; its poles are missing ({', '.join(_POLES)})")
    changes = list(found.changes)
    for name in under:
        own = name.removeprefix(prefix)
        if own == "D":
            changes.append(Change(name, f"{prefix}layer.D", _rows(_tensor(state_dict, name)), ""))
        elif own.split(".")[0] in _MAPS:
            changes.append(_linear(name, own, prefix, _tensor(state_dict, name)))
    if f"{prefix}D" not in under:
        raise ValueError(f"{prefix}D: missing beside {prefix}{kernel}*")
    return found._replace(changes=changes)


def older_kernel(state_dict: Mapping[str, Any], prefix: str, to: str, real_transform: str = "exp") -> Older | None:
    """What becomes of a kernel's own entries under ``prefix``, named ``to`` after; errors as ``older_layer``."""
    own = {name.removeprefix(prefix): name for name in state_dict if name.startswith(prefix)}
    held = [poles for poles in _POLES if poles in own]
    if not held:
        return None
    if len(held) > 1 or "inv_dt" in own:
        names = [own[name] for name in (*held, "inv_dt") if name in own]
        raise ValueError(f"{', '.join(names)}: of two releases at once")
    first = prefix.endswith("krylov.") or ("B" in own and "P" not in own and held == ["w"])
    low_rank = first or "P" in own
    needed = ("C", "log_dt", *_POLES[held[0]], *(("B",) if low_rank or held == ["inv_A_real"] else ()))
    missing = [prefix + name for name in needed if name not in own]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing beside {own[held[0]]}, of a release before 4")
    t = {name: _tensor(state_dict, full) for name, full in own.items()}
    changes: list[Change] = []

    def change(name: str, new: str | None, value: Any = None, note: str = "") -> None:
        changes.append(Change(own[name], None if new is None else to + new, value, note))

    change("log_dt", "inv_dt", t["log_dt"][:, None])
    if first:
        _change_first(t, change)
    else:
        change("C", "C", t["C"])
        if "B" in own:
            change("B", "B", t["B"] if t["B"].ndim == 4 else t["B"][None])
        if low_rank:
            change("P", "P", t["P"])
    _change_poles(t, held[0], own, change, real_transform, low_rank)
    if "B" not in own:  # S4D of release 2 has it in C
        B = torch.zeros((1, *_poles_shape(t, held[0]), 2), dtype=t["C"].dtype, device=t["C"].device)
        B[..., 0] = 1
        changes.append(Change(own["C"], f"{to}B", B, "B is in C: 1", constant=True))
    if "Q" in own:
        _check_conjugate(own["Q"], t["Q"], t["P"])
        change("Q", None, t["Q"], "left out: the conjugate of P")
    if low_rank:
        _change_length(t, own, change, prefix)
    for name in _CACHES:
        if name in own and not any(c.old == own[name] for c in changes):
            change(name, None, t[name], "left out: a cache of the kernel")
    if "A" in own:
        change("A", None, t["A"], "left out: the original does not read it")
    known = {c.old for c in changes}
    unknown = [name for name in own.values() if name not in known]
    if unknown:
        raise ValueError(f"{_some(unknown)}: unknown in a kernel of a release before 4")
    release = 1 if first else 3 if held[0].startswith("inv") else 2
    return Older(release, not low_rank, changes)


def _change_first(t: Mapping[str, Tensor], change: Any) -> None:
    """Release 1 stacks B over P and C over Q, and means the conjugate of C."""
    B, C = t["B"], t["C"]
    if B.ndim not in (3, 4) or C.ndim != 4 or B.shape[-3] != C.shape[1] or C.shape[1] < 2:
        raise ValueError(f"B and C of release 1 have the shapes {tuple(B.shape)} and {tuple(C.shape)}")
    B = B if B.ndim == 4 else B[None]
    P, Q = B[:, 1:].transpose(0, 1), C[:, 1:].transpose(0, 1)
    _check_conjugate("C[:, 1:]", _conjugate(Q), P.expand_as(Q))
    change("B", "B", B[:, 0][None].contiguous(), "its first row")
    change("B", "P", P.contiguous(), "its other rows")
    change("C", "C", _conjugate(C[:, 0][None]), "the conjugate of its first row")


def _poles_shape(t: Mapping[str, Tensor], held: str) -> tuple[int, ...]:
    """(copies, n) of the poles; release 1 may have one copy of them beside a B of every feature."""
    shape = t[held].shape[:-1] if held == "w" else t[held].shape
    copies = shape[0] if len(shape) > 1 else 1
    if held == "w" and "B" in t and "P" not in t and t["B"].ndim == 4:
        copies = max(copies, len(t["B"]))
    return (copies, shape[-1])


def _change_poles(
    t: Mapping[str, Tensor], held: str, own: Mapping[str, str], change: Any, real_transform: str, low_rank: bool
) -> None:
    shape = _poles_shape(t, held)
    if held == "w":
        real, imag = -t["w"][..., 0], t["w"][..., 1]
        names, note = ("w", "w"), "from the complex number"
    else:
        names, note = _POLES[held], ""  # type: ignore[assignment]
        real, imag = t[names[0]], t[names[1]]
    if held in ("w", "log_w_real"):
        positive = real.exp() if held == "log_w_real" else real
        if real_transform == "none":
            real = positive
        elif not (held == "log_w_real" and real_transform == "exp"):
            if not bool((positive >= LEAST).all()):
                least = float(positive.min())
                raise ValueError(
                    f"{own[held]}: -Re A is {least:g} at least, and real_transform={real_transform!r} holds {LEAST} "
                    "or more; real_transform='none' holds it"
                )
            real = untransformed(positive.double(), real_transform, own[held]).to(real)
    elif held == "inv_w_real" and real_transform == "relu":
        # Release 3 adds nothing to the relu of S4, release 4 the least value.
        if not bool((real >= LEAST).all()):
            raise ValueError(f"{own[held]}: -Re A is below {LEAST}, the least that real_transform='relu' holds")
        real = real - LEAST
    change(names[0], "A_real", real.expand(shape).contiguous(), note)
    change(names[1], "A_imag", -imag.expand(shape), note or "negated")


def _change_length(t: Mapping[str, Tensor], own: Mapping[str, str], change: Any, prefix: str) -> None:
    if "L" in t:
        change("L", "l_kernel", t["L"])
        return
    roots = next((name for name in ("omega", "nodes") if name in t), None)
    if roots is None:
        raise ValueError(f"{prefix}L, or omega: missing beside {own['C']}, which is truncated for that length")
    change(roots, "l_kernel", torch.tensor(root_count(t[roots])), "the number of the roots")


def root_count(roots: Tensor) -> int:
    """L of the stored roots of unity ``exp(-2 pi i k / L)``, k <= L / 2, as pairs of real numbers.

    Raises:
        ValueError: they are no such roots.
    """
    if roots.ndim != 2 or roots.shape[1] != 2 or not len(roots):
        raise ValueError(f"expected roots of unity of shape (number, 2), the checkpoint has {tuple(roots.shape)}")
    if len(roots) == 1:
        return 1
    angle = abs(math.atan2(float(roots[1, 1]), float(roots[1, 0])))
    length = round(2 * math.pi / angle) if angle > 0 else 0
    if length // 2 + 1 != len(roots):
        raise ValueError(f"{len(roots)} entries are not the roots of unity of {length} samples")
    return length


def _linear(name: str, own: str, prefix: str, value: Tensor) -> Change:
    """A map of the features: a convolution of width 1, or release 1's and 2's with a column for its bias."""
    module, _, rest = own.partition(".")
    module = "input_gate" if module == "hyper_linear" else module
    # The last map stands before an activation in release 4, if only before the identity.
    rest = rest if module != "output_linear" or rest.startswith("0.") else f"0.{rest}"
    entry = rest.rpartition(".")[2]
    flat = 1 if entry == "bias" else 2
    while value.ndim > flat and value.shape[-1] == 1:
        value = value[..., 0]
    return Change(name, f"{prefix}{module}.{rest}", value, "")


def _rows(D: Tensor) -> Tensor:
    return D if D.ndim == 2 else D[None]


def _conjugate(pairs: Tensor) -> Tensor:
    return torch.stack((pairs[..., 0], -pairs[..., 1]), dim=-1)


def _check_conjugate(name: str, Q: Tensor, P: Tensor) -> None:
    """ValueError unless Q is the conjugate of P: only then is the low-rank part P P*."""
    if Q.shape != P.shape or not torch.allclose(Q, _conjugate(P), rtol=1e-5, atol=1e-6):
        raise ValueError(f"{name}: Q was trained apart from P; only A = diag(A) - P P*, with Q = conj(P), is supported")


def _tensor(state_dict: Mapping[str, Any], name: str) -> Tensor:
    value = state_dict[name]
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, the checkpoint has {type(value).__name__}")
    value = value.detach()
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
