from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck

import s4_fast
from s4_fast import cauchy_bilinear, cauchy_mult
from tests import extended
from tests.extended import needs_extended
from tests.helpers import (
    DTYPES,
    KEOPS,
    KEOPS_FLOAT64,
    Tensors,
    assert_contract,
    assert_gradients_one_by_one,
    backends,
    evaluate,
    instruction_set,
    log_uniform,
    needs_keops,
    needs_native,
    normal,
    relative_error,
    uniform,
    unusual_views,
)

MULT = backends("cauchy_mult")
BILINEAR = backends("cauchy_bilinear")
# (H, n, L): as many nodes, or roots of unity.
SIZES = [(2, 29, 1), (3, 1, 2), (2, 100, 3), (1, 256, 17), (3, 29, 1047), (2, 100, 4096), (1, 3, 2**20)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def poles(generator: Generator, *shape: int, decay: tuple[float, float], dtype: torch.dtype) -> Tensor:
    """dt A with Im up to 8, that is, phases of lambda up to 0.84 pi, on both sides."""
    return torch.complex(-log_uniform(generator, *decay, *shape), uniform(generator, -8, 8, *shape)).to(dtype)


def mult_inputs(generator: Generator, H: int, n: int, Lz: int, dtype: torch.dtype) -> Tensors:
    w = poles(generator, H, n, decay=(1e-3, 1), dtype=dtype)
    return {"v": normal(generator, H, n, dtype=dtype), "z": 4 * normal(generator, Lz, dtype=dtype), "w": w}


def bilinear_inputs(generator: Generator, w: Tensor) -> Tensors:
    return {"v": normal(generator, *w.shape, dtype=w.dtype), "w": w}


# ----------------------------------------------------------------------------------------------------- cauchy_mult


@pytest.mark.parametrize("backend", [*MULT, KEOPS])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("H", "n", "Lz"), SIZES)
def test_mult_contract(
    H: int, n: int, Lz: int, symmetric: bool, backend: str, device: str, generator: Generator
) -> None:
    tensors = {name: t.to(device) for name, t in mult_inputs(generator, H, n, Lz, torch.complex64).items()}
    assert_contract("cauchy_mult", tensors, backend, symmetric=symmetric)


