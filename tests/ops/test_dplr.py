from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck

import s4_fast
from s4_fast import BackendUnavailableError, dplr_kernel, native_library
from s4_fast.bench.accuracy import DPLR_KERNEL_FORWARD
from s4_fast.ssm import hippo
from tests import extended
from tests.extended import needs_extended
from tests.helpers import (
    DTYPES,
    Tensors,
    assert_contract,
    assert_gradients_one_by_one,
    backends,
    evaluate,
    instruction_set,
    log_uniform,
    needs_native,
    normal,
    relative_error,
    threads,
    uniform,
    unusual_views,
    widened,
)

BACKENDS = backends("dplr_kernel")
FORWARD = {dtype: DPLR_KERNEL_FORWARD[torch.finfo(dtype).dtype] for dtype in DTYPES}
GRADIENT = {torch.complex64: 1e-5, torch.complex128: 1e-9}
# The least -Re A: that of the official code, and one at which the reference in float64 is good to 1e-12.
DAMPING = {torch.complex64: 1e-4, torch.complex128: 1e-1}
RANK = {"legs": 1, "legt": 2, "fout": 1}
SIZES = [(2, 64, 1), (3, 2, 2), (2, 200, 3), (3, 58, 1047), (2, 64, 4096), (1, 64, 16384)]  # (H, N, L)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


nplr = functools.cache(hippo.nplr)


