"""DPLR spectra and their adjoint on tensor cores against float64: emulated, and on a GPU where there is one."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Generator, Tensor

from s4_fast import backend_table, dispatch, native_library
from s4_fast.bench.accuracy import DPLR_KERNEL_FORWARD
from tests.helpers import assert_contract, assert_gradients_one_by_one, log_uniform, normal, relative_error, uniform
from tests.native.emulated import Emulated, Library, needs_compiler
from tests.native.test_cuda_kernels import close, empty, gradients, leaves, schur_complement, to
from tests.ops.test_dplr import RANK, RESONANCES, hippo_inputs, random_inputs, resonant_inputs

FORWARD = DPLR_KERNEL_FORWARD["float32"]
DECAYS = {"none": None, "weak": (1e-7, 1e-3), "strong": (1e-1, 1e2)}
# (b, c, rank, H, n, L). A block has 128, 64 or 32 nodes of 4, 12 or 36 sums, and 32 states at a time.
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (1, 1, 1, 2, 3, 2),
    (1, 1, 1, 2, 29, 17),
    (1, 1, 1, 1, 33, 257),
    (1, 1, 1, 1, 100, 1047),
    (1, 1, 1, 1, 32, 4096),
    (1, 2, 1, 2, 3, 130),
    (2, 2, 1, 1, 5, 131),
    (3, 3, 1, 1, 7, 70),
    (1, 1, 2, 3, 17, 33),
    (3, 2, 2, 1, 33, 2),
    (2, 2, 2, 2, 3, 66),
    (3, 3, 2, 1, 9, 65),
    (1, 2, 3, 2, 5, 130),
    (3, 3, 3, 1, 3, 67),
    (1, 1, 4, 1, 16, 20),
    (2, 1, 4, 2, 3, 130),
]
Inputs = tuple[Tensor, Tensor, Tensor]


def sums_like_those_of_s4(generator: Generator, w: Tensor, b: int, c: int, rank: int) -> Inputs:
    """v, w and shift: M_11 is I plus a matrix with positive semidefinite Hermitian part."""
    H, n = w.shape
    P = normal(generator, rank, H, n, dtype=torch.complex128)
    left = torch.cat((normal(generator, c, H, n, dtype=torch.complex128), P.conj()))
    right = torch.cat((normal(generator, b, H, n, dtype=torch.complex128), P))
    shift = normal(generator, c + rank, b + rank, H, dtype=torch.float64)
    shift[c:, b:] = torch.eye(rank)[..., None]
    return (0.1 * left[:, None] * right).contiguous(), w.to(torch.complex64), shift


def poles(generator: Generator, decay: str, H: int, n: int, L: int) -> Tensor:
    """What is not damped strongly is apart from the nodes, up to 8 from the real axis."""
    bounds = DECAYS[decay]
    real = torch.zeros(H, n, dtype=torch.float64) if bounds is None else -log_uniform(generator, *bounds, H, n)
    between = uniform(generator, 0, 0.42 * L, H, n).floor() + uniform(generator, 0.2, 0.8, H, n)
    imag = 2 * torch.tan(math.pi / L * between.clamp(max=0.42 * L))
    return torch.complex(real, imag * torch.sign(uniform(generator, -1, 1, H, n)))


def spectrum_of(library: Library, inputs: Inputs, L: int, b: int = 1, c: int = 1) -> Tensor:
    v, w, shift = to(library, inputs)
    H, n = w.shape
    out = empty(w, b, c, H, L // 2 + 1)
    library.call("tensor_dplr_spectrum", w, w.dtype, b, c, len(v) - c, H, n, L, v, w, shift, out)
    return out.cpu()


def gradients_of(library: Library, inputs: Inputs, L: int, grad: Tensor, of_poles: bool = True) -> list[Tensor]:
    v, w, _ = inputs
    (b, c), (H, n) = grad.shape[:2], w.shape
    g, v, w, shift = to(library, (grad, *inputs))
    grad_v, grad_w = empty(v, *v.shape), empty(v, H, n) if of_poles else None
    sizes = (b, c, v.shape[0] - c, H, n, L)
    library.call("tensor_dplr_spectrum_backward", w, w.dtype, *sizes, g, v, w, shift, grad_v, grad_w)
    return [t.cpu() for t in (grad_v, grad_w) if t is not None]


def expected(inputs: Inputs, L: int, b: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    v, w, shift = inputs
    wide_v, wide_w = leaves(v, w)
    return schur_complement(wide_v, wide_w, shift, c, b, L), wide_v, wide_w


def check(library: Library, generator: Generator, inputs: Inputs, L: int, b: int, c: int, allowed: float) -> None:
    spectrum, wide_v, wide_w = expected(inputs, L, b, c)
    close(spectrum_of(library, inputs, L, b, c), spectrum.detach())
    grad = normal(generator, *spectrum.shape, dtype=torch.complex64)
    found = gradients_of(library, inputs, L, grad)
    for actual, wanted in zip(found, gradients(spectrum, grad, (wide_v, wide_w)), strict=True):
        assert relative_error(actual, wanted) <= allowed
    assert torch.equal(gradients_of(library, inputs, L, grad, of_poles=False)[0], found[0])


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("b", "c", "rank", "H", "n", "L"), SIZES)
def test_tensor_spectrum(
    library: Library, generator: Generator, b: int, c: int, rank: int, H: int, n: int, L: int, decay: str
) -> None:
    inputs = sums_like_those_of_s4(generator, poles(generator, decay, H, n, L), b, c, rank)
    check(library, generator, inputs, L, b, c, 1e-13 if decay == "strong" else 1e-9)


@pytest.mark.parametrize("damping", [1e-2, 1e-4])
@pytest.mark.parametrize("L", [64, 131])
def test_tensor_spectrum_of_poles_on_nodes(library: Library, generator: Generator, L: int, damping: float) -> None:
    """Up to the rounding of Im w to float32, with the last but one of the nodes among them."""
    k = torch.arange(1, L // 2, max(L // 12, 1), dtype=torch.float64)
    k[-1] = (L - 1) // 2
    w = torch.complex(torch.full_like(k, -damping), 2 * torch.tan(math.pi * k / L))[None]
    check(library, generator, sums_like_those_of_s4(generator, w, 1, 1, 1), L, 1, 1, 1e-15 / damping**2)


@pytest.mark.parametrize("L", [2, 64, 1000])
def test_tensor_spectrum_where_omega_is_minus_one(library: Library, generator: Generator, L: int) -> None:
    """The rows below have h = 0 there, so that their part of M is the shift."""
    inputs = sums_like_those_of_s4(generator, poles(generator, "weak", 2, 9, L), 2, 1, 2)
    close(spectrum_of(library, inputs, L, 2)[..., -1], expected(inputs, L, 2, 1)[0][..., -1].detach())


def test_more_tensor_sums_than_fit_are_made_pair_by_pair(library: Library, generator: Generator) -> None:
    inputs = sums_like_those_of_s4(generator, poles(generator, "strong", 2, 5, 300), 6, 5, 1)
    close(spectrum_of(library, inputs, 300, 6, 5), expected(inputs, 300, 6, 5)[0].detach())


def test_a_tensor_spectrum_that_is_not_finite_is_of_one_feature(library: Library, generator: Generator) -> None:
    v, w, shift = sums_like_those_of_s4(generator, poles(generator, "weak", 3, 5, 40), 1, 1, 1)
    w[1, 2] = complex(float("nan"), 1)
    for found in (
        spectrum_of(library, (v, w, shift), 40)[0, 0],
        gradients_of(library, (v, w, shift), 40, torch.ones(1, 1, 3, 21, dtype=torch.complex64))[1],
    ):
        finite = torch.view_as_real(found).isfinite().flatten(1)
        assert finite[0].all() and finite[2].all() and not finite[1].all()


@needs_compiler
def test_the_order_of_threads_does_not_matter_to_tensor_spectra(emulated: Emulated, session_seed: int) -> None:
    results = []
    for order in ("forwards", "backwards", "shuffled"):
        emulated.order(order)
        generator = Generator().manual_seed(session_seed)
        results.append([])
        for b, c, rank, n, L in ((1, 1, 1, 35, 1300), (2, 1, 2, 9, 300)):
            inputs = sums_like_those_of_s4(generator, poles(generator, "strong", 2, n, L), b, c, rank)
            results[-1].append(spectrum_of(emulated, inputs, L, b, c))
            results[-1] += gradients_of(emulated, inputs, L, results[-1][-1])
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(t, tensors[0]) and torch.view_as_real(t).isfinite().all() for t in tensors)


@needs_compiler
def test_what_tensor_spectra_refuse(emulated: Emulated) -> None:
    one = torch.ones(1, 1, 1, dtype=torch.complex128)
    shift = torch.ones(9, dtype=torch.float64)

    def refused(message: str, dtype: torch.dtype, b: int, c: int, rank: int) -> None:
        for name, arrays in (("", (one, one, shift, one)), ("_backward", (one, one, one, shift, one, None))):
            if "sums per node" in message and not name:
                continue
            with pytest.raises(RuntimeError, match=f"^tensor_dplr_spectrum{name}: {message}"):
                emulated.call(f"tensor_dplr_spectrum{name}", one, dtype, b, c, rank, 1, 1, 1, *arrays)

    refused("tensor cores serve float32 only$", torch.complex128, 1, 1, 1)
    refused("rank = 5, expected at most 4$", torch.complex64, 1, 1, 5)
    refused("7 x 6 sums per node; at most 36 fit", torch.complex64, 6, 5, 1)


@pytest.fixture
def device(library: Library, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the backend finds its tensors."""
    if library.device.type == "cpu":
        row = dataclasses.replace(backend_table.BACKENDS["tensor_cores"], devices=(), requirements=())
        monkeypatch.setitem(backend_table.BACKENDS, "tensor_cores", row)
        table = dispatch._implementations["dplr_kernel"]
        monkeypatch.setitem(
            table, "tensor_cores", dataclasses.replace(table["tensor_cores"], refuses=lambda call: None)
        )
        monkeypatch.setattr(native_library, "call", library.call)
    return library.device