@pytest.mark.parametrize("backend", [*MULT, KEOPS_FLOAT64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("H", "n", "Lz"), SIZES[:-1])
def test_mult_contract_in_float64(
    H: int, n: int, Lz: int, symmetric: bool, backend: str, device: str, generator: Generator
) -> None:
    tensors = {name: t.to(device) for name, t in mult_inputs(generator, H, n, Lz, torch.complex128).items()}
    assert_contract("cauchy_mult", tensors, backend, symmetric=symmetric)


@pytest.mark.parametrize("backend", [*MULT, KEOPS])
@pytest.mark.parametrize("distance", [1e-2, 1e-5])
def test_mult_next_to_poles(distance: float, backend: str, device: str, generator: Generator) -> None:
    """z - w is exact there, so that being close costs nothing."""
    tensors = mult_inputs(generator, 2, 29, 58, torch.complex64)
    turn = torch.polar(torch.ones(58), 2 * math.pi * torch.rand(58, generator=generator))
    tensors["z"] = tensors["w"].flatten() * (1 + distance * turn)
    assert_contract("cauchy_mult", {name: t.to(device) for name, t in tensors.items()}, backend)


@pytest.mark.parametrize("backend", [*MULT, "reference", KEOPS])
def test_mult_at_a_pole_is_not_finite(backend: str) -> None:
    w = torch.tensor([-0.5 + 1j, -0.5 + 2j])
    y = cauchy_mult(torch.ones_like(w), torch.cat((w, w + 1)), w, backend=backend)
    assert y.isfinite().tolist() == [False, False, True, True]


@pytest.mark.parametrize("backend", [*MULT, KEOPS])
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
def test_mult_memory_layout_does_not_matter(view: str, backend: str, generator: Generator) -> None:
    tensors = mult_inputs(generator, 3, 5, 11, torch.complex64)
    tensors["z"] = normal(generator, 3, 11, dtype=torch.complex64)
    assert_contract("cauchy_mult", unusual_views(tensors)[view], backend)


@pytest.mark.parametrize("backend", [*MULT, KEOPS])
@pytest.mark.parametrize(
    ("v_lead", "z_lead", "w_lead"),
    [
        ((), (), ()),
        ((2, 3), (), (3,)),
        ((2, 3), (1, 1), (3,)),
        ((2, 3), (3,), (3,)),
        ((3,), (3,), ()),
        ((3,), (2, 1), (3,)),
        ((), (2, 3), (3,)),
        ((4, 2, 3), (3,), (4, 1, 1)),
    ],
)
def test_mult_leading_dimensions_broadcast(
    v_lead: tuple[int, ...], z_lead: tuple[int, ...], w_lead: tuple[int, ...], backend: str, generator: Generator
) -> None:
    tensors = {
        "v": normal(generator, *v_lead, 5, dtype=torch.complex64),
        "z": 4 * normal(generator, *z_lead, 11, dtype=torch.complex64),
        "w": poles(generator, *w_lead, 5, decay=(1e-2, 1), dtype=torch.complex64),
    }
    assert_contract("cauchy_mult", tensors, backend)


@pytest.mark.parametrize("backend", [*MULT, KEOPS])
def test_mult_expanded_inputs(backend: str, generator: Generator) -> None:
    tensors = mult_inputs(generator, 1, 5, 11, torch.complex64)
    expanded = {name: t.expand(4, 3, t.shape[-1]) for name, t in tensors.items()}
    assert_contract("cauchy_mult", expanded, backend)


@pytest.mark.parametrize("backend", [*MULT, "reference", KEOPS_FLOAT64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("z_lead", [(), (2,)])
def test_mult_gradcheck(z_lead: tuple[int, ...], symmetric: bool, backend: str, generator: Generator) -> None:
    tensors = mult_inputs(generator, 2, 3, 5, torch.complex128)
    v = normal(generator, 2, 2, 3, dtype=torch.complex128)
    arguments = [t.requires_grad_() for t in (v, tensors["z"].expand(*z_lead, 5).clone(), tensors["w"])]
    assert gradcheck(lambda *args: cauchy_mult(*args, symmetric, backend=backend), arguments)


@pytest.mark.parametrize("backend", [*MULT, KEOPS_FLOAT64])
def test_mult_gradients_one_by_one(backend: str, generator: Generator) -> None:
    assert_gradients_one_by_one("cauchy_mult", mult_inputs(generator, 2, 3, 5, torch.complex128), backend)


# ------------------------------------------------------------------------------------------------- cauchy_bilinear


@pytest.mark.parametrize("backend", BILINEAR)
@pytest.mark.parametrize("decay", [(1e-7, 1e-4), (1e-2, 1e2)], ids=["weak", "strong"])
@pytest.mark.parametrize(("H", "n", "L"), SIZES)
def test_bilinear_contract(
    H: int, n: int, L: int, decay: tuple[float, float], backend: str, device: str, generator: Generator
) -> None:
    w = poles(generator, H, n, decay=decay, dtype=torch.complex64)
    tensors = {name: t.to(device) for name, t in bilinear_inputs(generator, w).items()}
    assert_contract("cauchy_bilinear", tensors, backend, L=L)


@pytest.mark.parametrize("backend", BILINEAR)
@pytest.mark.parametrize(("H", "n", "L"), SIZES)
def test_bilinear_contract_in_float64(H: int, n: int, L: int, backend: str, device: str, generator: Generator) -> None:
    w = poles(generator, H, n, decay=(1e-1, 1e2), dtype=torch.complex128)
    tensors = {name: t.to(device) for name, t in bilinear_inputs(generator, w).items()}
    assert_contract("cauchy_bilinear", tensors, backend, L=L)


@needs_extended
@pytest.mark.parametrize("backend", [*BILINEAR, "reference"])
@pytest.mark.parametrize("reach", [0.1, 8, 1000])
@pytest.mark.parametrize("L", [1047, 1024, 16384])
def test_bilinear_in_float64_is_as_good_as_its_poles(L: int, reach: float, backend: str, generator: Generator) -> None:
    """With hardly any decay one rounding of w moves the sums next to a resonance by more than 1e-12 already."""
    w = torch.complex(-log_uniform(generator, 1e-7, 1e-4, 20) * reach, uniform(generator, -reach, reach, 20))
    v = normal(generator, 20, dtype=torch.complex128)
    output = cauchy_bilinear(v, w, L, backend=backend)
    extended.assert_as_good_as_its_poles(output, v, w, L, generator.initial_seed())


@pytest.mark.parametrize("backend", BILINEAR)
@pytest.mark.parametrize("offset", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("L", [64, 1047])
def test_bilinear_resonance(L: int, offset: float, backend: str, generator: Generator) -> None:
    """Poles next to a node: 1 - lambda^L is almost 0, and the sum at that node almost a pole."""
    k = torch.arange(1, L // 2, 3)
    phase = 2 * torch.tan(math.pi / L * k.double()) * (1 + offset)
    w = torch.complex(-1e-5 * (1 + phase), phase).to(torch.complex64)
    assert_contract("cauchy_bilinear", bilinear_inputs(generator, w), backend, L=L)


@pytest.mark.parametrize("backend", BILINEAR)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [1, 2, 3, 64, 1047])
def test_bilinear_where_lambda_is_zero(L: int, dtype: torch.dtype, backend: str, generator: Generator) -> None:
    w = torch.tensor([-2, -2 + 1e-6, -2 + 1e-6j, -0.5 + 1j], dtype=dtype)
    assert_contract("cauchy_bilinear", bilinear_inputs(generator, w), backend, L=L)


@pytest.mark.parametrize("backend", BILINEAR)
def test_bilinear_is_finite_at_minus_one(backend: str, generator: Generator) -> None:
    """omega = -1, where z = 2 (1 - omega)/(1 + omega) is infinite: 2 v/((2 - w) + (2 + w)) = v/2."""
    v, w = bilinear_inputs(generator, poles(generator, 5, decay=(1e-2, 1), dtype=torch.complex128)).values()
    assert cauchy_bilinear(v, w, 64, backend=backend)[-1].item() == pytest.approx(v.real.sum().item(), rel=1e-12)


@pytest.mark.parametrize("backend", BILINEAR)
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
def test_bilinear_memory_layout_does_not_matter(view: str, backend: str, generator: Generator) -> None:
    tensors = bilinear_inputs(generator, poles(generator, 3, 5, decay=(1e-3, 1), dtype=torch.complex64))
    assert_contract("cauchy_bilinear", unusual_views(tensors)[view], backend, L=50)


@pytest.mark.parametrize("backend", BILINEAR)
@pytest.mark.parametrize(
    ("v_lead", "w_lead"), [((), ()), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 3), ()), ((4, 2, 3), (4, 1, 3))]
)
def test_bilinear_leading_dimensions_broadcast(
    v_lead: tuple[int, ...], w_lead: tuple[int, ...], backend: str, generator: Generator
) -> None:
    w = poles(generator, *w_lead, 5, decay=(1e-3, 1), dtype=torch.complex64)
    tensors = {"v": normal(generator, *v_lead, 5, dtype=torch.complex64), "w": w}
    assert_contract("cauchy_bilinear", tensors, backend, L=50)


@pytest.mark.parametrize("backend", BILINEAR)
def test_bilinear_expanded_inputs(backend: str, generator: Generator) -> None:
    tensors = bilinear_inputs(generator, poles(generator, 1, 5, decay=(1e-3, 1), dtype=torch.complex64))
    expanded = {name: t.expand(4, 3, 5) for name, t in tensors.items()}
    assert_contract("cauchy_bilinear", expanded, backend, L=50)


@pytest.mark.parametrize("backend", [*BILINEAR, "reference"])
@pytest.mark.parametrize("L", [1, 2, 7, 8])
def test_bilinear_gradcheck(L: int, backend: str, generator: Generator) -> None:
    w = poles(generator, 2, 3, decay=(1e-1, 1), dtype=torch.complex128)
    arguments = [normal(generator, 2, 2, 3, dtype=torch.complex128).requires_grad_(), w.requires_grad_()]
    assert gradcheck(lambda v, w: cauchy_bilinear(v, w, L, backend=backend), arguments, fast_mode=True)


@pytest.mark.parametrize("backend", BILINEAR)
def test_bilinear_gradients_one_by_one(backend: str, generator: Generator) -> None:
    tensors = bilinear_inputs(generator, poles(generator, 2, 3, decay=(1e-3, 1), dtype=torch.complex128))
    assert_gradients_one_by_one("cauchy_bilinear", tensors, backend, L=8)


# ---------------------------------------------------------------------------------------------------------- native

ISAS = ("avx512", "avx2", "portable")


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("distance", [1e-7, 1e-6, 1e-3])
def test_native_next_to_poles(distance: float, symmetric: bool, isa: str, generator: Generator) -> None:
    """Poles on both sides, and nodes of every feature, in blocks of which not all have such a pair."""
    tensors = mult_inputs(generator, 2, 29, 1300, torch.complex64)
    turn = torch.polar(torch.ones(700), 2 * math.pi * torch.rand(700, generator=generator))
    tensors["z"][:700] = tensors["w"].flatten()[torch.arange(700) % 58] * (1 + distance * turn)
    with instruction_set(isa):
        assert_contract("cauchy_mult", tensors, "native", symmetric=symmetric)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e-6, 1e5, 1e9, 1e18])
