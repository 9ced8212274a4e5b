"""Layers and models that hold a slice of the time axis in every process, compared with the whole sequence in one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from s4_fast import S4DLayer, S4Layer, S4SequenceModel
from s4_fast.distributed import join_time, split_time
from s4_fast.layers import DropoutNd, ModelState
from tests.helpers import relative_error
from tests.ranks import Ranks, needs_fsdp

SLICES = [(37, 5), (0, 40), (40, 0), (100, 29, 3), (0, 30, 20), (30, 0, 20), (30, 20, 0), (0, 1, 0)]
LAYERS = ["s4d scan", "s4d convolution", "s4"]


# ------------------------------------------------------------------------------------------- what the ranks run


def options(layer: str) -> dict[str, Any]:
    name, *path = layer.split()
    return {"layer": name, **({"path": path[0]} if path else {})}


def everywhere(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def joined(t: Tensor) -> Tensor:
    """The ranks' slices (batch, length, features) in one."""
    return torch.cat(everywhere(t.detach()), 1)


def summed(grads: Any) -> list[Tensor]:
    return [sum(several) for several in zip(*everywhere([g.detach() for g in grads]), strict=True)]


def assert_close(actual: Tensor, expected: Tensor, allowed: float, name: str = "") -> None:
    error = relative_error(actual, expected)
    assert error <= allowed, (name, error)


def check_layer(seed: int, lengths: tuple[int, ...], layer: str, bidirectional: bool, dtype: torch.dtype) -> None:
    rank, L = dist.get_rank(), sum(lengths)
    torch.manual_seed(seed)
    kind = {"s4d": S4DLayer, "s4": S4Layer}[layer.split()[0]]
    given = {"bidirectional": bidirectional, **options(layer)}
    del given["layer"]
    alone = kind(3, 8, dt_min=0.01, **given).double()
    alone.load_state_dict({name: t.to(dtype) for name, t in alone.state_dict().items()})  # what dtype holds exactly
    u, dy = torch.randn(2, 2, L, 3, dtype=dtype)
    state, last = torch.randn(2, 2, 3, 4, dtype=dtype.to_complex())
    wide, state_wide = u.double().requires_grad_(), state.to(torch.complex128).requires_grad_()
    split = split_time(copy.deepcopy(alone).to(dtype))
    own = u.split(lengths, 1)[rank].clone().requires_grad_()
    state = state.clone().requires_grad_()
    forward, gradient = (1e-12, 1e-11) if dtype == torch.float64 else (2e-6, 1e-5)

    if bidirectional:
        outputs, expected = [split(own)], [alone(wide)]
        inputs, inputs_wide = [own], [wide]
    else:
        outputs, expected = list(split(own, state, return_state=True)), list(alone.prefill(wide, state_wide))
        inputs, inputs_wide = [own, state], [wide, state_wide]
    weight = float(rank + 1) / sum(range(1, len(lengths) + 1))  # the loss of the state is shared by the ranks
    cotangents = [dy.split(lengths, 1)[rank], weight * last][: len(outputs)]
    grads = torch.autograd.grad(outputs, [*inputs, *split.parameters()], cotangents)
    whole = torch.autograd.grad(
        expected,
        [*inputs_wide, *alone.parameters()],
        [dy.double(), last.to(torch.complex128)][: len(expected)],
    )
    assert_close(joined(outputs[0]), expected[0], forward)
    assert_close(joined(grads[0]), whole[0], gradient)
    if not bidirectional:
        assert_close(outputs[1], expected[1], forward)
        assert all(torch.equal(other, outputs[1]) for other in everywhere(outputs[1].detach()))
    names = [*["state"][: len(inputs) - 1], *(name for name, _ in alone.named_parameters())]
    for name, g, expected_g in zip(names, summed(grads[1:]), whole[1:], strict=True):
        assert_close(g, expected_g, gradient, name)


def model_of(layer: str, task: str = "classification", **more: Any) -> S4SequenceModel:
    return S4SequenceModel(2, 4, 3, 2, 8, task=task, **options(layer), **more).double()


def check_model(seed: int, lengths: tuple[int, ...], layer: str, task: str, bidirectional: bool) -> None:
    """From a state to a state where the model has one, with the loss that every rank makes of what it has."""
    rank, world, L = dist.get_rank(), dist.get_world_size(), sum(lengths)
    torch.manual_seed(seed)
    alone = model_of(layer, task, bidirectional=bidirectional)
    split = split_time(copy.deepcopy(alone))
    u = torch.randn(2, L, 2, dtype=torch.float64)
    state = None if bidirectional else alone.prefill(torch.randn(2, 7, 2, dtype=torch.float64))[1].detach()
    own = u.split(lengths, 1)[rank].clone().requires_grad_()
    u.requires_grad_()
    if bidirectional:
        y, expected, last, expected_last = split(own), alone(u), None, None
    else:
        (y, last), (expected, expected_last) = split.prefill(own, state), alone.prefill(u, state)
    dy = torch.randn(expected.shape, dtype=torch.float64)
    if task == "regression":
        assert_close(joined(y), expected, 1e-11)
        own_dy = dy.split(lengths, 1)[rank]
    else:
        assert_close(y, expected, 1e-11)
        own_dy = dy / world
    if last is not None:
        for a, b in zip(
            (*last.blocks, last.pooled, last.steps), (*expected_last.blocks, *expected_last[1:]), strict=True
        ):
            assert_close(a, b, 1e-11)
    grads = torch.autograd.grad(y, [own, *split.parameters()], own_dy)
    whole = torch.autograd.grad(expected, [u, *alone.parameters()], dy)
    assert_close(joined(grads[0]), whole[0], 1e-10)
    for (name, _), g, expected_g in zip(alone.named_parameters(), summed(grads[1:]), whole[1:], strict=True):
        assert_close(g, expected_g, 1e-10, name)


