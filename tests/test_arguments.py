"""What users pass: NumPy's arrays, integers and floats, devices and dtypes, and options that do not exist."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import s4_fast
from s4_fast import DPLRSSM, DiagonalSSM, S4DLayer, S4Layer, S4SequenceModel, arguments
from s4_fast.layers import SSMBlock
from s4_fast.state_spaces import S4D, FFTConv, S4Block
from tests.modules import KINDS, OFFICIAL, STEPPING, initial

L = 12


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[kind]()


def array(module: nn.Module, seed: int = 0) -> np.ndarray:
    """An input of ``module``."""
    u = np.random.default_rng(seed).normal(size=(2, L, 4)).astype(np.float32)
    return np.ascontiguousarray(u.transpose(0, 2, 1)) if getattr(module, "transposed", False) else u


def close(y: Tensor, want: Tensor) -> bool:
    """Equal, but for float32's roundings where memory lies in another order."""
    return y.shape == want.shape and y.dtype == want.dtype and torch.allclose(y, want, rtol=1e-5, atol=1e-6)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# ------------------------------------------------------------------------------------------------------------ arrays

VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda u: u,
    "transposed": lambda u: np.ascontiguousarray(u.T).T,
    "reversed": lambda u: u[::-1],
    "read-only": lambda u: np.broadcast_to(u[:1], u.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_taken_as_inputs(kind: str, view: str) -> None:
    module = made(kind)
    u = VIEWS[view](array(module))
    t = torch.from_numpy(u.copy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(first(module(u)), first(module(t)))
        if kind in STEPPING:
            at = (slice(None), slice(None), 0) if getattr(module, "transposed", False) else (slice(None), 0)
            state = initial(module, 2)
            assert close(module.step(u[at], state)[0], module.step(t[at], state)[0])
            if not isinstance(module, OFFICIAL):
                assert close(module.prefill(u)[0], module.prefill(t)[0])
        if isinstance(module, S4SequenceModel):
            assert close(module.generate(u, np.int64(3)), module.generate(t, 3))


@pytest.mark.parametrize("given", [[[1.0]], "u", None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_tensor_is_named(kind: str, given: Any) -> None:
    name = "x" if kind.startswith(("SSMBlock", "FFTConv", "S4Block")) else "u"
    module = made(kind)
    said = f"^{type(module).__name__}: expected {name} to be a tensor, got an? {type(given).__name__}$"
    with pytest.raises(TypeError, match=said):
        module(given)


OPS = ("cauchy_bilinear", "cauchy_mult", "diagonal_ssm", "dplr_kernel", "dplr_scan", "dplr_step", "fft_conv",
       "log_vandermonde", "log_vandermonde_transpose", "ssm_scan", "ssm_step")  # fmt: skip


def test_every_op_is_here() -> None:
    assert set(OPS) == set(s4_fast.ops.__all__)


@pytest.mark.parametrize("which", ["every", "the first", "the second", "the last"])
@pytest.mark.parametrize("op", OPS)
def test_ops_take_tensors_alone_and_say_so(op: str, which: str) -> None:
    call = getattr(s4_fast, op)
    parameters = [p for p in inspect.signature(call).parameters.values() if p.default is p.empty]
    tensors = [p.name for p in parameters if p.name != "L"]
    wrong = {"every": tensors, "the first": tensors[:1], "the second": tensors[1:2], "the last": tensors[-1:]}[which]
    real = np.zeros((2, 3) if op.endswith("step") else (2, 3, 4), np.float32)
    given: dict[str, Any] = {
        name: torch.zeros(3, 4, dtype=torch.complex64) if name in "ABCP" else torch.from_numpy(real) for name in tensors
    }
    given |= dict.fromkeys(wrong, real)
    with pytest.raises(
        TypeError, match=rf"^{op}: expected ({'|'.join(wrong)}) to be a (complex )?tensor, got a NumPy array \("
    ):
        call(**given, **({"L": 4} if len(tensors) < len(parameters) else {}))


# ----------------------------------------------------------------------------------------------------------- numbers

LENGTHS = {
    "list of integers": [np.int64(10), np.int64(3)],
    "list of an array": list(np.array([10, 3], dtype=np.int32)),
    "tuple": (np.uint8(10), 3),
    "array": np.array([10, 3]),
    "array of int32": np.array([10, 3], dtype=np.int32),
}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("S4D ") and kind != "S4D"])
def test_lengths_of_numpy(kind: str, lengths: str) -> None:
    module = made(kind)
    u = torch.from_numpy(array(module))
    want = first(module(u, lengths=torch.tensor([10, 3])))
    assert torch.equal(first(module(u, lengths=LENGTHS[lengths])), want)
    for wrong in (np.array([10.0, 3.0]), [np.float32(10), 3], np.array(["a", "b"])):
        with pytest.raises(TypeError, match=r"integers|can't convert"):
            module(u, lengths=wrong)


SIZES: dict[str, tuple[Callable[..., nn.Module], dict[str, int]]] = {
    "DiagonalSSM": (DiagonalSSM, {"d_model": 4, "d_state": 8, "channels": 2, "n_ssm": 2}),
    "DPLRSSM": (DPLRSSM, {"d_model": 4, "d_state": 8, "channels": 2, "n_ssm": 2, "rank": 1}),
    "S4DLayer": (S4DLayer, {"d_model": 4, "d_state": 8, "n_ssm": 2}),
    "state_dim": (S4DLayer, {"d_model": 4, "state_dim": 8}),
    "S4Layer": (S4Layer, {"d_model": 4, "d_state": 8, "rank": 1}),
    "SSMBlock": (SSMBlock, {"d_model": 4, "d_state": 8, "n_ssm": 2}),
    "S4SequenceModel": (S4SequenceModel, {"d_input": 4, "d_model": 4, "d_output": 4, "n_layers": 2, "d_state": 8}),
    "S4D": (S4D, {"d_model": 4, "d_state": 8}),
    "FFTConv": (FFTConv, {"d_model": 4, "l_max": 20, "channels": 2, "d_state": 8, "n_ssm": 2, "rank": 1}),
    "S4Block": (S4Block, {"d_model": 4, "bottleneck": 2, "gate": 2, "d_state": 8, "l_max": 20, "channels": 2}),
}


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8, torch.tensor])
@pytest.mark.parametrize("kind", SIZES)
def test_sizes_of_numpy(kind: str, integer: Callable[[int], Any]) -> None:
    build, sizes = SIZES[kind]
    torch.manual_seed(0)
    want = build(**sizes)
    torch.manual_seed(0)
    module = build(**{name: integer(size) for name, size in sizes.items()})
    assert repr(module) == repr(want)
    for name, t in want.state_dict().items():
        assert torch.equal(module.state_dict()[name], t)
    if not isinstance(module, (DiagonalSSM, DPLRSSM)):
        u = torch.from_numpy(array(module))
        assert torch.equal(first(module(u)), first(want(u)))


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_are_no_integers_are_named(kind: str) -> None:
    build, sizes = SIZES[kind]
    for name in sizes:
        for wrong in (np.float32(4), 4.0, "4", np.array([4]), True):
            named = "d_state" if name == "state_dim" else name
            with pytest.raises(TypeError, match=f"^{build.__name__}: {named} must be an int, got "):
                build(**{**sizes, name: wrong})


