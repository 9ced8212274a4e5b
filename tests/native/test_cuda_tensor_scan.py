"""The scan on tensor cores against float64: emulated, and on a GPU.

What could go wrong beside what test_cuda_kernels.py and test_cuda_diagonal.py check: its float32 numbers are sums of
halves, scaled by powers of two for a chunk of 64 samples, a row (batch, feature), a state or a table. So errors are
those of each row, and inputs differ in size by many powers of ten.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor

from s4_fast.ops.vandermonde import reference as vandermonde
from tests.helpers import FORWARD, GRADIENT, log_nodes, normal, uniform, widened
from tests.native.emulated import Emulated, Library, needs_compiler
from tests.native.layers import FORMS, HALF, Layer, check
from tests.native.test_cuda_kernels import (
    DECAYS,
    check_scan,
    check_two_parts,
    close,
    empty,
    expected_gradients,
    leaves,
    scan_gradients,
    scan_inputs,
    scanned,
)
from tests.native.test_cuda_kernels import scan as any_scan

FUNCTION, CHUNK = "tensor_scan", 64
ONE_DIRECTION = [name for name, form in FORMS.items() if not form.bidirectional]
# By how much a row of outputs and of the gradient of u may be off: of half types, their rounding and little more.
ROWS = {torch.float32: FORWARD["float32"], torch.bfloat16: 2.4e-3, torch.float16: 3e-4}
# float32 does not hold all bits of smaller numbers.
TINY, SMALLEST = 1e-36, torch.finfo(torch.float32).smallest_normal


def scan(library: Library, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    return any_scan(library, *inputs, function=FUNCTION)


def gradients(
    library: Library, cotangents: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    return scan_gradients(library, cotangents, inputs, function=FUNCTION)


def inputs_and_cotangents(
    generator: Generator, batch: int, H: int, n: int, L: int, decay: str
) -> tuple[list[Tensor], list[Tensor]]:
    """u, x, B, C, D and state; the gradients of y and of the final state."""
    inputs = [t for t in scan_inputs(generator, batch, H, n, L, decay, torch.complex64, True) if t is not None]
    grad_y = 1 + normal(generator, batch, H, L, dtype=torch.float32)
    return inputs, [grad_y, normal(generator, batch, H, n, dtype=torch.complex64)]


def rows_close(name: str, actual: Tensor, expected: Tensor, allowed: float, least: Tensor | None = None) -> None:
    """Every row: all but the last dimension. Rows smaller than ``least`` may be off by as much as one of that size."""
    expected = expected.detach()
    norm = torch.linalg.vector_norm(expected, dim=-1)
    norm = norm if least is None else norm.maximum(least)
    error = torch.linalg.vector_norm(widened(actual.cpu()) - expected, dim=-1)
    bound = allowed * norm + TINY
    if actual.dtype in HALF:
        # Of few samples that are much larger than the others, rounding takes more.
        bound = bound.maximum(1.15 * torch.linalg.vector_norm(widened(expected.to(actual.dtype)) - expected, dim=-1))
    # Not `>`, which would let NaN pass.
    wrong = ~(error <= bound)
    assert not wrong.any(), (name, wrong.nonzero().tolist(), (error / norm)[wrong])


def usual_sizes(u: Tensor, x: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The norms that rows of outputs and of final states have where their terms do not cancel by chance.

    The fastest of nodes that grow, or one state of 1e8 times the others, is a row almost by itself.
    """
    x, B, C, D, state = map(widened, (x, B, C, D, state))
    squares = state.abs().square()
    outputs = torch.zeros(u.shape[:2], dtype=torch.float64)
    for sample in u.double().square().unbind(-1):
        squares = (2 * x.real).exp() * squares + B.abs().square() * sample[..., None]
        outputs += 2 * (C.abs().square() * squares).sum(-1) + D.square() * sample
    return outputs.sqrt(), squares.sum(-1).sqrt()


