"""One SM, cycle by cycle: partitions that issue in order, by the compiler's stall counts and scoreboards, and the pipes
and memories that their instructions queue for."""

from __future__ import annotations

import heapq
import re
from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.cost import machine
from benchmarks.cost.sass import Instruction

NEVER = float("inf")
# Cycles from the issue of an instruction to shared memory's work on it, and until its operands are read.
TO_SHARED, READ = 4, 10


class Run(NamedTuple):
    cycles: float
    busy: dict[str, float]  # cycles of each pipe, the mean over the partitions


class _Step:
    """An instruction, as the simulation asks for it."""

    def __init__(self, ins: Instruction, has_matrices: bool) -> None:
        self.pipe, self.cycles, self.latency = machine.cost(ins.name)
        self.wavefronts = machine.width(ins.name) if machine.is_global(ins.name) else 0
        self.is_load = self.wavefronts > 0 and not ins.name.startswith(("ST", "RED"))
        self.is_barrier = ins.name.startswith(("BAR.SYNC", "BAR.RED"))
        self.wait = tuple(board for board in range(6) if ins.wait >> board & 1)
        self.write, self.read, self.stall = ins.write, ins.read, max(1, ins.stall)
        # Matrix products have no scoreboards: whatever touches their registers waits.
        self.registers = [int(r) for r in re.findall(r"\bR(\d+)", ins.operands)] if has_matrices else []
        self.result = self.registers[0] if ins.name.startswith("HMMA") else None
        self.is_copy, self.commits = ins.name.startswith("LDGSTS"), ins.name.startswith("LDGDEPBAR")
        keeps = re.match(r"SB0, (0x[0-9a-f]+)", ins.operands) if ins.name.startswith("DEPBAR") else None
        self.keeps = int(keeps[1], 16) if keeps else None  # groups of copies that need not be there


class _Warp:
    """``results`` are when registers of matrix products are there, ``groups`` when asynchronous copies are."""

    def __init__(self, way: list[int], block: _Block, age: int) -> None:
        self.way, self.block, self.age = way, block, age
        self.partition = age % machine.PARTITIONS
        self.position, self.arrival = 0, 0.0
        self.scoreboards = [0.0] * 6
        self.results: dict[int, float] = {}
        self.copied, self.groups = 0.0, list[float]()

    def __lt__(self, other: _Warp) -> bool:
        return self.age < other.age


class _Block:
    def __init__(self, warps: int) -> None:
        self.alive, self.arrived = warps, list[_Warp]()


