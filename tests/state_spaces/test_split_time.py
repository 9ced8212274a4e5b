"""The drop-ins over slices of the time axis, in several processes, compared with the whole sequence in one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from s4_fast.distributed import split_time
from s4_fast.layers import DropoutNd
from s4_fast.state_spaces import S4D, FFTConv, S4Block
from tests.helpers import relative_error
from tests.modules import set_up
from tests.ranks import Ranks

MODULES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "S4D": (S4D, {"dropout": 0.5}),
    "S4D in rows": (S4D, {"dropout": 0.5, "transposed": False}),
    **{
        f"{cls.__name__} {mode} {name}": (cls, {"mode": mode, "d_state": 8, **options})
        for mode in ("diag", "dplr")
        for cls, varied in (
            (
                FFTConv,
                {
                    "tied": {"dropout": 0.5, "tie_dropout": True},
                    "bidirectional": {"bidirectional": True},
                    "in rows": {"transposed": False, "channels": 2, "swap_channels": True, "activation": "glu"},
                },
            ),
            (
                S4Block,
                {
                    "tied": {"dropout": 0.5, "tie_dropout": True},
                    "bidirectional": {"bidirectional": True, "transposed": False},
                    "gate": {"gate": 2, "bottleneck": 2},
                },
            ),
        )
        for name, options in varied.items()
    },
}


def everywhere(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def close(actual: Tensor, expected: Tensor) -> None:
    error = relative_error(actual.detach(), expected.detach())
    assert error <= 1e-11, error


def is_split(kind: str, lengths: tuple[int, ...], seed: int) -> None:
    cls, options = MODULES[kind]
    rank, L, time = dist.get_rank(), sum(lengths), -2 if options.get("transposed") is False else -1
    torch.manual_seed(seed)
    alone = set_up(cls(4, **options), L).double()
    split = split_time(copy.deepcopy(alone))
    shape = [2, 4, L] if time == -1 else [2, L, 4]
    u = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    own = u.detach().split(lengths, time)[rank].clone().requires_grad_()
    # A mask is that of the first rank, which draws what one process does.
    torch.manual_seed(seed + 1)
    y = alone(u)[0]
    torch.manual_seed(seed + 1 + rank)
    found = split(own)[0]
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    close(torch.cat(everywhere(found.detach()), time), y)
    grads = torch.autograd.grad(found, [own, *split.parameters()], dy.split(lengths, time)[rank])
    wants = torch.autograd.grad(y, [u, *alone.parameters()], dy)
    close(torch.cat(everywhere(grads[0]), time), wants[0])
    for several, want in zip(zip(*everywhere(grads[1:]), strict=True), wants[1:], strict=True):
        close(sum(several), want)


@pytest.mark.parametrize("lengths", [(30, 11), (0, 20)])
@pytest.mark.parametrize("kind", MODULES)
def test_slices_are_those_of_the_whole(
    kind: str, lengths: tuple[int, ...], groups: dict[int, Ranks], seed: int
) -> None:
    groups[2].run(is_split, kind, lengths, seed)


def refusals() -> None:
    for nothing in (DropoutNd(0.5), nn.Sequential(DropoutNd(0.5), nn.Linear(2, 2))):
        with pytest.raises(ValueError, match=f"{type(nothing).__name__} contains no S4D or S4 layer"):
            split_time(nothing)
    for options, reason in (
        ({"l_max": 20}, "its kernel is cut at l_max=20"),
        ({"drop_kernel": 0.1}, "drop_kernel draws a mask"),
        ({"mode": "diag", "init": "diag-lin", "disc": "dss"}, "disc='dss' has no recurrence"),
    ):
        layer = FFTConv(4, d_state=8, **options)
        with pytest.raises(ValueError, match=f"split_time: the module, FFTConv, cannot be split: {reason}"):
            split_time(layer)
        model = nn.ModuleDict({"first": S4D(4, 8), "block": S4Block(4, d_state=8, **options)})
        with pytest.raises(ValueError, match=rf"split_time: block.layer, FFTConv, cannot be split: {reason}"):
            split_time(model)
        assert model["first"].time_split is None and layer.time_split is None


def test_what_cannot_be_split_is_named(groups: dict[int, Ranks]) -> None:
    groups[2].run(refusals)
