from __future__ import annotations

import pathlib
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from s4_fast.state_spaces import patch
from tests.helpers import FORWARD, GRADIENT, log_nodes, normal, relative_error, widened

DATA = pathlib.Path(__file__).parents[1] / "data"
NAIVE = ("cauchy_naive", "log_vandermonde_naive", "log_vandermonde_transpose_naive")
GPU = (
    "cauchy_cuda",
    "cauchy_keops",
    "log_vandermonde_cuda",
    "log_vandermonde_keops",
    "log_vandermonde_transpose_keops",
)
DOUBLE = torch.complex128


def cauchy_naive(v: Tensor, z: Tensor, w: Tensor, conj: bool = True) -> Tensor:
    return sum(
        v[..., n, None] / (z - w[..., n, None]) + (v[..., n, None].conj() / (z - w[..., n, None].conj()) if conj else 0)
        for n in range(v.shape[-1])
    )


def cauchy_pairs(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return cauchy_naive(v, z, w)


def log_vandermonde_naive(v: Tensor, x: Tensor, L: int, conj: bool = True) -> Tensor:
    out = torch.stack([(v * torch.exp(x * l)).sum(-1) for l in range(L)], -1)
    return 2 * out.real if conj else out


def log_vandermonde_transpose_naive(u: Tensor, v: Tensor, x: Tensor, L: int) -> Tensor:
    return sum(u.to(x)[..., l, None] * v.to(x) * torch.exp(x * l) for l in range(L))


def needs_gpu(*arguments: object) -> Tensor:
    return Genred("the original ran")  # noqa: F821 - as KeOps' functions do; a NameError where it is called


class FastProduct(torch.autograd.Function):
    """``apply`` is what release 4 calls ``log_vandermonde_fast``."""

    @staticmethod
    def forward(ctx: object, v: Tensor, x: Tensor, L: int) -> Tensor:
        return needs_gpu()


@pytest.fixture
def module() -> ModuleType:
    """A stand-in for an official file: functions of its names, and classes that call them."""
    module = ModuleType("standin")
    for function in (cauchy_naive, log_vandermonde_naive, log_vandermonde_transpose_naive):
        setattr(module, function.__name__, function)
    for name in GPU:
        setattr(module, name, needs_gpu)
    module.Unrelated = object
    return module


def assert_same(
    module: ModuleType, name: str, tensors: list[Tensor], generator: torch.Generator, *scalars: int, **options: bool
) -> None:
    """The patched function has the values and gradients that its definition has in float64."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    wide = [widened(t.detach()).requires_grad_() for t in tensors]
    actual, expected = getattr(module, name)(*leaves, *scalars, **options), globals()[name](*wide, *scalars, **options)
    precision = torch.finfo(actual.dtype).dtype
    assert actual.is_complex() == expected.is_complex()
    assert precision == torch.finfo(tensors[0].dtype).dtype
    precision = str(precision).removeprefix("torch.")
    assert relative_error(actual, expected.detach()) <= FORWARD[precision]
    g = normal(generator, *actual.shape, dtype=actual.dtype).to(actual.device)
    grads = torch.autograd.grad(actual, leaves, g), torch.autograd.grad(expected, wide, widened(g))
    errors = [relative_error(a, e) for a, e in zip(*grads, strict=True)]
    assert all(error <= GRADIENT[precision] for error in errors), errors


@pytest.mark.parametrize("dtype", [torch.complex64, DOUBLE])
@pytest.mark.parametrize("options", [{}, {"conj": True}, {"conj": False}])
@pytest.mark.parametrize("lead", [(3,), (2, 3), (2, 1, 3)])
def test_values_and_gradients_are_those_of_the_definition(module, dtype, options, lead, generator, device):
    v, x = normal(generator, *lead, 5, dtype=dtype), log_nodes(generator, "weak", 3, 5, dtype=dtype)
    z = (0.5 + 2j * normal(generator, 7, dtype=torch.float64)).to(dtype)
    v, x, z = (t.to(device) for t in (v, x, z))
    patch(module)
    assert_same(module, "cauchy_naive", [v, z, x], generator, **options)
    assert_same(module, "log_vandermonde_naive", [v, x], generator, 9, **options)


@pytest.mark.parametrize("dtype", [torch.complex64, DOUBLE])
@pytest.mark.parametrize("complex_u", [False, True])
def test_transposed_products_take_real_and_complex_signals(module, complex_u, dtype, generator):
    v, x = normal(generator, 3, 5, dtype=dtype), log_nodes(generator, "weak", 3, 5, dtype=dtype)
    u = normal(generator, 2, 3, 9, dtype=dtype if complex_u else dtype.to_real())
    patch(module)
    assert_same(module, "log_vandermonde_transpose_naive", [u, v, x], generator, 9)


def test_real_models_pass_real_tensors(module, generator):
    v, x, u = (normal(generator, *shape, dtype=torch.float64) for shape in ((2, 3, 4), (3, 4), (2, 3, 9)))
    patch(module)
    assert_same(module, "log_vandermonde_naive", [v, -x.abs()], generator, 9)
    assert_same(module, "log_vandermonde_transpose_naive", [u, v[0], -x.abs()], generator, 9)


@pytest.mark.parametrize("file", ["functions", "functions_batch"])
@pytest.mark.parametrize("end", ["naive", "keops", "cuda"])
@pytest.mark.parametrize(
    ("case", "function", "names"),
    [
        ("cauchy", "cauchy", "vzw"),
        ("cauchyg", "cauchy", "vzw"),
        ("lv", "log_vandermonde", "vx"),
        ("lvt", "log_vandermonde_transpose", "uvx"),
        ("lvtb", "log_vandermonde_transpose", "uvx"),
    ],
)
def test_values_and_gradients_are_the_official_ones(module, file, end, case, function, names):
    module.log_vandermonde_transpose_cuda = needs_gpu
    patch(module)
    arrays = np.load(DATA / f"{file}.npz")
    golden = {key.removeprefix(f"{case}."): torch.tensor(arrays[key]) for key in arrays if key.startswith(f"{case}.")}
    leaves = [golden[name].requires_grad_() for name in names]
    length = [] if function == "cauchy" else [golden["out" if case == "lv" else "u"].shape[-1]]
    out = getattr(module, f"{function}_{end}")(*leaves, *length)
    assert relative_error(out, golden["out"]) <= 1e-10
    grads = torch.autograd.grad(out, leaves, golden["g"])
    errors = [relative_error(g, golden[f"grad_{name}"]) for name, g in zip(names, grads, strict=True)]
    assert all(error <= 1e-10 for error in errors), errors


def test_the_functional_modules_have_names_and_defaults_of_their_own(generator):
    functional = ModuleType("functional")
    functional.cauchy = functional.cauchy_conj = functional.cauchy_conj2 = functional.cauchy_lazy = needs_gpu
    functional.cauchy_slow = functional.cauchy_conj_slow = cauchy_pairs
    functional.cauchy_mult = lambda v, z, w, symmetric=True: needs_gpu()
    functional.log_vandermonde = functional.log_vandermonde_transpose = needs_gpu
    functional.log_vandermonde_lazy, functional.log_vandermonde_fast = needs_gpu, FastProduct.apply
    assert len(patch(functional).replaced) == 11
    v, w = normal(generator, 3, 4, dtype=DOUBLE), log_nodes(generator, "strong", 3, 4, dtype=DOUBLE)
    z = 1 + normal(generator, 5, dtype=DOUBLE)
    plain, pairs = cauchy_naive(v, z, w, conj=False), cauchy_naive(v, z, w)
    results = [
        (functional.cauchy(v, z, w), plain),
        (functional.cauchy(v, z, w, conj=True), pairs),
        (functional.cauchy_conj(v, z, w, num=1, denom=1), pairs),
        (functional.cauchy_conj2(v, z, w), pairs),
        (functional.cauchy_conj_slow(v, z, w), pairs),
        (functional.cauchy_lazy(v, z, w), pairs),
        (functional.cauchy_lazy(v, z, w, conj=False), plain),
        (functional.cauchy_slow(v, z, w, conj=False), plain),
        (functional.cauchy_slow(v, z, w), pairs),
        (functional.cauchy_mult(v, z, w), pairs),
        (functional.cauchy_mult(v, z, w, symmetric=False), plain),
        (functional.log_vandermonde(v, w, 6), log_vandermonde_naive(v, w, 6)),
        (functional.log_vandermonde_fast(v, w, 6), log_vandermonde_naive(v, w, 6)),
        (functional.log_vandermonde_lazy(v, w, 6), log_vandermonde_naive(v, w, 6) + 0j),
        (functional.log_vandermonde_lazy(v, w, 6, conj=False), log_vandermonde_naive(v, w, 6, conj=False)),
        (functional.log_vandermonde_transpose(z.real, v, w, 5), log_vandermonde_transpose_naive(z.real, v, w, 5)),
    ]
    assert all(actual.dtype == expected.dtype for actual, expected in results)
    errors = [relative_error(actual, expected) for actual, expected in results]
    assert all(error <= 1e-12 for error in errors), errors


def test_a_patch_lists_what_it_replaced_and_undoes_it(module):
    before = dict(vars(module))
    patched = patch(module)
    assert patched.module is module
    assert patched.replaced == {name: before[name] for name in (*NAIVE, *GPU)}
    assert all(getattr(module, name) is not before[name] for name in (*NAIVE, *GPU))
    assert module.Unrelated is object
    assert repr(patched).startswith("Patch(standin: cauchy_cuda, cauchy_keops, cauchy_naive, log_vandermonde_cuda")
    patched.undo()
    patched.undo()
    assert vars(module) == before


def test_a_block_undoes_its_patch_alone_and_after_an_error_too(module):
    before = dict(vars(module))
    with patch(module):
        during = dict(vars(module))
        with patch(module) as inner:
            assert not inner.replaced
            assert "nothing was left to replace" in repr(inner)
        assert vars(module) == during
    assert vars(module) == before
    with pytest.raises(KeyError), patch(module):
        raise KeyError
    assert vars(module) == before


def test_what_was_put_there_since_stays(module):
    with patch(module):
        module.cauchy_naive = needs_gpu
    assert module.cauchy_naive is needs_gpu
    assert module.log_vandermonde_naive is log_vandermonde_naive


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="expected an imported module of state-spaces/s4, got Linear"):
        patch(torch.nn.Linear(1, 1))
    package = ModuleType("package")
    package.cauchy = ModuleType("package.cauchy")
    with pytest.raises(ValueError, match="package has none of the functions cauchy_cuda, cauchy_mult"):
        patch(package)
