"""The CUDA functions of a whole DPLR layer against the definition in float64: emulated, and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor

from s4_fast.ops.diagonal.form import Form
from s4_fast.ops.dplr_scan.reference import dplr_scan as reference
from tests.helpers import FORWARD, widened
from tests.native.emulated import Emulated, Library, needs_compiler
from tests.native.layers import FORMS, HALF, PLAIN, Layer, check, close, launches

NAMES = Layer.names(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["plain", "time-major", "bidirectional", "logs", "all"])
@pytest.mark.parametrize(
    ("n", "L", "c", "rank", "copies", "shared_dt"),
    [
        (1, 1, 1, 1, 4, True),
        (3, 17, 2, 2, 2, False),
        (29, 65, 1, 1, 1, True),
        (70, 200, 2, 3, 2, False),
        (4, 128, 1, 4, 2, True),
    ],
)
@pytest.mark.sample(4)
def test_dplr_scan(
    library: Library,
    generator: Generator,
    n: int,
    L: int,
    c: int,
    rank: int,
    copies: int,
    shared_dt: bool,
    form: str,
    dtype: torch.dtype,
) -> None:
    batch, H = (3, 4) if L < 100 else (1, 2)
    sizes = {"batch": batch, "H": H, "n": n, "L": L, "c": c, "rank": rank, "copies": copies}
    check(library, Layer(generator, FORMS[form], **sizes, shared_dt=shared_dt, dtype=dtype))


@pytest.mark.slow
def test_the_largest_sizes(library: Library, generator: Generator) -> None:
    check(library, Layer(generator, PLAIN, batch=1, H=1, n=256, rank=8, L=40))


@pytest.mark.parametrize("form", ["plain", "all"])
@pytest.mark.parametrize("without", [("B",), ("D",), ("state", "ahead"), ("B", "D", "state", "ahead")])
@pytest.mark.sample(3)
def test_optional_arguments(library: Library, generator: Generator, without: Sequence[str], form: str) -> None:
    layer = Layer(generator, FORMS[form], c=2, rank=2, copies=2, L=70, without=without, dtype=torch.float32)
    check(library, layer)


@pytest.mark.parametrize("cotangents", [(True, False), (False, True), (False, False)])
def test_absent_cotangents(library: Library, generator: Generator, cotangents: Sequence[bool]) -> None:
    check(library, Layer(generator, FORMS["all"], rank=1, L=40), cotangents)


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.slow
def test_each_gradient_alone(library: Library, generator: Generator, copies: int) -> None:
    layer = Layer(generator, FORMS["all"], c=2, rank=2, copies=copies, L=70)
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
    layer = Layer(generator, FORMS[form], n=n, c=c, rank=1, L=70, dtype=torch.float32, signal=signal)
    grads = check(library, layer)
    assert grads["u"].dtype == signal


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.sample(1)
def test_many_chunks(library: Library, generator: Generator, batch: int) -> None:
    check(library, Layer(generator, FORMS["bidirectional"], batch=batch, H=2, n=2, rank=1, L=700, dtype=torch.float32))


def test_phases_far_out(library: Library, generator: Generator) -> None:
    """The response to a state, long after it: a transition that is rounded to float32 would be wrong there."""
    L, after = 30000, 29900
    layer = Layer(generator, batch=1, H=1, n=2, L=L, rank=1, dtype=torch.float32, without=("D",))
    P = layer.tensors["P"]
    assert P is not None
    layer.tensors |= {"dt": torch.full((1, 1), 0.0371), "A_real": torch.full((1, 2), -1e-4), "P": 0.01 * P}
    layer.tensors["u"] = torch.zeros(1, 1, L)
    y, _ = layer.forward(library, with_final=False)

    def system(state: Tensor, L: int) -> tuple[Tensor, Tensor]:
        """What the definition makes of states and no input."""
        tensors = layer.tensors | {"state": state, "u": torch.zeros(len(state), 1, L)}
        pairs = (t if t is None or k not in ("P", "B", "C") else torch.view_as_real(t) for k, t in tensors.items())
        return reference(*(None if t is None else widened(t) for t in pairs), layer.form)

    basis = torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)
    _, images = system(torch.view_as_complex(basis), 1)
    transition = torch.view_as_real(images).reshape(4, 4).mT
    state = torch.view_as_real(widened(layer.tensors["state"])).reshape(4)
    far = torch.linalg.matrix_power(transition, after) @ state
    expected, _ = system(torch.view_as_complex(far.view(1, 1, 2, 2)), L - after)
    close("y", y[..., after:], expected, FORWARD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_and_large_steps(library: Library, generator: Generator, dtype: torch.dtype) -> None:
    layer = Layer(generator, batch=1, H=5, n=2, L=40, rank=2, copies=5, dtype=dtype)
    layer.tensors["dt"] = torch.tensor([[1e-6], [1e-2], [1.0], [30.0], [3e3]], dtype=dtype)
    _, _, wanted = layer.expected()
    grads = layer.backward(library)
    for name in ("A_real", "A_imag", "P", "B"):
        for h in range(5):
            actual, expected = (t[:, h] if name == "P" else t[h] for t in (grads[name], wanted[name]))
            close(f"{name} of feature {h}", actual, expected, {"float32": 5e-5, "float64": 1e-9})


def test_a_growing_system_does_not_overflow_beyond_the_end(library: Library, generator: Generator) -> None:
    layer = Layer(generator, PLAIN, batch=1, H=1, n=1, L=3, rank=1, dtype=torch.float32)
    layer.tensors |= {"dt": torch.ones(1, 1), "A_real": torch.full((1, 1), 1.999), "A_imag": torch.zeros(1, 1)}
    layer.tensors["P"] = torch.full((1, 1, 1), 1e-3 + 0j)
    check(library, layer)


@needs_compiler
@pytest.mark.slow
def test_the_order_of_threads_does_not_matter(emulated: Emulated, session_seed: int) -> None:
    """A barrier that is missing lets a thread read what another has yet to write."""
    results = []
    for order in ("forwards", "backwards", "shuffled"):
        emulated.order(order)
        generator, found = Generator().manual_seed(session_seed), list[Tensor]()
        for form, L, n, dtype in (("all", 150, 35, torch.float32), ("bidirectional", 600, 3, torch.float64)):
            layer = Layer(generator, FORMS[form], batch=1, L=L, n=n, c=2, rank=2, copies=1, dtype=dtype)
            y, final = layer.forward(emulated)
            assert final is not None
            found += [y, final, *layer.backward(emulated).values()]
        results.append(found)
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(t, tensors[0]) and torch.isfinite(torch.view_as_real(t + 0j)).all() for t in tensors)


@needs_compiler
@pytest.mark.parametrize(("batch", "L"), [(8, 40), (1, 5000)])
def test_launches(emulated: Emulated, generator: Generator, batch: int, L: int) -> None:
    """A launch costs more than small layers compute: none comes unnoticed. One more where features share parameters."""
    layer = Layer(generator, batch=batch, L=L, H=2, n=8, rank=1, shared_dt=False, dtype=torch.float32)
    assert launches(emulated, lambda: layer.forward(emulated)) == 4
    assert launches(emulated, lambda: layer.backward(emulated)) == 7
    assert launches(emulated, lambda: layer.backward(emulated, ["u", "state"])) == 4
    assert launches(emulated, lambda: layer.backward(emulated, ["D"])) == 3
    shared = Layer(generator, Form(time_major=True), H=2, rank=1, copies=1, dtype=torch.float32, signal=torch.bfloat16)
    assert launches(emulated, lambda: shared.forward(emulated)) == 4
    assert launches(emulated, lambda: shared.backward(emulated)) == 8


@needs_compiler
def test_bad_arguments(emulated: Emulated, generator: Generator) -> None:
    for change, message in (
        ({2: 64}, "unknown flags 64$"),
        ({1: 2}, "signal_dtype 2 does not go with dtype 1$"),
        ({5: 257, 10: 1}, "n = 257, expected at most 256$"),
        ({8: 0}, "rank = 0, expected at least 1$"),
        ({8: 9}, "rank = 9, expected at most 8$"),
        ({9: 3}, "copies = 3 do not divide H = 4$"),
        ({10: 2}, "dt_states = 2, expected 1 or n = 3$"),
    ):
        layer = Layer(generator, rank=1)
        head = [change.get(i, argument) for i, argument in enumerate(layer.head)]
        arguments, one = layer.arguments(emulated), torch.ones(1)
        with pytest.raises(RuntimeError, match=f"^dplr_scan: {message}"):
            emulated.call("dplr_scan", one, *head, *arguments, one, None)
        with pytest.raises(RuntimeError, match=f"^dplr_scan_backward: {message}"):
            emulated.call("dplr_scan_backward", one, *head, one, None, *arguments, *(None,) * 10)
