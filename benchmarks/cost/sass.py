"""The machine code of a kernel: compiled for sm_90, decoded, its loops found and the way of a warp through them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from csrc.build_native import NVCC_FLAGS

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/")
SECOND_WORD = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
SOURCE = re.compile(r'//## File "([^"]*)", line (\d+)')
NOWHERE = ("", 0)


class CostError(Exception):
    """A kernel is not as it is declared, or cannot be compiled and read here."""


class Instruction(NamedTuple):
    predicate: str
    name: str
    operands: str
    stall: int  # cycles until the warp's next one may issue
    write: int  # scoreboard that its result releases, 7 for none
    read: int  # scoreboard that its operands release
    wait: int  # scoreboards that it waits for, a bit each
    source: tuple[str, int]
    target: int | None  # of a branch, as an index

    @property
    def line(self) -> str:
        return _line(*self.source)


class Loop(NamedTuple):
    start: int
    end: int
    line: str


class Code(NamedTuple):
    name: str
    instructions: tuple[Instruction, ...]
    registers: int
    shared: int  # static, or for Triton all

    @property
    def loops(self) -> list[Loop]:
        """By their order in the code, which is that of their ends for nested ones; the last branch back is the end."""
        ends = {
            ins.target: i for i, ins in enumerate(self.instructions) if ins.target is not None and ins.target < i
        }
        return [Loop(start, end, self.instructions[end].line) for start, end in sorted(ends.items())]

    @property
    def branches(self) -> list[int]:
        """What a part of the warps may leave out: conditional branches forwards and conditional exits."""
        return [i for i, ins in enumerate(self.instructions) if ins.predicate and _forward(i, ins)]


@cache
def tool(name: str) -> str:
    """A program of the CUDA toolkit, or its copy in Triton's package."""
    found = shutil.which(name)
    if not found and name != "nvcc":
        try:
            import triton
        except ImportError:
            pass
        else:
            found = shutil.which(name, path=str(Path(triton.__file__).parent / "backends/nvidia/bin"))
    if not found:
        raise CostError(f"{name} is neither on the PATH nor in Triton's package")
    return found


@cache
def _cubin(source: str) -> dict[str, Code]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "code.cubin")
        command = [tool("nvcc"), "-cubin", "-arch=sm_90", "-lineinfo", *NVCC_FLAGS, str(ROOT / source), "-o", str(cubin)]
        _run(command)
        return decode(cubin)


def native(source: str, kernel: str) -> Code:
    """The one kernel in a ``.cu`` file whose name, without qualifiers, begins with what the pattern matches."""
    codes = _cubin(source)
    names = dict(zip(_run([_filter()], "\n".join(codes)).splitlines(), codes.values(), strict=True))
    plain = {re.sub(r"^void |\(anonymous namespace\)::|\bs4_fast::", "", name): code for name, code in names.items()}
    found = {name: code for name, code in plain.items() if re.match(kernel, name)}
    if len(found) != 1:
        raise CostError(f"{source}: {kernel!r} is {len(found)} of the kernels {sorted(plain)}")
    ((name, code),) = found.items()
    return code._replace(name=name.partition("(")[0])


def _filter() -> str:
    found = shutil.which("cu++filt") or shutil.which("c++filt")
    if not found:
        raise CostError("neither cu++filt nor c++filt is on the PATH")
    return found


