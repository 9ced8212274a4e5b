"""The CUDA functions of a whole diagonal layer against the definition in float64: emulated, and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor

from s4_fast.ops.diagonal import reference
from s4_fast.ops.diagonal.form import Form
from tests.helpers import FORWARD, widened
from tests.native.emulated import Emulated, Library, needs_compiler
from tests.native.layers import FORMS, HALF, Layer, check, close, launches

NAMES = Layer.names(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("n", "L", "c", "copies", "shared_dt"),
    [(1, 1, 1, 4, True), (3, 17, 2, 2, False), (29, 65, 1, 1, True), (70, 200, 2, 2, False)],
)
def test_diagonal(
    library: Library,
    generator: Generator,
    n: int,
    L: int,
    c: int,
    copies: int,
    shared_dt: bool,
    form: str,
    dtype: torch.dtype,
) -> None:
    batch, H = (3, 4) if L < 100 else (1, 2)
    layer = Layer(
        generator, FORMS[form], batch=batch, H=H, n=n, L=L, c=c, copies=copies, shared_dt=shared_dt, dtype=dtype
    )
    check(library, layer)


@pytest.mark.parametrize("form", ["plain", "all"])
@pytest.mark.parametrize("without", [("B",), ("D",), ("state", "ahead"), ("B", "D", "state", "ahead")])
def test_optional_arguments(library: Library, generator: Generator, without: Sequence[str], form: str) -> None:
    check(library, Layer(generator, FORMS[form], c=2, copies=2, L=70, without=without, dtype=torch.float32))


@pytest.mark.parametrize("cotangents", [(True, False), (False, True), (False, False)])
def test_absent_cotangents(library: Library, generator: Generator, cotangents: Sequence[bool]) -> None:
    check(library, Layer(generator, FORMS["all"], L=40), cotangents)


@pytest.mark.parametrize("copies", [1, 4])
def test_each_gradient_alone(library: Library, generator: Generator, copies: int) -> None:
    layer = Layer(generator, FORMS["all"], c=2, copies=copies, L=70)
    every = layer.backward(library)
    for name in NAMES:
        assert torch.equal(layer.backward(library, [name])[name], every[name]), name
    y, final = layer.forward(library, with_final=False)
    assert final is None
    assert torch.equal(y, layer.forward(library)[0])
    assert layer.backward(library, []) == {}


@pytest.mark.parametrize("signal", HALF)
@pytest.mark.parametrize(("form", "n", "c"), [("plain", 3, 1), ("time-major", 40, 2), ("all", 3, 2)])
def test_half_signals(library: Library, generator: Generator, form: str, n: int, c: int, signal: torch.dtype) -> None:
    layer = Layer(generator, FORMS[form], n=n, c=c, L=70, dtype=torch.float32, signal=signal)
    grads = check(library, layer)
    assert grads["u"].dtype == signal


@pytest.mark.parametrize("signal", HALF)
@pytest.mark.sample(1)
def test_halves_are_rounded_as_pytorch_rounds(library: Library, generator: Generator, signal: torch.dtype) -> None:
    """Through D alone: of every half number, and of products from the subnormal to the infinite."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    u = bits.view(signal)[None, None]
    layer = Layer(generator, batch=1, H=1, n=1, L=2**16, dtype=torch.float32, signal=signal)
    # Sums of larger ones overflow even where C is 0.
    u = torch.where(u.abs() < 1e36, u, torch.zeros((), dtype=signal))
    for factor in (1.0 / 3, 1.5e-5, 400.0):
        nothing = torch.zeros(1, 1, dtype=torch.complex64)
        layer.tensors |= {"u": u, "B": nothing, "C": nothing[None], "state": None}
        layer.tensors["D"] = torch.full((1, 1), factor)
        layer.grad_y = u[None]
        y, _ = layer.forward(library, with_final=False)
        assert torch.equal(y[0].cpu(), (u.float() * factor).to(signal)), factor


