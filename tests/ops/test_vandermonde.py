from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck

import s4_fast
from s4_fast import log_vandermonde, log_vandermonde_transpose
from tests.helpers import (
    DECAYS,
    DTYPES,
    KEOPS,
    KEOPS_FLOAT64,
    Tensors,
    assert_contract,
    assert_gradients_one_by_one,
    backends,
    evaluate,
    log_nodes,
    needs_keops,
    normal,
    relative_error,
    unusual_views,
    widened,
)

OPS = ("log_vandermonde", "log_vandermonde_transpose")
BACKENDS = backends("log_vandermonde")
# (H, n, L): every length that is awkward for a two-level split, and every n that is awkward for a tile.
SIZES = [(2, 29, 1), (3, 1, 2), (2, 100, 3), (1, 256, 17), (3, 29, 1047), (2, 100, 4096), (1, 3, 2**20)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def inputs(op: str, x: Tensor, L: int, generator: Generator, lead: tuple[int, ...] = ()) -> Tensors:
    """``x`` with coefficients, and with a signal of length ``L`` for the transposed product."""
    v = normal(generator, *lead, *x.shape, dtype=x.dtype)
    if op == "log_vandermonde":
        return {"v": v, "x": x}
    return {"u": normal(generator, *lead, *x.shape[:-1], L, dtype=x.real.dtype), "v": v, "x": x}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("H", "n", "L"), SIZES)
@pytest.mark.parametrize("op", OPS)
def test_contract(
    op: str, H: int, n: int, L: int, decay: str, dtype: torch.dtype, backend: str, device: str, generator: Generator
) -> None:
    x = log_nodes(generator, decay, H, n, dtype=dtype)
    tensors = {name: t.to(device) for name, t in inputs(op, x, L, generator).items()}
    assert_contract(op, tensors, backend, L=L)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_phases_of_zero_and_pi(op: str, backend: str, device: str, generator: Generator) -> None:
    x = torch.tensor([0, 1j * math.pi, -1j * math.pi, 0.5j * math.pi, -1e-6 + 1j * math.pi], dtype=torch.complex64)
    x = x.repeat(4, 1)  # in one feature the gradient can be small by chance, and its relative error large
    tensors = {name: t.to(device) for name, t in inputs(op, x, 100_003, generator).items()}
    assert_contract(op, tensors, backend, L=100_003)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
@pytest.mark.parametrize("op", OPS)
def test_memory_layout_does_not_matter(op: str, view: str, backend: str, generator: Generator) -> None:
    x = log_nodes(generator, "weak", 3, 5, dtype=torch.complex64)
    assert_contract(op, unusual_views(inputs(op, x, 50, generator))[view], backend, L=50)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("v_lead", "x_lead"),
    [((), ()), ((2, 3), (3,)), ((3,), (2, 3)), ((), (2, 3)), ((2, 3), ()), ((4, 2, 3), (4, 1, 3)), ((2, 3), (1, 1))],
)
def test_leading_dimensions_broadcast(
    v_lead: tuple[int, ...], x_lead: tuple[int, ...], op: str, backend: str, generator: Generator
) -> None:
    x = log_nodes(generator, "weak", *x_lead, 5, dtype=torch.complex64)
    tensors = inputs(op, x, 50, generator) | {"v": normal(generator, *v_lead, 5, dtype=torch.complex64)}
    assert_contract(op, tensors, backend, L=50)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_expanded_inputs(op: str, backend: str, generator: Generator) -> None:
    tensors = inputs(op, log_nodes(generator, "weak", 1, 5, dtype=torch.complex64), 50, generator)
    expanded = {name: t.expand(4, 3, t.shape[-1]) for name, t in tensors.items()}
    assert_contract(op, expanded, backend, L=50)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference", KEOPS])
@pytest.mark.parametrize("lead", [(0, 3), (2, 0)])
@pytest.mark.parametrize("op", OPS)
def test_empty_batch(op: str, lead: tuple[int, ...], backend: str, generator: Generator) -> None:
    x = log_nodes(generator, "weak", lead[1], 5, dtype=torch.complex64)
    tensors = inputs(op, x, 50, generator, lead[:1])
    output, grads = evaluate(op, tensors, backend, L=50)
    assert output.shape == (*lead, 50 if op == "log_vandermonde" else 5)
    assert all(torch.equal(g, torch.zeros_like(tensors[name])) for name, g in grads.items())


@pytest.mark.parametrize("backend", [*BACKENDS, "reference", KEOPS_FLOAT64])
@pytest.mark.parametrize("op", OPS)
def test_gradcheck(op: str, backend: str, generator: Generator) -> None:
    x = log_nodes(generator, "weak", 2, 3, dtype=torch.complex128)
    tensors = [t.requires_grad_() for t in inputs(op, x, 7, generator, (2,)).values()]
    assert gradcheck(lambda *args: getattr(s4_fast, op)(*args, 7, backend=backend), tensors)


