"""diagonal_ssm and dplr_scan behind the boundary of torch.library: every set of optional tensors, memory orders, half
signals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import cotangents, needs_cxx, normal, parts, relative_error
from tests.ops.diagonal_inputs import BACKENDS, EACH, run

BATCH, H, N, L = 2, 4, 3, 12
OPTIONAL = ("B", "D", "state", "ahead")
PRESENT = [
    pytest.param(frozenset(names), id="+".join(names) or "none")
    for count in range(len(OPTIONAL) + 1)
    for names in itertools.combinations(OPTIONAL, count)
]
SOME = [PRESENT[0], PRESENT[5], PRESENT[-1]]
TIME_MAJOR, BIDIRECTIONAL = 1, 2  # flags

pytestmark = pytest.mark.usefixtures("no_earlier_graphs")


@pytest.fixture
def no_earlier_graphs() -> None:
    """What an earlier test compiled would make a later one recompile, with other sizes symbolic."""
    torch.compiler.reset()


def inputs(op: str, present: frozenset[str], dtype: torch.dtype = torch.complex64) -> dict[str, Any]:
    """Keyword arguments of the public function: tensors, or None. A has one row for two features."""
    generator = torch.Generator().manual_seed(0)
    real = dtype.to_real()
    made = {
        "u": normal(generator, BATCH, H, L, dtype=real),
        "A": torch.complex(-0.1 - torch.rand(H // 2, N, dtype=real), torch.randn(H // 2, N, dtype=real)),
        **({"P": normal(generator, 2, H // 2, N, dtype=dtype)} if op == "dplr_scan" else {}),
        "B": normal(generator, H // 2, N, dtype=dtype),
        "C": normal(generator, 2 * (1 + ("ahead" in present)), H, N, dtype=dtype),
        "dt": 0.1 + torch.rand(H, 1, dtype=real),
        "D": normal(generator, 2, H, dtype=real),
        "state": normal(generator, BATCH, H, N, dtype=dtype),
        "ahead": normal(generator, BATCH, H, N, dtype=dtype),
    }
    return {name: None if name in OPTIONAL and name not in present else t for name, t in made.items()}


def registered(given: dict[str, Any]) -> list[Tensor | None]:
    """What the op behind the boundary takes: A in two parts, complex numbers as pairs."""
    A, names = given["A"], ("P", "B", "C", "D", "state", "ahead")
    order = [given["u"], given["dt"], A.real, A.imag, *(given[name] for name in names if name in given)]
    pairs = [torch.view_as_real(t) if t is not None and t.is_complex() else t for t in order]
    return [None if t is None else t.clone() for t in pairs]


def flags(present: frozenset[str], time_major: bool) -> int:
    return TIME_MAJOR * time_major + BIDIRECTIONAL * ("ahead" in present)


@EACH
@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.sample(2)
def test_opcheck(present: frozenset[str], op: str) -> None:
    """Time-major where an odd number of tensors is there."""
    check_op(op, present, len(present) % 2 > 0, "pytorch")


@BACKENDS
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.sample(1)
def test_opcheck_of_every_backend(time_major: bool, op: str, backend: str) -> None:
    check_op(op, frozenset(OPTIONAL), time_major, backend)


def check_op(op: str, present: frozenset[str], time_major: bool, backend: str) -> None:
    """torch.library's checks of the op, and of its adjoint for all gradients and for that of the signal alone."""
    given = inputs(op, present)
    if time_major:
        given["u"] = given["u"].mT.contiguous()
    tensors = registered(given)
    rest = (flags(present, time_major), 1.5, backend)
    leaves = [t if t is None else t.clone().requires_grad_() for t in tensors]
    torch.library.opcheck(getattr(torch.ops.s4_fast, op), (*leaves, *rest))
    grads = [torch.randn_like(t) for t in getattr(torch.ops.s4_fast, op)(*tensors, *rest)]
    every = [t is not None for t in tensors]
    for needs in (every, [True] + [False] * (len(every) - 1)):
        torch.library.opcheck(getattr(torch.ops.s4_fast, f"{op}_backward"), (*grads, *tensors, *rest, needs))


def differentiate(function: Any, given: dict[str, Any]) -> list[Tensor]:
    """Outputs, and the gradients of every tensor that there is."""
    leaves = {name: t if t is None else t.detach().requires_grad_() for name, t in given.items()}
    outputs = parts(function(**leaves))
    there = [t for t in leaves.values() if t is not None]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, there, cotangents(outputs))]


@BACKENDS
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=[needs_cxx, pytest.mark.slow])])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("present", SOME)
def test_one_graph_is_the_eager_call(
    present: frozenset[str], time_major: bool, compiler: str, op: str, backend: str
) -> None:
    def function(u: Tensor, **rest: Any) -> Any:
        y, final = run(
            op,
            2 * u,
            **rest,
            return_state=True,
            bidirectional="ahead" in present,
            time_major=time_major,
            backend=backend,
        )
        return y + 1, final

    given = inputs(op, present)
    if time_major:
        given["u"] = given["u"].mT.contiguous()
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for actual, expected in zip(differentiate(compiled, given), differentiate(function, given), strict=True):
        assert actual.dtype == expected.dtype
        assert relative_error(actual, expected) <= 1e-6


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("present", SOME)
def test_fake_outputs_have_the_layout_of_real_ones(
    present: frozenset[str], time_major: bool, turned: bool, dtype: torch.dtype, op: str, backend: str
) -> None:
    """In either memory order of u, through the boundary, under autograd and directly."""
    given = inputs(op, present)
    u = given["u"].to(dtype)
    given["u"] = u.mT.contiguous() if time_major else u
    if turned:
        given["u"] = given["u"].mT.contiguous().mT
    options: dict[str, Any] = {"bidirectional": "ahead" in present, "time_major": time_major, "return_state": True}
    leaf = {**given, "C": given["C"].clone().requires_grad_()}
    fakes = run(op, **{name: t if t is None else t.to("meta") for name, t in given.items()}, **options)
    for tensors in (given, leaf):
        for fake, real in zip(fakes, run(op, **tensors, **options, backend=backend), strict=True):
            assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
    assert fakes[0].dtype == dtype


@BACKENDS
def test_vmap_over_signals_is_a_loop(op: str, backend: str) -> None:
    given = inputs(op, frozenset({"B", "D"}))
    u = given.pop("u")
    signals = torch.stack((u, 2 * u, u.flip(-1)))
    mapped = torch.func.vmap(lambda t: run(op, t, **given, backend=backend))(signals)
    assert relative_error(mapped, torch.stack([run(op, t, **given, backend=backend) for t in signals])) <= 1e-6
