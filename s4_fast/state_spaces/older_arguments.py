"""Options that layers of state-spaces/s4 before release 4 take, as those of release 4."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import Any

from s4_fast.arguments import integer
from s4_fast.state_spaces.initialization import is_hippo

# What an option is called in release 4.
_RENAMED = {"real_type": "real_transform", "fast_gate": "dt_fast"}
_MEASURE_ARGS = {"random_real": "real_random", "random_imag": "imag_random", "random_B": "B_random"}
# What ``trainable`` may hold fixed, beside C.
_TRAINABLE = ("A", "P", "B", "dt")
_OWN = ("H", "hyper_act", "measure_args", "keops", "hurwitz", "tie_state", "trainable", "lr_dt", *_RENAMED)


def is_older(options: Mapping[str, Any]) -> bool:
    """Whether an option is one that release 4 does not have."""
    return any(name in options for name in _OWN)


def translated(options: Mapping[str, Any], first: bool = False) -> dict[str, Any]:
    """``options`` of a layer, with those of releases 1 to 3 as release 4 has them.

    - ``H`` is ``d_model``; ``real_type`` is ``real_transform``, ``fast_gate`` is ``dt_fast``, ``keops=True`` is
      ``backend="keops"``, ``tie_state=True`` is ``n_ssm=1``; ``measure_args`` are options of the kernel.
    - ``hyper_act`` multiplies the first half of twice as many channels by this activation of the second, before
      ``activation``: ``activation="glu-..."`` and ``mult_act``.
    - ``trainable`` (True, False, None, or a mapping of ``"A"``, ``"P"``, ``"B"``, ``"dt"``) and ``lr`` make ``lr``,
      in which 0 holds a parameter fixed. None trains none of them, and in release 1 (``first``) all.
    - ``hurwitz`` needs nothing: A is held by the logarithm of -Re A, which keeps it stable, in either case.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: two options contradict each other, or P is to be trained apart from A.
    """
    found = dict(options)
    for old, new in _RENAMED.items():
        if old in found:
            _put(found, new, found.pop(old), old)
    if "H" in found:
        _put(found, "d_model", integer("H", found.pop("H"), 1), "H")
    if (hyper := found.pop("hyper_act", None)) is not None:
        if not isinstance(hyper, str):
            raise TypeError(f"hyper_act must be the name of an activation, got {hyper!r}")
        _put(found, "mult_act", found.pop("activation", "gelu"), "hyper_act")
        found["activation"] = f"glu-{hyper}"
    measure_args: Mapping[str, Any] = found.pop("measure_args", None) or {}
    for name, value in measure_args.items():
        _put(found, _MEASURE_ARGS.get(name, name), value, "measure_args")
    if found.pop("keops", None):
        _put(found, "backend", "keops", "keops")
    found.pop("hurwitz", None)
    if found.pop("tie_state", None):
        _put(found, "n_ssm", 1, "tie_state")
    if first or "trainable" in found or "lr_dt" in found:
        found["lr"] = _rates(found.pop("trainable", True), found.pop("lr", None), found.pop("lr_dt", None), first)
    return found


def put_defaults(options: dict[str, Any], init: Any, diagonal: bool) -> None:
    """Put what releases 1 to 3 do where an option is not given, and release 4 does otherwise, into ``options``."""
    if is_hippo(init):
        options.setdefault("B_clip", None)  # release 4 began to clip
    if diagonal:
        options.setdefault("disc", "bilinear")


def _put(options: dict[str, Any], name: str, value: Any, old: str) -> None:
    if options.get(name) is not None and options[name] is not ... and options[name] != value:
        raise ValueError(f"{old} and {name} name the same thing, got {value!r} and {options[name]!r}")
    options[name] = value


def _rates(trainable: Any, lr: Any, lr_dt: Any, first: bool) -> dict[str, float | None]:
    if isinstance(trainable, Mapping):
        flags = dict(trainable)
        unknown = [name for name in flags if name not in ("C", *_TRAINABLE)]
        if unknown:
            raise ValueError(f"trainable names {', '.join(map(str, unknown))}; expected some of A, P, B, C, dt")
        if first:
            flags = {**dict.fromkeys(_TRAINABLE, True), **flags, "P": flags.get("B", True)}  # which it stacks
    else:
        flags = dict.fromkeys(_TRAINABLE, first if trainable is None else bool(trainable))
    given = dict(lr) if isinstance(lr, Mapping) else dict.fromkeys(_TRAINABLE, lr)
    if first:
        given = dict.fromkeys(_TRAINABLE, 1e-3) | {name: rate for name, rate in given.items() if rate is not None}
    if lr_dt is not None:
        given["dt"] = lr_dt
    rates = {name: given.get(name) if flags.get(name, False) else 0.0 for name in _TRAINABLE}
    return {**rates, "C": given.get("C") if flags.get("C", True) else 0.0}


def last_activation(postact: str | EllipsisType | None, final_act: str | EllipsisType | None) -> str | None:
    """The activation of the last map. ``postact``, its name before release 4, may be None: a map alone.

    Ellipsis stands for an option that is not given; release 4's own ``final_act`` decides where both are None or given.

    Raises:
        ValueError: both name one, and not the same.
    """
    if isinstance(postact, EllipsisType):
        return "glu" if isinstance(final_act, EllipsisType) else final_act
    if isinstance(final_act, EllipsisType):
        return "id" if postact is None else postact
    if postact is None:
        return final_act
    if final_act not in (None, "glu", postact):
        raise ValueError(f"postact and final_act name the same activation, got {postact!r} and {final_act!r}")
    return postact
