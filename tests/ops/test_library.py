"""What every op owes PyTorch: torch.library's checks, torch.compile and autocast. Derivatives: test_derivatives.py."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.autograd import gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import s4_fast
from s4_fast import dispatch
from tests.helpers import DTYPES, Tensors, backends, cotangents, needs_cxx, normal, parts, relative_error

L, H, N = 12, 2, 3


def inputs(op: str, dtype: torch.dtype = torch.complex64) -> Tensors:
    """Small inputs whose leading dimensions do not need broadcasting: the canonical layout of the op."""
    generator = torch.Generator().manual_seed(0)

    def real(*shape: int) -> Tensor:
        return normal(generator, *shape, dtype=dtype.to_real())

    def complex_(*shape: int) -> Tensor:
        return normal(generator, *shape, dtype=dtype)

    x = torch.complex(-0.1 - real(H, N).abs(), real(H, N))
    return {
        "log_vandermonde": lambda: {"v": complex_(2, H, N), "x": x},
        "log_vandermonde_transpose": lambda: {"u": real(2, H, L), "v": complex_(2, H, N), "x": x},
        "cauchy_mult": lambda: {"v": complex_(2, H, N), "z": 4 * complex_(1, L), "w": x},
        "cauchy_bilinear": lambda: {"v": complex_(2, H, N), "w": x},
        "dplr_kernel": lambda: {
            "w": x,
            "P": complex_(1, H, N),
            "Q": complex_(1, H, N),
            "B": complex_(2, H, N),
            "C": complex_(2, H, N),
            "dt": 0.1 + real(H, 1).abs(),
        },
        "fft_conv": lambda: {"u": real(2, H, L), "k": real(2, H, L), "D": real(2, H)},
        "ssm_scan": lambda: {
            "u": real(2, H, L),
            "x": x,
            "B": complex_(H, N),
            "C": complex_(H, N),
            "D": real(H),
            "state": complex_(2, H, N),
        },
        "ssm_step": lambda: {
            "u": real(2, H),
            "state": complex_(2, H, N),
            "x": x,
            "B": complex_(H, N),
            "C": complex_(H, N),
            "D": real(H),
        },
        "diagonal_ssm": lambda: {
            "u": real(2, H, L),
            "A": x,
            "B": complex_(H, N),
            "C": complex_(2, H, N),
            "dt": 0.1 + real(H, 1).abs(),
            "D": real(1, H),
            "state": complex_(2, H, N),
            "ahead": complex_(2, H, N),
        },
        "dplr_scan": lambda: {
            "u": real(2, H, L),
            "A": x,
            "P": complex_(2, H, N),
            "B": complex_(H, N),
            "C": complex_(2, H, N),
            "dt": 0.1 + real(H, 1).abs(),
            "D": real(1, H),
            "state": complex_(2, H, N),
            "ahead": complex_(2, H, N),
        },
    }[op]()


def registered(op: str, dtype: torch.dtype = torch.complex64) -> list[Tensor]:
    """Those of the op behind the boundary, where complex numbers are pairs."""
    tensors = inputs(op, dtype)
    if op in CONTINUOUS:
        A = tensors.pop("A")
        tensors = {"u": tensors.pop("u"), "dt": tensors.pop("dt"), "real": A.real, "imag": A.imag, **tensors}
    return [(torch.view_as_real(t) if t.is_complex() else t).clone() for t in tensors.values()]


SCALARS = {
    "log_vandermonde": (L,),
    "log_vandermonde_transpose": (L,),
    "cauchy_mult": (True,),
    "cauchy_bilinear": (L,),
    "dplr_kernel": (L,),
    "fft_conv": (),
    "ssm_scan": (False,),
    "ssm_step": (),
    "diagonal_ssm": (2, 1.0),  # the flag of a bidirectional system, and the rate
    "dplr_scan": (2, 1.0),
}
OPS = tuple(SCALARS)
CONTINUOUS = ("diagonal_ssm", "dplr_scan")
SCANS = backends("ssm_scan")
# Tensor operations that PyTorch differentiates and compiles by itself: test_dplr_step.py.
UNREGISTERED = ("dplr_step",)
# What the public function takes behind the tensors where that is not what the op takes.
PUBLIC = {"ssm_scan": (True,)}


def call(op: str, *tensors: Tensor, backend: str | None = None) -> Any:
    """A tensor, or a tuple of them."""
    if op in CONTINUOUS:
        *positional, ahead = tensors
        options: dict[str, Any] = {"return_state": True, "ahead": ahead, "bidirectional": True, "backend": backend}
        return getattr(s4_fast, op)(*positional, **options)
    return getattr(s4_fast, op)(*tensors, *PUBLIC.get(op, SCALARS[op]), backend=backend)


def differentiate(function: Callable[..., Any], tensors: list[Tensor]) -> list[Tensor]:
    """The outputs, then the gradients of every tensor for fixed cotangents."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    outputs = parts(function(*leaves))
    grads = torch.autograd.grad(outputs, leaves, cotangents(outputs))
    return [*(t.detach() for t in outputs), *grads]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert relative_error(a, e) <= 1e-6