NUMBERS = {
    "float32": np.float32,
    "float64": np.float64,
    "array": np.array,
    "tensor": lambda x: torch.tensor(x, dtype=torch.float64),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", KINDS)
def test_rates_and_steps_of_numpy(kind: str, number: str) -> None:
    options = {"lr": 0.125, "dt_min": 0.0625, "dt_max": 0.25}  # which float32 holds
    torch.manual_seed(0)
    want = KINDS[kind](**options)
    torch.manual_seed(0)
    module = KINDS[kind](**{name: NUMBERS[number](value) for name, value in options.items()})
    for (name, p), q in zip(module.named_parameters(), want.parameters(), strict=True):
        assert torch.equal(p, q) and getattr(p, "_optim", None) == getattr(q, "_optim", None), name
    marks = [p._optim for p in module.parameters() if hasattr(p, "_optim")]
    assert any(type(mark.get("lr")) is float for mark in marks)


@pytest.mark.parametrize("rate", [np.float64(2), np.float32(2), np.int64(2), torch.tensor(2.0), torch.tensor([2])])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("FFTConv", "S4Block"))])
def test_rates_of_sampling(kind: str, rate: Any) -> None:
    module = made(kind)
    u = torch.from_numpy(array(module))
    assert torch.equal(module(u, rate=rate)[0], module(u, rate=2)[0])
    for wrong in ("2", True, torch.ones(2), None):
        with pytest.raises(TypeError, match="rate must be a number"):
            module(u, rate=wrong)