@pytest.mark.parametrize("measure", RANK)
@pytest.mark.parametrize(("N", "L"), [(64, 1024), (58, 1047)])
def test_tensor_kernels_hold_the_contract(
    measure: str, N: int, L: int, device: torch.device, generator: Generator
) -> None:
    tensors = hippo_inputs(generator, measure, 2, N, torch.complex64)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    assert_contract("dplr_kernel", tensors, "tensor_cores", forward=FORWARD, L=L)


@pytest.mark.parametrize("resonance", RESONANCES)
def test_tensor_kernels_of_poles_on_roots_of_unity(resonance: tuple, device: torch.device) -> None:
    tensors = {name: t.to(device) for name, t in resonant_inputs(*resonance, torch.complex64).items()}
    assert_contract("dplr_kernel", tensors, "tensor_cores", forward=FORWARD, L=resonance[2])


@pytest.mark.parametrize(("r", "b", "c"), [(1, 1, 1), (2, 2, 3), (4, 1, 2)])
def test_tensor_kernels_of_any_rank(r: int, b: int, c: int, device: torch.device, generator: Generator) -> None:
    tensors = random_inputs(generator, torch.complex64, n=9, r=r, b=b, c=c)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    assert_contract("dplr_kernel", tensors, "tensor_cores", forward=FORWARD, L=100)
    assert_gradients_one_by_one("dplr_kernel", tensors, "tensor_cores", L=100)