@pytest.fixture(autouse=True)
def no_earlier_graphs() -> None:
    """What an earlier test compiled would make a later one recompile, with other sizes symbolic."""
    torch.compiler.reset()


def test_the_list_of_ops_is_complete() -> None:
    assert {*OPS, *UNREGISTERED} == set(dispatch.ops()) == set(s4_fast.ops.__all__)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(2)
def test_opcheck(op: str, dtype: torch.dtype) -> None:
    arguments = [t.requires_grad_() for t in registered(op, dtype)]
    torch.library.opcheck(getattr(torch.ops.s4_fast, op), (*arguments, *SCALARS[op], "pytorch"))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(2)
def test_opcheck_of_the_adjoint(op: str) -> None:
    pairs = registered(op)
    grads = [torch.randn_like(t) for t in parts(getattr(torch.ops.s4_fast, op)(*pairs, *SCALARS[op], "pytorch"))]
    adjoint = getattr(torch.ops.s4_fast, f"{op}_backward")
    for needs in [[True] * len(pairs), [True] + [False] * (len(pairs) - 1)]:
        torch.library.opcheck(adjoint, (*grads, *pairs, *SCALARS[op], "pytorch", needs))


@pytest.mark.parametrize("backend", SCANS)
@pytest.mark.sample(1)
def test_opcheck_of_a_time_major_scan(backend: str) -> None:
    u, *rest = (torch.view_as_real(t) if t.is_complex() else t for t in inputs("ssm_scan").values())
    pairs = [u.mT.contiguous(), *rest]
    arguments = [t.clone().requires_grad_() for t in pairs]
    torch.library.opcheck(torch.ops.s4_fast.ssm_scan, (*arguments, True, backend))
    grads = [torch.randn_like(t) for t in torch.ops.s4_fast.ssm_scan(*pairs, True, backend)]
    adjoint = torch.ops.s4_fast.ssm_scan_backward
    for needs in [[True] * len(pairs), [False] * 5 + [True]]:
        torch.library.opcheck(adjoint, (*grads, *pairs, True, backend, needs))


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=needs_cxx)])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", SCANS)
@pytest.mark.slow
def test_compiled_time_major_scan(backend: str, dynamic: bool, compiler: str) -> None:
    """From (batch, L, H) to (batch, L, H), with work on both sides; the view is made in the graph, or outside."""
    u, *rest = inputs("ssm_scan").values()

    def inside(v: Tensor, *rest: Tensor) -> Tensor:
        return (s4_fast.ssm_scan((2 * v).mT, *rest, backend=backend) + 1).mT

    def outside(u: Tensor, *rest: Tensor) -> Tensor:
        return s4_fast.ssm_scan(u, *rest, backend=backend)

    for function, first in ((inside, u.mT.contiguous()), (outside, u.mT.contiguous().mT)):
        compiled = torch.compile(function, fullgraph=True, backend=compiler, dynamic=dynamic)
        actual, expected = (differentiate(f, [first, *rest]) for f in (compiled, function))
        assert_same(actual, expected)
        assert actual[0].stride() == expected[0].stride()
        assert backend != "native" or actual[0].stride() == first.stride()


