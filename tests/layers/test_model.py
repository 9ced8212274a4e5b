from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s4_fast import ModelState, S4SequenceModel
from tests.helpers import needs_cxx, relative_error

LAYERS = pytest.mark.parametrize("layer", ["s4d", "s4"])
TASKS = pytest.mark.parametrize("task", ["classification", "regression"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def build(layer: str = "s4d", task: str = "classification", **options) -> S4SequenceModel:
    options = {"d_input": 2, "d_model": 4, "d_output": 3, "n_layers": 2, "d_state": 8, **options}
    return S4SequenceModel(**options, task=task, layer=layer).double()


def signal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@LAYERS
@TASKS
def test_output_shapes(layer, task):
    y = build(layer, task)(signal(5, 12, 2))
    assert y.shape == ((5, 3) if task == "classification" else (5, 12, 3))
    assert build(layer, task)(signal(0, 12, 2)).shape[0] == 0


@LAYERS
def test_the_model_is_its_parts(layer):
    model, u = build(layer), signal(5, 12, 2)
    x = model.encoder(u)
    for block in model.blocks:
        x = block(x)
    x = model.norm(x)
    assert torch.equal(model(u), model.head(x.mean(1)))
    model.task = "regression"
    assert torch.equal(model(u), model.head(x))


@LAYERS
@TASKS
def test_each_step_is_forward_on_the_sequence_so_far(layer, task):
    model, u = build(layer, task, dropout=0.3).eval(), signal(3, 20, 2)
    state = model.init_state(3)
    with torch.no_grad():
        for position in range(20):
            y, state = model.step(u[:, position], state)
            want = model(u[:, : position + 1])
            assert relative_error(y, want if task == "classification" else want[:, -1]) < 1e-11
    assert state.steps.tolist() == [20] * 3


# From state to state


def equal_states(got: ModelState, want: ModelState, tolerance: float = 1e-11) -> None:
    assert torch.equal(got.steps, want.steps)
    for g, w in zip((*got.blocks, got.pooled), (*want.blocks, want.pooled), strict=True):
        assert relative_error(g.detach(), w.detach()) < tolerance


def gradients(model: nn.Module, outputs: list[Tensor], *inputs: Tensor) -> list[Tensor]:
    """For fixed cotangents, of the inputs and every parameter."""
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in outputs]
    return list(torch.autograd.grad(outputs, (*inputs, *model.parameters()), cotangents, materialize_grads=True))


@LAYERS
@TASKS
@pytest.mark.parametrize("cuts", [(7,), (1, 2, 19)])
def test_pieces_are_the_whole_with_gradients(layer, task, cuts):
    model, u = build(layer, task), signal(3, 20, 2).requires_grad_()
    model(u)  # S4 is set up for the longest sequence
    want, last = model.prefill(u)
    state, outputs = None, []
    for piece in u.tensor_split(cuts, 1):
        y, state = model(piece, state, return_state=True)
        outputs.append(y)
    got = outputs[-1] if task == "classification" else torch.cat(outputs, 1)
    assert relative_error(got.detach(), want.detach()) < 1e-12
    equal_states(state, last)
    results = [gradients(model, [y, *s.blocks, s.pooled], u) for y, s in ((got, state), (want, last))]
    assert all(relative_error(g, w) < 1e-9 for g, w in zip(*results, strict=True))
    assert relative_error(model(u).detach(), want.detach()) < 1e-14


@LAYERS
@TASKS
def test_steps_go_on_where_prefill_stopped(layer, task):
    model, u = build(layer, task).eval(), signal(3, 20, 2)
    with torch.no_grad():
        _, state = model.prefill(u[:, :13])
        for position in range(13, 20):
            y, state = model.step(u[:, position], state)
            want, last = model.prefill(u[:, : position + 1])
            assert relative_error(y, want if task == "classification" else want[:, -1]) < 1e-11
            equal_states(state, last)


def quantized(model: S4SequenceModel) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model.float(), {nn.Linear}, dtype=torch.qint8)


def with_head(head: nn.Module) -> Callable[[S4SequenceModel], nn.Module]:
    def change(model: S4SequenceModel) -> nn.Module:
        model.head = head.double()
        return model

    return change


CHANGES = {
    "no head": with_head(nn.Identity()),
    "a deeper head": with_head(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))),
    "quantised": quantized,
    "a dropped part": lambda model: [setattr(block, "dropout", nn.Identity()) for block in model.blocks] and model,
}