def test_native_holds_what_float32_holds(scale: float, symmetric: bool, isa: str, generator: Generator) -> None:
    """The squares and their products are beyond it. z and w alone, too, are small and large."""
    tensors = mult_inputs(generator, 2, 29, 1100, torch.complex64)
    both = tensors | {"z": tensors["z"] * scale, "w": tensors["w"] * scale}
    with instruction_set(isa):
        assert_contract("cauchy_mult", both, "native", symmetric=symmetric)
        assert_contract("cauchy_mult", tensors | {"z": both["z"]}, "native", symmetric=symmetric)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_native_poles_far_out_and_side_by_side(symmetric: bool, isa: str, generator: Generator) -> None:
    """Nodes and both poles of a pair are much closer to each other than to 0: no product with z may be formed."""
    re, im = uniform(generator, -1001, -999, 2, 40), uniform(generator, -1, 1, 2, 40)
    z = torch.complex(uniform(generator, -1001, -999, 600), uniform(generator, -2, 2, 600))
    tensors = {"v": normal(generator, 2, 40, dtype=torch.complex64), "z": z.to(torch.complex64)}
    tensors["w"] = torch.complex(re, im).to(torch.complex64)
    with instruction_set(isa):
        assert_contract("cauchy_mult", tensors, "native", symmetric=symmetric)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", [2, 3, 4, 7])
