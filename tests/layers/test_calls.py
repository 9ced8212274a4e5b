"""What a pass of an S4D layer costs in calls: one of the library each way, and one node of autograd."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from s4_fast import S4DLayer, S4SequenceModel, native_library
from s4_fast.state_spaces import S4D, FFTConv
from tests.helpers import needs_native

LAYERS = {
    "S4DLayer": lambda: S4DLayer(4, 8),
    "S4DLayer, bidirectional": lambda: S4DLayer(4, 8, bidirectional=True),
    "S4DLayer, shared": lambda: S4DLayer(4, 8, n_ssm=2, discretization="bilinear"),
    "FFTConv": lambda: FFTConv(4, mode="diag", d_state=8, activation=None, transposed=False),
    "FFTConv, channels": lambda: FFTConv(
        4, mode="diag", d_state=8, activation=None, transposed=False, channels=3, bidirectional=True
    ),
}


@needs_native
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("length", [16, 100])
def test_a_pass_is_one_call_of_the_library_each_way(name: str, length: int) -> None:
    layer = LAYERS[name]()
    u = torch.randn(2, length, 4, requires_grad=True)
    with mock.patch.object(native_library, "_check", wraps=native_library._check) as check:
        y = layer(u)
        y = y[0] if isinstance(y, tuple) else y
        assert check.call_count == 1  # it sees the code that every call returns
        y.sum().backward()
        assert check.call_count == 2
    assert all(p.grad is not None for p in layer.parameters()) and u.grad is not None


@needs_native
@pytest.mark.parametrize("name", LAYERS)
def test_one_node_leads_from_the_outputs_to_the_parameters(name: str) -> None:
    layer = LAYERS[name]()
    u = torch.randn(2, 16, 4, requires_grad=True)
    y = layer(u)
    y = y[0] if isinstance(y, tuple) else y
    leaves = [node.variable for node, _ in y.grad_fn.next_functions if node is not None]
    assert {id(t) for t in leaves} == {id(t) for t in (u, *layer.parameters())}


@needs_native
def test_a_model_calls_the_library_once_each_way_and_block() -> None:
    model = S4SequenceModel(1, 4, 2, 3, 8)
    with mock.patch.object(native_library, "_check", wraps=native_library._check) as check:
        model(torch.randn(2, 16, 1)).sum().backward()
    assert check.call_count == 6


@needs_native
def test_the_drop_in_adds_nothing_but_its_own_operations() -> None:
    """GELU, a convolution of width 1 and a GLU behind one call."""
    layer: nn.Module = S4D(4, 8)
    u = torch.randn(2, 4, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(u)
    names = [e.name for e in profile.events() if e.name.startswith("aten::") and e.cpu_parent is None]
    assert [n for n in names if n in ("aten::gelu", "aten::conv1d", "aten::glu")] == [
        "aten::gelu",
        "aten::conv1d",
        "aten::glu",
    ]
    copying = {
        "aten::clone",
        "aten::contiguous",
        "aten::copy_",
        "aten::transpose",
        "aten::mul",
        "aten::exp",
        "aten::complex",
    }
    assert not copying & set(names), names
