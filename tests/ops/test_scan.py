from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from s4_fast import dispatch, explain, fft_conv, log_vandermonde, ssm_scan, ssm_step
from s4_fast.ops.scan import chunks, pytorch
from tests.helpers import (
    DECAYS,
    DTYPES,
    FORWARD,
    Tensors,
    assert_contract,
    assert_gradients_one_by_one,
    backends,
    cotangents,
    evaluate,
    log_nodes,
    normal,
    relative_error,
    unusual_views,
)

SCAN, STEP = backends("ssm_scan"), backends("ssm_step")
# (batch, H, n, L): one sample, less than a chunk, whole chunks, chunks and a rest, no sizes in common.
SIZES = [
    (2, 3, 1, 1),
    (1, 2, 3, 2),
    (3, 2, 3, 17),
    (2, 2, 5, 64),
    (1, 3, 29, 65),
    (2, 2, 29, 1047),
    (1, 2, 100, 1500),
    (2, 4, 2, 2112),
]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def parameters(generator: Generator, decay: str, H: int, n: int, dtype: torch.dtype) -> Tensors:
    return {
        "x": log_nodes(generator, decay, H, n, dtype=dtype),
        "B": normal(generator, H, n, dtype=dtype),
        "C": normal(generator, H, n, dtype=dtype),
        "D": normal(generator, H, dtype=dtype.to_real()),
    }


def scan_inputs(
    generator: Generator, decay: str, batch: int, H: int, n: int, L: int, dtype: torch.dtype = torch.complex64
) -> Tensors:
    u = normal(generator, batch, H, L, dtype=dtype.to_real())
    state = normal(generator, batch, H, n, dtype=dtype)
    return {"u": u, **parameters(generator, decay, H, n, dtype), "state": state}


def step_inputs(
    generator: Generator, decay: str, batch: int, H: int, n: int, dtype: torch.dtype = torch.complex64
) -> Tensors:
    u = normal(generator, batch, H, dtype=dtype.to_real())
    state = normal(generator, batch, H, n, dtype=dtype)
    return {"u": u, "state": state, **parameters(generator, decay, H, n, dtype)}


def on(device: str, tensors: Tensors) -> Tensors:
    return {name: t.to(device) for name, t in tensors.items()}


