"""The numbers of an H200: what an instruction occupies, when its result is there, what memory gives.

Fitted to recorded times: CLOCK, LAUNCH and SMALL. Assumed, as no recorded kernel depends on them: HMMA, HMMA_LATENCY
and MOVM. The others are published or follow from the width of the units.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

SMS, PARTITIONS, WARP = 132, 4, 32
CLOCK = 1.88e9
REGISTERS, SHARED, WARPS, BLOCKS = 65536, 227 * 1024, 64, 32
# Bytes a second: of a copy of 0.5 GB, and of one that the L2 cache holds, as it does where small calls are replayed.
DRAM, L2, L2_BYTES = 4.15e12, 7.0e12, 60e6
# Seconds that a graph takes to start a kernel, and all of a kernel of PyTorch that does little.
LAUNCH, SMALL = 1.6e-6, 2.1e-6
# Cycles: of a load that the L2 cache holds, from a block's end to the next one's first instruction, of a barrier.
GLOBAL_LATENCY, BLOCK_START, BARRIER = 300, 300, 20
# Cycles of work that the queues of shared and of global memory take before warps wait for a place in them.
SHARED_QUEUE, GLOBAL_QUEUE = 24, 1500
# A product of 16 x 8 x 16 in half precision on a partition takes 4 cycles by wgmma; others report that mma.sync reaches
# 62 % of that.
HMMA, HMMA_LATENCY = 6.5, 33
ACCESS = 30  # latency of shared memory


class Cost(NamedTuple):
    pipe: str  # "" for what only takes its turn to issue
    cycles: float  # of a partition's pipe; of "shared", which partitions have in common, wavefronts
    latency: float  # until what waits for the result by a scoreboard goes on


# By the beginning of the name; the first that fits.
COSTS = (
    (r"(LDG)?DEPBAR|BAR|B?SSY|BSYNC|BREAK|BRA|EXIT|NOP|CALL|RET|WARP|YIELD|SYNCS|FENCE|MEMBAR", Cost("", 0, 6)),
    (r"HMMA\.16816|HMMA\.1688\..*TF32", Cost("tensor", HMMA, 0)),
    (r"HMMA", Cost("tensor", HMMA / 2, 0)),
    (r"LD|ST(S|G|SM|\b)|ATOM|RED\b", Cost("shared", 1, ACCESS)),
    (r"SHFL|MOVM", Cost("shared", 1, 25)),
    (r"MUFU|F2F\b|I2F\b|F2I|FRND", Cost("xu", 8, 25)),
    (r"D(ADD|FMA|MUL|SETP|MNMX)", Cost("fp64", 2, 16)),
    (r"FFMA|FADD|FMUL|HADD|HFMA|HMUL|IMAD\.MOV", Cost("fma", 1, 6)),
    (r"IMAD|IDP", Cost("imad", 2, 6)),
    (r"S2U?R|CS2R", Cost("", 0, 25)),
    (r"U|R2UR", Cost("", 0, 12)),
    (r"", Cost("alu", 2, 6)),
)
CONSTANT = Cost("", 0, 25)
PIPES = ("issue", "fma", "imad", "alu", "fp64", "xu", "tensor", "shared", "memory")


@cache
def cost(name: str) -> Cost:
    if name.startswith("LDC"):
        return CONSTANT
    if re.match(r"HGMMA|UTMA|UBLKCP", name):
        raise NotImplementedError(f"{name} is not in the model of cost")
    found = next(rule for pattern, rule in COSTS if re.match(pattern, name))
    accesses = found.pipe == "shared" and found.latency == ACCESS
    return found._replace(cycles=width(name)) if accesses else found


def width(name: str) -> int:
    """Wavefronts of an access without conflicts: 4 bytes a lane each."""
    return 4 if re.search(r"\.128|88\.4", name) else 2 if re.search(r"\.64|88\.2", name) else 1


def is_global(name: str) -> bool:
    return re.match(r"LDG(?!DEPBAR)|STG|LD\b|ST\b|ATOMG?\b|RED\b", name) is not None


def resident(threads: int, registers: int, shared: int) -> int:
    """Blocks that an SM holds at a time."""
    warps = -(-threads // WARP)
    per_warp = -(-registers * WARP // 256) * 256
    # Each partition has its quarter of the registers.
    by_registers = REGISTERS // PARTITIONS // per_warp * PARTITIONS // warps
    by_shared = SHARED // (-(-shared // 128) * 128) if shared else BLOCKS
    return min(WARPS // warps, by_registers, by_shared, BLOCKS)