def hippo_inputs(
    generator: Generator, measure: str, H: int, N: int, dtype: torch.dtype, damping: float = 1e-4
) -> Tensors:
    """S4 as it starts: a HiPPO matrix for every feature, steps from 1e-3 to 1e-1, a random C-tilde."""
    form = nplr(measure, N, RANK[measure])
    A = torch.complex(form.w.real.clamp(max=-damping), form.w.imag)
    dt = log_uniform(generator, 1e-3, 1e-1, H, 1)
    P, B = form.P[:, None].expand(-1, H, -1).clone(), form.B.expand(1, H, -1).clone()
    tensors = {"w": dt * A, "P": P, "Q": P, "B": B, "C": normal(generator, 1, H, N // 2, dtype=torch.complex128)}
    return {name: t.to(dtype) for name, t in tensors.items()} | {"dt": dt.to(dtype.to_real())}


def random_inputs(
    generator: Generator, dtype: torch.dtype, *, H: int = 2, n: int = 4, r: int = 1, b: int = 1, c: int = 1
) -> Tensors:
    """Q != P, a step per state, and no HiPPO matrix behind it."""
    wide = torch.complex128
    dt = log_uniform(generator, 1e-2, 1e-1, H, n)
    A = torch.complex(-uniform(generator, 0.1, 2, H, n), uniform(generator, -20, 20, H, n))
    P = normal(generator, r, H, n, dtype=wide)
    tensors = {
        "w": dt * A,
        "P": P,
        "Q": P + 0.3 * normal(generator, r, H, n, dtype=wide),
        "B": normal(generator, b, H, n, dtype=wide),
        "C": normal(generator, c, H, n, dtype=wide),
    }
    return {name: t.to(dtype) for name, t in tensors.items()} | {"dt": dt.to(dtype.to_real())}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("measure", RANK)
@pytest.mark.parametrize(("H", "N", "L"), SIZES)
def test_contract(
    H: int, N: int, L: int, measure: str, dtype: torch.dtype, backend: str, device: str, generator: Generator
) -> None:
    tensors = hippo_inputs(generator, measure, H, N, dtype, DAMPING[dtype])
    tensors = {name: t.to(device) for name, t in tensors.items()}
    assert_contract("dplr_kernel", tensors, backend, forward=FORWARD[dtype], gradient=GRADIENT[dtype], L=L)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("measure", "dtype"), [("legs", torch.complex64), ("legt", torch.complex128)])
@pytest.mark.sample(1)
def test_contract_at_a_million_steps(
    measure: str, dtype: torch.dtype, backend: str, device: str, generator: Generator
) -> None:
    tensors = hippo_inputs(generator, measure, 1, 2, dtype, DAMPING[dtype])
    tensors = {name: t.to(device) for name, t in tensors.items()}
    assert_contract("dplr_kernel", tensors, backend, forward=FORWARD[dtype], gradient=GRADIENT[dtype], L=2**20)


def resonant_inputs(measure: str, N: int, L: int, mode: int, step: float, dtype: torch.dtype) -> Tensors:
    """A step next to ``step`` for which one pole, damped by 1e-4, lies on a root of unity."""
    tensors = hippo_inputs(Generator().manual_seed(0), measure, 1, N, torch.complex128)
    rate = nplr(measure, N, RANK[measure]).w.imag[mode]
    k = torch.round(L / math.pi * torch.atan(rate * step / 2))
    dt = (2 * torch.tan(math.pi * k / L) / rate).reshape(1, 1)
    tensors |= {"w": tensors["w"] / tensors["dt"] * dt, "dt": dt}
    return {name: t.to(dtype if t.is_complex() else dtype.to_real()) for name, t in tensors.items()}


RESONANCES = [
    ("legt", 58, 1047, 0, 0.1),
    ("legt", 58, 1047, 0, 0.001),
    ("fout", 58, 1047, 0, 0.01),
    ("legt", 64, 1024, 3, 0.01),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("resonance", RESONANCES)
def test_poles_on_roots_of_unity(resonance: tuple, backend: str, device: str) -> None:
    tensors = resonant_inputs(*resonance, torch.complex64)
    tensors = {name: t.to(device) for name, t in tensors.items()}
    assert_contract("dplr_kernel", tensors, backend, forward=FORWARD[torch.complex64], L=resonance[2])


@needs_extended
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("resonance", RESONANCES)
def test_poles_on_roots_of_unity_in_float64(resonance: tuple, backend: str) -> None:
    """Each is 4e-11 to 1e-13 in the reference."""
    tensors = resonant_inputs(*resonance, torch.complex128)
    kernel = dplr_kernel(**tensors, L=resonance[2], backend=backend)
    assert relative_error(kernel, extended.dplr_kernel(**tensors, L=resonance[2])) <= 1e-12


@needs_extended
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("measure", RANK)
@pytest.mark.parametrize(("H", "N", "L"), SIZES[:-1])
def test_float64_with_the_damping_of_the_official_code(
    H: int, N: int, L: int, measure: str, backend: str, device: str, generator: Generator
) -> None:
    tensors = hippo_inputs(generator, measure, H, N, torch.complex128)
    kernel = dplr_kernel(**{name: t.to(device) for name, t in tensors.items()}, L=L, backend=backend)
    assert relative_error(kernel.cpu(), extended.dplr_kernel(**tensors, L=L)) <= 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [1, 2, 50, 333])
@pytest.mark.parametrize(
    ("n", "r", "b", "c"), [(3, 1, 1, 1), (29, 1, 3, 2), (1, 2, 1, 3), (256, 2, 2, 1), (4, 3, 2, 2)]
)
def test_every_rank_and_channel_count(
    n: int, r: int, b: int, c: int, L: int, dtype: torch.dtype, backend: str, generator: Generator
) -> None:
    tensors = random_inputs(generator, dtype, n=n, r=r, b=b, c=c)
    assert_contract("dplr_kernel", tensors, backend, forward=FORWARD[dtype], L=L)


@pytest.mark.parametrize("backend", BACKENDS)
def test_superfluous_ranks_change_nothing(backend: str, generator: Generator) -> None:
    """Rows of zeros in P, as `nplr(measure, N, rank)` makes them, leave a singular least-squares problem for alpha."""
    tensors = hippo_inputs(generator, "legs", 2, 16, torch.complex64)
    padded = {**tensors, "P": pad_rank(tensors["P"]), "Q": pad_rank(tensors["Q"])}
    assert_contract("dplr_kernel", padded, backend, forward=5e-6, L=100)
    plain = dplr_kernel(**{name: widened(t) for name, t in tensors.items()}, L=100, backend="reference")
    assert relative_error(dplr_kernel(**padded, L=100, backend=backend), plain) <= 5e-6


def pad_rank(P: Tensor) -> Tensor:
    return torch.cat((P, torch.zeros_like(P)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", ["strided", "transposed", "conjugated"])
def test_memory_layout_does_not_matter(view: str, backend: str, generator: Generator) -> None:
    tensors = random_inputs(generator, torch.complex64, r=2, b=3, c=2)
    assert_contract("dplr_kernel", unusual_views(tensors)[view], backend, forward=5e-6, L=50)


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs(backend: str, generator: Generator) -> None:
    tensors = random_inputs(generator, torch.complex64, H=1, r=2, b=3, c=2)
    expanded = {name: t.expand(*t.shape[:-2], 4, t.shape[-1]) for name, t in tensors.items()}
    assert_contract("dplr_kernel", expanded, backend, forward=5e-6, L=50)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("shared_dt", [True, False])
@pytest.mark.parametrize(("r", "L"), [(1, 7), (2, 8), (3, 1)])
def test_gradcheck(r: int, L: int, shared_dt: bool, backend: str, generator: Generator) -> None:
    tensors = random_inputs(generator, torch.complex128, n=2, r=r, b=2, c=2)
    if shared_dt:
        tensors["dt"] = tensors["dt"][:, :1]
    arguments = [t.clone().requires_grad_() for t in tensors.values()]
    assert gradcheck(lambda *args: dplr_kernel(*args, L, backend=backend), arguments, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_one_by_one(backend: str, generator: Generator) -> None:
    tensors = random_inputs(generator, torch.complex128, r=2, b=2, c=2)
    assert_gradients_one_by_one("dplr_kernel", tensors, backend, L=8)


def test_tied_P_and_Q_collect_both_gradients(generator: Generator) -> None:
    """HiPPO's Q = P is one parameter: it gets the sum."""
    tensors = random_inputs(generator, torch.complex128)
    tensors["Q"] = tensors["P"]
    _, grads = evaluate("dplr_kernel", tensors, "pytorch", L=9)
    P = tensors["P"].requires_grad_()
    output = dplr_kernel(**{**tensors, "P": P, "Q": P}, L=9, backend="pytorch")
    cotangent = normal(Generator().manual_seed(0), *output.shape, dtype=torch.float32).to(output)
    assert relative_error(torch.autograd.grad(output, P, cotangent)[0], grads["P"] + grads["Q"]) <= 1e-14


ISAS = ("avx512", "avx2", "portable")


@needs_native
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("L", [1, 2, 17, 1047])
@pytest.mark.parametrize(
    ("n", "r", "b", "c"), [(1, 1, 1, 1), (3, 1, 1, 2), (29, 2, 1, 1), (100, 1, 3, 1), (3, 3, 2, 2), (2, 8, 1, 1)]
)
def test_every_instruction_set(
    n: int, r: int, b: int, c: int, L: int, dtype: torch.dtype, isa: str, generator: Generator
) -> None:
    tensors = random_inputs(generator, dtype, n=n, r=r, b=b, c=c)
    with instruction_set(isa):
        assert_contract("dplr_kernel", tensors, "native", forward=FORWARD[dtype], L=L)


@needs_native
@needs_extended
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("coupling", [1, 1e-3])
@pytest.mark.parametrize("resonance", RESONANCES)
def test_every_instruction_set_on_roots_of_unity(resonance: tuple, coupling: float, isa: str) -> None:
    """Weakly coupled poles are poles of the kernel: nodes in double alone would cost 3e-12 to 2e-10."""
    tensors = resonant_inputs(*resonance, torch.complex128)
    tensors |= {name: coupling * tensors[name] for name in ("P", "Q")}
    with instruction_set(isa):
        kernel = dplr_kernel(**tensors, L=resonance[2], backend="native")
    assert relative_error(kernel, extended.dplr_kernel(**tensors, L=resonance[2])) <= 1e-12


@needs_native
@pytest.mark.parametrize(("H", "n", "L"), [(1, 3, 70001), (3, 29, 10006), (130, 4, 40)])
def test_threads_do_not_change_a_bit(H: int, n: int, L: int, generator: Generator) -> None:
    tensors = random_inputs(generator, torch.complex64, H=H, n=n, c=2)
    outcomes = []
    for count in (1, 2, 5):
        with threads(count):
            outcomes.append(evaluate("dplr_kernel", tensors, "native", L=L))
    for other in outcomes[1:]:
        assert torch.equal(other.output, outcomes[0].output)
        assert all(torch.equal(g, outcomes[0].grads[name]) for name, g in other.grads.items())


@needs_native
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"r": 9}, "a rank of at most 8, not 9"),
        ({"r": 2, "b": 30, "c": 3}, r"at most 128 sums, not 32 x 5 \(rank 2, 30 B and 3 C\)"),
    ],
)
def test_what_native_does_not_take_is_left_to_pytorch(sizes: dict, message: str, generator: Generator) -> None:
    tensors = random_inputs(generator, torch.complex64, **sizes)
    with pytest.raises(BackendUnavailableError, match=message):
        dplr_kernel(**tensors, L=5, backend="native")
    assert s4_fast.explain(dplr_kernel, **tensors, L=5).backend == "pytorch"