class _SM:
    def __init__(self, steps: list[_Step], ways: Sequence[list[int]], blocks: int, per_wavefront: float) -> None:
        self.steps, self.ways, self.blocks, self.per_wavefront = steps, ways, blocks, per_wavefront
        each = range(machine.PARTITIONS)
        self.waiting: list[list[tuple[float, _Warp]]] = [[] for _ in each]
        self.ready: list[list[_Warp]] = [[] for _ in each]  # the oldest first
        self.pipes: list[dict[str, float]] = [dict.fromkeys(machine.PIPES, 0.0) for _ in each]  # when they are free
        self.next, self.free = [NEVER for _ in each], [0.0 for _ in each]
        self.shared = self.memory = self.end = 0.0
        self.started = self.warps = 0
        self.busy = dict.fromkeys(machine.PIPES, 0.0)

    def start(self, time: float) -> None:
        if self.started == self.blocks:
            return
        self.started += 1
        block = _Block(len(self.ways))
        for way in self.ways:
            self.wake(_Warp(way, block, self.warps), time)
            self.warps += 1

    def wake(self, warp: _Warp, time: float) -> None:
        q = warp.partition
        heapq.heappush(self.waiting[q], (time, warp))
        self.next[q] = min(self.next[q], max(self.free[q], time))

    def run(self, resident: int) -> Run:
        for _ in range(resident):
            self.start(0.0)
        while (time := min(self.next)) < NEVER:
            q = self.next.index(time)
            ready, waiting = self.ready[q], self.waiting[q]
            while waiting and waiting[0][0] <= time:
                insort(ready, heapq.heappop(waiting)[1])
            later = waiting[0][0] if waiting else NEVER
            for i, warp in enumerate(ready):
                possible = self.possible(warp, q)
                if possible <= time:
                    del ready[i]
                    self.free[q] = time + 1
                    self.issue(warp, q, time)
                    later = self.free[q] if ready else max(self.free[q], waiting[0][0]) if waiting else NEVER
                    break
                later = min(later, possible)
            self.next[q] = later
        return Run(max(self.end, self.shared, self.memory), self.busy)

    def possible(self, warp: _Warp, q: int) -> float:
        """When the pipe of the warp's next instruction takes it."""
        step = self.steps[warp.way[warp.position]]
        time = 0.0
        if step.pipe == "shared":
            time = self.shared - machine.SHARED_QUEUE
            if step.wavefronts:
                time = max(time, self.memory - machine.GLOBAL_QUEUE)
        elif step.cycles > 1:
            time = self.pipes[q][step.pipe]
        if step.registers and warp.results:
            time = max(time, *(warp.results.get(r, 0.0) for r in step.registers))
        return time

    def issue(self, warp: _Warp, q: int, time: float) -> None:
        step = self.steps[warp.way[warp.position]]
        self.end = max(self.end, time)
        self.busy["issue"] += 1 / machine.PARTITIONS
        done, read = time + step.latency, time + READ
        if step.pipe == "shared":
            self.shared = read = max(time + TO_SHARED, self.shared) + step.cycles
            self.busy["shared"] += step.cycles
            done = self.shared + step.latency
            if step.wavefronts:
                moving = step.wavefronts * self.per_wavefront
                self.memory = max(self.memory, self.shared) + moving
                self.busy["memory"] += moving
                if step.is_load:
                    done = self.memory + machine.GLOBAL_LATENCY
        elif step.pipe:
            self.pipes[q][step.pipe] = max(self.pipes[q][step.pipe], time) + step.cycles
            self.busy[step.pipe] += step.cycles / machine.PARTITIONS
        if step.result is not None:
            warp.results |= dict.fromkeys(range(step.result, step.result + 4), time + machine.HMMA_LATENCY)
        following = time + step.stall
        if step.is_copy:
            warp.copied = max(warp.copied, done)
        elif step.commits:
            warp.groups.append(warp.copied)
        elif step.keeps is not None:
            needed = len(warp.groups) - step.keeps
            following = max([following, *warp.groups[: max(0, needed)]])
        for board, when in ((step.write, done), (step.read, read)):
            if board < 6:
                warp.scoreboards[board] = max(warp.scoreboards[board], when)
        self.advance(warp, step, following)

    def advance(self, warp: _Warp, step: _Step, time: float) -> None:
        """To its next instruction at that time, or later where it waits for results, for other warps, or is done."""
        block = warp.block
        warp.position += 1
        if warp.position == len(warp.way):
            block.alive -= 1
            if not block.alive:
                self.start(time + machine.BLOCK_START)
        else:
            for board in self.steps[warp.way[warp.position]].wait:
                time = max(time, warp.scoreboards[board])
            warp.arrival = time
            if step.is_barrier:
                block.arrived.append(warp)
            else:
                heapq.heappush(self.waiting[warp.partition], (time, warp))
        if block.arrived and len(block.arrived) == block.alive:
            together = max(other.arrival for other in block.arrived) + machine.BARRIER
            for other in block.arrived:
                self.wake(other, together)
            block.arrived = []


def simulate(
    instructions: Sequence[Instruction],
    ways: Sequence[list[int]],
    blocks: int,
    resident: int,
    block_cycles: float = 0.0,
) -> Run:
    """``blocks`` blocks on an SM that holds ``resident`` at a time; ``ways`` has the indices of each warp of a block.

    ``block_cycles`` is how long the SM's share of the memory takes for what a block reads and writes.
    """
    has_matrices = any(ins.name.startswith("HMMA") for ins in instructions)
    steps = [_Step(ins, has_matrices) for ins in instructions]
    wavefronts = sum(steps[i].wavefronts for way in ways for i in way)
    return _SM(steps, ways, blocks, block_cycles / wavefronts if wavefronts else 0.0).run(resident)