@LAYERS
@TASKS
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per:UserWarning")
def test_parts_may_be_replaced(layer, task, change):
    model = change(build(layer, task).eval())
    u = signal(3, 6, 2).to(next(model.blocks.parameters()).dtype)
    state = model.init_state(3)
    with torch.no_grad():
        for sample in u.unbind(1):
            y, state = model.step(sample, state)
        want, last = model.prefill(u)
    tolerance = 0.1 if u.dtype == torch.float32 else 1e-11  # quantised parts round by the range of all they are given
    assert relative_error(y, want if task == "classification" else want[:, -1]) < tolerance
    assert torch.equal(state.steps, last.steps)


def test_a_replaced_head_generates():
    model = build(task="regression").eval()
    model.head = nn.Sequential(nn.Linear(4, 2), nn.Tanh()).double()
    assert model.generate(signal(3, 6, 2), 4).shape == (3, 4, 2)
    model.head = nn.Identity()
    with pytest.raises(ValueError, match="d_output must be d_input = 2, got 4"):
        model.generate(signal(3, 6, 2), 4)
    model.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)).double()
    model.train()
    with pytest.raises(RuntimeError, match="dropout is active"):
        model.generate(signal(3, 6, 2), 4)


@LAYERS
def test_a_detached_state_has_no_history(layer):
    model, u = build(layer, "regression"), signal(3, 20, 2).requires_grad_()
    _, state = model.prefill(u[:, :13])
    assert all(s.requires_grad for s in (*state.blocks, state.pooled))
    detached = state.detach()
    assert not any(s.requires_grad for s in (*detached.blocks, detached.pooled))
    equal_states(detached, state, 1e-16)
    grad = torch.autograd.grad(model(u[:, 13:], detached).sum(), u)[0]
    assert (grad[:, :13] == 0).all() and (grad[:, 13:] != 0).any()


@LAYERS
@TASKS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padded_rows_are_rows_alone(layer, task, bidirectional):
    model, lengths = build(layer, task, bidirectional=bidirectional), (12, 1, 20)
    u = signal(3, 20, 2)
    inside = torch.arange(20) < torch.tensor(lengths)[:, None]
    u = torch.where(inside[..., None], u, float("nan")).requires_grad_()
    model(signal(1, 20, 2))
    got, want = model(u, lengths=lengths), []
    for row, length in enumerate(lengths):
        y = model(u[row : row + 1, :length])
        want.append(y if task == "classification" else pad(y, (0, 0, 0, 20 - length)))
    want = torch.cat(want)
    assert relative_error(got.detach(), want.detach()) < 1e-12
    results = [gradients(model, [y], u) for y in (got, want)]
    assert all(relative_error(g, w) < 1e-9 for g, w in zip(*results, strict=True))
    assert (results[0][0][~inside] == 0).all()


@LAYERS
@TASKS
def test_padded_rows_have_their_own_states(layer, task):
    model, lengths = build(layer, task).eval(), (12, 1, 20)
    u = signal(3, 20, 2)
    with torch.no_grad():
        _, before = model.prefill(signal(3, 5, 2), lengths=(5, 2, 3))
        _, after = model.prefill(u, before, lengths=lengths)
        assert after.steps.tolist() == [17, 3, 23]
        for row, length in enumerate(lengths):
            own = ModelState(*(_rows(part, row) for part in before))
            _, want = model.prefill(u[row : row + 1, :length], own)
            equal_states(ModelState(*(_rows(part, row) for part in after)), want)


def _rows(part, row):
    return part[row : row + 1] if isinstance(part, Tensor) else tuple(s[row : row + 1] for s in part)


def test_the_pooled_sum_keeps_its_digits_over_a_long_stream():
    model = S4SequenceModel(1, 4, 2, 1, 4)
    with torch.no_grad():
        state = model.init_state(1)
        state = state._replace(pooled=state.pooled + 1e8, steps=state.steps + 10**8)
        _, after = model.step(torch.ones(1, 1), state)
        added, _ = model.prefill(torch.ones(1, 1, 1))
    assert (after.pooled - state.pooled).abs().max() > 1e-3 and after.pooled.dtype == torch.float64
    assert after.steps.item() == 10**8 + 1 and added.isfinite().all()


