"""One sequence over several processes, compared with the whole sequence in one."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Generator, Tensor

from s4_fast import S4DLayer, S4SequenceModel, dispatch, distributed
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
    with warnings.catch_warnings(), mock.patch.object(dispatch, "load", wraps=dispatch.load) as load:
        warnings.simplefilter("error", FutureWarning)
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(0, 70), (40, 1, 90), (40, 90, 0)])
def test_scan_from_the_end(lengths: tuple[int, ...], backend: str, groups: dict[int, Ranks], seed: int) -> None:
    groups[len(lengths)].run(check_scan, seed, lengths, "weak", torch.complex64, backend, True)


@pytest.mark.parametrize("absent", [("D",), ("state",), ("D", "state")])
@pytest.mark.parametrize("lengths", [(0, 40, 90), (40, 30, 90)])
def test_scan_without_what_is_optional(
    lengths: tuple[int, ...], absent: tuple[str, ...], groups: dict[int, Ranks], seed: int
) -> None:
    groups[3].run(check_scan, seed, lengths, "weak", torch.complex64, "pytorch", False, absent)


@pytest.mark.parametrize("decay", ["none", "weak"])
def test_long_slices_keep_the_phase(decay: str, groups: dict[int, Ranks], seed: int) -> None:
    groups[2].run(check_scan, seed, (2**15 + 5, 2**16), decay, torch.complex64, "pytorch")


def in_a_part() -> None:
    """A group that leaves a process out, in another order, and groups of one."""
    part = dist.new_group([0, 2])
    alone = [dist.new_group([rank]) for rank in range(3)][dist.get_rank()]
    if dist.get_rank() != 1:
        check_scan(1, (30, 50), "weak", torch.complex64, "pytorch", group=part)
    else:
        with pytest.raises(ValueError, match="this process, rank 1 of all, is not in the group"):
            distributed.scan(**scan_inputs(1, 5, "weak", torch.complex64), group=part)
    for reverse in (False, True):
        for name in (distributed._GATHER, distributed._REDUCE_SCATTER):
            with mock.patch.object(dist, name, side_effect=AssertionError(f"{name} for one rank")):
                check_scan(dist.get_rank(), (50,), "weak", torch.complex64, "pytorch", reverse, group=alone)
    assert not distributed.scan(torch.zeros(2, 3, 0), *[torch.ones(3, 1) + 0j] * 3, group=alone).numel()


def test_a_group_may_be_a_part_of_the_processes(groups: dict[int, Ranks]) -> None:
    groups[3].run(in_a_part)


def in_pieces(seed: int) -> None:
    """Two calls, the second from the state that the first returned: each rank's copy passes the gradient back."""
    rank = dist.get_rank()
    inputs = scan_inputs(seed, 120, "weak", torch.complex128)
    cut = [
        u.split(lengths, -1)[rank] for u, lengths in zip(inputs["u"].split(60, -1), [(10, 50), (60, 0)], strict=True)
    ]
    cut = [u.clone().requires_grad_() for u in cut]
    rest = [inputs[name] for name in ("x", "B", "C", "D")]
    first, state = distributed.scan(cut[0], *rest, inputs["state"], return_state=True)
    second = distributed.scan(cut[1], *rest, state)
    grads = torch.autograd.grad((first.square().sum() + second.square().sum()), cut)
    expected = evaluate("ssm_scan", inputs, "reference").output
    u = inputs["u"].requires_grad_()
    (grad,) = torch.autograd.grad(distributed.ssm_scan(u, *rest, inputs["state"]).square().sum(), u)
    found = everywhere((first.detach(), second.detach(), *grads))
    order = [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert relative_error(torch.cat([found[q][piece] for q, piece in order], -1), expected) <= FORWARD["float64"]
    assert relative_error(torch.cat([found[q][2 + piece] for q, piece in order], -1), grad) <= GRADIENT["float64"]


def test_the_returned_state_goes_on(groups: dict[int, Ranks], seed: int) -> None:
    groups[2].run(in_pieces, seed)


def without_gradients(seed: int) -> None:
    rank = dist.get_rank()
    inputs = scan_inputs(seed, 90, "weak", torch.complex128)
    expected, last = evaluate("ssm_scan", inputs, "reference", return_state=True).output
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}
    leaves["u"] = inputs["u"].detach().split((30, 0, 60), -1)[rank]
    if rank:
        leaves["state"] = None  # the first rank's is taken
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            y, after = distributed.scan(**leaves, return_state=True)
        assert not y.requires_grad and not after.requires_grad
        assert relative_error(torch.cat(everywhere(y), -1), expected) <= FORWARD["float64"]
        assert relative_error(after, last) <= FORWARD["float64"]