@pytest.mark.parametrize("op", OPS)
def test_fake_outputs_have_the_layout_of_real_ones(op: str) -> None:
    tensors = inputs(op)
    metas = parts(call(op, *(t.to("meta") for t in tensors.values())))
    # Through the boundary, and directly.
    for reals in (call(op, *(t.requires_grad_() for t in tensors.values())), call(op, *inputs(op).values())):
        for meta, real in zip(metas, parts(reals), strict=True):
            assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(3)
def test_compiled_graph_is_the_eager_one(op: str, dynamic: bool) -> None:
    tensors = list(inputs(op).values())
    compiled = torch.compile(lambda *args: call(op, *args), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_same(differentiate(compiled, tensors), differentiate(lambda *args: call(op, *args), tensors))


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=needs_cxx)])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(1)
def test_compiled_graph_keeps_pending_conjugations(op: str, compiler: str) -> None:
    """Conjugated views outside and inside of the graph."""

    def function(*args: Tensor) -> Tensor:
        return call(op, *(2 * t.conj() for t in args))

    tensors = [t.conj() for t in inputs(op).values()]
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    assert_same(differentiate(compiled, tensors), differentiate(function, tensors))
    assert_same(list(parts(function(*tensors))), list(parts(call(op, *(2 * t for t in inputs(op).values())))))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(1)
def test_compiled_graph_of_the_reference(op: str) -> None:
    tensors = list(inputs(op).values())
    compiled = torch.compile(lambda *args: call(op, *args, backend="reference"), fullgraph=True, backend="aot_eager")
    assert_same(differentiate(compiled, tensors), differentiate(lambda *args: call(op, *args), tensors))