@pytest.mark.parametrize("backend", [*BACKENDS, KEOPS_FLOAT64])
@pytest.mark.parametrize("op", OPS)
def test_gradients_one_by_one(op: str, backend: str, generator: Generator) -> None:
    x = log_nodes(generator, "weak", 2, 3, dtype=torch.complex128)
    assert_gradients_one_by_one(op, inputs(op, x, 7, generator), backend, L=7)


@needs_keops
@pytest.mark.parametrize("dtype", [torch.complex64, pytest.param(torch.complex128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", OPS)
def test_keops_contract_while_phases_are_small(op: str, dtype: torch.dtype, device: str, generator: Generator) -> None:
    """Up to 20 radians: float32 rounds those by 1e-6 at most."""
    x = log_nodes(generator, "weak", 3, 29, dtype=dtype)
    x = torch.complex(x.real, x.imag / 100)
    tensors = {name: t.to(device) for name, t in inputs(op, x, 600, generator, (2,)).items()}
    assert_contract(op, tensors, "keops", L=600)


@needs_keops
def test_keops_rounds_long_phases(generator: Generator) -> None:
    """Why the automatic choice never takes it: half a unit in the last place of 3.1 * 2^20 is 0.1 radians."""
    tensors = inputs("log_vandermonde", torch.tensor([[-1e-7 + 3.1j]], dtype=torch.complex64), 1, generator)
    L = 2**20
    expected = log_vandermonde(**{name: widened(t) for name, t in tensors.items()}, L=L, backend="reference")
    assert 1e-3 < relative_error(log_vandermonde(**tensors, L=L, backend="keops"), expected) < 0.2
    assert relative_error(log_vandermonde(**tensors, L=L), expected) <= 2e-6
    assert s4_fast.explain("log_vandermonde", **tensors, L=L, backend="auto").backend != "keops"


X = torch.zeros(2, 3, dtype=torch.complex64)
U = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, X[:, :2], 5), ValueError, r"one last dimension n >= 1 .* v \(2, 3\), x \(2, 2\)"),
        ((X[:, :0], X[:, :0], 5), ValueError, r"n >= 1 .* v \(2, 0\)"),
        ((X[0, 0], X, 5), ValueError, r"last dimension n, got v \(\), x \(2, 3\)"),
        ((X, X[:1].expand(4, 3), 5), ValueError, r"do not broadcast: .*v \(2, 3\), x \(4, 3\)"),
        ((X.real, X, 5), TypeError, r"v to be complex64 or complex128, got float32 of shape \(2, 3\)"),
        ((X, X.real.long(), 5), TypeError, r"x to be complex64 or complex128, got int64 of shape \(2, 3\)"),
        ((X, X.to(torch.complex128), 5), TypeError, "one precision, got .*v complex64, x complex128"),
        ((X, X.to("meta"), 5), ValueError, "one device, got .*v on cpu, x on meta"),
        ((X, X, 0), ValueError, "L >= 1, got L = 0"),
        ((X, X, -4), ValueError, "L >= 1, got L = -4"),
        ((X, X, 5.0), TypeError, "L to be an int, got float"),
        ((X, X, True), TypeError, "L to be an int, got bool"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    v, x, L = arguments
    with pytest.raises(error, match=f"^log_vandermonde: .*{message}"):
        log_vandermonde(v, x, L)
    with pytest.raises(error, match=f"^log_vandermonde_transpose: .*{message}"):
        log_vandermonde_transpose(U, v, x, L)


@pytest.mark.parametrize(
    ("u", "L", "error", "message"),
    [
        (U, 6, ValueError, r"u of shape \(\.\.\., L\) with L = 6, got \(2, 5\)"),
        (U[0, 0], 5, ValueError, r"u of shape \(\.\.\., L\) with L = 5, got \(\)"),
        (U[:1].expand(3, 5), 5, ValueError, r"do not broadcast: u \(3, 5\), v \(2, 3\), x \(2, 3\)"),
        (U.long(), 5, TypeError, r"u to be float32 or float64, got int64 of shape \(2, 5\)"),
        (U + 0j, 5, TypeError, r"u to be float32 or float64, got complex64"),
        (U.bfloat16(), 5, TypeError, r"u to be float32 or float64, got bfloat16"),
        (U.double(), 5, TypeError, "one precision, got u float64, v complex64, x complex64"),
        (U.to("meta"), 5, ValueError, "one device, got u on meta, v on cpu, x on cpu"),
    ],
)
def test_bad_signal(u: Tensor, L: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^log_vandermonde_transpose: .*{message}"):
        log_vandermonde_transpose(u, X, X, L)