# ---------------------------------------------------------------------------------------------------- layers, models


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("lengths", SLICES)
def test_layer(lengths: tuple[int, ...], layer: str, bidirectional: bool, groups: dict[int, Ranks], seed: int) -> None:
    groups[len(lengths)].run(check_layer, seed, lengths, layer, bidirectional, torch.float64)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_in_float32(layer: str, bidirectional: bool, groups: dict[int, Ranks], seed: int) -> None:
    groups[3].run(check_layer, seed, (300, 1, 411), layer, bidirectional, torch.float32)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("layer", ["s4d scan", "s4"])
@pytest.mark.parametrize("lengths", [(37, 5), (0, 30, 20), (30, 20, 0)])
def test_model(
    lengths: tuple[int, ...], layer: str, task: str, bidirectional: bool, groups: dict[int, Ranks], seed: int
) -> None:
    groups[len(lengths)].run(check_model, seed, lengths, layer, task, bidirectional)


def with_fsdp(model: S4SequenceModel) -> nn.Module:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def trains(wrap: Callable[[nn.Module], nn.Module], layer: str, lengths: tuple[int, ...]) -> None:
    """Ranks hold slices of the sequences in groups of two, and these groups hold parts of the batch."""
    rank, world, time = dist.get_rank(), dist.get_world_size(), len(lengths)
    groups = [dist.new_group(list(range(first, first + time))) for first in range(0, world, time)]
    part, place = divmod(rank, time)
    torch.manual_seed(0)
    alone = model_of(layer)
    model = wrap(split_time(copy.deepcopy(alone), groups[part]))
    u, target = torch.randn(2 * len(groups), 60, 2, dtype=torch.float64), torch.randint(3, (2 * len(groups),))
    own = u.chunk(len(groups))[part].split(lengths, 1)[place]
    for m, inputs, classes in ((alone, u, target), (model, own, target.chunk(len(groups))[part])):
        optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(m(inputs), classes).backward()
            optimizer.step()
    found = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    for name, p in alone.named_parameters():
        assert_close(found[name], p.detach(), 1e-11, name)


WRAPS = [DistributedDataParallel, pytest.param(with_fsdp, marks=needs_fsdp)]


