"""The numbers of an H200: what an instruction occupies, how long its result takes, and what memory gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

SMS, PARTITIONS = 132, 4
CLOCK = 1.88e9
REGISTERS, SHARED, WARPS, BLOCKS = 65536, 227 * 1024, 64, 32
# Bytes a second: of a copy of 0.5 GB, and of one that stays in the L2 cache, as replays of small calls do.
DRAM, L2, L2_BYTES = 4.15e12, 7.0e12, 60e6
# Cycles.
GLOBAL_LATENCY = 300  # of a load that the L2 cache holds
LAUNCH, SMALL = 1.6e-6, 2.1e-6  # seconds: of a kernel's start in a graph, of a whole kernel that does little
BLOCK_START, BARRIER = 300, 20
# Cycles of work that the queues of shared and of global memory take before they hold the warps up.
SHARED_QUEUE, GLOBAL_QUEUE = 24, 1500
# A product of 16 x 8 x 16 in half precision on a partition; wgmma takes 4. Assumed from the 62 % that others report.
HMMA, HMMA_LATENCY = 6.5, 33


class Cost(NamedTuple):
    pipe: str  # "" for what only takes its turn to issue
    cycles: float  # that the partition's pipe is occupied, or for "shared" wavefronts of the SM
    latency: float  # until what waits for it by a scoreboard goes on


GLOBAL = re.compile(r"(LD|ST|ATOM|RED)(G|GSTS)?\b(?!S)|LDGSTS")
RULES = [
    (r"HMMA\.1688\b.*TF32|HMMA\.16816", Cost("tensor", HMMA, 0)),
    (r"HMMA", Cost("tensor", HMMA / 2, 0)),
    (r"HGMMA", Cost("tensor", 0, 30)),
    (r"LDSM|LDS|STSM|STS", Cost("shared", 1, 30)),
    (r"SHFL|MOVM", Cost("shared", 1, 25)),
    (r"LDGSTS|LDG|LD\b|STG|ST\b|ATOM|RED", Cost("shared", 1, 30)),
    (r"MUFU|F2F\.|I2F|F2I|FRND", Cost("xu", 8, 25)),
    (r"D(ADD|FMA|MUL|SETP|MNMX)", Cost("fp64", 2, 16)),
    (r"FFMA|FADD|FMUL|HADD|HFMA|HMUL|IMAD\.MOV|FSWZ", Cost("fma", 1, 6)),
    (r"IMAD|IDP", Cost("imad", 2, 6)),
    (r"S2R|S2UR|LDC|ULDC|CS2R", Cost("", 0, 25)),
    (r"U[A-Z0-9]+|R2UR", Cost("", 0, 12)),
    (r"BAR|WARPSYNC|B?SSY|BSYNC|BREAK|BRA|EXIT|NOP|DEPBAR|LDGDEPBAR|CALL|RET|YIELD|WARPGROUP|ELECT|SYNCS|FENCE|MEMBAR|ERRBAR|CCTL|PREEXIT|ACQBULK", Cost("", 0, 6)),
    (r"[A-Z]", Cost("alu", 2, 6)),
]  # fmt: skip


def cost(name: str) -> Cost:
    found = next(rule for pattern, rule in RULES if re.match(pattern, name))
    if found.pipe == "shared" and not name.startswith(("SHFL", "MOVM")):
        return found._replace(cycles=width(name))
    if name.startswith("HGMMA"):
        sizes = re.search(r"(\d+)x(\d+)x(\d+)", name)
        assert sizes, name
        m, n, k = map(int, sizes.groups())
        return found._replace(cycles=m * n * k / PARTITIONS / (256 if "TF32" in name else 512))
    return found


def width(name: str) -> int:
    """Wavefronts of a shared or global access without conflicts: 4 bytes a lane each."""
    return 4 if re.search(r"\.128|M88\.4|\.x4", name) else 2 if re.search(r"\.64|M88\.2|\.x2", name) else 1


def resident(threads: int, registers: int, shared: int) -> int:
    """Blocks that an SM holds at a time."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    # A partition has a quarter of the registers.
    by_registers = REGISTERS // PARTITIONS // per_warp * PARTITIONS // warps
    by_shared = SHARED // (-(-shared // 128) * 128) if shared else BLOCKS
    return min(WARPS // warps, by_registers, by_shared, BLOCKS)


def busiest(busy: dict[str, float]) -> str:
    return max(busy, key=lambda pipe: busy[pipe])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