def test_native_rows_in_groups(c: int, dtype: torch.dtype, generator: Generator) -> None:
    tensors = mult_inputs(generator, 3, 35, 1100, dtype)
    tensors["v"] = normal(generator, c, 3, 35, dtype=dtype)
    for symmetric in (True, False):
        assert_contract("cauchy_mult", tensors, "native", symmetric=symmetric)
    assert_contract("cauchy_bilinear", {"v": tensors["v"], "w": tensors["w"]}, "native", L=2200)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_native_node_on_a_pole_leaves_the_others_alone(
    symmetric: bool, dtype: torch.dtype, generator: Generator
) -> None:
    """Nor does a node that is not a number reach what others give: sums, and gradients of z."""
    tensors = mult_inputs(generator, 3, 5, 600, dtype)
    tensors["z"] = normal(generator, 3, 600, dtype=dtype)
    want = evaluate("cauchy_mult", tensors, "reference", symmetric=symmetric)
    tensors["z"][1, 7], tensors["z"][1, 9] = tensors["w"][1, 2], complex("nan")
    output, grads = evaluate("cauchy_mult", tensors, "native", symmetric=symmetric)
    others = torch.ones(3, 600, dtype=torch.bool)
    others[1, 7] = others[1, 9] = False
    assert not output[~others].isfinite().any() and not grads["z"][~others].isfinite().any()
    tolerance = 1e-5 if dtype == torch.complex64 else 1e-12
    assert relative_error(output[others], want.output[others]) <= tolerance
    assert relative_error(grads["z"][others], want.grads["z"][others]) <= tolerance
    for name in ("v", "w"):
        assert not grads[name][1].isfinite().all()
        assert relative_error(grads[name][::2], want.grads[name][::2]) <= tolerance


