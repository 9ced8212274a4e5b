"""Forward and backward passes of layers and models that have a goal of their own: tiny ones, where every call counts,
and large ones beside the op inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import s4_fast
from s4_fast import S4DLayer, S4SequenceModel, state_spaces
from s4_fast.bench import direct, measure
from s4_fast.bench.layer_rows import Pair, Row, Sizes, both_ways, timed


def measure_passes(sizes: Sizes) -> Iterator[Row]:
    """The rows, one by one. The tiny ones have one size each, whatever ``sizes`` says."""
    yield from _tiny(1, 16, 4, d_state=4, most=0.130, goal="130 us, 5x faster", faster=5, sizes=sizes)
    yield from _tiny(2, 64, 4, d_state=8, most=0.200, goal="200 us", faster=0, sizes=sizes)
    yield _model(sizes)
    yield _beside_the_scan(sizes)
    yield _half(sizes)
    yield _block(sizes)


def _pass(layer: nn.Module, u: Tensor, evaluate: Callable[[Tensor], Tensor] | None = None) -> Callable[[], Any]:
    return both_ways(evaluate or layer, u, list(layer.parameters()))


def _tiny(
    batch: int, length: int, features: int, *, d_state: int, most: float, goal: str, faster: float, sizes: Sizes
) -> Iterator[Row]:
    u = torch.randn(batch, length, features)
    pair = Pair(_pass(S4DLayer(features, d_state), u), _pass(direct.MinimalS4D(features, d_state), u))
    row = timed(f"S4DLayer N={d_state} both ways {tuple(u.shape)}", pair, sizes)
    assert row.baseline is not None
    row.goal, row.met = goal, row.ours <= most and row.baseline >= faster * row.ours
    yield row


def _model(sizes: Sizes) -> Row:
    u = torch.randn(1, 16, 1)
    run = _pass(S4SequenceModel(1, 4, 2, 4, 4), u)
    time = measure.timed(run, "cpu", sizes.seconds).median
    name = f"S4SequenceModel of 4 blocks both ways {tuple(u.shape)}"
    return Row(name, time, goal="1.5 ms", met=time <= 1.5)


def _beside_the_scan(sizes: Sizes) -> Row:
    layer = S4DLayer(sizes.features)
    u = torch.randn(sizes.batch, sizes.length, sizes.features)
    with torch.no_grad():
        x, B, C = layer.kernel.discretize()
    given = [t.detach().clone().requires_grad_() for t in (x, B, C[0], layer.D)]
    x, B, C, D = given
    scan = both_ways(lambda t: s4_fast.ssm_scan(t.mT, x, B, C, D).mT, u, given)
    return _beside(f"S4DLayer both ways {tuple(u.shape)}, beside ssm_scan", _pass(layer, u), scan, 1.15, sizes)


def _half(sizes: Sizes) -> Row:
    layer = S4DLayer(sizes.features)
    u = torch.randn(sizes.batch, sizes.length, sizes.features)
    name = f"S4DLayer in bfloat16 {tuple(u.shape)}, beside float32"
    return _beside(name, _pass(layer, u.bfloat16()), _pass(layer, u), 1, sizes)


def _block(sizes: Sizes) -> Row:
    """The full block of state-spaces with a diagonal kernel beside its minimal layer, output maps included."""
    u = torch.randn(sizes.batch, sizes.features, sizes.length)
    block = state_spaces.S4Block(sizes.features, mode="diag", init="diag-lin")
    minimal = state_spaces.S4D(sizes.features)
    ours, beside = _pass(block, u, lambda t: block(t)[0]), _pass(minimal, u, lambda t: minimal(t)[0])
    return _beside(f"S4Block diag both ways {tuple(u.shape)}, beside S4D", ours, beside, 1.1, sizes)


def _beside(name: str, ours: Callable[[], Any], other: Callable[[], Any], most: float, sizes: Sizes) -> Row:
    row = timed(name, Pair(ours, other), sizes)
    assert row.baseline is not None
    row.goal = "no slower" if most == 1 else f"at most {most:g} times"
    row.met = row.ours <= most * row.baseline
    return row
