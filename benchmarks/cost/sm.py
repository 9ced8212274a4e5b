"""One SM, cycle by cycle: partitions that issue in order, with the compiler's stall counts and scoreboards, and what
instructions of all of them queue for."""

from __future__ import annotations

import heapq
import re
from bisect import insort
from typing import Any, NamedTuple

from benchmarks.cost import machine
from benchmarks.cost.sass import Instruction

NEVER = float("inf")


class Run(NamedTuple):
    cycles: float
    busy: dict[str, float]  # cycles of each pipe, of a partition or for "shared" and "memory" of the SM


class _Step(NamedTuple):
    """An instruction as the simulation asks for it."""

    pipe: str
    cycles: float
    latency: float
    wavefronts: int
    is_global: bool
    is_store: bool
    barrier: bool
    wait: tuple[int, ...]
    write: int
    read: int
    stall: int
    matrix: tuple[str, ...]  # registers that a matrix product reads and writes, the result first
    registers: tuple[str, ...]
    group: str  # of asynchronous copies: "copy", "commit" or "wait"
    keep: int


class _Warp:
    __slots__ = ("age", "block", "copies", "groups", "partition", "position", "results", "scoreboard", "way")

    def __init__(self, way: list[int], block: _Block, partition: int, age: int) -> None:
        self.way, self.block, self.partition, self.age = way, block, partition, age
        self.position = 0
        self.scoreboard = [0.0] * 8
        self.results: dict[str, float] = {}
        self.copies = 0.0
        self.groups: list[float] = []

    def __lt__(self, other: _Warp) -> bool:
        return self.age < other.age


class _Block:
    __slots__ = ("alive", "arrived")

    def __init__(self, warps: int) -> None:
        self.alive = warps
        self.arrived: list[_Warp] = []


def _step(ins: Instruction, matrices: bool) -> _Step:
    cost = machine.cost(ins.name)
    is_global = bool(re.match(r"LDG|STG|LD\b|ST\b|ATOM|RED", ins.name))
    registers = tuple(re.findall(r"\bR(\d+)", ins.operands)) if matrices else ()
    is_matrix = ins.name.startswith("HMMA")
    group = (
        "copy"
        if ins.name.startswith("LDGSTS")
        else "commit"
        if ins.name.startswith("LDGDEPBAR")
        else "wait"
        if ins.name.startswith("DEPBAR") and "SB0" in ins.operands
        else ""
    )
    keep = re.search(r"SB0, (0x[0-9a-f]+)", ins.operands)
    return _Step(
        cost.pipe,
        cost.cycles,
        cost.latency,
        machine.width(ins.name) if is_global else 0,
        is_global,
        is_global and ins.name.startswith(("ST", "RED")),
        ins.name.startswith(("BAR.SYNC", "BAR.RED")),
        tuple(b for b in range(6) if ins.wait >> b & 1),
        ins.write,
        ins.read,
        max(1, ins.stall),
        registers if is_matrix else (),
        registers,
        group,
        int(keep[1], 16) if keep else 0,
    )