@needs_native
@pytest.mark.parametrize("op", ["cauchy_mult", "cauchy_bilinear"])
@pytest.mark.parametrize("name", ["v", "w"])
def test_native_feature_that_is_not_a_number_leaves_the_others_alone(name: str, op: str, generator: Generator) -> None:
    tensors, scalars = mult_inputs(generator, 3, 5, 600, torch.complex64), {}
    tensors["z"] = normal(generator, 3, 600, dtype=torch.complex64)
    if op == "cauchy_bilinear":
        del tensors["z"]
        scalars = {"L": 1200}
    want = evaluate(op, tensors, "native", **scalars)
    tensors[name][1, 3] = complex("nan")
    output, grads = evaluate(op, tensors, "native", **scalars)
    assert not output[1].isfinite().any()
    assert torch.equal(output[::2], want.output[::2])
    assert all(torch.equal(g[::2], want.grads[other][::2]) for other, g in grads.items())


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("offset", [0.0, 1e-6])
def test_native_bilinear_resonance(offset: float, isa: str, generator: Generator) -> None:
    """In float32 2 s - w c is as good as with the sines and cosines in double, on either side of the real axis."""
    k = torch.arange(1, 512, 9)
    phase = 2 * torch.tan(math.pi / 1024 * k.double()) * (1 + offset)
    w = torch.complex(-1e-6 * (1 + phase), phase * (-1) ** k).to(torch.complex64)
    with instruction_set(isa):
        assert_contract("cauchy_bilinear", bilinear_inputs(generator, w), "native", L=1024)


@needs_native
@pytest.mark.parametrize(
    ("n", "L", "backend"), [(16, 2**20, "native"), (32, 2**15, "native"), (32, 2**15 + 1, "pytorch")]
)
def test_native_bilinear_where_it_is_the_faster_form(n: int, L: int, backend: str) -> None:
    v = torch.zeros(1, n, dtype=torch.complex64)
    assert s4_fast.explain("cauchy_bilinear", v, v, L).backend == backend
    assert s4_fast.explain("cauchy_bilinear", v, v, L, backend="native").backend == "native"


# ------------------------------------------------------------------------------------------------------------ both


EMPTY = [(0, 3), (2, 0)]


@pytest.mark.parametrize("backend", [*MULT, "reference", KEOPS])
@pytest.mark.parametrize(("c", "H"), EMPTY)
def test_mult_of_an_empty_batch(c: int, H: int, backend: str, generator: Generator) -> None:
    tensors = mult_inputs(generator, H, 5, 11, torch.complex64)
    assert_zero_gradients("cauchy_mult", tensors | {"v": normal(generator, c, H, 5, dtype=torch.complex64)}, backend)


