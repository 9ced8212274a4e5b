"""The machine code of a kernel: compiled for sm_90, decoded, its loops found and the way of a warp through them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from csrc.build_native import NVCC_FLAGS

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/")
SECOND_WORD = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
SOURCE = re.compile(r'//## File "([^"]*)", line (\d+)')


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
    shared: int  # static; of a kernel of Triton all

    @property
    def loops(self) -> list[Loop]:
        """In the order of their starts. The last branch back to a start ends its loop.

        Behind the code's end lies what warps do that have diverged, which returns into it.
        """
        end = next((i for i, ins in enumerate(self.instructions) if ins.name == "EXIT" and not ins.predicate), 0)
        targets = [(i, ins.target) for i, ins in enumerate(self.instructions) if ins.target is not None]
        ends = {target: i for i, target in targets if target < i and not target < end < i}
        return [Loop(start, end, self.instructions[end].line) for start, end in sorted(ends.items())]

    @property
    def branches(self) -> list[int]:
        """Conditional branches forwards and conditional exits, by which a part of the warps may leave."""
        return [i for i, ins in enumerate(self.instructions) if ins.predicate and _is_forward(i, ins)]


@cache
def tool(name: str) -> str:
    """A program of the CUDA toolkit, or its copy in Triton's package."""
    found = shutil.which(name)
    if not found:
        try:
            import triton
        except ImportError:
            pass
        else:
            found = shutil.which(name, path=str(Path(triton.__file__).parent / "backends/nvidia/bin"))
    if not found:
        raise CostError(f"{name} is neither on the PATH nor in Triton's package")
    return found