# --------------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("batch", "H", "n", "L"), SIZES)
def test_contract(
    batch: int,
    H: int,
    n: int,
    L: int,
    decay: str,
    dtype: torch.dtype,
    backend: str,
    device: str,
    generator: Generator,
) -> None:
    tensors = on(device, scan_inputs(generator, decay, batch, H, n, L, dtype))
    assert_contract("ssm_scan", tensors, backend, return_state=True)


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize("absent", [("D",), ("state",), ("D", "state")])
def test_contract_without_what_is_optional(
    absent: tuple[str, ...], backend: str, device: str, generator: Generator
) -> None:
    tensors = on(device, scan_inputs(generator, "weak", 2, 3, 4, 200))
    for name in absent:
        del tensors[name]
    assert_contract("ssm_scan", tensors, backend)
    assert_contract("ssm_scan", tensors, backend, return_state=True)


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize("L", [15 * 64 + 1, 32 * 64, 33 * 64 - 1, 16 * 32 * 64 + 17 * 64 + 5])
def test_contract_at_every_depth_of_the_scan_over_chunks(
    L: int, backend: str, device: str, generator: Generator
) -> None:
    """One, two and three levels, with and without chunks that are left over."""
    for dtype in DTYPES:
        tensors = on(device, scan_inputs(generator, "weak", 1, 2, 3, L, dtype))
        assert_contract("ssm_scan", tensors, backend, return_state=True)


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize("decay", ["none", "weak"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sample(1)
def test_a_million_steps(dtype: torch.dtype, decay: str, backend: str, device: str, generator: Generator) -> None:
    tensors = on(device, scan_inputs(generator, decay, 1, 2, 2, 2**20, dtype))
    assert_contract("ssm_scan", tensors, backend, return_state=True)


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.slow
def test_a_million_equal_samples(backend: str, device: str, generator: Generator) -> None:
    """Without decay, and with phases near 0, the state grows and the roundings of the samples do not average out.

    Four features, because a gradient of one can be a small difference by chance. C B > 0, because the output of states
    that grow can be a difference of much larger terms.
    """
    tensors = on(device, scan_inputs(generator, "none", 1, 4, 2, 2**20))
    tensors["u"].fill_(1)
    tensors["x"].imag.copy_(torch.tensor([[0.0, 1e-6]]))
    tensors["C"] = tensors["B"].conj().resolve_conj()
    assert_contract("ssm_scan", tensors, backend, return_state=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("n", [64, 128, 200, 256])
def test_contract_with_many_states(n: int, decay: str, backend: str, device: str, generator: Generator) -> None:
    for dtype in DTYPES:
        tensors = on(device, scan_inputs(generator, decay, 2, 2, n, 5000, dtype))
        assert_contract("ssm_scan", tensors, backend, return_state=True)


@pytest.mark.parametrize("backend", STEP)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("batch", "H", "n"), [(16, 2, 1), (3, 17, 3), (2, 5, 29), (5, 3, 100)])
def test_step_contract(
    batch: int, H: int, n: int, decay: str, dtype: torch.dtype, backend: str, device: str, generator: Generator
) -> None:
    tensors = on(device, step_inputs(generator, decay, batch, H, n, dtype))
    assert_contract("ssm_step", tensors, backend)
    del tensors["D"]
    assert_contract("ssm_step", tensors, backend)


@pytest.mark.parametrize("backend", [*STEP, "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", ["none", "strong"])
def test_many_steps_are_the_scan(
    decay: str, dtype: torch.dtype, backend: str, device: str, generator: Generator
) -> None:
    tensors = on(device, scan_inputs(generator, decay, 2, 3, 4, 2000, dtype))
    u, state, weights = tensors["u"], tensors["state"], [tensors[name] for name in "xBCD"]
    y = torch.empty_like(u)
    for l in range(u.shape[-1]):
        y[..., l], state = ssm_step(u[..., l], state, *weights, backend=backend)
    wide = {name: t.to(torch.complex128 if t.is_complex() else torch.float64) for name, t in tensors.items()}
    expected = ssm_scan(**wide, return_state=True, backend="reference")
    for actual, exact in zip((y, state), expected, strict=True):
        assert relative_error(actual, exact) <= FORWARD[str(y.dtype).removeprefix("torch.")]


# ------------------------------------------------------------------------------------------------- what it is equal to


@pytest.mark.parametrize("backend", [*SCAN, "reference"])
@pytest.mark.parametrize("cuts", [(1,), (64,), (100, 101, 228), (299,), (17, 200)])
def test_a_sequence_may_be_cut_anywhere(cuts: tuple[int, ...], backend: str, device: str, generator: Generator) -> None:
    """Outputs, final state and gradients, of the state before the first part too."""
    whole = evaluate(
        "ssm_scan",
        tensors := on(device, scan_inputs(generator, "weak", 2, 2, 3, 300, torch.complex128)),
        backend,
        return_state=True,
    )
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    state, outputs = leaves["state"], []
    weights = [leaves[name] for name in "xBCD"]
    for u in leaves["u"].tensor_split(cuts, -1):
        y, state = ssm_scan(u, *weights, state, return_state=True, backend=backend)
        outputs.append(y)
    y = torch.cat(outputs, -1)
    assert relative_error(y, whole.output[0]) <= 1e-13
    assert relative_error(state, whole.output[1]) <= 1e-13
    grads = torch.autograd.grad([y, state], list(leaves.values()), cotangents((y, state)))
    for name, g in zip(leaves, grads, strict=True):
        assert relative_error(g, whole.grads[name]) <= 1e-12, name


@pytest.mark.parametrize("backend", [*SCAN, "reference"])
def test_without_a_state_it_is_a_convolution_with_the_kernel(backend: str, device: str, generator: Generator) -> None:
    tensors = on(device, scan_inputs(generator, "weak", 2, 3, 4, 500, torch.complex128))
    del tensors["state"]
    u, x, B, C, D = tensors.values()
    expected = fft_conv(u, log_vandermonde(C * B, x, 500), D)
    assert relative_error(ssm_scan(u, x, B, C, D, backend=backend), expected) <= 1e-12
    assert (
        relative_error(ssm_scan(u, x, B, C, D, torch.zeros_like(x).expand(2, 3, 4), backend=backend), expected) <= 1e-12
    )


@pytest.mark.parametrize("backend", [*SCAN, "reference"])
def test_the_future_has_no_influence(backend: str, generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", 2, 3, 4, 150, torch.complex128)
    later = {**tensors, "u": tensors["u"].clone()}
    later["u"][..., 100:] += 1
    before, after = (ssm_scan(**t, backend=backend)[..., :100] for t in (tensors, later))
    assert relative_error(after, before) <= 1e-14


# ----------------------------------------------------------------------------------------------- layouts and gradients


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
def test_memory_layout_does_not_matter(view: str, backend: str, generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", 2, 3, 4, 100)
    assert_contract("ssm_scan", unusual_views(tensors)[view], backend, return_state=True)
    tensors = step_inputs(generator, "weak", 2, 3, 4)
    assert_contract("ssm_step", unusual_views(tensors)[view], backend)


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize(("batch", "H", "L"), [(2, 3, 100), (1, 5, 600), (3, 1, 70), (2, 20, 1), (4, 17, 33)])
def test_time_major_signals_stay_so(
    batch: int, H: int, L: int, backend: str, device: str, generator: Generator
) -> None:
    """By what reads them, also where a gradient comes in the other layout, and without one."""
    tensors = on(device, scan_inputs(generator, "weak", batch, H, 4, L))
    tensors["u"] = tensors["u"].mT.contiguous().mT
    assert_contract("ssm_scan", tensors, backend, return_state=True)
    strides = (tensors["u"] if backend == "native" else tensors["u"].contiguous()).stride()
    assert ssm_scan(**tensors, backend=backend).stride() == strides
    u = tensors["u"].requires_grad_()
    y = ssm_scan(**tensors, backend=backend)
    cotangent = cotangents(y)[0].contiguous()
    found = [torch.autograd.grad(y, u, g, retain_graph=True)[0] for g in (cotangent, cotangent.mT.contiguous().mT)]
    assert y.stride() == found[0].stride() == found[1].stride() == strides
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", SCAN)
def test_expanded_inputs(backend: str, generator: Generator) -> None:
    u, x, B, C, D, state = scan_inputs(generator, "weak", 1, 1, 1, 100).values()
    expanded = {
        "u": u.expand(3, 4, 100),
        "x": x.expand(4, 5),
        "B": B.expand(4, 5),
        "C": C.expand(4, 5),
        "D": D.expand(4),
        "state": state.expand(3, 4, 5),
    }
    assert_contract("ssm_scan", expanded, backend, return_state=True)
    # All outputs are one number, which must not cancel by chance.
    single = {**expanded, "u": torch.ones(1, 1).expand(3, 4).to(u), "D": (30 + D).expand(4)}
    assert_contract("ssm_step", single, backend)


@pytest.mark.parametrize("backend", [*SCAN, "reference"])
def test_inputs_are_left_as_they_are(backend: str, generator: Generator) -> None:
    for op, tensors in (
        ("ssm_scan", scan_inputs(generator, "weak", 2, 3, 4, 200, torch.complex128)),
        ("ssm_step", step_inputs(generator, "weak", 2, 3, 4, torch.complex128)),
    ):
        before = {name: t.clone() for name, t in tensors.items()}
        scalars: dict[str, Any] = {"return_state": True} if op == "ssm_scan" else {}
        evaluate(op, tensors, backend, **scalars)
        with torch.no_grad():
            {"ssm_scan": ssm_scan, "ssm_step": ssm_step}[op](**tensors, backend=backend)
        assert all(torch.equal(t, before[name]) for name, t in tensors.items())


@pytest.mark.parametrize("backend", [*SCAN, "reference"])
@pytest.mark.parametrize(("batch", "H", "n", "L"), [(1, 1, 1, 1), (2, 2, 3, 7), (1, 2, 2, 70)])
@pytest.mark.sample(3)
def test_gradcheck(batch: int, H: int, n: int, L: int, backend: str, generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", batch, H, n, L, torch.complex128)
    arguments = [t.requires_grad_() for t in tensors.values()]
    assert gradcheck(lambda *args: ssm_scan(*args, True, backend=backend), arguments)


@pytest.mark.parametrize("backend", [*STEP, "reference"])
def test_step_gradcheck(backend: str, generator: Generator) -> None:
    arguments = [t.requires_grad_() for t in step_inputs(generator, "weak", 2, 3, 4, torch.complex128).values()]
    assert gradcheck(lambda *args: ssm_step(*args, backend=backend), arguments)


@pytest.mark.parametrize("backend", SCAN)
def test_gradients_one_by_one(backend: str, generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", 2, 3, 4, 100, torch.complex128)
    assert_gradients_one_by_one("ssm_scan", tensors, backend, return_state=True)
    assert_gradients_one_by_one("ssm_step", step_inputs(generator, "weak", 2, 3, 4, torch.complex128), backend)


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize(("batch", "H"), [(0, 3), (2, 0)])
def test_empty_batch(batch: int, H: int, backend: str, generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", batch, H, 4, 20)
    (y, final), grads = evaluate("ssm_scan", tensors, backend, return_state=True)
    assert (y.shape, final.shape) == ((batch, H, 20), (batch, H, 4))
    assert all(torch.equal(g, torch.zeros_like(tensors[name])) for name, g in grads.items())
    tensors = step_inputs(generator, "weak", batch, H, 4)
    (y, final), grads = evaluate("ssm_step", tensors, backend)
    assert (y.shape, final.shape) == ((batch, H), (batch, H, 4))
    assert all(torch.equal(g, torch.zeros_like(tensors[name])) for name, g in grads.items())


@pytest.mark.parametrize(("batch", "H"), [(0, 3), (2, 0)])
def test_empty_batch_of_the_reference(batch: int, H: int, generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", batch, H, 4, 20)
    y, final = ssm_scan(**tensors, return_state=True, backend="reference")
    assert (y.shape, final.shape) == ((batch, H, 20), (batch, H, 4))


# ------------------------------------------------------------------------------------------------ the pytorch backend


def test_blocks_of_features_and_of_rows_make_one_result(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pytorch._BLOCK, "cpu", 2 * (64 * (64 + 4 * 3) + 2 * (700 + 4 * 3 * 10)) + 1)
    monkeypatch.setattr(chunks, "_ROWS", 3)
    tensors = scan_inputs(generator, "weak", 2, 7, 3, 700, torch.complex128)
    assert len(list(pytorch._blocks(*tensors.values()))) == 4
    assert_contract("ssm_scan", tensors, "pytorch", return_state=True)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("n", [1, 32, 256])
def test_memory_is_linear_in_the_length_and_does_not_grow_with_the_states(
    n: int, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 bytes of states a sample at the most, beside tables that do not depend on L."""
    monkeypatch.setitem(pytorch._BLOCK, "cpu", 1)  # one feature at a time
    sizes = []
    for L in (8192, 16384):
        tensors = list(scan_inputs(generator, "weak", 1, 2, n, L).values())
        with Largest() as mode:
            y, final = pytorch.ssm_scan(*tensors, False)
            pytorch.ssm_scan_backward(y, final, *tensors, False, (True,) * 6)
        sizes.append(mode.bytes)
    assert sizes[1] <= 16 * 16384 + 32 * 257 * n
    assert sizes[1] <= 2 * sizes[0]


# --------------------------------------------------------------------------------------------------------- interface


def test_the_state_is_returned_on_demand(generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", 2, 3, 4, 20)
    y, final = ssm_scan(**tensors, return_state=True)
    assert torch.equal(ssm_scan(**tensors), y)
    assert final.dtype == torch.complex64


@pytest.mark.parametrize("op", [ssm_scan, ssm_step])
def test_explain(op: Any, generator: Generator) -> None:
    tensors = scan_inputs(generator, "weak", 2, 3, 4, 20) if op is ssm_scan else step_inputs(generator, "weak", 2, 3, 4)
    assert explain(op, **tensors).backend in dispatch.implementations(op.__name__)
    assert explain(op, **tensors, backend="pytorch").backend == "pytorch"
    with pytest.raises(dispatch.BackendUnavailableError, match="keops"):
        op(**tensors, backend="keops")


U, X, D, S = torch.zeros(2, 3, 5), torch.zeros(3, 4) + 0j, torch.zeros(3), torch.zeros(2, 3, 4) + 0j


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"u": U[0]}, ValueError, r"u of shape \(batch, H, L\) with L >= 1, got \(3, 5\)"),
        ({"u": U[..., :0]}, ValueError, r"u of shape \(batch, H, L\) with L >= 1, got \(2, 3, 0\)"),
        ({"u": U + 0j}, TypeError, r"u to be float32 or float64, got complex64 of shape \(2, 3, 5\)"),
        ({"u": U.long()}, TypeError, "u to be float32 or float64, got int64"),
        ({"u": U.half()}, TypeError, "u to be float32 or float64, got float16"),
        ({"u": U.double()}, TypeError, "one precision, got u float64, x complex64, B complex64"),
        ({"u": U[:, :2]}, ValueError, r"x of shape \(H, n\) with H = 2 and n >= 1, got \(3, 4\)"),
        ({"x": X[:, :0]}, ValueError, r"x of shape \(H, n\) with H = 3 and n >= 1, got \(3, 0\)"),
        ({"x": X[0]}, ValueError, r"x of shape \(H, n\) with H = 3 and n >= 1, got \(4,\)"),
        ({"x": X.real}, TypeError, r"x to be complex64 or complex128, got float32"),
        ({"B": X[:, :1]}, ValueError, r"B of shape \(3, 4\) to fit u \(2, 3, 5\) and x \(3, 4\), got \(3, 1\)"),
        ({"C": X[None]}, ValueError, r"C of shape \(3, 4\) to fit u \(2, 3, 5\) and x \(3, 4\), got \(1, 3, 4\)"),
        ({"D": D[:2]}, ValueError, r"D of shape \(3,\) to fit u .*, got \(2,\)"),
        ({"D": D.double()}, TypeError, "one precision, .* D float64"),
        ({"D": D + 0j}, TypeError, r"D to be float32 or float64, got complex64 of shape \(3,\)"),
        ({"D": D.to("meta")}, ValueError, "one device, got u on cpu, .* D on meta"),
        ({"state": S[:1]}, ValueError, r"state of shape \(2, 3, 4\) to fit u .*, got \(1, 3, 4\)"),
        ({"state": S[0]}, ValueError, r"state of shape \(2, 3, 4\) to fit u .*, got \(3, 4\)"),
        ({"state": S.real}, TypeError, "state to be complex64 or complex128, got float32"),
        ({"state": S.to(torch.complex128)}, TypeError, "one precision, .* state complex128"),
        ({"state": S.to("meta")}, ValueError, "one device, got u on cpu, .* state on meta"),
    ],
)
def test_bad_input(changes: Tensors, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^ssm_scan: expected .*{message}"):
        ssm_scan(**{"u": U, "x": X, "B": X, "C": X, "D": D, "state": S, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"u": U}, ValueError, r"u of shape \(batch, H\), got \(2, 3, 5\)"),
        ({"u": U[..., 0] + 0j}, TypeError, "u to be float32 or float64, got complex64"),
        ({"x": X[:, :0]}, ValueError, r"x of shape \(H, n\) with H = 3 and n >= 1, got \(3, 0\)"),
        ({"D": D[:2]}, ValueError, r"D of shape \(3,\) to fit u .*, got \(2,\)"),
        ({"state": S[:1]}, ValueError, r"state of shape \(2, 3, 4\) to fit u \(2, 3\) .*, got \(1, 3, 4\)"),
        ({"state": S.to("meta")}, ValueError, "one device, got u on cpu, .* state on meta"),
        ({"state": S.to(torch.complex128)}, TypeError, "one precision, .* state complex128"),
    ],
)
def test_bad_step_input(changes: Tensors, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^ssm_step: expected .*{message}"):
        ssm_step(**{"u": U[..., 0], "state": S, "x": X, "B": X, "C": X, "D": D, **changes})


@pytest.mark.parametrize("backend", SCAN)
@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.sample(2)
def test_gradients_through_one_output_alone(compiled: bool, output: int, backend: str, generator: Generator) -> None:
    tensors = {
        name: t.requires_grad_()
        for name, t in scan_inputs(generator, "weak", 2, 3, 4, 70, dtype=torch.complex128).items()
    }

    def loss(backend: str) -> Tensor:
        return ssm_scan(**tensors, return_state=True, backend=backend)[output].abs().square().sum()

    run = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    actual = torch.autograd.grad(run(backend), list(tensors.values()), allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(loss("reference"), list(tensors.values()), allow_unused=True, materialize_grads=True)
    for name, a, e in zip(tensors, actual, expected, strict=True):
        assert relative_error(a, e) <= 1e-11, name
