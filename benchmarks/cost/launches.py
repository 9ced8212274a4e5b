"""What a launch costs: its kernel's code, how often its loops run, and the SM that runs it."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from benchmarks.cost import machine, sass, sm
from benchmarks.cost.sass import Numbers

# States of every case.
N = 32
# Of more blocks than an SM holds so often, the rest is taken to go on as the last of these do.
GENERATIONS = 3


def up(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Launch:
    """What :func:`sass.way` asks for are the ``trips`` of loops as they are compiled, maybe unrolled, and so on."""

    code: Callable[[], sass.Code]
    blocks: int
    threads: int
    trips: Numbers = field(default_factory=dict)
    shares: Numbers = field(default_factory=dict)
    never: tuple[str, ...] = ()  # parts of lines that no warp runs
    off: tuple[str, ...] = ()  # of lines whose loads and stores are not done where they have a predicate
    bytes: int = 0  # of global memory that must be read and written
    shared: int = 0  # bytes of dynamic shared memory
    launches: int = 1  # 0 for further blocks of the launch before

    def instructions(self) -> list[sass.Instruction]:
        """Those of the code, in which what is off only takes its turn to issue."""
        return [
            ins._replace(name="NOP")
            if ins.predicate and machine.is_global(ins.name) and any(text in ins.line for text in self.off)
            else ins
            for ins in self.code().instructions
        ]

    def ways(self) -> list[list[int]]:
        """What each warp of a block runs through."""
        code, warps = self.code(), up(self.threads, machine.WARP)
        return [sass.way(code, self.trips, self.shares, (w + 0.5) / warps, self.never) for w in range(warps)]


def native(source: str, kernel: str, blocks: int, threads: int, **rest: Any) -> Launch:
    """Of a kernel in a ``.cu`` file, from the top of the project, by the beginning of its name as a pattern."""
    return Launch(lambda: sass.native(source, kernel), blocks, threads, **rest)


def predict(launch: Launch) -> dict[str, Any]:
    """The milliseconds of a launch, and what they are made of."""
    code, ways = launch.code(), launch.ways()
    resident = machine.resident(launch.threads, code.registers, code.shared + launch.shared)
    if not resident:
        raise sass.CostError(f"{code.name}: an SM has no room for a block of {launch.threads} threads")
    rate = (machine.DRAM if launch.bytes > machine.L2_BYTES else machine.L2) / machine.SMS / machine.CLOCK
    memory = launch.bytes / launch.blocks / rate
    blocks = up(launch.blocks, machine.SMS)
    some = min(blocks, GENERATIONS * resident)
    instructions = launch.instructions()
    run = sm.simulate(instructions, ways, some, resident, memory)
    cycles = run.cycles
    if some < blocks:
        before = sm.simulate(instructions, ways, some - resident, resident, memory)
        cycles += (blocks - some) * (run.cycles - before.cycles) / resident
    use = {pipe: round(busy / run.cycles, 3) for pipe, busy in run.busy.items() if busy}
    return {
        "kernel": code.name,
        "ms": 1e3 * (cycles / machine.CLOCK + launch.launches * machine.LAUNCH),
        "busiest": max(use, key=lambda pipe: use[pipe]),
        "use": use,
        "registers": code.registers,
        "blocks": launch.blocks,
        "blocks_per_sm": resident,
        "bytes": launch.bytes,
        "loops": [{"line": loop.line, **counts(code, loop)} for loop in code.loops],
    }


def counts(code: sass.Code, loop: sass.Loop) -> dict[str, int]:
    """Instructions of a loop by the pipe that they occupy; of the shared memory the wavefronts."""
    found: collections.Counter[str] = collections.Counter(issue=loop.end + 1 - loop.start)
    for ins in code.instructions[loop.start : loop.end + 1]:
        pipe, cycles, _ = machine.cost(ins.name)
        if pipe:
            found[pipe] += int(cycles) if pipe == "shared" else 1
    return dict(found)


def triton(op: str, *args: Any, trips: Numbers, bytes: int) -> list[Launch]:
    """What Triton's backend of an op launches, compiled as for a call on the GPU, all with these trips and bytes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compiled
    from triton.runtime.jit import JITFunction

    from s4_fast import dispatch

    recorded: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        bound = dict(zip(kernel.arg_names, args, strict=True))
        constants = {p.name for p in kernel.params if p.is_constexpr}
        constants |= {name for name, value in bound.items() if isinstance(value, int) and value == 1}
        types = {name: "constexpr" if name in constants else _type(value) for name, value in bound.items()}
        places = {name: (kernel.arg_names.index(name),) for name in bound}
        # As the launcher specialises: addresses and sizes that 16 divides.
        even = {
            places[name]: [["tt.divisibility", 16]]
            for name, value in bound.items()
            if types[name].startswith("*") or (types[name] == "i32" and value % 16 == 0)
        }
        source = ASTSource(kernel, types, {places[name]: bound[name] for name in constants}, even)
        result = compiled(source, target=GPUTarget("cuda", 90, 32), options=options)
        code = sass.of_triton(result.asm["cubin"], result.metadata.shared)
        recorded.append(Launch(lambda: code, math.prod(grid), 32 * result.metadata.num_warps, trips, bytes=bytes))

    with mock.patch.object(JITFunction, "run", record):
        getattr(dispatch.load(op, "triton"), op)(*args)
    return recorded


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return {torch.float32: "*fp32", torch.float64: "*fp64"}[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"