@pytest.mark.parametrize("lengths", [(50, 10), (0, 60)])
@pytest.mark.parametrize("layer", ["s4d", "s4"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_time_under_data_parallelism(wrap: Any, layer: str, lengths: tuple[int, ...], groups: dict[int, Ranks]) -> None:
    groups[2].run(trains, wrap, layer, lengths)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["s4d", "s4"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_time_and_data(wrap: Any, layer: str, groups: dict[int, Ranks]) -> None:
    groups[4].run(trains, wrap, layer, (50, 10))


def goes_on() -> None:
    """A sequence in two pieces, each over all ranks, trained through both."""
    torch.manual_seed(0)
    alone = model_of("s4d scan")
    split = split_time(copy.deepcopy(alone))
    u = torch.randn(2, 2, 50, 2, dtype=torch.float64)
    pieces = [
        piece.split(lengths, 1)[dist.get_rank()] for piece, lengths in zip(u, [(0, 20, 30), (25, 5, 20)], strict=True)
    ]
    found = []
    for model, inputs in ((alone, u), (split, pieces)):
        _, state = model.prefill(inputs[0])
        y, _ = model(inputs[1], state), None
        found.append((y, torch.autograd.grad(y.sum(), list(model.parameters()))))
    assert_close(found[1][0], found[0][0], 1e-11)
    for g, expected in zip(summed(found[1][1]), found[0][1], strict=True):
        assert_close(g / dist.get_world_size(), expected, 1e-10)


def test_pieces(groups: dict[int, Ranks]) -> None:
    groups[3].run(goes_on)


def checkpointed() -> None:
    """Activation checkpointing runs the blocks, and what travels, a second time in the backward pass."""
    torch.manual_seed(0)
    model = split_time(model_of("s4"))
    own = torch.randn(2, 50, 2, dtype=torch.float64).split((0, 20, 30), 1)[dist.get_rank()]
    found = []
    for run in (lambda block, x: block(x), lambda block, x: checkpoint(block, x, use_reentrant=False)):
        x = model.encoder(own)
        for block in model.blocks:
            x = run(block, x)
        found.append(torch.autograd.grad(x.square().sum(), list(model.blocks.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_activation_checkpointing(groups: dict[int, Ranks]) -> None:
    groups[3].run(checkpointed)


def drops_out() -> None:
    """One mask for all slices, whatever the ranks' generators."""
    torch.manual_seed(dist.get_rank())
    dropout = split_time(nn.Sequential(DropoutNd(0.5), S4DLayer(64, 4)))[0]
    masks = everywhere(dropout(torch.ones(2, dist.get_rank() + 1, 64)))
    assert 0 < masks[0].sum() and (masks[0] == 0).any()
    assert all((mask == masks[0][:, :1]).all() for mask in masks)


def test_dropout(groups: dict[int, Ranks]) -> None:
    groups[3].run(drops_out)


# ------------------------------------------------------------------------------------------------------- the switch


def marks() -> None:
    torch.manual_seed(0)
    model = model_of("s4d scan", "regression")
    own = torch.randn(2, 10, 2, dtype=torch.float64)
    plain = model(own)
    assert split_time(model) is model
    assert model.time_split.group not in (None, dist.group.WORLD)  # not that of others' communication
    twin = copy.deepcopy(model)
    y = model(own)
    assert torch.equal(twin(own), y)
    if dist.get_rank():
        assert not torch.allclose(y, plain)
    with pytest.raises(
        RuntimeError, match=r"cannot be pickled; save its state_dict\(\), or call s4_fast\.distributed\.join_"
    ):
        pickle.dumps(model)
    with pytest.raises(RuntimeError, match=r"cannot generate; call join_time\(model\)"):
        model.generate(own, 3)
    state = model.init_state(2)
    for sample in own.unbind(1):
        stepped, state = model.step(sample, state)
    assert_close(stepped, plain[:, -1].detach(), 1e-12)
    assert torch.equal(join_time(model)(own), plain)
    assert torch.equal(pickle.loads(pickle.dumps(model))(own), plain)
    assert torch.equal(twin(own), y)


def test_marks(groups: dict[int, Ranks]) -> None:
    groups[2].run(marks)


def refusals() -> None:
    rank = dist.get_rank()
    with pytest.raises(ValueError, match="Linear contains no S4D or S4 layer"):
        split_time(nn.Linear(2, 2))
    part = dist.new_group([0])
    if rank:
        with pytest.raises(ValueError, match="this process, rank 1 of all, is not in the group"):
            split_time(S4DLayer(2, 4), part)
    model, layer = split_time(S4SequenceModel(2, 4, 3, 1, 8)), split_time(S4DLayer(2, 4))
    u = torch.randn(2, 5 + rank, 2)
    wrong = u[:, :, : 2 - rank]  # one feature on rank 1
    for module, name in ((model, "S4SequenceModel"), (layer, "S4DLayer")):
        with pytest.raises(ValueError, match=r"lengths= cannot be combined with split_time"):
            module(u, lengths=[3, 4] if rank else None)
        with pytest.raises(
            ValueError, match=r"expected u of shape \(batch, length, 2\) with length >= 0, got \(2, 6, 1\)"
        ):
            module(wrong)
        with pytest.raises(ValueError, match=rf"{name}: expected the same batch on all ranks, got \[2, 1\]"):
            module(u[: 2 - rank])
    with pytest.raises(ValueError, match=r"expected at least one sample on any rank"):
        model(u[:, :0])
    with pytest.raises(ValueError, match=r"expected the same presence of a state on all ranks, got \[True, False\]"):
        model(u, None if rank else model.init_state(2))
    with pytest.raises(ValueError, match=r"ranks \[1\] have an initial state, but not rank 0"):
        layer(u, layer.init_state(2) if rank else None)
    with pytest.raises((TypeError, ValueError), match="ModelState"):
        model(u, layer.init_state(2) if rank else model.init_state(2))
    assert isinstance(model.prefill(u)[1], ModelState)


def test_refusals(groups: dict[int, Ranks]) -> None:
    groups[2].run(refusals)


def compiled() -> None:
    """Graph breaks where states travel, and the same numbers."""
    torch.manual_seed(0)
    layer = split_time(S4DLayer(3, 8, path="scan", bidirectional=True).double())
    broken = torch.compile(layer, backend="aot_eager")
    for lengths in ((25, 15), (40, 0)):
        own = torch.randn(2, 40, 3, dtype=torch.float64).split(lengths, 1)[dist.get_rank()]
        found = []
        for run in (layer, broken):
            y = run(own)
            found.append((y, *torch.autograd.grad(y.sum(), list(layer.parameters()))))
        for a, b in zip(*found, strict=True):
            assert_close(a, b.detach(), 1e-12)


def test_compiled(groups: dict[int, Ranks]) -> None:
    groups[2].run(compiled)