def triton_kernel(cubin: bytes, shared: int) -> Code:
    """What Triton has compiled: a file of one kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code.cubin")
        path.write_bytes(cubin)
        ((name, code),) = decode(path).items()
    return code._replace(name=name, shared=shared)


def decode(cubin: Path) -> dict[str, Code]:
    """Every kernel of a file by its mangled name."""
    usage = _run([tool("cuobjdump"), "-res-usage", str(cubin)])
    resources = dict(
        (found[1], (int(found[2]), int(found[3])))
        for found in re.finditer(r"Function (\S+):\s+REG:(\d+) .*?SHARED:(\d+)", usage)
    )
    listing = _run([tool("nvdisasm"), "-hex", "-gi", "-c", str(cubin)])
    sections = re.split(r"^\s*\.section\s+\.text\.([^,\s]+),.*$", listing, flags=re.MULTILINE)[1:]
    return {
        name: Code(name, parse(text), *resources[name]) for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


def parse(listing: str) -> tuple[Instruction, ...]:
    """The instructions of one section as ``nvdisasm -hex -gi -c`` lists it."""
    labels: dict[str, int] = {}
    found: list[tuple[Any, ...]] = []
    source, fresh = NOWHERE, True
    lines = listing.splitlines()
    for number, text in enumerate(lines):
        if label := re.match(r"(\.L\w+):", text):
            labels[label[1]] = len(found)
        elif place := SOURCE.search(text):
            # The first of several is the innermost of calls that are inlined.
            source, fresh = (place[1], int(place[2])) if fresh else source, False
        elif code := CODE.search(text):
            second = SECOND_WORD.match(lines[number + 1])
            assert second, lines[number + 1]
            control = int(second[1], 16) >> 41
            target = re.search(r"`\((\.L\w+)\)", code[3]) if code[2].startswith("BRA") else None
            bits = (control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63)
            found.append((code[1] or "", code[2], code[3], *bits, source, target and target[1]))
            fresh = True
    return tuple(Instruction(*row[:-1], labels[row[-1]] if row[-1] else None) for row in found)


Numbers = dict[str, "float | tuple[float, ...]"]


def declared(code: Code, what: str, places: Sequence[tuple[int, str]], numbers: Numbers) -> dict[int, float]:
    """The numbers of the places in the code by their source lines, of which each key is a part.

    A key has one number for all of its lines' places, or one for each in their order.
    """
    found: dict[int, float] = {}
    for text, given in numbers.items():
        here = [index for index, line in places if text in line and index not in found]
        each = given if isinstance(given, tuple) else (given,) * len(here)
        if not here or len(each) != len(here):
            raise CostError(f"{code.name}: {text!r} has {len(each)} numbers for {len(here)} {what} in the code")
        found.update(zip(here, each, strict=True))
    return found


def way(code: Code, trips: Numbers, shares: Numbers, place: float) -> list[int]:
    """The indices that a warp runs through, ``place`` in (0, 1) being where it stands among those of its block.

    ``trips`` of every loop: one of 2.25 trips is run three times by a quarter of the warps. ``shares`` of conditional
    branches forwards and exits: the part of the warps that does not leave by them; by default all go on, but where
    before the target there are only a call of a slow path, loops of no trips, or a way around loops that have some.
    """
    instructions = code.instructions
    loops = declared(code, "loops", [(loop.start, loop.line) for loop in code.loops], trips)
    if missing := [loop for loop in code.loops if loop.start not in loops]:
        raise CostError(f"{code.name}: no trips for {', '.join(repr(loop.line) for loop in missing)}")
    goes_on = declared(code, "branches", [(i, instructions[i].line) for i in code.branches], shares)
    count = {start: int(number + place) for start, number in loops.items()}
    ends = {loop.end: loop.start for loop in code.loops}
    left: dict[int, int] = {}
    out: list[int] = []
    i = 0
    while i < len(instructions):
        ins = instructions[i]
        out.append(i)
        if i in ends:
            start = ends[i]
            left[start] = left.get(start, count[start]) - 1
            if left[start] > 0:
                i = start
                continue
            del left[start]
        elif _forward(i, ins):
            if i in goes_on:
                leaves = place > goes_on[i]
            else:
                leaves = not ins.predicate or _is_left_out(code, i, count)
            if leaves and ins.target is None:
                break
            if leaves:
                assert ins.target is not None
                i = ins.target
                continue
        i += 1
    return out


def _forward(i: int, ins: Instruction) -> bool:
    return ins.name == "EXIT" or ins.target is not None and ins.target > i


def _is_left_out(code: Code, i: int, count: dict[int, int]) -> bool:
    """Whether what a branch jumps over is not run by what is known of calls and of loops."""
    target = code.instructions[i].target
    if target is None:
        return False
    inside = range(i + 1, target)
    loops = [count[start] for start in count if start in inside]
    calls = [k for k in inside if code.instructions[k].name.startswith("CALL")]
    avoided = any(
        (end := code.instructions[k].target) is not None and k < calls[0] < end <= target
        for k in (inside if calls else ())
        if code.instructions[k].predicate
    )
    last = code.instructions[target - 1]
    past = range(target, last.target) if last.target is not None and not last.predicate else ()
    misses = any(count[loop.start] for loop in code.loops if loop.start in past and loop.end in past)
    return bool(calls) and not avoided or bool(loops) and not any(loops) or not any(loops) and misses


@cache
def _line(file: str, number: int) -> str:
    path = Path(file)
    return path.read_text("utf-8").splitlines()[number - 1].strip() if number and path.is_file() else ""


def _run(command: list[str], given: str = "") -> str:
    result = subprocess.run(command, input=given, capture_output=True, text=True)
    if result.returncode:
        raise CostError(f"{Path(command[0]).name}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
