"""What ``repr`` says of a layer: sizes, and the path and backend that would run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from s4_fast import S4DLayer, S4Layer, dispatch, native_library, use_backend
from s4_fast.named_errors import NamedErrors
from s4_fast.state_spaces import S4, S4D, FFTConv, S4Block

needs_native = pytest.mark.skipif(bool(native_library.cause()), reason="the native library is not built")
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "S4DLayer(": lambda **given: S4DLayer(4, 8, **given),
    "S4Layer(": lambda **given: S4Layer(4, 8, bidirectional=True, **given),
    "S4D(": lambda **given: S4D(4, 8, **given),
    "FFTConv(": lambda **given: FFTConv(4, d_state=8, l_max=20, **given),
    "S4Block(": lambda **given: S4Block(4, d_state=8, mode="diag", **given),
    "S4(": lambda **given: S4(4, d_state=8, **given),
}


def said(module: nn.Module) -> str:
    return repr(module).replace("\n", "")


@pytest.mark.parametrize("name", LAYERS)
def test_sizes_path_and_backend_are_there(name: str) -> None:
    for device in ("cpu", "meta"):
        text = said(LAYERS[name](device=device))
        assert text.startswith(name)
        assert "4, d_state=8, " in text and "path=auto" in text and "backend=" in text


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_said_of_modules_that_cannot_run_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = LAYERS[name]()
    with use_backend("tensor_cores", strict=True):
        assert "backend=tensor_cores (unavailable)" in said(module)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "nope")
    assert "path=auto" in said(module)
    monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE)
    for part in module.modules():
        if isinstance(part, NamedErrors):
            part._parameters.clear()
    assert said(module).startswith(name)


def test_backend_and_path_are_those_that_run() -> None:
    u = torch.zeros(2, 50, 4)
    cases: list[dict[str, Any]] = [{"path": "scan"}, {"path": "convolution"}, {"path": "auto"}]
    for options in cases:
        layer = S4DLayer(4, 8, **options)
        with use_backend("pytorch"):
            text = said(layer)
            assert "backend=pytorch" in text
        taken = layer.explain(u).name
        assert f"path={options['path']}" in text
        assert options["path"] != "auto" or taken in said(layer)


@needs_native
def test_a_layer_whose_path_depends_on_the_length_says_so() -> None:
    layer = S4DLayer(4, 1024)
    assert {layer.explain(torch.zeros(1, L, 4)).name for L in (64, 1 << 20)} == {"scan", "convolution"}
    assert "path=auto -> scan or convolution, by length, backend=native" in said(layer)
    assert "path=auto -> scan, backend=native" in said(S4DLayer(4, 8))


def test_nothing_is_computed() -> None:
    layer = S4DLayer(4, 8)

    class Refuse(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            assert getattr(function, "__name__", "") in ("__get__", "size", "dim"), function
            return super().__torch_function__(function, *args, **kwargs)

    with Refuse():
        repr(layer)
