"""What the comments of csrc/include/s4_fast.h say of arguments: their shapes, and which may be NULL."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tests.native import header
from tests.native.header import Argument

# Integers that are not sizes.
OTHER_INTEGERS = ("dtype", "time_major", "flags", "signal_dtype", "symmetric")
# Sizes of what is there once, or for every one of another size.
PART_OF = {"copies": "H", "z_rows": "H", "dt_states": "n"}
# Sizes that no array has together with one of the others.
BESIDE = (*PART_OF, "Lk")
FLAG_NAMES = ("TIME_MAJOR", "BIDIRECTIONAL", "BILINEAR", "LOG_DT", "LOG_DECAY", "CONJUGATE")
_CONSTANTS = header.constants()
FLAGS = sum(_CONSTANTS[name] for name in FLAG_NAMES)
# An array is called like this: the names of its sizes and numbers. A complex number is two reals.
_CONTINUOUS = {
    "u": "batch H L",
    "dt": "H dt_states",
    "A_real": "copies n",
    "A_imag": "copies n",
    "P": "rank copies n 2",
    "B": "copies n 2",
    "C": "outputs H n 2",
    "D": "c H",
    "state": "batch H n 2",
    "ahead": "batch H n 2",
    "y": "batch c H L",
    "final": "batch H n 2",
}
_DISCRETE = {
    **dict.fromkeys(("x", "lambda", "B", "C"), "H n 2"),
    **dict.fromkeys(("state", "next", "final"), "batch H n 2"),
    "D": "H",
}
_SHAPES: dict[str, Mapping[str, str]] = {
    "vandermonde": {"v": "c H n 2", "x": "H n 2", "out": "c H L"},
    "moments": {"u": "c H L", "x": "H n 2", "zeroth": "c H n 2", "first": "c H n 2"},
    "fft_conv": {"u": "batch H L", "k": "c H Lk", "D": "c H", "y": "batch c H L"},
    "cauchy_mult": {"v": "c H n 2", "z": "z_rows Lz 2", "w": "H n 2", "out": "c H Lz 2"},
    "cauchy_bilinear": {"v": "c H n 2", "w": "H n 2", "out": "c H nodes 2"},
    "scan": {**_DISCRETE, "u": "batch H L", "y": "batch H L"},
    "step": {**_DISCRETE, "u": "batch H", "y": "batch H"},
    "exp": {"x": "count 2", "lambda": "count 2"},
    "diagonal": _CONTINUOUS,
    "dplr_scan": _CONTINUOUS,
    "dplr_spectrum": {"v": "rows columns H n 2", "w": "H n 2", "shift": "rows columns H", "spectrum": "b c H nodes 2"},
    "dplr_step": {
        **_DISCRETE,
        "u": "batch H",
        "increment": "H n 2",
        "G": "rank H n 2",
        "V": "rank H n 2",
        "C": "c H n 2",
        "y": "batch c H",
    },
}
# The limit of a function's rank, by its name without the family's.
LIMITS = {
    **dict.fromkeys(("dplr_spectrum", "dplr_spectrum_backward"), "DPLR_RANK"),
    **dict.fromkeys(("dplr_step", "dplr_step_backward"), "DPLR_STEP_RANK"),
}
# Pointers that may be NULL, as every gradient may, but for those that a function must be given all the same.
_OPTIONAL = {"first", "D", "state", "ahead", "final", "grad_y", "grad_next", "grad_final"}
_GIVEN = {
    "fft_conv_backward": {"grad_y"},
    "scan_backward": {"grad_y", "grad_u"},
    "step": {"state"},
    "step_backward": {"state"},
    "dplr_spectrum_backward": {"grad_v"},
    "dplr_step": {"state"},
    "dplr_step_backward": {"state"},
}


TENSOR = "tensor_"


def namesake(function: str) -> str:
    """The function that computes the same without tensor cores, with the same arguments; or the function itself."""
    return function.removeprefix(TENSOR)


def may_be_null(function: str, argument: str) -> bool:
    function = namesake(function)
    if argument in _GIVEN.get(function, ()) or argument == "grad_spectrum":
        return False
    continuous = function.startswith(("diagonal", "dplr_scan")) and argument == "B"
    return argument in _OPTIONAL or argument.startswith("grad_") or continuous


def is_size(argument: Argument) -> bool:
    return argument.type == "int64_t" and argument.name not in (*OTHER_INTEGERS, "threads")


def is_array(argument: Argument) -> bool:
    return argument.type.endswith("*")


def is_written(argument: Argument) -> bool:
    return is_array(argument) and not argument.type.startswith("const")


def array_size(function: str, argument: Argument, integers: Mapping[str, int]) -> tuple[int, int]:
    """How many reals an array has, and the bytes of one, for the integers of a call by name."""
    shapes = _SHAPES[namesake(function).removesuffix("_backward")]
    name = "out" if argument.name == "grad" else argument.name.removeprefix("grad_")
    flags, L = integers.get("flags", 0), integers.get("L", 1)
    known = {
        **integers,
        "outputs": integers.get("c", 1) * (2 if flags & _CONSTANTS["BIDIRECTIONAL"] else 1),
        "nodes": L // 2 + 1,
        "rows": integers.get("c", 1) + integers.get("rank", 1),
        "columns": integers.get("b", 1) + integers.get("rank", 1),
        "2": 2,
    }
    of_signal = name in ("u", "y") and "signal_dtype" in integers
    dtype = integers["signal_dtype" if of_signal else "dtype"]
    element = 8 if "double" in argument.type else {0: 4, 1: 8, 2: 2, 3: 2}[dtype]
    return math.prod(known[size] for size in shapes[name].split()), element


def functions(family: str) -> dict[str, tuple[Argument, ...]]:
    """By name: the arguments that the two families have in common."""
    ends = {"cpu": ("threads",), "cuda": ("workspace", "workspace_bytes", "device", "stream")}[family]
    declared = header.functions(family)
    assert all(tuple(a.name for a in found[-len(ends) :]) == ends for found in declared.values())
    return {name: found[: -len(ends)] for name, found in declared.items()}