@pytest.mark.parametrize("backend", [*BILINEAR, "reference"])
@pytest.mark.parametrize(("c", "H"), EMPTY)
def test_bilinear_of_an_empty_batch(c: int, H: int, backend: str, generator: Generator) -> None:
    w = poles(generator, H, 5, decay=(1e-3, 1), dtype=torch.complex64)
    tensors = {"v": normal(generator, c, H, 5, dtype=torch.complex64), "w": w}
    assert_zero_gradients("cauchy_bilinear", tensors, backend, L=20)


def assert_zero_gradients(op: str, tensors: Tensors, backend: str, **scalars: int) -> None:
    output, grads = evaluate(op, tensors, backend, **scalars)
    assert output.shape == (*tensors["v"].shape[:-1], 11)
    assert all(torch.equal(g, torch.zeros_like(tensors[name])) for name, g in grads.items())


W = torch.zeros(2, 3, dtype=torch.complex64)
Z = torch.zeros(5, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("v", "w", "error", "message"),
    [
        (W, W[:, :2], ValueError, r"one last dimension n >= 1 .* v \(2, 3\), w \(2, 2\)"),
        (W[:, :0], W[:, :0], ValueError, r"n >= 1 .* v \(2, 0\)"),
        (W, W[0, 0], ValueError, r"last dimension n, got v \(2, 3\), w \(\)"),
        (W, W[:1].expand(4, 3), ValueError, r"do not broadcast: v \(2, 3\),.* w \(4, 3\)"),
        (W.real, W, TypeError, r"v to be complex64 or complex128, got float32 of shape \(2, 3\)"),
        (W, W.real.int(), TypeError, r"w to be complex64 or complex128, got int32 of shape \(2, 3\)"),
        (W, W.to(torch.complex128), TypeError, "one precision, got v complex64,.* w complex128"),
        (W, W.to("meta"), ValueError, "one device, got v on cpu,.* w on meta"),
    ],
)
def test_bad_poles(v: Tensor, w: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^cauchy_mult: .*{message}"):
        cauchy_mult(v, Z, w)
    with pytest.raises(error, match=f"^cauchy_bilinear: .*{message}"):
        cauchy_bilinear(v, w, 5)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (Z[:0], ValueError, r"z of shape \(\.\.\., Lz\) with Lz >= 1, got \(0,\)"),
        (Z[0], ValueError, r"z of shape \(\.\.\., Lz\) with Lz >= 1, got \(\)"),
        (Z.expand(3, 5), ValueError, r"do not broadcast: v \(2, 3\), z \(3, 5\), w \(2, 3\)"),
        (Z.real, TypeError, r"z to be complex64 or complex128, got float32 of shape \(5,\)"),
        (Z.to(torch.complex128), TypeError, "one precision, got v complex64, z complex128, w complex64"),
        (Z.to("meta"), ValueError, "one device, got v on cpu, z on meta, w on cpu"),
    ],
)
def test_bad_nodes(z: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^cauchy_mult: .*{message}"):
        cauchy_mult(W, z, W)


@pytest.mark.parametrize(
    ("L", "error", "message"),
    [
        (0, ValueError, "L >= 1, got L = 0"),
        (-3, ValueError, "L >= 1, got L = -3"),
        (5.0, TypeError, "L to be an int, got float"),
        (True, TypeError, "L to be an int, got bool"),
    ],
)
def test_bad_length(L: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^cauchy_bilinear: .*{message}"):
        cauchy_bilinear(W, W, L)


@needs_keops
def test_keops_names_the_backends_that_have_the_bilinear_form() -> None:
    with pytest.raises(
        s4_fast.BackendUnavailableError, match=r"'keops' .* cannot run cauchy_bilinear: .* reference, pytorch"
    ):
        cauchy_bilinear(W, W, 5, backend="keops")