def check_rows(library: Library, inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> None:
    """Outputs, states and their gradients row by row; the gradients of the parameters as a whole."""
    wide = leaves(*inputs)
    expected = scanned(*wide)
    for name, *found in zip(("y", "final"), scan(library, *inputs), expected, usual_sizes(*inputs), strict=True):
        actual, wanted, least = found
        rows_close(name, actual, wanted, FORWARD["float32"], least)
    wanted_grads = expected_gradients(expected, cotangents, wide, inputs)
    grads = gradients(library, cotangents, inputs)
    for name, actual, wanted in zip(("u", "x", "B", "C", "D", "state"), grads, wanted_grads, strict=True):
        assert actual is not None and wanted is not None
        whole = name in ("x", "B", "C", "D")
        rows = (actual.flatten(), wanted.flatten()) if whole else (actual, wanted)
        rows_close(f"gradient of {name}", *rows, GRADIENT["float32"])


# ------------------------------------------------------------------------------------- what every scan is checked for

# A warp has 16 rows, which are segments of sequences where batch and features are few; a pass has 32 states.
SIZES = [
    (1, 4, 1, 1),
    (2, 4, 3, 17),
    (16, 2, 29, 63),
    (17, 2, 32, 64),
    (2, 3, 33, 65),
    (1, 2, 100, 200),
    (17, 2, 3, 470),
    (1, 3, 2, 4096),
]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize(("batch", "H", "n", "L"), SIZES)
def test_tensor_scan(
    library: Library, generator: Generator, batch: int, H: int, n: int, L: int, optional: bool, decay: str
) -> None:
    inputs = scan_inputs(generator, batch, H, n, L, decay, torch.complex64, optional)
    alone, both = L in (17, 65), decay == "weak"
    check_scan(library, generator, inputs, alone=alone, both_layouts=both, function=FUNCTION)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(
    ("batch", "H", "n", "L"), [(16, 2, 29, 64), (17, 2, 100, 130), (2, 2, 33, 1047), (1, 2, 32, 4096)]
)
def test_tensor_scan_by_rows(
    library: Library, generator: Generator, batch: int, H: int, n: int, L: int, decay: str
) -> None:
    check_rows(library, *inputs_and_cotangents(generator, batch, H, n, L, decay))


@pytest.mark.slow
@pytest.mark.parametrize("decay", DECAYS)
def test_long_tensor_scan(library: Library, generator: Generator, decay: str) -> None:
    check_rows(library, *inputs_and_cotangents(generator, 1, 1, 32, 2**20 - 5, decay))


@pytest.mark.slow
def test_tensor_scan_of_whole_sequences(library: Library, generator: Generator) -> None:
    """So many that none is cut into segments, on a GPU either."""
    check_rows(library, *inputs_and_cotangents(generator, 128, 64, 5, 130, "weak"))


@pytest.mark.parametrize("cut", [1, 32, 64, 777])
def test_tensor_scan_in_two_parts(library: Library, generator: Generator, cut: int) -> None:
    check_two_parts(library, generator, cut, torch.complex64, FUNCTION)


@pytest.mark.parametrize("batch", [1, 40])
def test_tensor_phases_far_out(library: Library, generator: Generator, batch: int) -> None:
    """The response to a single sample: its power of lambda has a phase that has gone round many times.

    A batch of 40 is one of whole sequences, in emulation.
    """
    L = 20000 if batch == 1 else 4000
    x = log_nodes(generator, "weak", 1, 5, dtype=torch.complex64)
    B, C = (normal(generator, 1, 5, dtype=torch.complex64) for _ in range(2))
    u = torch.zeros(batch, 1, L)
    u[..., 0] = 1
    expected = 2 * torch.einsum("hn,hnl->hl", widened(C * B), vandermonde.powers(widened(x), L)).real
    y, final = scan(library, u, x, B, C, None, None)
    rows_close("the last outputs", y[:, 0, -1000:], expected[:, -1000:].expand(batch, -1), FORWARD["float32"])
    last = vandermonde.powers(widened(x), L)[..., -1]
    close(final, (widened(B) * last).expand(batch, 1, 5))


def test_tensor_growing_nodes(library: Library, generator: Generator) -> None:
    """By up to 2^14 in a chunk: powers that are 2^-37 of the largest in it are lost."""
    for growth, L in ((0.15, 70), (0.1, 500)):
        inputs, cotangents = inputs_and_cotangents(generator, 3, 2, 29, L, "none")
        phase = inputs[1].imag
        inputs[1] = torch.complex(growth * uniform(generator, 0.5, 1, 2, 29).to(phase.dtype), phase)
        check_rows(library, inputs, cotangents)


# ------------------------------------------------------------------------------------------------------------- layers


def tensor_layer(generator: Generator, form: str = "plain", **options: object) -> Layer:
    return Layer(generator, FORMS[form], dtype=torch.float32, family="tensor_", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ONE_DIRECTION)
@pytest.mark.parametrize(
    ("batch", "n", "L", "copies", "shared_dt"),
    [(3, 1, 1, 4, True), (17, 3, 17, 2, False), (2, 29, 65, 1, True), (1, 70, 200, 2, False)],
)
def test_tensor_diagonal(
    library: Library, generator: Generator, batch: int, n: int, L: int, copies: int, shared_dt: bool, form: str
) -> None:
    check(library, tensor_layer(generator, form, batch=batch, n=n, L=L, copies=copies, shared_dt=shared_dt))


@pytest.mark.parametrize("form", ["plain", "time-major"])
@pytest.mark.parametrize("without", [("B",), ("D",), ("state",), ("B", "D", "state")])
def test_tensor_optional_arguments(library: Library, generator: Generator, without: Sequence[str], form: str) -> None:
    check(library, tensor_layer(generator, form, copies=2, L=70, without=without))


@pytest.mark.parametrize("cotangents", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("n", [3, 40])
def test_tensor_absent_cotangents(library: Library, generator: Generator, cotangents: Sequence[bool], n: int) -> None:
    check(library, tensor_layer(generator, L=200, n=n), cotangents)


@pytest.mark.parametrize("copies", [1, 4])
def test_each_tensor_gradient_alone(library: Library, generator: Generator, copies: int) -> None:
    layer = tensor_layer(generator, "logs", copies=copies, L=130)
    every = layer.backward(library)
    for name in Layer.names(0)[:-1]:
        assert torch.equal(layer.backward(library, [name])[name], every[name]), name
    y, final = layer.forward(library, with_final=False)
    assert final is None
    assert torch.equal(y, layer.forward(library)[0])
    assert layer.backward(library, []) == {}


@pytest.mark.parametrize("signal", [torch.float32, *HALF])
@pytest.mark.parametrize("form", ["plain", "time-major", "bilinear"])
@pytest.mark.parametrize(("batch", "n", "L"), [(2, 29, 70), (17, 32, 128), (1, 40, 1000)])
def test_tensor_signals_by_rows(
    library: Library, generator: Generator, batch: int, n: int, L: int, form: str, signal: torch.dtype
) -> None:
    """Half signals cost the outputs and the gradient of u their own rounding; the rest is as accurate as in float32."""
    layer = tensor_layer(generator, form, batch=batch, n=n, L=L, copies=2, signal=signal)
    y, final, wanted = layer.expected()
    actual_y, actual_final = layer.forward(library)
    assert actual_y.dtype == signal and actual_final is not None
    rows_close("y", actual_y, y, ROWS[signal])
    rows_close("final", actual_final, final, FORWARD["float32"])
    grads = layer.backward(library)
    rows_close("gradient of u", grads.pop("u"), wanted["u"], max(ROWS[signal], GRADIENT["float32"]))
    rows_close("gradient of state", grads.pop("state"), wanted["state"], GRADIENT["float32"])
    for name, grad in grads.items():
        rows_close(f"gradient of {name}", grad.flatten(), wanted[name].flatten(), GRADIENT["float32"])


@pytest.mark.parametrize("signal", HALF)
@pytest.mark.parametrize("factor", [400.0, 341 / 1024, 2.0**-16 + 2.0**-25, 1.0 / 3])
def test_tensor_skip_of_halves(library: Library, generator: Generator, factor: float, signal: torch.dtype) -> None:
    """Through D alone, every half number: products with a D of at most 11 bits are exact before they are rounded.

    Neighbours of a chunk are of like size. Of another D a bfloat16 product sees 12 bits, and a float16 one 22.
    """
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    u = bits.view(signal)[None, None]
    u = torch.where(u.abs() < 1e36, u, torch.zeros((), dtype=signal))
    layer = tensor_layer(generator, batch=1, H=1, n=1, L=2**16, signal=signal)
    nothing = torch.zeros(1, 1, dtype=torch.complex64)
    layer.tensors |= {"u": u, "B": nothing, "C": nothing[None], "state": None, "D": torch.full((1, 1), factor)}
    y, _ = layer.forward(library, with_final=False)
    exact = u.double() * layer.tensors["D"].double()  # type: ignore[union-attr]
    if factor != 1.0 / 3:
        normal_size = (exact == 0) | (exact.abs() >= SMALLEST)
        assert torch.equal(y[0].cpu()[normal_size], exact.to(signal)[normal_size])
        return
    finite = exact.abs() <= torch.finfo(signal).max
    of_D = 2.0**-12 if signal == torch.bfloat16 else 2.0**-21
    smallest = max(torch.finfo(signal).smallest_normal * torch.finfo(signal).eps, SMALLEST)
    error = (y[0].cpu().double() - exact).abs()
    assert (error <= (2 * HALF[signal] + of_D) * exact.abs() + smallest)[finite].all()


# ------------------------------------------------------------------------------------------------- numbers of any size


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("kind", ["opposite", "opposite, states alike", "zeros", "large states"])
@pytest.mark.parametrize(("batch", "H", "n", "L"), [(2, 4, 32, 300), (17, 2, 40, 130)])
def test_tensor_states_of_any_size(
    library: Library, generator: Generator, batch: int, H: int, n: int, L: int, kind: str, decay: str
) -> None:
    """States from 1e-8 to 1e8 that weigh the other way round in the output; parameters that are 0; states that outweigh
    all samples, and so do their gradients."""
    inputs, cotangents = inputs_and_cotangents(generator, batch, H, n, L, decay)
    sizes = torch.logspace(-8, 8, n)[torch.randperm(n, generator=generator)]
    if kind == "zeros":
        inputs[3][:, ::5] = 0
        inputs[2][:, 1::5] = 0
    elif kind == "large states":
        inputs[5] = 1e6 * inputs[5]
        cotangents[1] = 1e6 * cotangents[1]
    else:
        inputs[3], inputs[2] = inputs[3] * sizes, inputs[2] / sizes
        if kind == "opposite":
            inputs[5], cotangents[1] = inputs[5] / sizes, cotangents[1] * sizes
    check_rows(library, inputs, cotangents)


@pytest.mark.parametrize("n", [1, 33])
@pytest.mark.parametrize("small", ["lambda", "C", "B"])
def test_tensor_states_that_outputs_hardly_see(library: Library, generator: Generator, small: str, n: int) -> None:
    """Alone in their block of 32, where no larger one gives the scale."""
    inputs, cotangents = inputs_and_cotangents(generator, 2, 3, n, 65, "weak")
    if small == "lambda":
        inputs[1][:, -1] = torch.complex(torch.tensor(-83.0), torch.tensor(1.0))
    else:
        inputs[3 if small == "C" else 2][:, -1] *= 1e-34
    check_rows(library, inputs, cotangents)


@pytest.mark.parametrize("decay", ["weak", "strong"])
@pytest.mark.parametrize("cotangent_sizes", ["alike", "the same", "opposite"])
@pytest.mark.parametrize(("batch", "H", "n", "L"), [(3, 2, 32, 300), (17, 2, 29, 130)])
def test_tensor_rows_of_any_size(
    library: Library, generator: Generator, batch: int, H: int, n: int, L: int, cotangent_sizes: str, decay: str
) -> None:
    """Rows from 1e-10 to 1e10. Where their gradients are the other way round, each has its share in the parameters'."""
    inputs, cotangents = inputs_and_cotangents(generator, batch, H, n, L, decay)
    sizes = torch.logspace(-10, 10, batch)[torch.randperm(batch, generator=generator)][:, None, None]
    inputs[0], inputs[5] = inputs[0] * sizes, inputs[5] * sizes
    if cotangent_sizes != "alike":
        other = sizes if cotangent_sizes == "the same" else 1 / sizes
        cotangents = [t * other for t in cotangents]
    check_rows(library, inputs, cotangents)


@pytest.mark.parametrize("signal", [torch.float32, *HALF])
@pytest.mark.parametrize("L", [65, 300])
def test_tensor_zeros(library: Library, generator: Generator, L: int, signal: torch.dtype) -> None:
    """Nothing comes of nothing: no scale is that of 0. A row of zeros beside others is one too."""
    layer = tensor_layer(generator, batch=3, n=40, L=L, signal=signal, without=("state",))
    assert layer.tensors["u"] is not None
    layer.tensors["u"][1] = 0
    layer.grad_y[2], layer.grad_final[2] = 0, 0
    check(library, layer)
    y, final = layer.forward(library)
    grads = layer.backward(library)
    assert final is not None
    assert not y[1].any() and not final[1].any() and not grads["u"][2].any()
    layer.tensors["u"].zero_()
    y, final = layer.forward(library)
    assert final is not None and not y.any() and not final.any()
    layer.grad_y.zero_()
    layer.grad_final.zero_()
    assert not any(grad.any() for grad in layer.backward(library).values())


# ------------------------------------------------------------------------------------------ what a bad sample may touch


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 70, 129, 199])
@pytest.mark.parametrize(("batch", "n"), [(3, 5), (17, 33)])
def test_tensor_bad_samples_stay_in_their_row(
    library: Library, generator: Generator, batch: int, n: int, place: int, bad: float
) -> None:
    """And after the chunk's beginning; the adjoint's stay before its end."""
    inputs, cotangents = inputs_and_cotangents(generator, batch, 2, n, 200, "weak")
    (y, final), grads = scan(library, *inputs), gradients(library, cotangents, inputs)
    row, first = (batch // 2, 1), place // CHUNK * CHUNK
    others = torch.ones(batch, 2, dtype=torch.bool)
    others[row] = False

    spoiled = inputs[0].clone()
    spoiled[(*row, place)] = bad
    bad_y, bad_final = scan(library, spoiled, *inputs[1:])
    assert torch.equal(bad_y[others], y[others]) and torch.equal(bad_final[others], final[others])
    assert torch.equal(bad_y[row][:first], y[row][:first])
    assert not bad_y[row][place:].isfinite().any() and not bad_final[row].isfinite().any()
    bad_grads = gradients(library, cotangents, [spoiled, *inputs[1:]])
    for i, (actual, wanted) in enumerate(zip(bad_grads, grads, strict=True)):
        assert actual is not None and wanted is not None
        if i in (0, 5):
            assert torch.equal(actual, wanted)
        else:
            assert torch.equal(actual[0], wanted[0])
            assert i == 3 or not actual[1].isfinite().all()

    spoiled = cotangents[0].clone()
    spoiled[(*row, place)] = bad
    bad_grads = gradients(library, [spoiled, cotangents[1]], inputs)
    end = first + CHUNK
    for i, (actual, wanted) in enumerate(zip(bad_grads, grads, strict=True)):
        assert actual is not None and wanted is not None
        if i in (0, 5):
            assert torch.equal(actual[others], wanted[others])
        else:
            assert torch.equal(actual[0], wanted[0])
    assert bad_grads[0] is not None and grads[0] is not None
    assert torch.equal(bad_grads[0][row][end:], grads[0][row][end:])
    assert not bad_grads[0][row][: place + 1].isfinite().any()


def test_tensor_large_samples_are_felt_before_them_within_their_chunk_alone(
    library: Library, generator: Generator
) -> None:
    """Samples before a large one are rounded to 2^-36 of it; those of other rows and chunks are what they are."""
    inputs, _ = inputs_and_cotangents(generator, 17, 2, 29, 300, "weak")
    y, _ = scan(library, *inputs)
    row, place, first, size = (9, 0), 100, 64, 1e6
    spoiled = inputs[0].clone()
    spoiled[(*row, place)] = size
    large, _ = scan(library, spoiled, *inputs[1:])
    others = torch.ones(17, 2, dtype=torch.bool)
    others[row] = False
    assert torch.equal(large[others], y[others]) and torch.equal(large[row][:first], y[row][:first])
    x, B, C, D = (widened(t[0]) for t in inputs[1:5])
    response = 2 * torch.einsum("n,nl->l", C * B, vandermonde.powers(x, CHUNK)).real
    response[0] += D
    change = (large[row] - y[row]).cpu().double()[first:place].abs()
    rounding = FORWARD["float32"] * y[row].abs().max()
    assert (change <= 2.0**-36 * size * response.abs().sum() + rounding).all()
    rows_close("y", large, scanned(*map(widened, (spoiled, *inputs[1:])))[0], FORWARD["float32"])


# ------------------------------------------------------------------------------------- memory, and the order of threads


@pytest.mark.parametrize("signal", [torch.float32, *HALF])
def test_tensor_results_do_not_depend_on_where_memory_begins(
    library: Library, generator: Generator, signal: torch.dtype
) -> None:
    """Vectors of 16 bytes are read and written where they may be."""
    layer = tensor_layer(generator, batch=17, n=5, L=192, signal=signal)
    y, final = layer.forward(library)
    grads = layer.backward(library)

    def shifted(t: Tensor) -> Tensor:
        return torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape)

    u = layer.tensors["u"]
    assert u is not None and final is not None
    layer.tensors["u"], layer.grad_y = shifted(u), shifted(layer.grad_y)
    assert layer.tensors["u"].data_ptr() % 16
    moved_y, moved_final = layer.forward(library)
    assert moved_final is not None
    assert torch.equal(moved_y, y) and torch.equal(moved_final, final)
    for name, grad in layer.backward(library).items():
        assert torch.equal(grad, grads[name]), name