def test_one_graph_serves_every_length() -> None:
    """L is symbolic in the op: a longer kernel does not compile again and again."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    v, x = inputs("log_vandermonde").values()
    compiled = torch.compile(s4_fast.log_vandermonde, fullgraph=True, backend=counter, dynamic=True)
    for length in (5, 8, 13, 21):
        assert_same([compiled(v, x, length)], [s4_fast.log_vandermonde(v, x, length)])
    assert counter.frame_count <= 2


@pytest.mark.parametrize("op", OPS)
@pytest.mark.sample(1)
def test_reference_has_second_derivatives(op: str) -> None:
    tensors = [t.requires_grad_() for t in inputs(op, torch.complex128).values()]
    assert gradgradcheck(lambda *args: call(op, *args, backend="reference"), tensors, fast_mode=True)


@pytest.mark.parametrize("backend", ["pytorch", "reference"])
@pytest.mark.parametrize("op", OPS)
def test_autocast_computes_in_float32(op: str, backend: str) -> None:
    """Also in the backward pass, where autocast has ended but its effect on the graph has not."""
    tensors = list(inputs(op).values())

    def function(*args: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(op, *args, backend=backend)

    assert_same(
        differentiate(function, tensors), differentiate(lambda *args: call(op, *args, backend=backend), tensors)
    )


@pytest.mark.parametrize("backend", ["pytorch", "reference"])
@pytest.mark.parametrize("op", ["log_vandermonde_transpose", "fft_conv", "ssm_scan", "ssm_step"])
def test_autocast_accepts_a_half_precision_signal(op: str, backend: str) -> None:
    u, *rest = inputs(op).values()
    half = u.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = parts(call(op, half, *rest, backend=backend))
    assert_same(list(outputs), list(parts(call(op, half.detach().float(), *rest, backend=backend))))
    outputs[0].abs().sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("op", ["ssm_scan", "ssm_step", *CONTINUOUS])
def test_the_gradient_of_one_output_alone(op: str) -> None:
    """Autograd then has no gradient for the other one, which counts as zero."""
    for index in (0, 1):
        leaves = [[t.requires_grad_() for t in inputs(op).values()] for _ in range(2)]
        ours = call(op, *leaves[0])[index]
        reference = call(op, *leaves[1], backend="reference")[index]
        cotangent = cotangents(ours)
        actual = torch.autograd.grad(ours, leaves[0], cotangent)
        expected = torch.autograd.grad(reference, leaves[1], cotangent, allow_unused=True, materialize_grads=True)
        assert_same(list(actual), list(expected))


class Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def through_the_boundary(op: str, run: Callable[[], Any]) -> bool:
    """Whether ``run`` calls the registered op, and not the backend directly."""
    with Watching():  # PyTorch keeps the op that the first call under a mode finds, which must not be the mock
        run()
    packet = mock.Mock(wraps=getattr(torch.ops.s4_fast, op))
    with mock.patch.object(torch.ops.s4_fast, op, packet):
        run()
    return packet.called


@pytest.mark.parametrize("op", OPS)
def test_calls_that_nothing_watches_skip_the_boundary(op: str) -> None:
    tensors = list(inputs(op).values())
    assert not through_the_boundary(op, lambda: call(op, *tensors))
    tensors[0].requires_grad_()
    assert not through_the_boundary(op, lambda: call(op, *tensors))
    with Watching():
        assert through_the_boundary(op, lambda: call(op, *tensors))
    with torch.no_grad():
        assert not through_the_boundary(op, lambda: call(op, *tensors))
    with torch.inference_mode():
        assert not through_the_boundary(op, lambda: call(op, *tensors))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not through_the_boundary(op, lambda: call(op, *tensors))


@pytest.mark.parametrize("op", OPS)
def test_both_ways_give_the_same(op: str) -> None:
    tensors = list(inputs(op).values())
    direct = parts(call(op, *tensors))
    found = []
    for seen in (False, True):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with Watching() if seen else nullcontext():
            outputs = parts(call(op, *leaves))
            found.append(list(torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs])))
        for a, b in zip(direct, outputs, strict=True):
            assert torch.equal(a, b.detach())
            assert all(a.data_ptr() != t.data_ptr() for t in tensors)
    assert_same(*found)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("strided", [True, False])
def test_backends_get_contiguous_tensors_without_pending_signs(
    strided: bool, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = list(inputs(op).values())
    if strided:
        tensors = [torch.stack((t, t), -1)[..., 0] for t in tensors]
    tensors = [t.conj() if t.is_complex() else torch._neg_view(t) for t in tensors]
    module = dispatch.load(op, "pytorch")
    checked = []

    def watched(*args: Any) -> Any:
        seen = [t for t in args if isinstance(t, Tensor)]
        checked.append(not any(t.is_conj() or t.is_neg() or not t.is_contiguous() for t in seen))
        return right(*args)

    right = getattr(module, op)
    monkeypatch.setattr(module, op, watched)
    direct = parts(call(op, *tensors, backend="pytorch"))
    registered = parts(call(op, *(t.requires_grad_() for t in tensors), backend="pytorch"))
    assert checked == [True, True]
    assert_same(list(direct), [t.detach() for t in registered])


@pytest.mark.parametrize("op", OPS)
def test_whatever_watches_sees_the_op(op: str) -> None:
    """Modes, fake tensors, and graphs of make_fx."""
    tensors = list(inputs(op).values())
    with Watching() as mode:
        call(op, *tensors)
    assert f"s4_fast.{op}.default" in mode.seen
    graph = torch.fx.experimental.proxy_tensor.make_fx(lambda *args: call(op, *args))(*tensors)
    assert f"s4_fast.{op}.default" in graph.code
    with torch._subclasses.FakeTensorMode() as fake:
        outputs = parts(call(op, *(fake.from_tensor(t) for t in tensors)))
    assert all(isinstance(t, torch._subclasses.FakeTensor) for t in outputs)


def test_inference_mode_and_no_grad_build_no_graph() -> None:
    v, x = (t.requires_grad_() for t in inputs("log_vandermonde").values())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not s4_fast.log_vandermonde(v, x, L).requires_grad


def test_poisoned_memory_is_seen(poisoned_memory: None) -> None:
    """The fixture that the tests of the ops rely on: whatever allocates without writing yields NaN."""
    like = torch.ones(3, dtype=torch.complex64)
    fresh = [torch.empty(3), torch.empty(3, dtype=torch.complex128), like.new_empty(3), torch.empty_like(like)]
    fresh += [torch.empty_strided((3,), (2,)), torch.empty(0).resize_(3)]
    half_written = torch.empty(6)
    torch.mul(torch.ones(3), 2, out=half_written[:3])
    assert all(t.isnan().all() for t in [*fresh, half_written[3:]])


def test_an_unwritten_entry_fails_the_contract(poisoned_memory: None) -> None:
    assert not relative_error(torch.empty(3), torch.ones(3)) <= 1e9
