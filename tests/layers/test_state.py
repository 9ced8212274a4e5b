"""From state to state: a sequence in pieces, padded rows, and the two paths of S4D, against the whole and lone rows."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from s4_fast import S4DLayer, S4Layer, S4SequenceModel, SSMBlock, use_backend
from s4_fast.backend_table import SCAN_THRESHOLDS, Threshold
from s4_fast.layers.padding import Rows
from s4_fast.layers.ssm_layer import SSMLayer
from s4_fast.ssm import diagonal, sequence
from tests.helpers import needs_native, relative_error
from tests.layers.building import assert_close, build, run, signal

SETTINGS: list[tuple[type[SSMLayer], dict[str, Any]]] = [
    (S4DLayer, {"path": "scan"}),
    (S4DLayer, {"path": "convolution", "init": "legs", "discretization": "bilinear", "n_ssm": 2}),
    (S4Layer, {}),
    (S4Layer, {"init": "legt", "rank": 2, "n_ssm": 1}),
    (S4Layer, {"init": "fout"}),
]
EVERY = pytest.mark.parametrize(("cls", "options"), SETTINGS)
BOTH = pytest.mark.parametrize("cls", [S4DLayer, S4Layer])
BACKENDS = pytest.mark.parametrize("backend", ["pytorch", pytest.param("native", marks=needs_native)])
LENGTHS = (9, 1, 30, 16)


@pytest.fixture(autouse=True)
def seeded(session_seed: int) -> None:
    torch.manual_seed(session_seed)  # D is drawn from the default generator


def some_state(layer: SSMLayer, generator: torch.Generator, batch: int) -> Tensor:
    zero = layer.init_state(batch)
    return torch.randn(zero.shape, dtype=zero.dtype, generator=generator)


def gradients(layer: nn.Module, outputs: tuple[Tensor, ...], *inputs: Tensor) -> list[Tensor]:
    """For fixed cotangents, of the inputs and every parameter."""
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in outputs]
    leaves = (*inputs, *layer.parameters())
    return list(torch.autograd.grad(outputs, leaves, cotangents, materialize_grads=True))


@EVERY
def test_outputs_and_state_are_those_of_stepping(cls, options, generator):
    layer = build(cls, generator, **options)
    u, state = signal(generator, 3, 30, 4), some_state(layer, generator, 3)
    with torch.no_grad():
        for before in (None, state):
            want = run(layer, u, before)
            assert_close([*layer.prefill(u, before)], [*want], 1e-12)
            assert_close([*layer(u, before, return_state=True)], [*want], 1e-12)
            assert_close([layer(u, before)], [want[0]], 1e-12)


@EVERY
@pytest.mark.parametrize("cuts", [(17,), (1, 2), (29,), (8, 16, 24)])
def test_pieces_are_the_whole_with_gradients(cls, options, cuts, generator):
    layer = build(cls, generator, **options)
    layer(signal(generator, 1, 30, 4))  # S4 is set up for the longest sequence
    u, state = signal(generator, 3, 30, 4).requires_grad_(), some_state(layer, generator, 3).requires_grad_()
    whole = layer(u, state, return_state=True)
    after, outputs = state, []
    for piece in u.tensor_split(cuts, 1):
        y, after = layer(piece, after, return_state=True)
        outputs.append(y)
    pieces = (torch.cat(outputs, 1), after)
    assert_close([*pieces], [*whole], 1e-12)
    assert_close(gradients(layer, pieces, u, state), gradients(layer, whole, u, state), 1e-9)


@EVERY
def test_a_detached_state_ends_the_gradients_and_changes_no_output(cls, options, generator):
    layer = build(cls, generator, **options)
    u = signal(generator, 3, 30, 4).requires_grad_()
    want = layer(u).detach()
    y, state = layer.prefill(u[:, :17])
    z = layer(u[:, 17:], state.detach())
    assert relative_error(torch.cat((y, z), 1).detach(), want) < 1e-12
    first, second = torch.autograd.grad(z.sum(), u)[0].split((17, 13), 1)
    assert (first == 0).all() and (second != 0).any()


@EVERY
def test_without_input_the_state_alone_speaks(cls, options, generator):
    layer = build(cls, generator, **options)
    state = some_state(layer, generator, 2)
    with torch.no_grad():
        want, _ = run(layer, torch.zeros(2, 19, 4).double(), state)
        got = layer.kernel.free_response(state, 19)
    assert relative_error(got[:, 0].mT, want) < 1e-12


@BACKENDS
@EVERY
@pytest.mark.sample(4)
def test_float32_holds_the_contract_from_a_state_on(backend, cls, options, generator):
    layer = build(cls, generator, **options).float()
    double = build(cls, generator, **options)
    double.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in layer.state_dict().items()})
    u = torch.randn(2, 3000, 4, generator=generator)
    with torch.no_grad():
        # Not some_state: no input reaches the imaginary part of FouT's mode at 0, which decays by less than an ulp.
        _, state = layer.prefill(torch.randn(2, 40, 4, generator=generator))
        want = run(double, u.double(), state.to(torch.complex128))
        with use_backend(backend if cls is S4DLayer and layer.path == "scan" else "auto"):
            got = layer(u, state, return_state=True)
        # S4D rounds x to complex64 before the ops, which is an error of its own; S4 rounds nothing.
        assert_close([*got], [*want], 5e-5 if cls is S4DLayer else 2e-6)
        assert_close([*got], [*run(layer, u, state)], 2e-6)


# Padded rows


def padded(u: Tensor, lengths: tuple[int, ...], value: float = float("nan")) -> Tensor:
    inside = torch.arange(u.shape[1]) < torch.tensor(lengths)[:, None]
    return torch.where(inside[..., None], u, value)


def row_by_row(layer: nn.Module, u: Tensor, state: Tensor | None, return_state: bool) -> tuple[Tensor, ...]:
    """What each row gives alone: outputs with zeros behind them, and states."""
    outputs, states = [], []
    for row, length in enumerate(LENGTHS):
        alone = u[row : row + 1, :length]
        before = None if state is None else state[row : row + 1]
        y = layer(alone, before, return_state=return_state)
        if return_state:
            y, after = y
            states.append(after)
        outputs.append(torch.nn.functional.pad(y, (0, 0, 0, u.shape[1] - length)))
    return (torch.cat(outputs), torch.cat(states)) if return_state else (torch.cat(outputs),)


@EVERY
@pytest.mark.parametrize("given", ["no state", "state", "bidirectional"])
def test_padded_rows_are_rows_alone_with_gradients(cls, options, given, generator):
    layer = build(cls, generator, bidirectional=given == "bidirectional", **options)
    layer(signal(generator, 1, 30, 4))
    u = padded(signal(generator, 4, 30, 4), LENGTHS).requires_grad_()
    state = some_state(layer, generator, 4).requires_grad_() if given == "state" else None
    inputs = (u,) if state is None else (u, state)
    returned = given != "bidirectional"
    got = layer(u, state, lengths=LENGTHS, return_state=returned)
    got = got if returned else (got,)
    want = row_by_row(layer, u, state, returned)
    assert_close([*got], [*want], 1e-12)
    found = gradients(layer, got, *inputs)
    assert_close(found, gradients(layer, want, *inputs), 1e-9)
    assert (padded(found[0], LENGTHS, 0) == found[0]).all()  # nothing flows into the padding


@BOTH
def test_rows_go_on_where_each_of_them_stopped(cls, generator):
    layer = build(cls, generator)
    u, more = signal(generator, 4, 30, 4), signal(generator, 4, 4)
    with torch.no_grad():
        _, state = layer.prefill(padded(u, LENGTHS), lengths=LENGTHS)
        y, _ = layer.step(more, state)
        for row, length in enumerate(LENGTHS):
            whole = torch.cat((u[row, :length], more[row : row + 1]))[None]
            assert relative_error(y[row], layer(whole)[0, -1]) < 1e-11


@BOTH
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, list, tuple])
def test_lengths_of_every_integer_type(cls, dtype, generator):
    layer = build(cls, generator)
    u = signal(generator, 4, 30, 4)
    lengths = dtype(LENGTHS) if dtype in (list, tuple) else torch.tensor(LENGTHS, dtype=dtype)
    assert torch.equal(layer(u, lengths=lengths), layer(padded(u, LENGTHS), lengths=torch.tensor(LENGTHS)))
    full = [30] * 4
    assert relative_error(layer(u, lengths=full), layer(u)) < 1e-14


WRONG_LENGTHS = [
    ((9, 0, 30, 16), ValueError, r"from 1 to 30, got \[9, 0, 30, 16\]"),
    ((9, 1, 31, 16), ValueError, r"from 1 to 30, got \[9, 1, 31, 16\]"),
    ((9, -1, 30, 16), ValueError, r"from 1 to 30, got \[9, -1"),
    ((9, 1, 30), ValueError, r"shape \(4,\), one per row, got \(3,\)"),
    (torch.tensor([LENGTHS]), ValueError, r"shape \(4,\), one per row, got \(1, 4\)"),
    (torch.tensor(30), ValueError, r"one per row, got \(\)"),
    (torch.tensor(LENGTHS).float(), TypeError, "integers, got torch.float32"),
    (torch.tensor(LENGTHS) > 3, TypeError, "integers, got torch.bool"),
    ((9.0, 1, 30, 16), TypeError, "integers, got"),
    ((9, True, 30, 16), TypeError, "integers, got"),
    (30, TypeError, "integers, got 30"),
    ("abcd", TypeError, "integers, got 'abcd'"),
]


@BOTH
@pytest.mark.parametrize(("lengths", "error", "message"), WRONG_LENGTHS)
def test_wrong_lengths_are_named(cls, lengths, error, message):
    u = torch.zeros(4, 30, 4)
    modules = [cls(4, 8), SSMBlock(4, 8, layer="s4d" if cls is S4DLayer else "s4"), S4SequenceModel(4, 4, 4, 1, 8)]
    for module in modules:
        with pytest.raises(error, match=message):
            module(u, lengths=lengths)


# Wrong states


@BOTH
def test_a_state_of_another_layer_batch_or_dtype_is_named(cls):
    layer, u = cls(4, 8), torch.zeros(2, 5, 4)
    for wrong in (cls(4, 6).init_state(2), cls(5, 8).init_state(2), layer.init_state(3), layer.init_state(2)[0]):
        for call in (layer, layer.prefill):
            with pytest.raises(ValueError, match=r"\(2, 4, 4\) .* got \(" + str(tuple(wrong.shape))[1:-1]):
                call(u, wrong)
    for wrong in (layer.init_state(2).to(torch.complex128), layer.init_state(2).real):
        with pytest.raises(TypeError, match=f"complex64, got {wrong.dtype}"):
            layer(u, wrong)
    with pytest.raises(ValueError, match=r"on cpu, .* on meta"):
        layer(u, layer.init_state(2).to("meta"))


@BOTH
@pytest.mark.parametrize("module", ["layer", "block", "model"])
def test_a_bidirectional_one_has_no_state(cls, module):
    kind = "s4d" if cls is S4DLayer else "s4"
    built = {
        "layer": lambda: cls(4, 8, bidirectional=True),
        "block": lambda: SSMBlock(4, 8, layer=kind, bidirectional=True),
        "model": lambda: S4SequenceModel(4, 4, 4, 1, 8, layer=kind, bidirectional=True),
    }[module]()
    u = torch.zeros(2, 5, 4)
    state = built.init_state(2)
    calls = (
        lambda: built(u, state),
        lambda: built(u, return_state=True),
        lambda: built.prefill(u),
        lambda: built.step(u[:, 0], state),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="bidirectional"):
            call()


# The paths of S4D


def taken(layer: S4DLayer, u: Tensor) -> str:
    """The path that a forward pass takes, seen from the ops that it calls."""
    with (
        mock.patch.object(diagonal, "stored_diagonal_ssm", wraps=diagonal.stored_diagonal_ssm) as scan,
        mock.patch.object(sequence, "fft_conv", wraps=sequence.fft_conv) as conv,
    ):
        layer(u)
    assert scan.called != conv.called
    return "scan" if scan.called else "convolution"


@pytest.mark.parametrize("bidirectional", [False, True])
@BACKENDS
def test_both_paths_compute_the_same_with_gradients(backend, bidirectional, generator):
    layer = build(S4DLayer, generator, bidirectional=bidirectional)
    results = []
    for way in ("scan", "convolution"):
        layer.path = way
        u = signal(torch.Generator().manual_seed(1), 3, 50, 4).requires_grad_()
        with use_backend(backend) if way == "scan" else use_backend("auto"):
            assert taken(layer, u) == layer.explain(u).name == way
            y = layer(u)
            results.append([y, *gradients(layer, (y,), u)])
    assert_close(*results, 1e-11)


@pytest.mark.parametrize(("backend", "n", "least"), [("pytorch", 2, 1024), ("pytorch", 4, 2048)])
def test_the_path_is_chosen_by_length_and_can_be_overridden(backend, n, least):
    layer = S4DLayer(2, 2 * n)
    short, long = torch.zeros(1, least - 1, 2), torch.zeros(1, least, 2)
    with use_backend(backend):
        assert taken(layer, short) == layer.explain(short).name == "convolution"
        assert taken(layer, long) == layer.explain(long).name == "scan"
        assert f"n = {n}" in layer.explain(long).reason and f"L = {least}" in layer.explain(long).reason
        with mock.patch.dict(SCAN_THRESHOLDS, {("diagonal_ssm", "cpu", backend): Threshold(n, 1)}):
            assert taken(layer, short) == "scan"
        layer.path = "scan"
        assert taken(layer, short) == "scan" and "path=" in layer.explain(short).reason
        layer.path = "convolution"
        assert taken(layer, long) == "convolution"


@needs_native
def test_the_native_scan_is_preferred_for_the_usual_sizes():
    for d_state, L, want in ((64, 16, "scan"), (128, 1024, "scan"), (256, 1024, "convolution"), (256, 8192, "scan")):
        assert S4DLayer(2, d_state).explain(torch.zeros(1, L, 2)).name == want


def test_a_backend_without_a_scan_takes_the_convolution():
    with use_backend("triton", strict=True):
        found = S4DLayer(2, 4).explain(torch.zeros(1, 10**6, 2))
    assert found.name == "convolution" and "diagonal_ssm" in found.reason


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match="'fft'; expected one of auto, scan, convolution"):
        S4DLayer(4, 8, path="fft")


# What surrounds a layer


# An S4 layer takes half a minute.
@pytest.mark.parametrize(
    ("cls", "options"), [*SETTINGS[:3], *(pytest.param(*setting, marks=pytest.mark.slow) for setting in SETTINGS[3:])]
)
@pytest.mark.slow
def test_compiled_in_one_graph_with_state_and_lengths(cls, options, generator):
    torch._dynamo.reset()  # it counts the recompilations of all layers together
    layer = build(cls, generator, **options)
    layer(signal(generator, 1, 30, 4))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for L in (30, 17, 11):
        u, state = signal(generator, 3, L, 4), some_state(layer, generator, 3)
        lengths = torch.tensor([L, 1, 9])
        for call in ({}, {"lengths": lengths}):
            want = layer(u, state, return_state=True, **call)
            got = compiled(u, state, return_state=True, **call)
            assert_close([*got], [*want], 1e-12)
            assert_close(gradients(layer, got), gradients(layer, want), 1e-9)
    with pytest.raises(RuntimeError, match="lengths"):
        compiled(u, state, return_state=True, lengths=torch.tensor([L, 0, 9]))


@BOTH
def test_autocast_gives_what_it_gives_of_a_linear_map_and_keeps_the_state_in_float32(cls, generator):
    layer = build(cls, generator).float()
    u, state = torch.randn(2, 20, 4, generator=generator).bfloat16(), some_state(layer, generator, 2)
    want = layer(u.float(), state, return_state=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(u, state, return_state=True)
        stepped, _ = layer.step(u[:, 0], state)
    assert got[0].dtype == stepped.dtype == torch.bfloat16 and got[1].dtype == torch.complex64
    assert_close([got[0].float(), got[1]], [*want], 2**-8)
    assert_close([got[1]], [want[1]], 1e-6)


@BOTH
def test_a_batch_of_zero_rows(cls):
    layer = cls(4, 8)
    y, state = layer(torch.zeros(0, 5, 4), layer.init_state(0), lengths=[], return_state=True)
    assert y.shape == (0, 5, 4) and state.shape == (0, 4, 4)


@pytest.mark.parametrize("kind", ["s4d", "s4"])
def test_a_block_of_padded_rows_is_rows_alone_with_gradients(kind, generator):
    block = SSMBlock(4, 8, layer=kind).double()
    block(signal(generator, 1, 30, 4))
    u = padded(signal(generator, 4, 30, 4), LENGTHS).requires_grad_()
    got = block.prefill(u, lengths=LENGTHS)
    want = row_by_row(block, u, None, True)
    assert_close([*got], [*want], 1e-12)
    assert_close(gradients(block, got, u), gradients(block, want, u), 1e-9)


def test_rows_pass_through_blocks_once(generator):
    block = SSMBlock(4, 8).double()
    u = padded(signal(generator, 4, 30, 4), LENGTHS)
    with mock.patch.object(Rows, "__new__", wraps=Rows.__new__) as made:
        block(u, lengths=LENGTHS)
    assert made.call_count == 1