def test_tensor_runs_are_equal(library: Library, generator: Generator) -> None:
    inputs, cotangents = inputs_and_cotangents(generator, 3, 2, 40, 1047, "weak")
    runs = [[*scan(library, *inputs), *gradients(library, cotangents, inputs)] for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert first is not None and second is not None and torch.equal(first, second)


@needs_compiler
def test_the_order_of_tensor_threads_does_not_matter(emulated: Emulated, session_seed: int) -> None:
    """A barrier that is missing lets a thread read what another has yet to write."""
    results = []
    for order in ("forwards", "backwards", "shuffled"):
        emulated.order(order)
        generator, found = Generator().manual_seed(session_seed), list[Tensor]()
        for form, batch, L, n, signal in (
            ("plain", 17, 130, 35, torch.float32),
            ("time-major", 1, 1047, 3, torch.bfloat16),
            ("logs", 2, 300, 33, torch.float16),
        ):
            layer = tensor_layer(generator, form, batch=batch, H=2, L=L, n=n, copies=1, signal=signal)
            y, final = layer.forward(emulated)
            assert final is not None
            found += [y, final, *layer.backward(emulated).values()]
        results.append(found)
    for tensors in zip(*results, strict=True):
        assert all(
            torch.equal(t, tensors[0]) and torch.isfinite(torch.view_as_real(t.to(torch.complex64))).all()
            for t in tensors
        )


# ----------------------------------------------------------------------------------------------------- what is refused


@needs_compiler
def test_tensor_functions_refuse_what_they_do_not_serve(emulated: Emulated, generator: Generator) -> None:
    single = "tensor cores serve parameters in float32 only$"
    one = "tensor cores serve one channel and one direction only$"
    for layer, message in (
        (Layer(generator, family="tensor_"), single),
        (tensor_layer(generator, c=2), one),
        (tensor_layer(generator, "bidirectional"), one),
    ):
        with pytest.raises(RuntimeError, match=f"^tensor_diagonal: {message}"):
            layer.forward(emulated)
        with pytest.raises(RuntimeError, match=f"^tensor_diagonal_backward: {message}"):
            layer.backward(emulated)
    inputs = scan_inputs(generator, 1, 1, 1, 1, "weak", torch.complex128, True)
    with pytest.raises(RuntimeError, match=f"^tensor_scan: {single}"):
        scan(emulated, *inputs)
    with pytest.raises(RuntimeError, match=f"^tensor_scan_backward: {single}"):
        gradients(emulated, [inputs[0], None], inputs)
    nothing = empty(torch.ones(1), 1)
    with pytest.raises(RuntimeError, match=r"^tensor_scan: L = 0, expected at least 1$"):
        emulated.call(FUNCTION, nothing, torch.float32, 1, 1, 1, 0, *(nothing,) * 8, 0)
