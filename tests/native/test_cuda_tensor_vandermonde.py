"""Vandermonde products and moments on tensor cores against float64: emulated, and on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from s4_fast.ops.vandermonde import reference as vandermonde
from tests.helpers import log_nodes, normal, uniform, widened
from tests.native.emulated import Emulated, Library, needs_compiler
from tests.native.test_cuda_kernels import DECAYS, close, empty, to

# A tile has 1024 samples, a block four of them, and 32 states at a time.
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 3, 2),
    (3, 2, 29, 17),
    (1, 2, 17, 257),
    (2, 1, 32, 1024),
    (2, 1, 100, 1047),
    (3, 1, 5, 5000),
    (1, 1, 3, 20000),
]
LONG = pytest.param(1, 1, 2, 2**20 - 3, marks=pytest.mark.slow)


def product(library: Library, v: Tensor, x: Tensor, L: int, scale: float = 1.5) -> Tensor:
    c, H, n = v.shape
    v, x = to(library, (v, x))
    out = empty(v, c, H, L, real=True)
    library.call("tensor_vandermonde", v, torch.complex64, c, H, n, L, v, x, scale, out)
    return out.cpu()


def moments(library: Library, u: Tensor, x: Tensor, first: bool = True) -> list[Tensor]:
    (c, H, L), n = u.shape, x.shape[1]
    u, x = to(library, (u, x))
    out = [empty(x, c, H, n) for _ in range(1 + first)]
    library.call("tensor_moments", u, torch.complex64, c, H, n, L, u, x, out[0], out[1] if first else None)
    return [t.cpu() for t in out]


def wide_moments(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    L = u.shape[-1]
    table, wide = vandermonde.powers(widened(x), L), u.to(torch.complex128)
    l = torch.arange(L, dtype=torch.float64)
    return torch.einsum("chl,hnl->chn", wide, table), torch.einsum("chl,hnl->chn", wide * l, table)


def inputs(generator: Generator, c: int, H: int, n: int, L: int, decay: str) -> tuple[Tensor, Tensor, Tensor]:
    x = log_nodes(generator, decay, H, n, dtype=torch.complex64)
    return normal(generator, c, H, n, dtype=torch.complex64), x, normal(generator, c, H, L, dtype=torch.float32)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("c", "H", "n", "L"), [*SIZES, LONG])
def test_product(library: Library, generator: Generator, c: int, H: int, n: int, L: int, decay: str) -> None:
    v, x, _ = inputs(generator, c, H, n, L, decay)
    expected = 1.5 / 2 * vandermonde.log_vandermonde(widened(v), widened(x), L)
    close(product(library, v, x, L), expected)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("c", "H", "n", "L"), [*SIZES, LONG])
def test_moments(library: Library, generator: Generator, c: int, H: int, n: int, L: int, decay: str) -> None:
    _, x, u = inputs(generator, c, H, n, L, decay)
    every = moments(library, u, x)
    for actual, wanted in zip(every, wide_moments(u, x), strict=True):
        close(actual, wanted)
    assert torch.equal(moments(library, u, x, first=False)[0], every[0])


@pytest.mark.slow
def test_sums_of_one_sign(library: Library) -> None:
    """Tensor cores cut sums off, always towards zero."""
    x = torch.full((1, 1), complex(0, 0), dtype=torch.complex64)
    u = torch.full((1, 1, 2**20 - 3), 1 / 3)
    for actual, wanted in zip(moments(library, u, x), wide_moments(u, x), strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("offset", [0, 2**20 - 300])
def test_phases_far_out(library: Library, generator: Generator, offset: int) -> None:
    """A single sample at ``offset``: its moment is a power of lambda, whose phase has gone round many times."""
    x = log_nodes(generator, "weak", 1, 5, dtype=torch.complex64)
    u = torch.zeros(1, 1, offset + 1)
    u[..., offset] = 1
    close(moments(library, u, x, first=False)[0][0], vandermonde.powers(widened(x), offset + 1)[..., offset])


@pytest.mark.parametrize("L", [1, 2, 18, 64, 1100])
def test_growing_nodes_do_not_overflow_beyond_the_end(library: Library, L: int) -> None:
    """The largest power is e^80, that of the next row or tile infinite."""
    x = torch.tensor([[complex(80 / max(L - 1, 1), 1), complex(-1, 2)]], dtype=torch.complex64)
    v, u = torch.ones(1, 1, 2, dtype=torch.complex64), torch.ones(1, 1, L)
    close(product(library, v, x, L, 2.0), vandermonde.log_vandermonde(widened(v), widened(x), L))
    for actual, wanted in zip(moments(library, u, x), wide_moments(u, x), strict=True):
        for state in range(2):
            close(actual[..., state], wanted[..., state])


@pytest.mark.parametrize("exponent", [-30, 0, 30])
def test_rows_of_any_size(library: Library, generator: Generator, exponent: int) -> None:
    """What decays keeps its precision, in every row of 64 by itself."""
    x = torch.tensor([[complex(-0.05, 1)]], dtype=torch.complex64)
    v, u = normal(generator, 1, 1, 1, dtype=torch.complex64), normal(generator, 1, 1, 1200, dtype=torch.float32)
    size = 10.0**exponent
    scaled = size * v
    expected = vandermonde.log_vandermonde(widened(scaled), widened(x), 1200)
    actual = product(library, scaled, x, 1200, 2.0)
    for some, wanted in zip(actual.split(64, -1), expected.split(64, -1), strict=True):
        if wanted.abs().max() > 1e-30:
            close(some, wanted)
    # Weighted with what grows by as much, each row of samples counts alike.
    x = torch.complex(torch.full((1, 9), 0.05), uniform(generator, -3, 3, 1, 9).float())
    u = size * u * torch.exp(-0.05 * torch.arange(1200))
    for some, wanted in zip(moments(library, u, x), wide_moments(u, x), strict=True):
        close(some, wanted)


def test_not_finite(library: Library, generator: Generator) -> None:
    """A coefficient that is no number is seen in every output of its row, and in no other."""
    v, x, u = inputs(generator, 2, 2, 3, 100, "weak")
    v[1, 0, 2], u[0, 1, 50] = float("nan"), float("nan")
    finite = product(library, v, x, 100).isfinite()
    assert finite[0].all() and finite[1, 1].all() and not finite[1, 0].any()
    for moment in moments(library, u, x):
        finite = torch.view_as_real(moment).isfinite().all(-1)
        assert finite[1].all() and finite[0, 0].all() and not finite[0, 1].any()


@needs_compiler
def test_the_order_of_threads_does_not_matter(emulated: Emulated, session_seed: int) -> None:
    results = []
    for order in ("forwards", "backwards", "shuffled"):
        emulated.order(order)
        v, x, u = inputs(Generator().manual_seed(session_seed), 2, 1, 35, 9000, "weak")
        results.append([product(emulated, v, x, 9000), *moments(emulated, u, x)])
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(t, tensors[0]) and t.isfinite().all() for t in tensors)


@needs_compiler
@pytest.mark.parametrize("name", ["tensor_vandermonde", "tensor_moments"])
def test_float64_is_refused(emulated: Emulated, name: str) -> None:
    one = torch.ones(1, 1, 1, dtype=torch.complex128)
    rest = [one, one, 2.0, one] if name == "tensor_vandermonde" else [one, one, one, None]
    with pytest.raises(RuntimeError, match=f"^{name}: tensor cores serve float32 only$"):
        emulated.call(name, one, torch.complex128, 1, 1, 1, 1, *rest)