def simulate(
    instructions: tuple[Instruction, ...],
    ways: list[list[int]],
    blocks: int,
    resident: int,
    bytes_per_cycle: float = NEVER,
    block_bytes: float = 0.0,
) -> Run:
    """``blocks`` blocks on an SM that holds ``resident`` at a time; ``ways`` has the indices of each warp of a block."""
    matrices = any(ins.name.startswith("HMMA") for ins in instructions)
    steps = [_step(ins, matrices) for ins in instructions]
    accesses = sum(steps[i].wavefronts for way in ways for i in way)
    # Cycles of the SM's share of the memory that a wavefront takes, such that a block's all take its bytes.
    per_wavefront = block_bytes / accesses / bytes_per_cycle if accesses else 0.0
    partitions = range(machine.PARTITIONS)
    waiting: list[list[tuple[float, int, _Warp]]] = [[] for _ in partitions]
    eligible: list[list[_Warp]] = [[] for _ in partitions]
    pipes: list[dict[str, float]] = [{} for _ in partitions]
    now, free = [NEVER for _ in partitions], [0.0 for _ in partitions]
    busy = dict.fromkeys(("issue", "fma", "imad", "alu", "fp64", "xu", "tensor", "shared", "memory"), 0.0)
    shared = memory = end = 0.0
    age = started = 0

    def wake(warp: _Warp, ready: float) -> None:
        q = warp.partition
        heapq.heappush(waiting[q], (ready, warp.age, warp))
        now[q] = min(now[q], max(free[q], ready))

    def start(ready: float) -> None:
        nonlocal age, started
        block = _Block(len(ways))
        started += 1
        for way in ways:
            wake(_Warp(way, block, age % machine.PARTITIONS, age), ready)
            age += 1

    for _ in range(min(resident, blocks)):
        start(0.0)
    while True:
        t = min(now)
        if t == NEVER:
            break
        q = now.index(t)
        ready, queue = eligible[q], waiting[q]
        while queue and queue[0][0] <= t:
            insort(ready, heapq.heappop(queue)[2])
        occupied = pipes[q]
        later = queue[0][0] if queue else NEVER
        chosen = None
        for warp in ready:
            step = steps[warp.way[warp.position]]
            at = t
            if step.pipe == "shared":
                at = shared - machine.SHARED_QUEUE
                if step.is_global:
                    at = max(at, memory - machine.GLOBAL_QUEUE)
            elif step.cycles > 1:
                at = occupied.get(step.pipe, 0.0)
            if step.registers and warp.results:
                at = max(at, *(warp.results.get(r, 0.0) for r in step.registers))
            if at <= t:
                chosen = warp
                break
            later = min(later, at)
        if chosen is None:
            now[q] = later
            continue
        ready.remove(chosen)
        free[q] = t + 1
        busy["issue"] += 1 / machine.PARTITIONS
        done = t + step.latency
        released = t + 10
        if step.pipe == "shared":
            begin = max(t + 4, shared)
            shared = begin + step.cycles
            busy["shared"] += step.cycles
            done, released = shared + step.latency, shared + 2
            if step.is_global:
                memory = max(memory, shared) + step.wavefronts * per_wavefront
                busy["memory"] += step.wavefronts * per_wavefront
                if not step.is_store:
                    done = memory + machine.GLOBAL_LATENCY
        elif step.pipe:
            occupied[step.pipe] = max(occupied.get(step.pipe, 0.0), t) + step.cycles
            busy[step.pipe] += step.cycles / machine.PARTITIONS
        if step.matrix:
            first = int(step.matrix[0])
            for k in range(4):
                chosen.results[str(first + k)] = occupied["tensor"] - step.cycles + machine.HMMA_LATENCY
        stalled = t + step.stall
        if step.group == "copy":
            chosen.copies = max(chosen.copies, done)
        elif step.group == "commit":
            chosen.groups.append(chosen.copies)
            chosen.copies = 0.0
        elif step.group == "wait" and len(chosen.groups) > step.keep:
            gone = len(chosen.groups) - step.keep
            stalled = max(stalled, *chosen.groups[:gone])
            chosen.groups = chosen.groups[gone:]
        board = chosen.scoreboard
        if step.write < 6:
            board[step.write] = max(board[step.write], done)
        if step.read < 6:
            board[step.read] = max(board[step.read], released)
        end = max(end, t)
        chosen.position += 1
        block = chosen.block
        if chosen.position < len(chosen.way):
            for b in steps[chosen.way[chosen.position]].wait:
                stalled = max(stalled, board[b])
            if step.barrier:
                block.arrived.append(chosen)
                chosen.scoreboard[7] = stalled
            else:
                heapq.heappush(queue, (stalled, chosen.age, chosen))
        else:
            block.alive -= 1
            if not block.alive and started < blocks:
                start(t + machine.BLOCK_START)
        if block.arrived and len(block.arrived) == block.alive:
            together = max(warp.scoreboard[7] for warp in block.arrived) + machine.BARRIER
            for warp in block.arrived:
                wake(warp, together)
            block.arrived = []
        now[q] = free[q] if ready else max(free[q], queue[0][0]) if queue else NEVER
    return Run(max(end, shared, memory), busy)
