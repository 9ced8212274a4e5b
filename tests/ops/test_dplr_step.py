from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck, gradgradcheck

import s4_fast
from s4_fast import BackendUnavailableError, dispatch, dplr_step, native_library
from s4_fast.ops.dplr import reference
from tests.helpers import (
    DTYPES,
    FORWARD,
    Tensors,
    assert_contract,
    assert_gradients_one_by_one,
    backends,
    evaluate,
    instruction_set,
    needs_native,
    normal,
    relative_error,
    threads,
    unusual_views,
    widened,
)

BACKENDS = backends("dplr_step")
ISAS = ("avx512", "avx2", "portable")
# Several outputs in every size: a single one may be a small difference of its terms.
# batch, H, n, rank, channels, and whether there is a D.
SIZES = [(64, 1, 1, 1, 1, False), (2, 3, 3, 2, 1), (3, 2, 29, 1, 2), (2, 2, 100, 3, 3, False), (1, 5, 32), (2, 1, 7, 8)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def inputs(
    generator: Generator, dtype: torch.dtype, batch: int, H: int, n: int, r: int = 1, c: int = 1, D: bool = True
) -> Tensors:
    """The increment is complex128 where D is given."""
    shapes = {"state": (batch, H, n), "increment": (H, n), "G": (r, H, n), "V": (r, H, n), "B": (H, n), "C": (c, H, n)}
    u = normal(generator, batch, H, dtype=dtype.to_real())
    tensors = {"u": u} | {name: normal(generator, *shape, dtype=dtype) for name, shape in shapes.items()}
    if D:
        tensors["increment"] = normal(generator, H, n, dtype=torch.complex128)
        tensors["D"] = normal(generator, H, dtype=u.dtype)
    return tensors


def check(tensors: Tensors, backend: str) -> None:
    """Without gradients: against the definition in float64, and no input has changed."""
    before = {name: t.clone() for name, t in tensors.items()}
    with mock.patch.object(dispatch, "load", wraps=dispatch.load) as load:
        y, state = dplr_step(**tensors, backend=backend)
    assert {call.args for call in load.call_args_list} == {("dplr_step", backend)}
    want = reference.dplr_step(*(widened(t) for t in tensors.values()))
    tolerance = FORWARD[str(y.dtype).removeprefix("torch.")]
    assert (y.dtype, state.dtype) == (tensors["u"].dtype, tensors["state"].dtype)
    assert relative_error(y, want[0]) <= tolerance and relative_error(state, want[1]) <= tolerance
    assert all(torch.equal(t, before[name]) for name, t in tensors.items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_step(sizes: tuple[int, ...], dtype: torch.dtype, backend: str, generator: Generator) -> None:
    check(inputs(generator, dtype, *sizes), backend)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_every_instruction_set(sizes: tuple[int, ...], dtype: torch.dtype, isa: str, generator: Generator) -> None:
    with instruction_set(isa):
        check(inputs(generator, dtype, *sizes), "native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
def test_memory_layout_does_not_matter(view: str, backend: str, generator: Generator) -> None:
    check(unusual_views(inputs(generator, torch.complex64, 2, 3, 5, 2, 2))[view], backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pending_negations(backend: str, generator: Generator) -> None:
    tensors = inputs(generator, torch.complex64, 2, 3, 5)
    u = torch.complex(tensors["u"], tensors["u"]).conj().imag
    assert u.is_neg()
    check(tensors | {"u": u}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs(backend: str, generator: Generator) -> None:
    tensors = inputs(generator, torch.complex64, 1, 1, 5, 2, 2)
    lead = {"u": (3, 4), "state": (3, 4, 5), "D": (4,)}
    check({name: t.expand(lead.get(name, (*t.shape[:-2], 4, 5))) for name, t in tensors.items()}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend: str, generator: Generator) -> None:
    y, state = dplr_step(**inputs(generator, torch.complex64, 0, 3, 5, c=2), backend=backend)
    assert (y.shape, state.shape) == ((0, 2, 3), (0, 3, 5))


@needs_native
def test_threads_do_not_change_a_bit(generator: Generator) -> None:
    tensors = inputs(generator, torch.complex64, 6, 131, 100, 2, 2)  # larger than what a single thread does
    outcomes = []
    for count in (1, 2):
        with threads(count):
            outcomes.append(dplr_step(**tensors, backend="native"))
            check(tensors, "native")
    assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))


@needs_native
def test_the_next_state_may_take_the_place_of_the_state(generator: Generator) -> None:
    tensors = inputs(generator, torch.complex64, 2, 3, 29, 2, 2)
    y, state = dplr_step(**tensors, backend="native")
    place, in_place = tensors["state"].clone(), torch.empty_like(y)
    rest = list(tensors.values())[2:]
    u = tensors["u"]
    native_library.call("dplr_step", u, u.dtype, 2, 2, 2, 3, 29, u, place, *rest, in_place, place)
    assert torch.equal(place, state) and torch.equal(in_place, y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients(sizes: tuple[int, ...], dtype: torch.dtype, backend: str, generator: Generator) -> None:
    assert_contract("dplr_step", inputs(generator, dtype, *sizes), backend)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_on_every_instruction_set(dtype: torch.dtype, isa: str, generator: Generator) -> None:
    with instruction_set(isa):
        for sizes in SIZES:
            assert_contract("dplr_step", inputs(generator, dtype, *sizes), "native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
def test_gradients_of_views(view: str, backend: str, generator: Generator) -> None:
    assert_contract("dplr_step", unusual_views(inputs(generator, torch.complex64, 2, 3, 5, 2, 2))[view], backend)


@needs_native
def test_gradients_one_by_one(generator: Generator) -> None:
    assert_gradients_one_by_one("dplr_step", inputs(generator, torch.complex128, 2, 3, 5, 2, 2), "native")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("used", [0, 1])
def test_gradients_of_one_output(used: int, backend: str, generator: Generator) -> None:
    tensors = {name: t.requires_grad_() for name, t in inputs(generator, torch.complex128, 2, 3, 5, 2, 2).items()}
    found, want = (
        torch.autograd.grad(
            dplr_step(**tensors, backend=b)[used].abs().square().sum(), list(tensors.values()), materialize_grads=True
        )
        for b in (backend, "reference")
    )
    assert all(relative_error(*pair) <= 1e-11 for pair in zip(found, want, strict=True))


@needs_native
def test_threads_do_not_change_a_bit_of_the_gradients(generator: Generator) -> None:
    tensors = inputs(generator, torch.complex64, 6, 131, 100, 2, 2)
    outcomes = []
    for count in (1, 2, 5):
        with threads(count):
            outcomes.append(evaluate("dplr_step", tensors, "native").grads)
    for other in outcomes[1:]:
        assert all(torch.equal(other[name], g) for name, g in outcomes[0].items())


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_gradcheck(backend: str, generator: Generator) -> None:
    arguments = [t.requires_grad_() for t in inputs(generator, torch.complex128, 2, 2, 3, 2, 2).values()]
    assert gradcheck(lambda *args: dplr_step(*args, backend=backend), arguments, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend: str, generator: Generator) -> None:
    """Of tensors some of which are made from others, which is where one could be counted twice."""
    arguments = [t.requires_grad_() for t in inputs(generator, torch.complex128, 2, 2, 3, 1, 1).values()]

    def function(*args: Tensor) -> tuple[Tensor, Tensor]:
        u, state, increment, G, _, B, C, D = args
        return dplr_step(u, state, increment, G, 2 * G, B, C * B, D, backend=backend)

    assert gradgradcheck(function, arguments, fast_mode=True)


@needs_native
def test_an_empty_batch_has_gradients(generator: Generator) -> None:
    tensors = inputs(generator, torch.complex64, 0, 3, 5, c=2)
    grads = evaluate("dplr_step", tensors, "native").grads
    assert all(torch.equal(g, torch.zeros_like(tensors[name])) for name, g in grads.items())


@needs_native
def test_the_automatic_choice_is_native_with_gradients_and_plain_in_transforms(generator: Generator) -> None:
    tensors = inputs(generator, torch.complex64, 2, 3, 5)
    assert s4_fast.explain(dplr_step, **tensors).backend == "native"
    tensors["V"].requires_grad_()
    assert s4_fast.explain(dplr_step, **tensors).backend == "native"
    with torch.no_grad():
        check(tensors, "native")
        with pytest.raises(BackendUnavailableError, match="rank of at most 8, not 9"):
            dplr_step(**inputs(generator, torch.complex64, 2, 3, 5, 9), backend="native")

    def chosen(state: Tensor) -> Tensor:
        given = tensors | {"state": state}
        assert s4_fast.explain(dplr_step, **given).backend == "plain"
        by_operations = dplr_step(**given, backend="pytorch")
        assert all(map(torch.equal, dplr_step(**given, backend="native"), by_operations))
        return state

    torch.func.grad(lambda state: chosen(state).real.sum())(tensors["state"])
    torch.func.jvp(chosen, (tensors["state"],), (tensors["state"],))


def test_tangents_and_transforms_see_the_operations(generator: Generator) -> None:
    state, *rest = (t for name, t in inputs(generator, torch.complex128, 2, 3, 5).items() if name != "u")
    u = torch.ones(2, 3, dtype=torch.float64)

    def function(s: Tensor) -> Tensor:
        return dplr_step(u, s, *rest)[0]

    at_zero = function(torch.zeros_like(state))
    tangent = torch.func.jvp(function, (state,), (state,))[1]
    assert relative_error(tangent, function(state) - at_zero) <= 1e-12
    batched = torch.func.vmap(function)(torch.stack((state, 2 * state)))
    assert relative_error(batched, torch.stack((function(state), function(2 * state)))) <= 1e-12


@pytest.mark.parametrize("grads", [False, True])
def test_compiled_graph_is_the_eager_one(grads: bool, generator: Generator) -> None:
    tensors = [t.requires_grad_(grads) for t in inputs(generator, torch.complex64, 2, 3, 5, 2, 2).values()]
    compiled = torch.compile(dplr_step, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(*tensors), dplr_step(*tensors), strict=True):
        assert relative_error(got, want.detach()) <= 1e-6


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_autocast_accepts_a_half_precision_signal(backend: str, generator: Generator) -> None:
    tensors = inputs(generator, torch.complex64, 2, 3, 5)
    half = tensors | {"u": tensors["u"].bfloat16()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = dplr_step(**half, backend=backend)
    want = dplr_step(**tensors | {"u": half["u"].float()}, backend=backend)
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


GOOD = inputs(Generator().manual_seed(0), torch.complex64, 2, 3, 4, 2, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"state": GOOD["state"][0]}, ValueError, r"state of shape \(batch, H, n\) with H, n >= 1, got \(3, 4\)"),
        ({"state": GOOD["state"][..., :0]}, ValueError, r"with H, n >= 1, got \(2, 3, 0\)"),
        ({"u": GOOD["u"][:1]}, ValueError, r"u of shape \(2, 3\) to fit state, got \(1, 3\)"),
        ({"increment": GOOD["increment"][:1]}, ValueError, r"increment of shape \(3, 4\) to fit state, got \(1, 4\)"),
        ({"B": GOOD["B"][:, :1]}, ValueError, r"B of shape \(3, 4\) to fit state, got \(3, 1\)"),
        ({"C": GOOD["B"]}, ValueError, r"C of shape \(k, 3, 4\) to fit state, got \(3, 4\)"),
        ({"V": GOOD["V"][:0]}, ValueError, r"V of shape \(k, 3, 4\) to fit state, got \(0, 3, 4\)"),
        ({"V": GOOD["V"][:1]}, ValueError, r"G and V of one shape, got G \(2, 3, 4\), V \(1, 3, 4\)"),
        ({"u": GOOD["u"] + 0j}, TypeError, "u to be float32 or float64, got complex64"),
        ({"u": GOOD["u"].double()}, TypeError, "one precision, got u float64, state complex64"),
        ({"increment": GOOD["increment"].real}, TypeError, "increment to be complex64 or complex128, got float64"),
        ({"D": GOOD["D"] + 0j}, TypeError, "D to be float32 or float64, got complex64"),
        ({"D": GOOD["D"][:2]}, ValueError, r"D of shape \(3,\) to fit state, got \(2,\)"),
        ({"C": GOOD["C"].real}, TypeError, "C to be complex64 or complex128, got float32"),
        ({"C": GOOD["C"].to("meta")}, ValueError, "one device, got u on cpu, .* C on meta"),
    ],
)
def test_bad_input(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^dplr_step: expected .*{message}"):
        dplr_step(**{**GOOD, **change})
