"""DistributedDataParallel and FSDP2 around a model: the same training as in one process on the whole batch."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from s4_fast import S4SequenceModel, get_ssm_param_groups
from s4_fast.state_spaces import S4Block
from tests.helpers import relative_error
from tests.ranks import Ranks, needs_fsdp

WORLD = 2


@pytest.fixture
def ranks(groups: dict[int, Ranks]) -> Ranks:
    return groups[WORLD]


# ------------------------------------------------------------------------------------------- what the ranks run


def build(layer: str) -> S4SequenceModel:
    torch.manual_seed(0)
    return S4SequenceModel(2, 4, 3, 2, 8, layer=layer, lr=3e-3).double()


def shard(model: S4SequenceModel) -> S4SequenceModel:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model, reshard_after_forward=True)  # or evaluation leaves the outermost one gathered


def batch(L: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1.0, 3.0, 0.1, 2.0], dtype=torch.float64)[:, None, None]
    u = scale * torch.randn(2 * WORLD, L, 2, generator=generator, dtype=torch.float64)
    return u, torch.randint(3, (2 * WORLD,), generator=generator)


def own(t: Tensor) -> Tensor:
    return t.chunk(WORLD)[dist.get_rank()]


def train(model: nn.Module, u: Tensor, target: Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(get_ssm_param_groups(model, lr=1e-2, ssm_lr=1e-3, weight_decay=0.1))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(u), target).backward()
        optimizer.step()


def full(model: nn.Module) -> dict[str, Tensor]:
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, t in expected.items():
        if t.is_floating_point():
            assert not torch.equal(t, start[name]), name
            assert relative_error(actual[name] - start[name], t - start[name]) <= 1e-7, name
        else:
            assert torch.equal(actual[name], t)


def ddp_trains(layer: str) -> None:
    u, target = batch()
    alone = build(layer)
    start = copy.deepcopy(alone.state_dict())
    model = DistributedDataParallel(copy.deepcopy(alone))
    train(alone, u, target)
    train(model, own(u), own(target))
    assert_same(model.module.state_dict(), alone.state_dict(), start)


def fsdp_trains(layer: str) -> None:
    u, target = batch()
    alone = build(layer)
    start = copy.deepcopy(alone.state_dict())
    model = shard(copy.deepcopy(alone))
    groups = [(len(g["params"]), g["lr"], g["weight_decay"]) for g in get_ssm_param_groups(model)]
    assert groups == [(len(g["params"]), g["lr"], g["weight_decay"]) for g in get_ssm_param_groups(alone)]
    assert {g[1] for g in groups} == {1e-3, 3e-3}
    train(alone, u, target)
    train(model, own(u), own(target))
    found = full(model)
    assert_same(found, alone.state_dict(), start)

    plain = build(layer)
    plain.load_state_dict(found)
    with torch.no_grad():
        assert relative_error(model(u), plain(u)) <= 1e-12
    other = shard(build(layer))
    set_model_state_dict(other, found, options=StateDictOptions(full_state_dict=True))
    with torch.no_grad():
        assert relative_error(other(u), plain(u)) <= 1e-12


def fsdp_steps(layer: str) -> None:
    """A step is a forward method of its own; it remembers nothing: FSDP gathers new numbers under the old version."""
    u, target = batch()
    alone = build(layer)
    model = shard(copy.deepcopy(alone))
    for block in model.blocks:
        register_fsdp_forward_method(block, "step")
    register_fsdp_forward_method(model, "step")
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (alone, model)]
    nn.functional.cross_entropy(alone(u), target).backward()
    nn.functional.cross_entropy(model(own(u)), own(target)).backward()
    for optimizer in (*optimizers, None):
        with torch.no_grad():
            found = []
            for m in (alone, model):
                state = m.init_state(len(u))
                for sample in u[:, :5].unbind(1):
                    y, state = m.step(sample, state)
                found.append(y)
        assert relative_error(found[1], found[0]) <= 1e-12
        assert all(block.layer.kernel._memo._kept is None for block in model.blocks)
        if optimizer is optimizers[0]:
            for each in optimizers:
                each.step()


def lengths_differ(wrap: Any, make: Any) -> None:
    """The first inputs of the ranks differ in length, and nothing was prepared for any."""
    torch.manual_seed(0)
    model = make()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model = wrap(model)
    model(torch.randn(1, 20 + 10 * dist.get_rank(), 2, dtype=torch.float64))[0].sum().backward()
    for name, p in model.named_parameters():
        grads = full_tensor(p.grad)
        assert torch.isfinite(grads).all(), name
        every = [torch.empty_like(grads) for _ in range(WORLD)]
        dist.all_gather(every, grads)
        assert all(torch.equal(g, grads) for g in every), name
    after = {name.removeprefix("module."): full_tensor(t) for name, t in model.state_dict().items()}
    assert all(torch.equal(after[name], t) for name, t in before.items())


def full_tensor(t: Any) -> Tensor:
    found: Tensor = t.full_tensor() if hasattr(t, "full_tensor") else t
    return found


def drop_in() -> nn.Module:
    return S4Block(2, d_state=8, transposed=False).double()


# ------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("layer", ["s4d", "s4"])
@pytest.mark.parametrize("case", [ddp_trains, *(pytest.param(f, marks=needs_fsdp) for f in (fsdp_trains, fsdp_steps))])
def test_it_is_the_training_of_one_process(case: Any, layer: str, ranks: Ranks) -> None:
    ranks.run(case, layer)


@pytest.mark.parametrize("make", [functools.partial(build, "s4"), drop_in], ids=["model", "drop-in"])
@pytest.mark.parametrize(
    "wrap", [DistributedDataParallel, pytest.param(fully_shard, marks=needs_fsdp)], ids=["ddp", "fsdp"]
)
def test_lengths_may_differ_and_nothing_is_set_up(wrap: Any, make: Any, ranks: Ranks) -> None:
    ranks.run(lengths_differ, wrap, make)
