"""One sequence over several processes, compared with the whole sequence in one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Generator, Tensor

from s4_fast import dispatch, distributed
from tests.helpers import (
    FORWARD,
    GRADIENT,
    Tensors,
    backends,
    cotangents,
    evaluate,
    log_nodes,
    normal,
    relative_error,
    widened,
)
from tests.ranks import Ranks

BACKENDS = backends("ssm_scan")
# Unequal slices, and an empty one at each position.
SLICES = [(37, 1), (0, 70), (70, 0), (1047, 29, 300), (0, 40, 90), (40, 0, 90), (40, 90, 0), (0, 33, 0)]


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[int, Ranks]]:
    found = {world: Ranks(world) for world in (2, 3)}
    yield found
    for ranks in found.values():
        ranks.stop()


@pytest.fixture
def seed(generator: Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


# ------------------------------------------------------------------------------------------- what the ranks run


def scan_inputs(seed: int, L: int, decay: str, dtype: torch.dtype, batch: int = 2, H: int = 3, n: int = 5) -> Tensors:
    generator = Generator().manual_seed(seed)
    return {
        "u": normal(generator, batch, H, L, dtype=dtype.to_real()),
        "x": log_nodes(generator, decay, H, n, dtype=dtype),
        "B": normal(generator, H, n, dtype=dtype),
        "C": normal(generator, H, n, dtype=dtype),
        "D": normal(generator, H, dtype=dtype.to_real()),
        "state": normal(generator, batch, H, n, dtype=dtype),
    }


def everywhere(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """What each rank has."""
    found = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def check_scan(
    seed: int,
    lengths: tuple[int, ...],
    decay: str,
    dtype: torch.dtype,
    backend: str,
    reverse: bool = False,
    absent: tuple[str, ...] = (),
    group: dist.ProcessGroup | None = None,
) -> None:
    """Outputs, state and gradients are those of the whole sequence; gradients of parameters in their sum."""
    rank = dist.get_rank(group)
    whole = {name: t for name, t in scan_inputs(seed, sum(lengths), decay, dtype).items() if name not in absent}
    wide = {name: widened(t) for name, t in whole.items()}

    def turned(t: Tensor) -> Tensor:
        return t.flip(-1) if reverse else t

    expected = evaluate("ssm_scan", {**wide, "u": turned(wide["u"])}, "reference", return_state=True, seed=seed)
    dy, dlast = cotangents((turned(expected.output[0]).to(whole["u"]), expected.output[1].to(dtype)), seed)
    dy = turned(dy).split(lengths, -1)[rank]  # `evaluate` has them in the order of the scan
    share = torch.rand(len(lengths), dtype=dlast.dtype.to_real(), generator=Generator().manual_seed(seed))

    inputs = {name: t.requires_grad_() for name, t in whole.items()}
    inputs["u"] = whole["u"].detach().split(lengths, -1)[rank].clone().requires_grad_()
    with mock.patch.object(dispatch, "load", wraps=dispatch.load) as load:
        y, last = distributed.scan(**inputs, return_state=True, group=group, reverse=reverse, backend=backend)
        grads = dict(
            zip(
                inputs,
                torch.autograd.grad((y, last), list(inputs.values()), (dy, dlast * share[rank] / share.sum())),
                strict=True,
            )
        )
    assert {call.args for call in load.call_args_list} == (
        {("ssm_scan", backend), ("log_vandermonde_transpose", backend)} if lengths[rank] else set()
    )
    assert y.shape == inputs["u"].shape and y.dtype == inputs["u"].dtype and last.dtype == dtype

    found = everywhere(
        {"y": y.detach(), "last": last.detach(), **{f"grad {name}": g for name, g in grads.items()}}, group
    )
    assert all(torch.equal(other["last"], last) for other in found)
    first = len(lengths) - 1 if reverse else 0
    if "state" in inputs:
        assert all(not other["grad state"].any() for q, other in enumerate(found) if q != first)
    in_slices = {name: torch.cat([other[name] for other in found], -1) for name in ("y", "grad u")}
    summed = {name: sum(other[name] for other in found) for name in found[0] if name not in ("y", "last", "grad u")}
    actual = {**in_slices, "last": last, **summed}

    precision = torch.finfo(dtype).dtype
    values = {"y": turned(expected.output[0]), "last": expected.output[1]}
    gradients = {f"grad {name}": g for name, g in expected.grads.items()}
    gradients["grad u"] = turned(gradients["grad u"])
    errors = {name: relative_error(actual[name], t) for name, t in {**values, **gradients}.items()}
    allowed = dict.fromkeys(values, FORWARD[precision]) | dict.fromkeys(gradients, GRADIENT[precision])
    assert not {name: error for name, error in errors.items() if not error <= allowed[name]}, (errors, allowed)


# ------------------------------------------------------------------------------------------------------- the scan


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", ["none", "weak", "strong"])
@pytest.mark.parametrize("lengths", SLICES)
def test_scan_is_that_of_the_whole_sequence(
    lengths: tuple[int, ...], decay: str, backend: str, groups: dict[int, Ranks], seed: int
) -> None:
    for dtype in (torch.complex64, torch.complex128):
        groups[len(lengths)].run(check_scan, seed, lengths, decay, dtype, backend)