def run(command: list[str], given: str = "") -> str:
    result = subprocess.run(command, input=given, capture_output=True, text=True)
    if result.returncode:
        raise CostError(f"{Path(command[0]).name}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


@cache
def _compiled(source: Path) -> dict[str, Code]:
    """Every kernel of a ``.cu`` file by its name without namespaces."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "code.cubin")
        run([tool("nvcc"), "-cubin", "-arch=sm_90", "-lineinfo", *NVCC_FLAGS, str(source), "-o", str(cubin)])
        codes = decode(cubin)
    names = run([tool("c++filt")], "\n".join(code.name for code in codes)).splitlines()
    names = [re.sub(r"^void |\(anonymous namespace\)::|\bs4_fast::cuda::", "", name) for name in names]
    return {name: code._replace(name=name.partition("(")[0]) for name, code in zip(names, codes, strict=True)}


def native(source: str | Path, kernel: str) -> Code:
    """The one kernel of a ``.cu`` file, from the top of the project, whose name begins with the pattern."""
    codes = _compiled(ROOT / source)
    found = [code for name, code in codes.items() if re.match(kernel, name)]
    if len(found) != 1:
        raise CostError(f"{source}: {kernel!r} is {len(found)} of the kernels {sorted(codes)}")
    return found[0]


def of_triton(cubin: bytes, shared: int) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "code.cubin")
        path.write_bytes(cubin)
        (code,) = decode(path)
    return code._replace(shared=shared)


def decode(cubin: Path) -> list[Code]:
    usage = re.findall(
        r"Function (\S+):\s+REG:(\d+) .*?SHARED:(\d+)", run([tool("cuobjdump"), "-res-usage", str(cubin)])
    )
    resources = {name: (int(registers), int(shared)) for name, registers, shared in usage}
    listing = run([tool("nvdisasm"), "-hex", "-gi", "-c", str(cubin)])
    sections = re.split(r"^\s*\.section\s+\.text\.([^,\s]+),.*$", listing, flags=re.MULTILINE)[1:]
    pairs = zip(sections[::2], sections[1::2], strict=True)
    return [Code(name, parse(text), *resources[name]) for name, text in pairs]


def parse(listing: str) -> tuple[Instruction, ...]:
    """The instructions of one section as ``nvdisasm -hex -gi -c`` lists it."""
    labels: dict[str, int] = {}
    found, targets = list[Instruction](), list[str]()
    source, is_innermost = ("", 0), True
    lines = listing.splitlines()
    for number, text in enumerate(lines):
        if label := re.match(r"(\.L\w+):", text):
            labels[label[1]] = len(found)
        elif place := SOURCE.search(text):
            # What follows the first are the lines that it is inlined at.
            source, is_innermost = (place[1], int(place[2])) if is_innermost else source, False
        elif code := CODE.search(text):
            predicate, name, operands = code.groups(default="")
            second = SECOND_WORD.match(lines[number + 1])
            target = re.search(r"`\((\.L\w+)\)", operands) if re.match(r"BRA\b(?!\.DIV)", name) else None
            assert second, lines[number + 1]
            control = int(second[1], 16) >> 41
            bits = (control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63)
            found.append(Instruction(predicate, name, operands, *bits, source, None))
            targets.append(target[1] if target else "")
            is_innermost = True
    return tuple(ins._replace(target=labels.get(label)) for ins, label in zip(found, targets, strict=True))


Numbers = dict[str, "float | tuple[float, ...]"]


def declared(code: Code, what: str, places: Sequence[tuple[int, str]], numbers: Numbers) -> dict[int, float]:
    """The numbers of places in the code by their source lines, of which each key is a part.

    A key has one number for all places with such a line, or one for each in their order.
    """
    found: dict[int, float] = {}
    for text, given in numbers.items():
        here = [index for index, line in places if text in line and index not in found]
        each = given if isinstance(given, tuple) else (given,) * len(here)
        if not here or len(each) != len(here):
            raise CostError(f"{code.name}: {text!r} has {len(each)} numbers for {len(here)} {what} in the code")
        found.update(zip(here, each, strict=True))
    return found


def way(code: Code, trips: Numbers, shares: Numbers, place: float, never: Sequence[str] = ()) -> list[int]:
    """The indices that a warp runs through, ``place`` in (0, 1) being where it stands among those of its block.

    ``trips`` of every loop: one of 2.25 trips is run three times by a quarter of the warps. ``shares`` of conditional
    branches forwards and exits: the part of the warps, the first of them, that does not leave by them; the last of them
    where it is negative. Others go where less lies ahead of
    lines that are ``never`` run, whichever side the compiler has put these on. By default none leaves, but where
    before the target there are only a call of a slow path, loops of no trips, or a way around loops that have some.
    """
    loops = declared(code, "loops", [(loop.start, loop.line) for loop in code.loops], trips)
    if missing := [loop.line for loop in code.loops if loop.start not in loops]:
        raise CostError(f"{code.name}: no trips for {missing}")
    stays = declared(code, "branches", [(i, code.instructions[i].line) for i in code.branches], shares)
    ahead = _ahead(code, never)
    count = {start: int(number + place) for start, number in loops.items()}
    starts = {loop.end: loop.start for loop in code.loops}
    left: dict[int, int] = {}
    out: list[int] = []
    i: int | None = 0
    while i is not None and i < len(code.instructions):
        ins = code.instructions[i]
        out.append(i)
        if i in starts:
            start = starts[i]
            left[start] = left.get(start, count[start]) - 1
            i = start if left[start] > 0 else i + 1
            if left[start] <= 0:
                del left[start]
        elif _is_forward(i, ins) and (
            _is_past(stays[i], place) if i in stays else not ins.predicate or _leaves(code, i, count, ahead)
        ):
            i = ins.target
        else:
            i += 1
    return out


def _is_forward(i: int, ins: Instruction) -> bool:
    return ins.name == "EXIT" or (ins.target is not None and ins.target > i)


def _is_past(share: float, place: float) -> bool:
    return place > share if share >= 0 else place < 1 + share


def _ahead(code: Code, never: Sequence[str]) -> list[int]:
    """How many instructions of these lines at least are run from each one on until the end."""
    ins = code.instructions
    own = [int(any(text in each.line for text in never)) for each in ins]
    found = [*[len(ins)] * len(ins), 0]
    changed = bool(never)
    while changed:
        changed = False
        for i in reversed(range(len(ins))):
            name, target = ins[i].name, ins[i].target
            follows = [] if name == "EXIT" or (target is not None and not ins[i].predicate) else [found[i + 1]]
            least = own[i] + min([*follows, *([found[target]] if target is not None else []), *[0] * (name == "EXIT")])
            if least < found[i]:
                found[i], changed = least, True
    return found


def _leaves(code: Code, i: int, count: dict[int, int], ahead: Sequence[int]) -> bool:
    """Whether what a branch jumps over is not run, by what is known of loops, of lines ahead and of calls."""
    ins = code.instructions
    target = ins[i].target
    if target is None:
        return False
    loops = [count[start] for start in count if i < start < target]
    if any(loops):
        return False
    last = ins[target - 1]
    past = range(target, last.target) if last.target is not None and not last.predicate else ()
    if any(count[loop.start] for loop in code.loops if loop.start in past and loop.end in past):
        return True
    if ahead[i + 1] != ahead[target]:
        return ahead[target] < ahead[i + 1]
    ends = [k for k in range(i + 1, target) if ins[k].name.startswith("CALL")]
    inner = [(k, ins[k].target) for k in range(i + 1, target) if ins[k].predicate]
    avoided = any(end is not None and k < ends[0] < end <= target for k, end in inner) if ends else True
    return not avoided or bool(loops)


@cache
def _line(file: str, number: int) -> str:
    path = Path(file)
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""
