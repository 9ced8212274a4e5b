"""Which backend is the fastest on which GPU, as measured: ``gpu_choices.json``, which benchmarks/tune.py writes.

A call goes by the row of its architecture, op and precision whose shape is the nearest. The file is read at the first
call on a CUDA device, and what a shape has been told once is kept, as it cannot change.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from s4_fast import gpu, torch_private

if TYPE_CHECKING:
    from s4_fast.dispatch import Call

FILE = Path(__file__).with_name("gpu_choices.json")
SIZES = ("batch", "H", "n", "L", "rank", "b", "c", "channels", "directions")
"""The sizes of a call that count, 1 where an op has no such; features and rows without a name are all in H."""
PASSES = ("forward", "forward+backward")

# Octaves, over all sizes, within which a measured shape says anything of another one.
_FAR = 3
# Times that differ by less are the same, and so the order of the table of backends holds.
_TIE = 1.03


class _Question(NamedTuple):
    """What the answer depends on: where, which call, and the backend that runs it otherwise.

    Outside it is a plain tuple, which compiled graphs can hand on.
    """

    architecture: str
    op: str
    dtype: torch.dtype
    with_gradients: bool
    sizes: tuple[tuple[str, int], ...]
    first: str

    @property
    def kind(self) -> str:
        return PASSES[self.with_gradients]


class _Row(NamedTuple):
    """A measured shape: per backend the GPU's milliseconds and, where they are known, those with Python's launches."""

    sizes: dict[str, int]
    times: dict[str, list[float]]


def question(call: Call, first: str) -> tuple[Any, ...] | None:
    """What ``order`` is asked for ``call``, which ``first`` runs otherwise.

    None in graphs for any length, which would be for some alone if they asked.
    """
    if not all([torch_private.is_number(size) for size in call.shape.values()]):
        return None
    sizes = tuple(call.shape.items())
    return gpu.architecture(), call.op, call.dtype, bool(call.grads), sizes, first


@torch_private.constant_in_graphs
def order(automatic: tuple[str, ...], *asked: Any) -> str:
    """The backends of ``automatic`` by their speed at about this shape, with spaces; none where that is not known.

    ``first`` must have been measured there too. What keeps the GPU busy for a shorter time but Python for a longer one
    is left out, as a program without CUDA graphs would lose by it.
    """
    return _order(automatic, *asked)


@torch_private.constant_in_graphs
def reason(name: str, *asked: Any) -> str:
    """Why ``name`` of ``order`` runs the call."""
    return _reason(name, *asked)


@functools.lru_cache(4096)
def _order(automatic: tuple[str, ...], *question: Any) -> str:
    asked = _Question(*question)
    row = _nearest(asked)
    if row is None or asked.first not in row.times:
        return ""
    times, own = row.times, row.times[asked.first]
    left = [name for name in automatic if name in times and not _launches_longer(times[name], own)]
    found = []
    while left:
        least = min(times[name][0] for name in left)
        found.append(next(name for name in left if times[name][0] <= _TIE * least))
        left.remove(found[-1])
    return " ".join(found)


def _launches_longer(times: list[float], other: list[float]) -> bool:
    return len(times) > 1 and len(other) > 1 and times[1] > _TIE * other[1]


@functools.lru_cache(4096)
def _reason(name: str, *question: Any) -> str:
    asked = _Question(*question)
    row = _nearest(asked)
    assert row is not None
    sizes = ", ".join(f"{size} = {value}" for size, value in row.sizes.items())
    where = f"on {asked.architecture} for about this shape ({sizes}, {asked.kind})"
    times = sorted(row.times.items(), key=lambda item: (item[0] != name, item[1][0]))
    (_, ours), *others = [(other, f"{time[0]:.3g}") for other, time in times]
    beside = "".join(f"; {other} {time}" for other, time in others)
    if name != asked.first or row.times[name][0] == min(time[0] for time in row.times.values()):
        return f"measured fastest {where}: {ours} ms{beside}"
    launched = "; ".join(f"{other} {time[1]:.3g}" for other, time in times if len(time) > 1)
    with_launches = f" (with launches {launched})" if launched else ""
    return f"first, as no other is clearly faster with its launches, measured {where}: {ours} ms{beside}{with_launches}"


def _nearest(asked: _Question) -> _Row | None:
    sizes = dict(asked.sizes)
    own = [sizes.get(name, 1) for name in SIZES]
    if min(own) < 1:
        return None
    dtype = "bfloat16" if sizes.get("sample_bytes") == 2 else str(asked.dtype).removeprefix("torch.")
    rows = _table().get((asked.architecture, asked.op, dtype, asked.kind), [])
    distances = [_octaves(row.sizes, own) for row in rows]
    nearest = min(distances, default=math.inf)
    return rows[distances.index(nearest)] if nearest <= _FAR else None


def _octaves(measured: dict[str, int], sizes: list[int]) -> float:
    pairs = zip(SIZES, sizes, strict=True)
    return sum(abs(math.log2(size / measured.get(name, 1))) for name, size in pairs)


@functools.cache
def _table() -> dict[tuple[str, ...], list[_Row]]:
    """The rows by architecture, op, precision and pass."""
    found: dict[tuple[str, ...], list[_Row]] = {}
    for architecture, part in json.loads(FILE.read_text("utf-8")).items():
        for row in part["rows"]:
            sizes = {name: row[name] for name in SIZES if name in row}
            for kind in PASSES:
                if kind in row:
                    key = (architecture, row["op"], row["dtype"], kind)
                    found.setdefault(key, []).append(_Row(sizes, row[kind]))
    return found