@pytest.mark.parametrize("steps", [2.0, np.float32(2), "2", True, np.array([2])])
def test_numbers_of_steps_are_integers(steps: Any) -> None:
    with pytest.raises(TypeError, match="steps must be an int"):
        made("S4SequenceModel s4d").generate(torch.zeros(1, 3, 4), steps)


# -------------------------------------------------------------------------------------------------- devices, dtypes

MADE = {**KINDS, "DiagonalSSM": lambda **given: DiagonalSSM(4, 8, **given), "DPLRSSM": lambda **g: DPLRSSM(4, 8, **g)}


@pytest.mark.parametrize("kind", MADE)
def test_device_and_dtype_are_those_asked_for(kind: str) -> None:
    build = MADE[kind]
    shapes = {name: t.shape for name, t in build().state_dict().items()}
    for device in ("meta", torch.device("meta"), "cpu", None):
        for dtype in (torch.float64, torch.bfloat16, None):
            module = build(device=device, dtype=dtype)
            assert {name: t.shape for name, t in module.state_dict().items()} == shapes
            for name, t in module.state_dict().items():
                assert t.device == torch.device(device or "cpu"), name
                assert t.dtype == (dtype or torch.float32) or name.endswith("l_kernel"), name


@pytest.mark.parametrize("kind", [kind for kind in MADE if not issubclass(type(MADE[kind]()), OFFICIAL)])
def test_float64_is_made_in_full_precision(kind: str) -> None:
    """The official layers draw in the default dtype, as the original does, so that a seed gives its weights."""
    for name, p in MADE[kind](dtype=torch.float64).named_parameters():
        rounded = torch.equal(p, p.float().double())
        assert rounded == bool((p == p.round()).all() or (p * 2**10 == (p * 2**10).round()).all()), name


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_have_the_dtype_of_the_module(kind: str) -> None:
    module = KINDS[kind](dtype=torch.float64)
    y = first(module(torch.from_numpy(array(module)).double()))
    assert y.dtype == torch.float64


# ----------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("option", ["N", "dropuot", "d_stat", "low_rank", "copies", "kernal"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_names_the_layer_and_its_options(kind: str, option: str) -> None:
    cls = type(KINDS[kind]())
    with pytest.raises(
        TypeError, match=rf"^{cls.__name__}: unknown option {option}( \(did you mean \w+\?\))?; it takes d_"
    ) as caught:
        KINDS[kind](**{option: 1})
    listed = str(caught.value).split("it takes ")[1].split(", ")
    own = arguments.options_of(cls.__init__)
    assert listed[: len(own)] == own and len(set(listed)) == len(listed)
    assert {"d_state", "dt_min", "dt_max", "lr", "device", "dtype"} <= set(listed)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("S4DLayer", "S4Layer"))])
def test_a_layer_has_no_dropout(kind: str) -> None:
    with pytest.raises(TypeError, match=r"^S4D?Layer: unknown options dropout, N; it takes d_model, d_state"):
        KINDS[kind](dropout=0.1, N=8)


@pytest.mark.parametrize("op", ["log_vandermonde", "log_vandermonde_transpose", "cauchy_bilinear", "dplr_kernel"])
def test_a_length_may_be_numpy_s(op: str) -> None:
    v = torch.full((1, 2, 3), -0.5) + 0j
    given = {
        "log_vandermonde": (v, v),
        "log_vandermonde_transpose": (torch.ones(1, 2, 5), v, v),
        "cauchy_bilinear": (v, v),
        "dplr_kernel": (v[0], v, v, v, v, torch.full((2, 1), 0.1)),
    }[op]
    function = getattr(s4_fast, op)
    assert torch.equal(function(*given, np.int64(5)), function(*given, 5))
    with pytest.raises(TypeError, match="expected L to be an int, got float64"):
        function(*given, np.float64(5))
