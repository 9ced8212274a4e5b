"""Errors begin with the name of the module that was called, and say where in it they come from."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import s4_fast
from s4_fast import DiagonalSSM, DropoutNd, FrozenStep, S4DLayer, S4Layer, S4SequenceModel, SSMBlock
from s4_fast.named_errors import NamedErrors
from s4_fast.state_spaces import S4, S4D, FFTConv, S4Block, SSMKernelDiag


def model(layer: str = "s4d", **options: Any) -> S4SequenceModel:
    return S4SequenceModel(3, 4, 2, 3, 8, layer=layer, **options)


CALLS: dict[str, Callable[[], Any]] = {
    r"S4DLayer: expected u of shape \(batch, length, 4\)": lambda: S4DLayer(4, 8)(torch.zeros(2, 4)),
    r"S4Layer: expected u to be a tensor, got a list": lambda: S4Layer(4, 8)([1.0]),
    r"S4DLayer: expected lengths": lambda: S4DLayer(4, 8)(torch.zeros(2, 5, 4), lengths=[1]),
    r"S4DLayer: expected state of shape": lambda: S4DLayer(4, 8).step(torch.zeros(2, 4), torch.zeros(2, 4, 5) + 0j),
    r"S4DLayer: a bidirectional layer": lambda: S4DLayer(4, 8, bidirectional=True).prefill(torch.zeros(2, 5, 4)),
    r"S4DLayer: diagonal_ssm: ": lambda: S4DLayer(4, 8)(torch.zeros(2, 5, 4, dtype=torch.float64)),
    r"S4DLayer: expected state to be a tensor": lambda: S4DLayer(4, 8).step(torch.zeros(2, 4), None),  # type: ignore[arg-type]
    r"DiagonalSSM: expected state of": lambda: DiagonalSSM(4, 8).step(torch.zeros(2, 4), torch.zeros(2, 4, 5) + 0j),
    r"SSMBlock.layer \(S4DLayer\): expected state of shape": lambda: SSMBlock(4, 8)(
        torch.zeros(2, 5, 4), torch.zeros(2, 4, 5) + 0j
    ),
    r"S4SequenceModel: expected u of shape": lambda: model()(torch.zeros(2, 5, 4)),
    r"S4SequenceModel: steps must be at least 1": lambda: model(task="regression").generate(torch.zeros(1, 5, 3), 0),
    r"S4Block: expected x of shape": lambda: S4Block(4, d_state=8)(torch.zeros(2, 5)),
    r"S4Block.layer \(FFTConv\): expected a rate above 0": lambda: S4Block(4, d_state=8)(
        torch.zeros(2, 4, 5), rate=-1.0
    ),
    r"FFTConv: expected state": lambda: FFTConv(4, d_state=8).step(torch.zeros(2, 4), torch.zeros(3, 4, 8) + 0j),
    r"S4D: expected u of shape": lambda: S4D(4)(torch.zeros(5)),
    r"SSMKernelDiag: this kernel has no length": lambda: SSMKernelDiag(4, d_state=8)(),
    # In constructors the name is that of what was called.
    r"S4DLayer: d_state": lambda: S4DLayer(4, 7),
    r"S4DLayer: unknown discretization 'zho'; expected one of zoh, bilinear": lambda: S4DLayer(4, discretization="zho"),
    r"S4SequenceModel: unknown layer 's5'; expected one of s4d, s4": lambda: model("s5"),
    r"S4SequenceModel: d_state": lambda: S4SequenceModel(3, 4, 2, 3, 7),
    r"SSMBlock: dropout probability": lambda: SSMBlock(4, dropout=1.5),
    r"DropoutNd: dropout probability": lambda: DropoutNd(1.5),
    r"FrozenStep: expected an S4SequenceModel": lambda: FrozenStep(nn.Linear(2, 2)),  # type: ignore[arg-type]
    r"S4Block: unknown activation": lambda: S4Block(4, final_act="glou"),
    r"S4: expected release": lambda: S4(4, release=5),
    r"S4DLayer: unknown option d_sate \(did you mean d_state\?\); it": lambda: S4DLayer(4, d_sate=8),  # type: ignore[call-arg]
    r"S4DLayer: unknown options dropout, N; it takes d_model, d_state": lambda: S4DLayer(4, dropout=1, N=8),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("said", CALLS)
def test_an_error_begins_with_the_name(said: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=f"^{said}"):
        CALLS[said]()


def test_a_layer_inside_a_model_has_its_path() -> None:
    made = model()
    state = made.init_state(2)
    blocks = (*state.blocks[:2], torch.zeros(2, 4, 5) + 0j)
    for call in (lambda: made.step(torch.zeros(2, 3), state._replace(blocks=blocks)),
                 lambda: made(torch.zeros(2, 5, 3), state._replace(blocks=blocks))):  # fmt: skip
        with pytest.raises(ValueError, match=r"^S4SequenceModel.blocks.2.layer \(S4DLayer\): expected state of shape"):
            call()


def test_an_error_keeps_its_type_and_where_it_was_raised() -> None:
    with (
        s4_fast.use_backend("keops", strict=True),
        pytest.raises(s4_fast.BackendUnavailableError, match=r"^S4DLayer: backend 'keops'") as caught,
    ):
        S4DLayer(4, 8, path="scan")(torch.zeros(2, 5, 4))
    assert any(entry.name == "choose" for entry in caught.traceback)

    class OwnError(ValueError):
        pass

    class Layer(S4DLayer):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise OwnError("of another project")

    with pytest.raises(OwnError, match=r"^of another project$"):
        Layer(4, 8)(torch.zeros(1, 1, 4))


def test_subclasses_are_named_as_they_are() -> None:
    class Mine(S4DLayer):
        def __init__(self, d_model: int, **options: Any) -> None:
            super().__init__(d_model, **options)

    with pytest.raises(ValueError, match=r"^Mine: d_state"):
        Mine(4, d_state=7)
    with pytest.raises(TypeError, match=r"^Mine: unknown option foo; it takes d_model"):
        Mine(4, foo=1)
    with pytest.raises(ValueError, match=r"^Mine: expected u"):
        Mine(4)(torch.zeros(3))


def test_a_module_that_is_not_made_yet_has_a_name_too() -> None:
    class Mine(S4DLayer):
        def __init__(self) -> None:
            SSMBlock(4, 7)

    with pytest.raises(ValueError, match=r"^Mine: d_state"):
        Mine()


def test_signatures_are_those_of_the_methods() -> None:
    assert list(inspect.signature(S4DLayer).parameters)[:4] == ["d_model", "d_state", "dt_min", "dt_max"]
    assert inspect.signature(S4DLayer).parameters["d_state"].default == 64
    assert list(inspect.signature(S4DLayer(4).forward).parameters) == ["u", "state", "lengths", "return_state"]
    assert "Raises" in (S4DLayer.forward.__doc__ or "")


def test_methods_have_code_of_their_own() -> None:
    """Dynamo gives up on a code object that it has compiled for eight different modules."""
    codes = [cls.forward.__code__ for cls in (S4DLayer, SSMBlock, S4SequenceModel, DropoutNd)]
    assert len({id(code) for code in codes}) == 4


@pytest.mark.parametrize("made", [S4DLayer(4, 8), SSMBlock(4, 8), model()])
def test_a_module_is_pickled_as_before(made: NamedErrors) -> None:
    assert repr(pickle.loads(pickle.dumps(made))) == repr(made)


@pytest.mark.parametrize("name", ["S4D", "s4D", "S4"])
def test_names_are_taken_in_any_case(name: str) -> None:
    assert type(SSMBlock(4, layer=name).layer).__name__ == f"{name.upper()}Layer"
    kind = {"S4": "s4", "S4D": "s4d"}[name.upper()]
    init, other = ("LegS", "legs") if kind == "s4" else ("Lin", "lin")
    torch.manual_seed(0)
    made = model(name, init=init, path="Scan", task="Regression")
    torch.manual_seed(0)
    same = model(kind, init=other, path="scan", task="regression")
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), same.parameters(), strict=True))
    assert (made.task, made.blocks[0].layer.path) == ("regression", "scan")


def test_drop_ins_take_names_in_any_case() -> None:
    torch.manual_seed(0)
    made = S4Block(4, d_state=8, mode="DIAG", init="Diag-Lin", disc="ZOH")
    torch.manual_seed(0)
    same = S4Block(4, d_state=8, mode="diag", init="diag-lin", disc="zoh")
    assert repr(made) == repr(same)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), same.parameters(), strict=True))
    x = torch.randn(1, 4, 9)
    assert torch.equal(made(x)[0], same(x)[0])
    y = s4_fast.diagonal_ssm(x, *(parts := _parts()), discretization="Bilinear")
    assert torch.equal(y, s4_fast.diagonal_ssm(x, *parts, discretization="bilinear"))


def _parts() -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor]:
    A = -0.5 + 1j * torch.arange(3.0).expand(4, 3)
    return A, None, torch.ones(4, 3) + 0j, torch.full((4,), 0.1)