def test_scan_without_gradients(groups: dict[int, Ranks], seed: int) -> None:
    groups[3].run(without_gradients, seed)


def some_gradients(seed: int) -> None:
    """Where only one rank wants a gradient, the others take part in the backward pass; where no state needs one, none
    does."""
    rank = dist.get_rank()
    inputs = scan_inputs(seed, 90, "weak", torch.complex128)
    expected = evaluate("ssm_scan", inputs, "reference")
    (dy,) = cotangents(expected.output)
    dy = dy.split((30, 0, 60), -1)[rank]
    own = {**inputs, "u": inputs["u"].split((30, 0, 60), -1)[rank].clone()}
    if rank == 0:
        own["u"].requires_grad_()
    y = distributed.scan(**own)
    y.backward(dy)
    if rank == 0:
        assert relative_error(own["u"].grad, expected.grads["u"][..., :30]) <= GRADIENT["float64"]
    own = {**own, "u": own["u"].detach(), "C": inputs["C"].clone().requires_grad_()}
    with mock.patch.object(dist, distributed._REDUCE_SCATTER, side_effect=AssertionError("nothing to send")):
        distributed.scan(**own).backward(dy)
    total = sum(everywhere(own["C"].grad))
    assert relative_error(total, expected.grads["C"]) <= GRADIENT["float64"]


def test_who_wants_gradients_may_differ(groups: dict[int, Ranks], seed: int) -> None:
    groups[3].run(some_gradients, seed)


def nothing_there() -> None:
    """No rows, no features, or no samples at all."""
    for shape in ((0, 3, 5), (2, 0, 5), (2, 3, 0)):
        u = torch.ones(shape, requires_grad=True)
        x, B, C = (torch.zeros(shape[1], 4, dtype=torch.complex64, requires_grad=True) for _ in range(3))
        state = torch.ones(*shape[:2], 4, dtype=torch.complex64, requires_grad=True)
        y, last = distributed.scan(u, x, B, C, None, state, return_state=True)
        assert y.shape == shape and torch.equal(last, state)
        (y.sum() + last.real.sum()).backward()
        assert all(t.grad is not None for t in (u, x, B, C, state))


def test_nothing_there(groups: dict[int, Ranks]) -> None:
    groups[2].run(nothing_there)


# ----------------------------------------------------------------------------------------------------------- errors


def refusal(kind: type[Exception], rank: int = -1, **changes: Any) -> str:
    """The message of every rank where ``rank`` has other arguments; all raise ``kind``, or ValueError for another's."""
    inputs = scan_inputs(1, 20, "weak", torch.complex64)
    if dist.get_rank() == rank or rank < 0:
        inputs |= {name: change(inputs) for name, change in changes.items()}
    with pytest.raises(kind if dist.get_rank() == rank else ValueError) as caught:
        distributed.scan(**inputs)
    return str(caught.value)


def fewer_rows(inputs: Tensors) -> Tensor:
    return inputs["u"][:1]


def double(inputs: Tensors) -> Tensor:
    return inputs["u"].double()


def wrong_shape(inputs: Tensors) -> Tensor:
    return inputs["B"][:1]


def none(inputs: Tensors) -> None:
    return None


def unknown(inputs: Tensors) -> str:
    return "cuda"


def keops(inputs: Tensors) -> str:
    return "keops"


def yes(inputs: Tensors) -> bool:
    return True


def refused(kind: type[Exception], rank: int, name: str, change: Any, message: str) -> None:
    changes = {name: change, **({"state": none} if change is fewer_rows else {})}
    found = refusal(kind, rank, **changes)
    assert message in found, found
    if kind is ValueError and "rank" in message:
        assert len(set(everywhere(found))) == 1


@pytest.mark.parametrize(
    ("kind", "rank", "name", "change", "message"),
    [
        (ValueError, 1, "u", fewer_rows, "expected the same batch on all ranks, got [2, 1, 2] on ranks 0 to 2"),
        (ValueError, 2, "D", none, "expected the same presence of D on all ranks, got [True, True, False]"),
        (ValueError, 1, "return_state", yes, "expected the same return_state on all ranks"),
        (ValueError, 0, "reverse", yes, "expected the same reverse on all ranks"),
        (ValueError, 0, "state", none, "ranks [1, 2] have an initial state, but not rank 0, whose state is used"),
        (TypeError, 1, "u", double, "expected all tensors in one precision"),
        (ValueError, 2, "B", wrong_shape, "expected B of shape (3, 5)"),
        (ValueError, 0, "backend", unknown, "unknown backend 'cuda'"),
        (dispatch.BackendUnavailableError, 0, "backend", keops, "cannot run ssm_scan"),
    ],
)
def test_what_one_rank_has_wrong_is_an_error_on_all(
    kind: type[Exception], rank: int, name: str, change: Any, message: str, groups: dict[int, Ranks]
) -> None:
    groups[3].run(refused, kind, rank, name, change, message)


