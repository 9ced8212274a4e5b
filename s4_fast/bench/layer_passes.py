"""Forward and backward passes of layers and models that have a goal of their own: tiny ones, where every call counts,
and large ones beside the op inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import s4_fast
from s4_fast import S4DLayer, S4Layer, S4SequenceModel, state_spaces
from s4_fast.bench import direct, measure
from s4_fast.bench.layer_rows import Pair, Row, Sizes, both_ways, forward, timed


def measure_passes(sizes: Sizes) -> Iterator[Row]:
    """The rows, one by one. The tiny ones have one size each, whatever ``sizes`` says."""
    yield from _tiny(1, 16, 4, d_state=4, most=0.130, goal="130 us, 5x faster", faster=5, sizes=sizes)
    yield from _tiny(2, 64, 4, d_state=8, most=0.200, goal="200 us", faster=0, sizes=sizes)
    yield _model(sizes)
    yield _beside_the_scan(sizes)
    yield _half(sizes)
    yield _block(sizes)
    yield _tiny_s4(sizes)
    for longer, fewer in ((1, 1), (16, 1), (64, 2)):
        shape = (sizes.batch if longer == 1 else 1, longer * sizes.length, max(1, sizes.features // fewer))
        yield _beside_the_fft(shape, sizes)
    yield _scans(sizes)


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


def _tiny_s4(sizes: Sizes) -> Row:
    u = torch.randn(1, 16, 4)
    time = measure.timed(_pass(S4Layer(4), u), "cpu", sizes.seconds).median
    return Row(f"S4Layer both ways {tuple(u.shape)}", time, goal="250 us", met=time <= 0.25)


def _beside_the_fft(shape: tuple[int, int, int], sizes: Sizes) -> Row:
    """The whole layer beside the convolution alone, by one FFT, with a kernel that is given."""
    u = torch.randn(shape)
    layer = S4Layer(shape[2])
    with torch.no_grad():
        k = layer.kernel.kernel(shape[1])[0]
    k.requires_grad_()

    def convolution(t: Tensor) -> Tensor:
        size = 2 * shape[1]
        product = torch.fft.rfft(t, n=size, dim=1) * torch.fft.rfft(k, n=size).mT
        return torch.fft.irfft(product, n=size, dim=1)[:, : shape[1]]

    name = f"S4Layer both ways {shape}, beside an FFT convolution"
    return _beside(name, _pass(layer, u), both_ways(convolution, u, [k]), 1, sizes)


def _scans(sizes: Sizes) -> Row:
    u = torch.randn(sizes.batch, sizes.features, sizes.length)
    s4, s4d = S4Layer(sizes.features).kernel, S4DLayer(sizes.features).kernel
    with torch.no_grad():
        x, B, C = s4d.discretize()
        system = s4.A(), torch.view_as_complex(s4.P), s4.B_vector(), torch.view_as_complex(s4.C)[0], s4.dt()
    ours = forward(lambda t: s4_fast.dplr_scan(t, *system), u)
    name = f"dplr_scan forward {tuple(u.shape)}, beside ssm_scan"
    return _beside(name, ours, forward(lambda t: s4_fast.ssm_scan(t, x, B, C[0]), u), 1.6, sizes)


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
