from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck

from s4_fast import fft_conv
from tests.helpers import (
    Tensors,
    assert_contract,
    assert_gradients_one_by_one,
    backends,
    evaluate,
    normal,
    relative_error,
    threads,
    unusual_views,
)

BACKENDS = backends("fft_conv")
REAL = (torch.float32, torch.float64)
# (B, c, H, L, Lk): one sample, more taps than samples, more samples than taps, and lengths without a factor in common.
SIZES = [
    (2, 1, 3, 1, 1),
    (1, 2, 3, 2, 1),
    (2, 1, 3, 3, 7),
    (3, 2, 5, 17, 17),
    (2, 3, 4, 1047, 1047),
    (2, 1, 3, 1047, 64),
]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def inputs(generator: Generator, B: int, c: int, H: int, L: int, Lk: int, dtype: torch.dtype) -> Tensors:
    return {
        "u": normal(generator, B, H, L, dtype=dtype),
        "k": normal(generator, c, H, Lk, dtype=dtype),
        "D": normal(generator, c, H, dtype=dtype),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(("B", "c", "H", "L", "Lk"), SIZES)
def test_contract(
    B: int,
    c: int,
    H: int,
    L: int,
    Lk: int,
    skip: bool,
    dtype: torch.dtype,
    backend: str,
    device: str,
    generator: Generator,
) -> None:
    tensors = {name: t.to(device) for name, t in inputs(generator, B, c, H, L, Lk, dtype).items()}
    if not skip:
        del tensors["D"]
    assert_contract("fft_conv", tensors, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.sample(1)
def test_contract_at_4096(backend: str, device: str, generator: Generator) -> None:
    tensors = {name: t.to(device) for name, t in inputs(generator, 2, 1, 2, 4096, 4096, torch.float32).items()}
    assert_contract("fft_conv", tensors, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", REAL)
def test_a_million_steps(dtype: torch.dtype, backend: str, device: str, generator: Generator) -> None:
    """A kernel of few taps, far apart: the definition is then a sum of shifted signals."""
    L, taps = 2**20, [0, 1, 1000, 2**19 + 7, 2**20 - 1]
    u = normal(generator, 1, 1, L, dtype=dtype).to(device)
    k = torch.zeros(1, L, dtype=dtype, device=device)
    k[0, taps] = normal(generator, len(taps), dtype=dtype).to(device)
    expected = sum(k[0, j].double() * torch.nn.functional.pad(u.double(), (j, 0))[..., :L] for j in taps)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12}[dtype]
    assert relative_error(fft_conv(u, k, backend=backend), expected) <= tolerance


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_future_and_superfluous_taps_have_no_influence(backend: str, generator: Generator) -> None:
    u, k, D = inputs(generator, 2, 2, 3, 20, 50, torch.float64).values()
    y = fft_conv(u, k, D, backend=backend)
    later, longer = u.clone(), k.clone()
    later[..., 10:] += 1
    longer[..., 20:] += 1
    torch.testing.assert_close(fft_conv(later, k, D, backend=backend)[..., :10], y[..., :10], rtol=0, atol=1e-13)
    torch.testing.assert_close(fft_conv(u, longer, D, backend=backend), y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("skip", [True, False])
def test_a_kernel_without_channels(skip: bool, backend: str, generator: Generator) -> None:
    u, k, D = inputs(generator, 2, 1, 3, 20, 20, torch.float64).values()
    y = fft_conv(u, k[0], D[0] if skip else None, backend=backend)
    assert y.shape == u.shape
    assert torch.equal(y, fft_conv(u, k, D if skip else None, backend=backend)[:, 0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["strided", "transposed"])
def test_memory_layout_does_not_matter(view: str, backend: str, generator: Generator) -> None:
    assert_contract("fft_conv", unusual_views(inputs(generator, 2, 3, 4, 20, 20, torch.float32))[view], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs(backend: str, generator: Generator) -> None:
    u, k, D = inputs(generator, 1, 1, 1, 20, 20, torch.float32).values()
    assert_contract("fft_conv", {"u": u.expand(3, 4, 20), "k": k.expand(2, 4, 20), "D": D.expand(2, 4)}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("c", [1, 2])
@pytest.mark.parametrize("skip", [True, False])
def test_blocks_of_features_make_one_result(
    skip: bool, c: int, backend: str, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend != "pytorch":
        pytest.skip(f"{backend} has no blocks of features")
    from s4_fast.ops.long_conv import pytorch

    monkeypatch.setitem(pytorch._BLOCK, "cpu", 3 * (2 * c * 40 * 8))
    tensors = inputs(generator, 2, c, 7, 20, 20, torch.float64)
    if not skip:
        del tensors["D"]
    with threads(1), mock.patch.object(pytorch, "_convolve", wraps=pytorch._convolve) as convolve:
        assert_contract("fft_conv", tensors, backend)
    assert convolve.call_count == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("B", "H"), [(0, 3), (2, 0)])
def test_empty_batch(B: int, H: int, backend: str, generator: Generator) -> None:
    tensors = inputs(generator, B, 2, H, 20, 20, torch.float32)
    output, grads = evaluate("fft_conv", tensors, backend)
    assert output.shape == (B, 2, H, 20)
    assert all(torch.equal(g, torch.zeros_like(tensors[name])) for name, g in grads.items())


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize(("L", "Lk"), [(1, 1), (5, 5), (5, 3), (3, 6)])
def test_gradcheck(L: int, Lk: int, backend: str, generator: Generator) -> None:
    arguments = [t.requires_grad_() for t in inputs(generator, 2, 2, 3, L, Lk, torch.float64).values()]
    assert gradcheck(lambda *args: fft_conv(*args, backend=backend), arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_one_by_one(backend: str, generator: Generator) -> None:
    assert_gradients_one_by_one("fft_conv", inputs(generator, 2, 2, 3, 20, 20, torch.float64), backend)


U, K, D = torch.zeros(2, 3, 5), torch.zeros(2, 3, 5), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("u", "k", "D", "error", "message"),
    [
        (U[0], K, D, ValueError, r"u of shape \(B, H, L\) with L >= 1, got \(3, 5\)"),
        (U[..., :0], K, D, ValueError, r"u of shape \(B, H, L\) with L >= 1, got \(2, 3, 0\)"),
        (U, K[:, :2], D, ValueError, r"k of shape .* with H = 3, c, Lk >= 1, got \(2, 2, 5\)"),
        (U, K[..., :0], D, ValueError, r"k of shape .* Lk >= 1, got \(2, 3, 0\)"),
        (U, K[:0], D[:0], ValueError, r"k of shape .* c, Lk >= 1, got \(0, 3, 5\)"),
        (U, K[0, 0], None, ValueError, r"k of shape \(H, Lk\) or \(c, H, Lk\) .* got \(5,\)"),
        (U, K, D[0], ValueError, r"D of shape \(2, 3\) to fit k, got \(3,\)"),
        (U.long(), K, D, TypeError, r"u to be float32 or float64, got int64 of shape \(2, 3, 5\)"),
        (U, K + 0j, D, TypeError, r"k to be float32 or float64, got complex64 of shape \(2, 3, 5\)"),
        (U.half(), K, D, TypeError, "u to be float32 or float64, got float16"),
        (U, K, D.double(), TypeError, "one precision, got u float32, k float32, D float64"),
        (U, K.to("meta"), D, ValueError, "one device, got u on cpu, k on meta, D on cpu"),
    ],
)
def test_bad_input(u: Tensor, k: Tensor, D: Tensor | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^fft_conv: expected .*{message}"):
        fft_conv(u, k, D)