@LAYERS
def test_generation_feeds_outputs_back(layer):
    model, u = build(layer, "regression", d_input=3, dropout=0.3).eval(), signal(2, 11, 3)
    got = model.generate(u, 6)
    assert got.shape == (2, 6, 3) and not got.requires_grad
    with torch.no_grad():
        for step in range(6):
            y = model(u)[:, -1:]
            assert relative_error(got[:, step], y[:, 0]) < 1e-10
            u = torch.cat((u, y), 1)


@LAYERS
def test_generation_from_padded_rows_and_from_a_state(layer):
    model, u = build(layer, "regression", d_input=3).eval(), signal(2, 11, 3)
    got = model.generate(u, 4, lengths=[4, 11])
    for row, length in enumerate((4, 11)):
        alone = u[row : row + 1, :length]
        assert relative_error(got[row], model.generate(alone, 4)[0]) < 1e-11
    with torch.no_grad():
        _, state = model.prefill(u[:, :5])
    assert relative_error(model.generate(u[:, 5:], 4, state), model.generate(u, 4)) < 1e-11


@pytest.mark.parametrize(
    ("options", "steps", "error", "message"),
    [
        ({"task": "classification"}, 3, RuntimeError, "regression model generates; .* classification"),
        ({"d_output": 2}, 3, ValueError, "d_input = 3, got 2"),
        ({"dropout": 0.1}, 3, RuntimeError, r"eval\(\)"),
        ({"bidirectional": True}, 3, RuntimeError, "bidirectional"),
        ({}, 0, ValueError, "at least 1, got 0"),
        ({}, 2.0, TypeError, "int, got float"),
        ({}, True, TypeError, "int, got bool"),
    ],
)
def test_what_cannot_be_generated_is_refused(options, steps, error, message):
    model = build(**{"task": "regression", "d_input": 3, **options})
    with pytest.raises(error, match=message):
        model.generate(signal(2, 5, 3), steps)


def test_a_state_of_another_model_is_named():
    model, u = build(), signal(3, 5, 2)
    state = model.init_state(3)
    for call in (lambda s: model(u, s), lambda s: model.prefill(u, s), lambda s: model.step(u[:, 0], s)):
        with pytest.raises(TypeError, match="ModelState, got tuple"):
            call(tuple(state))
        with pytest.raises(ValueError, match=r"2 blocks .* got 1 blocks"):
            call(state._replace(blocks=state.blocks[:1]))
        with pytest.raises(ValueError, match=r"\(3, 4\) and steps \(3,\), got 2 blocks, \(3, 5\)"):
            call(state._replace(pooled=torch.zeros(3, 5).double()))
        with pytest.raises(TypeError, match=r"pooled .* torch.float64, got torch.float32"):
            call(state._replace(pooled=state.pooled.float()))
        with pytest.raises(TypeError, match=r"steps .* torch.int64, got torch.int32"):
            call(state._replace(steps=state.steps.int()))
        with pytest.raises(ValueError, match="one device, got u on cpu, pooled on meta"):
            call(state._replace(pooled=state.pooled.to("meta")))
        with pytest.raises(TypeError, match=r"complex128, got torch\.complex64"):
            call(state._replace(blocks=tuple(s.to(torch.complex64) for s in state.blocks)))
        with pytest.raises(ValueError, match=r"\(3, 4, 4\) .* got \(2, 4, 4\)"):
            call(state._replace(blocks=(state.blocks[0], state.blocks[1][:2])))


@LAYERS
@TASKS
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_reach_every_parameter(layer, task, bidirectional):
    model = build(layer, task, bidirectional=bidirectional, dropout=0.1)
    u = signal(3, 12, 2).requires_grad_()
    model(u).square().sum().backward()
    for name, t in [*model.named_parameters(), ("u", u)]:
        assert t.grad is not None and t.grad.isfinite().all() and (t.grad != 0).any(), name


@LAYERS
def test_any_length_in_any_order(layer):
    model, u = build(layer, "regression"), signal(2, 60, 2)
    with torch.no_grad():
        want = copy.deepcopy(model)(u)
        for L in (1, 8, 60, 13):
            assert relative_error(model(u[:, :L]), want[:, :L]) < 1e-10