FAILURES = (AttributeError("of no tensor"), KeyError("absent"), AssertionError(), KeyboardInterrupt(), MemoryError())


def failing_description(failure: BaseException) -> None:
    def describe() -> dict[str, Any]:
        if dist.get_rank() == 1:
            raise failure
        return {}

    with pytest.raises(type(failure) if dist.get_rank() == 1 else ValueError) as caught:
        distributed.agree("op", describe, length=lambda: 1)
    if dist.get_rank() != 1:
        said = f"{type(failure).__name__}: {failure}".replace("\x1b\0\x07", "???")
        assert str(caught.value) == f"op: failed on rank 1: {said[:341]}"


def unwritable(same: Any) -> None:
    mine = {"same": same} if dist.get_rank() == 0 else {}
    with pytest.raises((ValueError, TypeError), match="op: failed on rank 0" if dist.get_rank() else "JSON|bytes of"):
        distributed.agree("op", lambda: mine, length=lambda: 1)


def wrong_arguments() -> None:
    inputs = scan_inputs(1, 20, "weak", torch.complex64)
    for name in ("u", "x", "B", "C", "D", "state"):
        wrong = inputs | ({name: "no tensor"} if dist.get_rank() == 2 else {})
        with pytest.raises(Exception, match=None if dist.get_rank() == 2 else "failed on rank 2"):
            distributed.scan(**wrong)
    for module in (S4DLayer(4, 8), S4SequenceModel(4, 4, 2, 1, 8)):
        distributed.split_time(module)
        for u in (None, "no tensor", torch.tensor(1.0)):
            with pytest.raises(Exception, match=None if dist.get_rank() == 2 else "failed on rank 2"):
                module(u if dist.get_rank() == 2 else torch.ones(2, 5, 4))


def test_whatever_one_rank_raises_is_an_error_on_all(groups: dict[int, Ranks]) -> None:
    for failure in (*FAILURES, RuntimeError("\x1b\0\x07?" * 500)):
        groups[3].run(failing_description, failure)
    for same in (b"bytes", "long" * 300):
        groups[3].run(unwritable, same)
    groups[3].run(wrong_arguments)


def differing_gradient_mode() -> None:
    inputs = {name: t.requires_grad_() for name, t in scan_inputs(1, 20, "weak", torch.complex64).items()}
    with (
        torch.set_grad_enabled(dist.get_rank() == 0),
        pytest.raises(ValueError, match=r"gradients are recorded on some ranks but not on \[1, 2\]"),
    ):
        distributed.scan(**inputs)


def test_a_rank_that_records_no_gradients_is_named(groups: dict[int, Ranks]) -> None:
    groups[3].run(differing_gradient_mode)


def test_without_a_process_group() -> None:
    inputs = scan_inputs(1, 20, "weak", torch.complex64)
    with pytest.raises(RuntimeError, match=r"torchrun and call torch\.distributed\.init_process_group"):
        distributed.scan(**inputs)
    with (
        mock.patch.object(dist, "is_available", return_value=False),
        pytest.raises(RuntimeError, match=r"has no torch"),
    ):
        distributed.scan(**inputs)


def second_derivative() -> None:
    inputs = {name: t.requires_grad_() for name, t in scan_inputs(1, 20, "weak", torch.complex64).items()}
    y = distributed.scan(**inputs, backend="reference")
    (grad,) = torch.autograd.grad(y.square().sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_second_derivatives_are_refused(groups: dict[int, Ranks]) -> None:
    groups[2].run(second_derivative)


# ---------------------------------------------------------------------------------------------------------- compiled


def compiled() -> None:
    """A graph break: the same numbers, and an error where breaks are forbidden."""
    inputs = scan_inputs(1, 80, "weak", torch.complex64)

    def function(u: Tensor, x: Tensor) -> Tensor:
        return distributed.scan(2 * u, x, inputs["B"], inputs["C"]).sin()

    broken = torch.compile(function, backend="aot_eager")
    for lengths in ((50, 30), (80, 0)):
        u = inputs["u"].split(lengths, -1)[dist.get_rank()]
        found = []
        for run in (function, broken):
            leaves = u.clone().requires_grad_(), inputs["x"].clone().requires_grad_()
            y = run(*leaves)
            found.append((y, *torch.autograd.grad(y.sum(), leaves)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="scan"):
        torch.compile(function, backend="aot_eager", fullgraph=True)(u, inputs["x"])


def test_compiled(groups: dict[int, Ranks]) -> None:
    groups[2].run(compiled)