@pytest.mark.parametrize("form", ["plain", "bilinear"])
def test_phases_far_out(library: Library, generator: Generator, form: str) -> None:
    """The response to a single sample, long after it: a phase that is rounded to float32 would be lost there."""
    layer = Layer(generator, FORMS[form], batch=1, H=1, n=2, L=30000, dtype=torch.float32)
    layer.tensors |= {"dt": torch.full((1, 1), 0.0371), "A_real": torch.full((1, 2), -1e-4), "state": None, "D": None}
    layer.tensors["u"] = torch.zeros(1, 1, 30000).index_fill(-1, torch.tensor([0]), 1)
    y, _ = layer.forward(library, with_final=False)
    leaves = [None if t is None else widened(t) for t in layer.tensors.values()]
    _, dt, A_real, A_imag, B, C = (t for t in leaves[:6] if t is not None)
    step = layer.form.rate * dt
    x, B_bar = (reference.bilinear if form == "bilinear" else reference.zoh)(step, torch.complex(A_real, A_imag), B)
    l = torch.arange(30000, dtype=torch.float64)
    expected = 2 * torch.einsum("hn,hnl->hl", C[0] * B_bar, torch.exp(x[..., None] * l)).real
    close("y", y[0, 0, :, -3000:], expected[:, -3000:], FORWARD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_and_large_steps(library: Library, generator: Generator, dtype: torch.dtype) -> None:
    """Where the series of the zero-order hold begin and end, and where nothing is left after one step."""
    layer = Layer(generator, batch=1, H=8, n=2, L=40, copies=8, dtype=dtype)
    scales = torch.tensor([1e-7, 0.99e-3, 1.01e-3, 0.12, 0.13, 1.0, 30.0, 3e4], dtype=dtype)
    layer.tensors |= {"dt": scales[:, None], "A_real": torch.full((8, 2), -1.0, dtype=dtype)}
    layer.tensors["A_imag"] = torch.tensor([[0.0, 0.7]], dtype=dtype).repeat(8, 1)
    _, _, wanted = layer.expected()
    grads = layer.backward(library)
    allowed = {"float32": 2e-5, "float64": 1e-10}
    for name in ("A_real", "A_imag", "B"):
        for h in range(8):
            close(f"{name} of {scales[h]}", grads[name][h], wanted[name][h], allowed)
    # dt times its gradient is the sum of these products, which may cancel. Of a step that leaves nothing behind it is
    # no more than rounding.
    terms = sum((layer.tensors[name] * wanted[name]).abs().sum(-1) for name in ("A_real", "A_imag", "B")) / scales
    error = (grads["dt"] - wanted["dt"]).abs().sum(-1)
    assert (error[:6] <= allowed[torch.finfo(dtype).dtype] * terms[:6]).all(), error / terms
    check(library, layer)


@needs_compiler
def test_the_order_of_threads_does_not_matter(emulated: Emulated, session_seed: int) -> None:
    """A barrier that is missing lets a thread read what another has yet to write."""
    results = []
    for order in ("forwards", "backwards", "shuffled"):
        emulated.order(order)
        generator, found = Generator().manual_seed(session_seed), list[Tensor]()
        for form, L, n, dtype in (("all", 150, 35, torch.float32), ("bidirectional", 2100, 3, torch.float64)):
            layer = Layer(generator, FORMS[form], batch=1, L=L, n=n, c=2, copies=1, dtype=dtype)
            y, final = layer.forward(emulated)
            assert final is not None
            found += [y, final, *layer.backward(emulated).values()]
        results.append(found)
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(t, tensors[0]) and torch.isfinite(torch.view_as_real(t + 0j)).all() for t in tensors)


@needs_compiler
@pytest.mark.parametrize(
    ("batch", "H", "L", "forward", "backward"),
    [(8, 2, 200, 3, 4), (8, 1, 800, 4, 4), (1, 2, 5000, 6, 7)],
)
def test_launches(
    emulated: Emulated, generator: Generator, batch: int, H: int, L: int, forward: int, backward: int
) -> None:
    """A launch costs more than small layers compute: none comes unnoticed. One more where features share parameters."""
    layer = Layer(generator, batch=batch, L=L, H=H, n=8, shared_dt=False, dtype=torch.float32)
    assert launches(emulated, lambda: layer.forward(emulated)) == forward
    assert launches(emulated, lambda: layer.backward(emulated)) == backward
    check(emulated, layer)
    shared = Layer(generator, Form(time_major=True), H=2, copies=1, dtype=torch.float32, signal=torch.bfloat16)
    assert launches(emulated, lambda: shared.forward(emulated)) == 3
    assert launches(emulated, lambda: shared.backward(emulated)) == 5


@needs_compiler
def test_bad_arguments(emulated: Emulated, generator: Generator) -> None:
    for change, message in (
        ({2: 64}, "unknown flags 64$"),
        ({1: 2}, "signal_dtype 2 does not go with dtype 1$"),
        ({1: 0}, "signal_dtype 0 does not go with dtype 1$"),
        ({0: 2}, "dtype 2 is neither"),
        ({7: 0}, "c = 0, expected at least 1$"),
        ({8: 3}, "copies = 3 do not divide H = 4$"),
        ({8: 0}, "copies = 0 do not divide H = 4$"),
        ({9: 2}, "dt_states = 2, expected 1 or n = 3$"),
    ):
        layer = Layer(generator)
        head = [change.get(i, argument) for i, argument in enumerate(layer.head)]
        arguments, one = layer.arguments(emulated), torch.ones(1)
        with pytest.raises(RuntimeError, match=f"^diagonal: {message}"):
            emulated.call("diagonal", one, *head, *arguments, one, None)
        with pytest.raises(RuntimeError, match=f"^diagonal_backward: {message}"):
            emulated.call("diagonal_backward", one, *head, one, None, *arguments, *(None,) * 9)