@LAYERS
def test_autocast(layer):
    model = build(layer).float()
    u = torch.randn(3, 12, 2)
    want = model(u)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(u)
    assert relative_error(got.detach(), want.detach()) < 0.05
    got.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "ranking"}, r"'ranking'; expected one of classification, regression"),
        ({"layer": "s5"}, r"'s5'; expected one of s4d, s4"),
        ({"d_input": 0}, r"d_input must be at least 1, got 0"),
        ({"d_output": 0}, r"d_output must be at least 1, got 0"),
        ({"n_layers": 0}, r"n_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, r"\[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("shape", [(12, 2), (3, 12, 3), (3, 2, 12, 1)])
def test_wrong_inputs_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(batch, length, 2\) .* got \("):
        build()(signal(*shape))


@LAYERS
def test_a_wrong_step_is_refused_with_its_shapes(layer):
    model = build(layer)
    state = model.init_state(3)
    with pytest.raises(ValueError, match=r"\(batch, 2\), got \(3, 5\)"):
        model.step(signal(3, 5), state)
    with pytest.raises(ValueError, match=r"2 blocks .* \(2, 4\) .* got 2 blocks, \(3, 4\) and \(3,\)"):
        model.step(signal(2, 2), state)
    with pytest.raises(ValueError, match=r"2 blocks .* got 1 blocks"):
        model.step(signal(3, 2), state._replace(blocks=state.blocks[:1]))
    with pytest.raises(ValueError, match=r"state of shape \(3, 4, 4\) .* got \(2, 4, 4\)"):
        model.step(signal(3, 2), state._replace(blocks=(state.blocks[0], state.blocks[1][:2])))


# Checkpoints


@LAYERS
@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_that_does_not_fit_is_named_and_changes_nothing(layer, strict):
    model = build(layer)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    checkpoint = build(layer, d_state=6, d_output=5).state_dict()
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(checkpoint, strict=strict)
    lines = str(error.value).splitlines()[1:]
    names = [f"blocks.{i}.layer.kernel.{name}" for i in (0, 1) for name in ("A_real", "A_imag", "B", "C")]
    names += [f"blocks.{i}.layer.kernel.P" for i in (0, 1) if layer == "s4"] + ["head.weight", "head.bias"]
    assert {line.split(":")[0].strip() for line in lines} == set(names)
    assert "  head.bias: expected shape (3,), the checkpoint has (5,)" in lines
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@LAYERS
@pytest.mark.parametrize("copy_of", ["state_dict", "deepcopy", "pickle"])
def test_a_copy_computes_the_same(layer, copy_of):
    model, u = build(layer, lr=1e-4), signal(2, 20, 2)
    want = model(u)
    if copy_of == "state_dict":
        double = build(layer, lr=1e-4)
        double.load_state_dict(model.state_dict())
    else:
        double = copy.deepcopy(model) if copy_of == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(double(u), want)
    marks = [[getattr(p, "_optim", None) for p in m.parameters()] for m in (model, double)]
    assert marks[0] == marks[1] and sum(mark is not None for mark in marks[0]) == (8 if layer == "s4d" else 10)


# torch.compile


def assert_compiled_is_eager(model: nn.Module, compiled: nn.Module, u: Tensor, tolerance: float) -> None:
    results = []
    for module in (model, compiled):
        model.zero_grad()
        y = module(u)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for eager, got in zip(*results, strict=True):
        assert relative_error(got, eager) < tolerance


@LAYERS
@pytest.mark.slow
def test_compiled_forward_and_backward_in_one_graph(layer):
    model = build(layer, n_layers=1)
    model(signal(1, 30, 2))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for L in (30, 17):
        assert_compiled_is_eager(model, compiled, signal(3, L, 2), 1e-12)


@pytest.mark.slow
@needs_cxx
@LAYERS
@TASKS
def test_compiled_by_inductor(layer, task):
    model = build(layer, task)
    model(signal(1, 30, 2))
    assert_compiled_is_eager(model, torch.compile(model, fullgraph=True), signal(3, 30, 2), 1e-12)


@LAYERS
@pytest.mark.sample(1)
def test_steps_after_compiled_training_use_the_new_parameters(layer):
    model, u = build(layer, "regression", n_layers=1).float(), torch.randn(2, 10, 2)
    model(u)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    # A fused step leaves the parameters' version counters as they are.
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def step() -> Tensor:
        with torch.no_grad():
            return model.step(u[:, 0], model.init_state(2))[0]

    for _ in range(2):
        before = step()
        compiled(u).square().sum().backward()
        optimiser.step()
        with torch.no_grad():
            assert relative_error(step(), model(u)[:, 0]) < 1e-5
        assert relative_error(step(), before) > 1e-2