@needs_native
def test_native_is_the_automatic_choice_on_the_cpu(generator: Generator) -> None:
    tensors = random_inputs(generator, torch.complex64, r=8)
    assert s4_fast.explain(dplr_kernel, **tensors, L=5).backend == "native"
    on_meta = {name: t.to("meta") for name, t in tensors.items()}
    assert s4_fast.explain(dplr_kernel, **on_meta, L=5).backend == "pytorch"


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [({"rank": 9}, "rank must be at most 8"), ({"b": 127}, r"\(b \+ rank\)"), ({"L": 0}, "L must be at least 1")],
)
def test_the_library_refuses_what_it_does_not_take(change: dict, message: str) -> None:
    sizes = {"b": 1, "c": 1, "rank": 1, "H": 1, "n": 1, "L": 1, **change}
    t = torch.zeros(1, dtype=torch.complex128)
    with pytest.raises(RuntimeError, match=f"dplr_spectrum: .*{message}"):
        native_library.call("dplr_spectrum", t, t.dtype, *sizes.values(), t, t, t, t)


GOOD = {
    "w": torch.full((2, 3), -1 + 1j),
    "P": torch.ones(1, 2, 3, dtype=torch.complex64),
    "Q": torch.ones(1, 2, 3, dtype=torch.complex64),
    "B": torch.ones(1, 2, 3, dtype=torch.complex64),
    "C": torch.ones(1, 2, 3, dtype=torch.complex64),
    "dt": torch.ones(2, 1),
    "L": 5,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"w": GOOD["w"][0]}, ValueError, r"w of shape \(H, n\) with H, n >= 1, got \(3,\)"),
        ({"w": GOOD["w"][:, :0]}, ValueError, r"w of shape \(H, n\) with H, n >= 1, got \(2, 0\)"),
        ({"P": GOOD["w"]}, ValueError, r"P of shape \(k, 2, 3\) to fit w, got \(2, 3\)"),
        ({"B": GOOD["B"][..., :2]}, ValueError, r"B of shape \(k, 2, 3\) to fit w, got \(1, 2, 2\)"),
        ({"C": GOOD["C"][:0]}, ValueError, r"C of shape \(k, 2, 3\) to fit w, got \(0, 2, 3\)"),
        ({"Q": GOOD["Q"].expand(2, 2, 3)}, ValueError, r"P and Q of one shape, got P \(1, 2, 3\), Q \(2, 2, 3\)"),
        ({"dt": torch.ones(2)}, ValueError, r"dt of shape \(2, 1\) or \(2, 3\), got \(2,\)"),
        ({"dt": GOOD["dt"].double()}, TypeError, "one precision, got w complex64, .* dt float64"),
        ({"dt": GOOD["dt"] + 0j}, TypeError, r"dt to be float32 or float64, got complex64 of shape \(2, 1\)"),
        ({"P": GOOD["P"].real}, TypeError, r"P to be complex64 or complex128, got float32 of shape \(1, 2, 3\)"),
        ({"w": GOOD["w"].real.long()}, TypeError, r"w to be complex64 or complex128, got int64"),
        ({"C": GOOD["C"].to("meta")}, ValueError, "one device, got w on cpu, .* C on meta, dt on cpu"),
        ({"L": 0}, ValueError, "L >= 1, got L = 0"),
        ({"L": -1}, ValueError, "L >= 1, got L = -1"),
        ({"L": 5.0}, TypeError, "L to be an int, got float"),
        ({"L": True}, TypeError, "L to be an int, got bool"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^dplr_kernel: expected .*{message}"):
        dplr_kernel(**{**GOOD, **change})
