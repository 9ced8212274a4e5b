"""The ops by the native library's CUDA part, through their public functions: emulated, and where there is a GPU on it.

What is emulated takes the tensors of the CPU to the kernels of csrc/cuda instead of csrc/cpu.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Generator, Tensor

import s4_fast
from s4_fast import S4DLayer, SSMBlock, backend_table, dispatch, gpu, native_library, use_backend
from tests.helpers import (
    DTYPES,
    FORWARD,
    Tensors,
    assert_contract,
    evaluate,
    log_nodes,
    log_uniform,
    normal,
    relative_error,
    uniform,
    widened,
)
from tests.native import header
from tests.native.emulated import Library, needs_device

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def device(library: Library, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels find their tensors."""
    if library.device.type == "cpu":
        monkeypatch.setattr(native_library, "call", library.call)
        monkeypatch.setattr(native_library.Function, "__call__", lambda self, *args: library.call(self._name, *args))
        tensor_cores = dataclasses.replace(backend_table.BACKENDS["tensor_cores"], devices=(), requirements=())
        monkeypatch.setitem(backend_table.BACKENDS, "tensor_cores", tensor_cores)
        missing = dispatch._missing
        monkeypatch.setattr(dispatch, "_missing", lambda backend: "" if backend == "native" else missing(backend))
        for op in dispatch.ops():
            table = dispatch._implementations[op]
            if "native" in table:
                serving = dataclasses.replace(table["native"], refuses=lambda call: None)
                monkeypatch.setitem(table, "native", serving)
            if "tensor_cores" in table:
                offers = {feature: (*devices, "cpu") for feature, devices in table["tensor_cores"].offers.items()}
                monkeypatch.setitem(table, "tensor_cores", dataclasses.replace(table["tensor_cores"], offers=offers))
    elif "tensor_cores" in request.node.name and gpu.capability() < (8, 0):
        pytest.skip("these tensor cores take no products of halves that are summed in float32 16 at a time")
    return library.device


