"""Layers and models on a GPU in float32 against the same ones on the CPU in float64, with every backend there is."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s4_fast import S4DLayer, S4Layer, S4SequenceModel, use_backend
from s4_fast.layers.ssm_layer import SSMLayer
from tests.layers.building import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS: list[tuple[type[SSMLayer], dict[str, Any]]] = [
    (S4DLayer, {"path": "scan"}),
    (S4DLayer, {"path": "convolution", "init": "legs", "discretization": "bilinear"}),
    (S4DLayer, {"path": "convolution", "bidirectional": True}),
    (S4Layer, {}),
    (S4Layer, {"init": "fout", "bidirectional": True}),
]
EVERY = pytest.mark.parametrize(("cls", "options"), SETTINGS)


@pytest.fixture(autouse=True)
def seeded(session_seed: int) -> None:
    torch.manual_seed(session_seed)  # D is drawn from the default generator


def twins(cls: type[SSMLayer], options: dict[str, Any], generator: torch.Generator) -> tuple[SSMLayer, SSMLayer]:
    """One layer on the GPU in float32 and its copy on the CPU in float64, set up for 300 samples."""
    layer = cls(6, d_state=16, **options, generator=generator)
    exact = copy.deepcopy(layer).double()
    layer.cuda()
    with torch.no_grad():
        layer(torch.zeros(1, 300, 6, device="cuda"))
        exact(torch.zeros(1, 300, 6, dtype=torch.float64))
    return layer, exact


def results(layer: nn.Module, u: Tensor, cotangent: Tensor, **options: Any) -> list[Tensor]:
    """The output and the gradients of the input and of every parameter, on the CPU."""
    u = u.detach().requires_grad_()
    y = layer(u, **options)
    grads = torch.autograd.grad(y, (u, *layer.parameters()), cotangent.to(y.dtype))
    return [t.detach().cpu() for t in (y, *grads)]


@EVERY
@pytest.mark.parametrize("lengths", [None, (300, 1, 117)])
def test_outputs_and_gradients(cls, options, lengths, generator):
    layer, exact = twins(cls, options, generator)
    u, cotangent = (torch.randn(3, 300, 6, generator=generator) for _ in range(2))
    lengths = None if lengths is None else torch.tensor(lengths)
    got = results(layer, u.cuda(), cotangent.cuda(), lengths=None if lengths is None else lengths.cuda())
    assert_close(got, results(exact, u.double(), cotangent.double(), lengths=lengths), 5e-5)


@pytest.mark.parametrize(("cls", "options"), [s for s in SETTINGS if not s[1].get("bidirectional")])
def test_steps_go_on_where_a_prefix_stopped(cls, options, generator):
    layer, exact = twins(cls, options, generator)
    u = torch.randn(3, 300, 6, generator=generator)
    with torch.no_grad():
        y, state = layer.prefill(u[:, :290].cuda())
        outputs = [y]
        for position in range(290, 300):
            y, state = layer.step(u[:, position].cuda(), state)
            outputs.append(y[:, None])
        assert_close([torch.cat(outputs, 1).cpu()], [exact(u.double())], 1e-5)


@EVERY
def test_compiled(cls, options, generator):
    layer, exact = twins(cls, options, generator)
    u, cotangent = (torch.randn(3, 300, 6, generator=generator) for _ in range(2))
    got = results(torch.compile(layer, fullgraph=True), u.cuda(), cotangent.cuda())
    assert_close(got, results(exact, u.double(), cotangent.double()), 5e-5)


@pytest.mark.parametrize("layer", ["s4d", "s4"])
def test_training_under_autocast_and_in_a_cuda_graph(layer, generator):
    model = S4SequenceModel(3, 8, 2, n_layers=2, layer=layer).cuda()
    u = torch.randn(4, 200, 3, generator=generator).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def train() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = model(u).float().square().mean()
        loss.backward()
        optimizer.step()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        losses = [train().detach().clone() for _ in range(3)]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = train()
    for _ in range(3):
        graph.replay()
        losses.append(loss.detach().clone())
    assert all(after < before for before, after in pairwise(losses)), losses


@pytest.mark.parametrize("backend", ["pytorch", "native", "triton"])
def test_kernels_of_every_backend(backend, generator):
    for cls in (S4DLayer, S4Layer):
        layer, exact = twins(cls, {}, generator)
        with torch.no_grad():
            want = exact.kernel.impulse_response(300)
            with use_backend(backend):
                got = layer.kernel.impulse_response(300)
        assert got.device.type == "cuda"
        assert_close([got.cpu()], [want], 1e-5)
