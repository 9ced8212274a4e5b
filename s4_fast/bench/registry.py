"""Every case that is measured, by whichever runner: the ops, whole layers, and both over many lengths."""

from __future__ import annotations

from collections.abc import Collection

from s4_fast.bench.cases import OP_CASES, Case
from s4_fast.bench.inputs import OPS
from s4_fast.bench.layer_cases import LAYER_CASES
from s4_fast.bench.layers import LAYERS

_FROM_256 = (256, 1024, 4096, 16384, 65536)
# Bytes of one (features, states, L) tensor up to which the direct evaluation runs in the sweep. That of dplr_kernel has
# four sums over twice the states at half the nodes.
_MOST = 2**30
_SIZES = {"dplr_kernel": 4, "S4Layer": 4, "S4Block-dplr": 4}


def _at(op: str, L: int, batch: int = 1) -> Case:
    fits = 64 * 32 * L * 8 * _SIZES.get(op, 1) <= _MOST
    return Case(op, 64, 32, L, batch=batch, sweep=True, direct=fits)


SWEEP = (
    *(_at(op, L) for op in ("log_vandermonde", "dplr_kernel") for L in _FROM_256),
    # Decay that keeps late terms as large as early ones: what is rounded in a phase x l shows.
    *(
        Case("log_vandermonde", 4, 8, L, decay=1e-6, sweep=True, direct=True)
        for L in (1024, 4096, 16384, 65536, 2**18, 2**20)
    ),
    *(Case("S4DLayer", 4, 8, L, decay=1e-6, sweep=True) for L in (1024, 4096, 16384, 65536, 2**18, 2**20)),
    *(_at(op, L, 8) for op in ("S4DLayer", "S4Layer") for L in _FROM_256),
    *(_at(op, L, 8) for op in ("S4D", "S4Block-diag", "S4Block-dplr") for L in _FROM_256[:-1]),
    *(
        Case(op, 64, 32, 1, batch=batch, sweep=True)
        for op in ("S4DLayer.step", "S4Layer.step")
        for batch in (1, 8, 64, 512)
    ),
    *(Case(op, H, 32, 1, sweep=True) for op in ("S4DLayer.step", "S4Layer.step") for H in (16, 128, 256, 512, 1024)),
)
CASES = (*OP_CASES, *LAYER_CASES, *SWEEP)
NAMES = (*OPS, *LAYERS)


def select(ops: Collection[str] = (), *, quick: bool = False, sweep: bool = False, layers: bool = False) -> list[Case]:
    """The cases of the full run, of the quick one or of the whole sweep, narrowed to some ops or to layers."""
    return [
        case
        for case in CASES
        if case.sweep == sweep
        and (case.quick or sweep or not quick)
        and (not ops or case.op in ops)
        and (not layers or case.op in LAYERS)
    ]