def poles(generator: Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.complex(-log_uniform(generator, 1e-2, 1, *shape), uniform(generator, -8, 8, *shape)).to(dtype)


def vandermonde_inputs(generator: Generator, dtype: torch.dtype) -> tuple[Tensors, dict[str, int]]:
    v = normal(generator, 2, 3, 29, dtype=dtype)
    return {"v": v, "x": log_nodes(generator, "weak", 3, 29, dtype=dtype)}, {"L": 1047}


def transpose_inputs(generator: Generator, dtype: torch.dtype) -> tuple[Tensors, dict[str, int]]:
    tensors, sizes = vandermonde_inputs(generator, dtype)
    return {"u": normal(generator, 2, 3, 1047, dtype=tensors["v"].real.dtype), **tensors}, sizes


def cauchy_inputs(generator: Generator, dtype: torch.dtype) -> tuple[Tensors, dict[str, int]]:
    v, z = normal(generator, 2, 3, 29, dtype=dtype), 4 * normal(generator, 170, dtype=dtype)
    return {"v": v, "z": z, "w": poles(generator, dtype, 3, 29)}, {}


def dplr_inputs(generator: Generator, dtype: torch.dtype) -> tuple[Tensors, dict[str, int]]:
    P = normal(generator, 1, 2, 19, dtype=dtype)
    B, C = normal(generator, 1, 2, 19, dtype=dtype), normal(generator, 2, 2, 19, dtype=dtype)
    dt = log_uniform(generator, 1e-2, 1e-1, 2, 1).to(P.real.dtype)
    return {"w": poles(generator, dtype, 2, 19), "P": P, "Q": P.clone(), "B": B, "C": C, "dt": dt}, {"L": 131}


def scan_inputs(generator: Generator, dtype: torch.dtype) -> tuple[Tensors, dict[str, int]]:
    x = log_nodes(generator, "weak", 3, 29, dtype=dtype)
    u, D = normal(generator, 2, 3, 1047, dtype=x.real.dtype), normal(generator, 3, dtype=x.real.dtype)
    B, C = (normal(generator, 3, 29, dtype=dtype) for _ in range(2))
    return {"u": u, "x": x, "B": B, "C": C, "D": D, "state": normal(generator, 2, 3, 29, dtype=dtype)}, {}


def diagonal_inputs(generator: Generator, dtype: torch.dtype) -> tuple[Tensors, dict[str, int]]:
    tensors, _ = scan_inputs(generator, dtype)
    dt = log_uniform(generator, 1e-2, 1e-1, 3).to(tensors["u"].dtype)
    return {**{k: t for k, t in tensors.items() if k != "x"}, "A": poles(generator, dtype, 3, 29), "dt": dt}, {}


def dplr_scan_inputs(generator: Generator, dtype: torch.dtype) -> tuple[Tensors, dict[str, int]]:
    A, P, B = poles(generator, dtype, 3, 29), *(normal(generator, *s, 3, 29, dtype=dtype) for s in ((2,), ()))
    dt = log_uniform(generator, 1e-2, 1e-1, 3).to(A.real.dtype)
    u, C = normal(generator, 2, 3, 150, dtype=dt.dtype), normal(generator, 3, 29, dtype=dtype)
    D, state = normal(generator, 3, dtype=dt.dtype), normal(generator, 2, 3, 29, dtype=dtype)
    return {"u": u, "A": A, "P": P, "B": B, "C": C, "dt": dt, "D": D, "state": state}, {}


INPUTS: dict[str, Callable[[Generator, torch.dtype], tuple[Tensors, dict[str, int]]]] = {
    "log_vandermonde": vandermonde_inputs,
    "log_vandermonde_transpose": transpose_inputs,
    "cauchy_mult": cauchy_inputs,
    "dplr_kernel": dplr_inputs,
    "ssm_scan": scan_inputs,
    "diagonal_ssm": diagonal_inputs,
    "dplr_scan": dplr_scan_inputs,
}
TENSOR_OPS = ("ssm_scan", "diagonal_ssm")
CASES = [*((op, "native") for op in INPUTS), *((op, "tensor_cores") for op in TENSOR_OPS)]
# By the name of what computes it: an autocast block also rounds its linear maps and its output.
LAYERS = {"layer": lambda: S4DLayer(8, 16), "block": lambda: SSMBlock(8, 16)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", INPUTS)
def test_contract(op: str, dtype: torch.dtype, device: torch.device, generator: Generator) -> None:
    tensors, scalars = INPUTS[op](generator, dtype)
    forward = 5e-6 if op == "dplr_kernel" and dtype == torch.complex64 else None
    assert_contract(op, {name: t.to(device) for name, t in tensors.items()}, "native", forward=forward, **scalars)


@pytest.mark.parametrize("op", TENSOR_OPS)
def test_contract_of_tensor_cores(op: str, device: torch.device, generator: Generator) -> None:
    tensors, _ = INPUTS[op](generator, torch.complex64)
    assert_contract(op, {name: t.to(device) for name, t in tensors.items()}, "tensor_cores", return_state=True)


@pytest.mark.parametrize("backend", ["native", "tensor_cores"])
def test_time_major_scan(backend: str, device: torch.device, generator: Generator) -> None:
    """Outputs and gradients have the layout of the input."""
    tensors, _ = scan_inputs(generator, torch.complex64)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    u = tensors["u"] = tensors["u"].mT.contiguous().mT
    assert_contract("ssm_scan", tensors, backend, return_state=True)
    outcome = evaluate("ssm_scan", tensors, backend)
    assert outcome.output.stride() == outcome.grads["u"].stride() == u.stride()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_by_tensor_cores(
    kind: str,
    half: bool,
    device: torch.device,
    session_seed: int,
    generator: Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forward, backward and from state to state, as the definition in float64 has it; under autocast too."""
    torch.manual_seed(session_seed)
    layer = LAYERS[kind]()
    wide = copy.deepcopy(layer).double()
    layer = layer.to(device)
    called = set[tuple[object, object]]()
    forward = native_library.Function.__call__

    def noted(self: native_library.Function, *args: object) -> None:
        called.add((self._name, args[2]))
        forward(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(native_library.Function, "__call__", noted)
    # Under autocast a signal is rounded once for every module that it goes through.
    autocast = torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
    outputs, gradients = (1e-2, 3e-2) if half else (1e-5, 1e-4)
    u = normal(generator, 3, 150, 8, dtype=torch.float32)
    grad, state_grad = (
        normal(generator, *s, dtype=d) for s, d in (((3, 150, 8), u.dtype), ((3, 8, 8), torch.complex64))
    )
    start = normal(generator, 3, 8, 8, dtype=torch.complex64)

    def run(module: torch.nn.Module, *tensors: Tensor) -> list[Tensor]:
        u, start, grad, state_grad = tensors
        leaves = [u.requires_grad_(), start.requires_grad_(), *module.parameters()]
        y, state = module(u, start, return_state=True)
        found = torch.autograd.grad((y, state), leaves, (grad.to(y.dtype), state_grad))
        with torch.no_grad():
            first, between = module.prefill(u[:, :70], start)
            second, end = module(u[:, 70:], between, return_state=True)
        return [y.detach(), state.detach(), torch.cat((first, second), 1), end, *found]

    with use_backend("reference"):
        expected = run(wide, *(widened(t) for t in (u, start, grad, state_grad)))
    called.clear()
    with use_backend("tensor_cores", strict=True), autocast:
        found = run(layer, *(t.clone().to(device) for t in (u, start, grad, state_grad)))
    signal = native_library.DTYPES[torch.bfloat16 if half else torch.float32]
    assert called == {("tensor_diagonal", signal), ("tensor_diagonal_backward", signal)}
    names = ["y", "state", "y in parts", "state in parts", "u", "start", *dict(layer.named_parameters())]
    for name, actual, wanted in zip(names, found, expected, strict=True):
        allowed = outputs if name in names[:4] else gradients
        assert relative_error(actual.cpu(), wanted) <= allowed, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_follow_the_scan(dtype: torch.dtype, device: torch.device, generator: Generator) -> None:
    tensors, _ = scan_inputs(generator, dtype)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    u, state = tensors.pop("u")[..., :9], tensors.pop("state")
    y, final = s4_fast.ssm_scan(u, **tensors, state=state, return_state=True, backend="native")
    for l in range(u.shape[-1]):
        out, state = s4_fast.ssm_step(u[..., l], state, **tensors, backend="native")
        torch.testing.assert_close(out, y[..., l], rtol=0, atol=100 * FORWARD[torch.finfo(dtype).dtype])
    torch.testing.assert_close(state, final, rtol=0, atol=100 * FORWARD[torch.finfo(dtype).dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_dplr_step(dtype: torch.dtype, device: torch.device, generator: Generator) -> None:
    shapes = dict.fromkeys(("state", "G", "V", "C"), (2, 3, 29)) | dict.fromkeys(("increment", "B"), (3, 29))
    tensors = {name: normal(generator, *shape, dtype=dtype).to(device) for name, shape in shapes.items()}
    u, tensors["D"] = (normal(generator, *s, dtype=tensors["B"].real.dtype).to(device) for s in ((2, 3), (3,)))
    outputs, expected = (s4_fast.dplr_step(u, **tensors, backend=name) for name in ("native", "reference"))
    for actual, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=100 * FORWARD[torch.finfo(dtype).dtype])


@pytest.mark.parametrize(("shape", "message"), [({"rank": 9}, "a rank of at most 8"), ({"n": 257}, "n of at most 256")])
def test_what_a_dplr_scan_refuses(shape: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "limit", lambda name: header.limits()[name.upper()])
    monkeypatch.setattr(native_library, "refusal", lambda device: None)
    refuses = dispatch._implementations["dplr_scan"]["native"].refuses
    call = dispatch.Call("dplr_scan", "cuda", torch.complex64, {"rank": 8, "n": 256})
    assert refuses(call) is None
    refused = refuses(call._replace(shape=call.shape | shape))
    assert refused == f"it takes {message} on CUDA devices, not {next(iter(shape.values()))}"


@needs_device
@pytest.mark.gpu
@pytest.mark.parametrize(("op", "backend"), CASES)
def test_cuda_graph(op: str, backend: str, generator: Generator) -> None:
    """A captured call gives what an ordinary one gives, for the inputs of its replay."""
    tensors, scalars = INPUTS[op](generator, torch.complex64)
    tensors = {name: t.cuda() for name, t in tensors.items()}
    function = getattr(s4_fast, op)
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        function(**tensors, **scalars, backend=backend)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = function(**tensors, **scalars, backend=backend)
    for t in tensors.values():
        t.mul_(0.5)
    graph.replay()
    assert torch.equal(captured, function(**tensors, **scalars, backend=backend))


@needs_device
@pytest.mark.gpu
def test_repeated_calls_are_equal_on_tensor_cores_too(generator: Generator) -> None:
    """No sum depends on the order in which blocks run."""
    for op, backend in CASES:
        tensors, scalars = INPUTS[op](generator, torch.complex64)
        leaves = {name: t.cuda().requires_grad_() for name, t in tensors.items()}
        runs = []
        for _ in range(3):
            out = getattr(s4_fast, op)(**leaves, **scalars, backend=backend)
            runs.append([out, *torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))])
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True)), op
