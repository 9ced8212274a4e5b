"""Calls the functions of s4_fast.h at random: ``python -m tests.native.fuzz LIBRARY SEED CALLS``.

For a library under sanitizers, in a process that has their runtime. Every array has exactly the size that the header
says. A valid call succeeds and writes no input; one with a single wrong argument fails, says why and writes nothing.
Every call is printed before it is made, so that the last line of a process that has died is the call that it died of.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from collections.abc import Callable

from tests.native import boundary
from tests.native.header import Argument

Integers = dict[str, int]
Limit = Callable[[str], int]

THREADS = (1, 3, 2**63 - 1, 0, -1, -(2**63))
ISAS = (None, b"avx512", b"avx2", b"portable", b"another")
SPECIAL = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 1e-45, 3.14159265)
PATTERN = 0xA5

_libc = ctypes.CDLL(None)  # whose malloc is the sanitizer's
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]


class Memory:
    """An array of exactly its size."""

    def __init__(self, content: bytes) -> None:
        self.content, self.address = content, _libc.malloc(len(content))
        ctypes.memmove(self.address, content, len(content))

    def changed(self) -> bool:
        return ctypes.string_at(self.address, len(self.content)) != self.content

    def free(self) -> None:
        _libc.free(self.address)


def numbers(rng: random.Random, count: int, element: int) -> bytes:
    """Mostly between -1 and 1; some that are not finite, huge or tiny."""
    code = {2: "e", 4: "f", 8: "d"}[element]
    odd = rng.random() < 0.2
    drawn = [rng.choice(SPECIAL) if odd and rng.random() < 0.1 else rng.uniform(-1, 1) for _ in range(count)]
    if element == 2:
        drawn = [x if abs(x) < 6e4 else float("nan") for x in drawn]
    return struct.pack(f"{len(drawn)}{code}", *drawn)


def some_integers(rng: random.Random, function: str, declared: tuple[Argument, ...], limit: Limit) -> Integers:
    """Small sizes that fit each other, sometimes longer sequences or more states, and valid options."""
    made: dict[str, int] = {}
    for argument in declared:
        if boundary.is_size(argument):
            longest = {"L": 300, "Lk": 300, "Lz": 300, "n": 40, "count": 2000}.get(argument.name, 3)
            made[argument.name] = rng.randint(1, longest if rng.random() < 0.3 else min(longest, 9))
    for part, whole in boundary.PART_OF.items():
        if part in made:
            divisors = [d for d in range(1, made[whole] + 1) if made[whole] % d == 0]
            made[part] = rng.choice(divisors if part == "copies" else [1, made[whole]])
    if function in boundary.LIMITS:
        made["rank"] = min(made["rank"], limit(boundary.LIMITS[function]))
    options = {"dtype": rng.randrange(2), "time_major": rng.choice([0, 1, -5]), "symmetric": rng.choice([0, 1])}
    options |= {"flags": rng.randint(0, boundary.FLAGS), "signal_dtype": options["dtype"]}
    if options["dtype"] == 0 and rng.random() < 0.4:
        options["signal_dtype"] = rng.choice([2, 3])
    return made | {name: value for name, value in options.items() if any(a.name == name for a in declared)}


def spoil(rng: random.Random, function: str, declared: tuple[Argument, ...], integers: Integers, limit: Limit) -> str:
    """Makes an argument wrong, and returns its name; a pointer's is left to the caller to make NULL."""
    sizes = [a.name for a in declared if boundary.is_size(a)]
    pointers = [a.name for a in declared if boundary.is_array(a) and not boundary.may_be_null(function, a.name)]
    wrong = {
        **dict.fromkeys(sizes, (0, -1, -(2**32) + 1, -(2**63), 2**51, 2**62, 2**63 - 1)),
        **dict.fromkeys(pointers, ()),
        "dtype": (-1, 2, 3, 4, 2**32, -(2**63)),
        "flags": (-1, boundary.FLAGS + 1, 2**32, -(2**63)),
        "signal_dtype": (1 - integers["dtype"], -1, 4, 2**32),
    }
    if function in boundary.LIMITS:
        wrong["rank"] += (limit(boundary.LIMITS[function]) + 1,)
    name = rng.choice([name for name in wrong if name in integers or name in pointers])
    if wrong[name]:
        integers[name] = rng.choice(wrong[name])
    factors = [size for size in sizes if size not in boundary.BESIDE]
    if name in factors and len(factors) > 1 and rng.random() < 0.2:
        # Each alone may be right: their product is 0 in 64 bits.
        integers.update(dict.fromkeys(rng.sample(factors, 2), 2**32))
    return name


def one_call(rng: random.Random, library: ctypes.CDLL, function: str, declared: tuple[Argument, ...]) -> str:
    """What was wrong with the outcome, or the empty string."""

    def limit(name: str) -> int:
        return int(library.s4_fast_limit(f"CPU_{name}".encode()))

    integers = some_integers(rng, function, declared, limit)
    passed = dict(integers)
    wrong = spoil(rng, function, declared, passed, limit) if rng.random() < 0.5 else ""
    arguments: list[ctypes.c_int64 | ctypes.c_double | ctypes.c_void_p] = []
    inputs, outputs = {}, {}
    for argument in declared:
        if argument.type == "int64_t":
            arguments.append(ctypes.c_int64(passed[argument.name]))
        elif argument.type == "double":
            arguments.append(ctypes.c_double(rng.choice([1.0, 0.5, -1.0, 0.0, float("inf"), float("nan")])))
        elif argument.name == wrong or (boundary.may_be_null(function, argument.name) and rng.random() < 0.3):
            arguments.append(ctypes.c_void_p(None))
        else:
            count, element = boundary.array_size(function, argument, integers)
            if boundary.is_written(argument):
                made = outputs[argument.name] = Memory(bytes([PATTERN]) * (count * element))
            else:
                made = inputs[argument.name] = Memory(numbers(rng, count, element))
            arguments.append(ctypes.c_void_p(made.address))
    threads, isa = rng.choice(THREADS), rng.choice(ISAS)
    library.s4_fast_cpu_use(isa)  # which fails where there is no such one, and then changes nothing
    given = [*inputs, *outputs]
    print(f"{function}({passed}, {given=}, {threads=}, {isa=}, {wrong=})", flush=True)
    failed = getattr(library, f"s4_fast_cpu_{function}")(*arguments, ctypes.c_int64(threads))
    said = library.s4_fast_error().decode() if failed else ""
    watched = inputs | outputs if wrong else inputs
    changed = [name for name, made in watched.items() if made.changed()]
    for made in (*inputs.values(), *outputs.values()):
        made.free()
    if changed:
        return f"wrote {changed}"
    if bool(failed) != bool(wrong):
        return f"failed with {said!r}" if failed else f"took a wrong {wrong}"
    return "" if not wrong or said.startswith(f"{function}: ") else f"failed without its name: {said!r}"


def main(path: str, seed: int, calls: int) -> int:
    library = ctypes.CDLL(path)
    library.s4_fast_error.restype = ctypes.c_char_p
    library.s4_fast_limit.restype = ctypes.c_int64
    rng, functions = random.Random(seed), boundary.functions("cpu")
    names = sorted(functions)
    for index in range(calls):
        name = names[index % len(names)]
        if found := one_call(rng, library, name, functions[name]):
            print(f"{name} {found}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
