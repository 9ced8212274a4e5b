from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from s4_fast import DiagonalSSM, fft_conv
from s4_fast.ssm import initialization
from s4_fast.ssm.discretization import bilinear, zoh
from tests.helpers import relative_error

DATA = Path(__file__).parents[1] / "data"
DENSE = {"zoh": zoh, "bilinear": bilinear}
SETTINGS = [(init, "zoh") for init in ("lin", "inv", "legs", "rand")] + [("lin", "bilinear"), ("legs", "bilinear")]


def build(generator: torch.Generator, init: str = "lin", discretization: str = "zoh", **options) -> DiagonalSSM:
    options = {"d_model": 4, "d_state": 16, "channels": 2, "n_ssm": 2, **options}
    return DiagonalSSM(**options, init=init, discretization=discretization, generator=generator).double()


def dense(ssm: DiagonalSSM) -> tuple[Tensor, Tensor, Tensor]:
    """A_bar (H, N, N), B_bar (H, N), C (c, H, N) on all conjugate pairs, differentiable in the parameters."""

    def both(t: Tensor) -> Tensor:
        return torch.cat((t, t.conj()), -1)

    repeats = ssm.d_model // ssm.n_ssm
    A = both(torch.complex(-ssm.A_real.exp(), -ssm.A_imag).repeat(repeats, 1))
    B = both(torch.view_as_complex(ssm.B)[0].repeat(repeats, 1))
    A_bar, B_bar = DENSE[ssm.discretization](torch.diag_embed(A), B, ssm.inv_dt.exp()[:, 0])
    return A_bar, B_bar, both(torch.view_as_complex(ssm.C))


def definition(ssm: DiagonalSSM, L: int) -> Tensor:
    """K[l] = C A_bar^l B_bar, by powers."""
    A_bar, state, C = dense(ssm)
    taps = []
    for _ in range(L):
        taps.append(torch.einsum("chn,hn->ch", C, state).real)
        state = torch.einsum("hij,hj->hi", A_bar, state)
    return torch.stack(taps, -1)


def run(ssm: DiagonalSSM, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (batch, channels, d_model, L) and the last state of stepping through u."""
    outputs = []
    for position in range(u.shape[-1]):
        y, state = ssm.step(u[..., position], state)
        outputs.append(y)
    return torch.stack(outputs, -1), state


def gradients(ssm: DiagonalSSM, output: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of the output, also where the output does not depend on a leaf."""
    leaves = {**dict(ssm.named_parameters()), **{f"input {i}": t for i, t in enumerate(inputs)}}
    weights = torch.polar(torch.ones(()).double(), torch.arange(output.numel()).double()).view(output.shape)
    loss = (output * weights).real.sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    errors = {name: relative_error(got[name].detach(), want[name].detach()) for name in want}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("diag_*.npz")))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_official_checkpoints_give_the_official_kernel_and_state(name, dtype, tolerance):
    golden = np.load(DATA / f"{name}.npz")
    options = json.loads(str(golden["config"]))["kwargs"]
    prefix = "sd.layer.kernel."
    state_dict = {key.removeprefix(prefix): torch.tensor(golden[key]) for key in golden if key.startswith(prefix)}
    ssm = DiagonalSSM(
        options["d_model"],
        options["d_state"],
        channels=len(state_dict["C"]),
        n_ssm=options.get("n_ssm"),
        discretization=options.get("disc", "zoh"),
    ).to(dtype)
    ssm.load_state_dict(state_dict)

    kernel = torch.tensor(golden["k"])
    with torch.no_grad():
        assert relative_error(ssm.impulse_response(kernel.shape[-1]), kernel) < tolerance
        _, state = run(ssm, torch.tensor(golden["u"]).to(dtype), ssm.init_state(2))
    assert relative_error(state, torch.tensor(golden["step_state"])) < tolerance


@pytest.mark.parametrize(("init", "discretization"), SETTINGS)
def test_kernel_is_made_of_powers_of_the_dense_discretisation(init, discretization, generator):
    ssm = build(generator, init, discretization)
    got, want = ssm.impulse_response(60), definition(ssm, 60)
    assert got.shape == (2, 4, 60)
    assert_close({"kernel": got}, {"kernel": want}, 1e-12)
    assert_close(gradients(ssm, got), gradients(ssm, want), 1e-10)


@pytest.mark.parametrize(("init", "discretization"), SETTINGS)
def test_stepping_is_the_convolution(init, discretization, generator):
    ssm = build(generator, init, discretization)
    u = torch.randn(3, 4, 90, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        y, _ = run(ssm, u, ssm.init_state(3))
        assert relative_error(y, fft_conv(u, ssm.impulse_response(90))) < 1e-12


# In the second the phase turns by almost pi a step, with little damping: a rounded lambda drifts by 2e-5.
@pytest.mark.parametrize(("init", "discretization"), [("lin", "zoh"), ("legs", "bilinear")])
def test_stepping_in_float32_stays_the_convolution_for_2000_steps(init, discretization, generator):
    ssm = build(generator, init, discretization, d_model=2, d_state=64).float()
    u = torch.randn(1, 2, 2000, generator=generator)
    with torch.no_grad():
        y, _ = run(ssm, u, ssm.init_state(1))
        kernel = copy.deepcopy(ssm).double().impulse_response(2000)
        assert relative_error(y, fft_conv(u.double(), kernel)) < 2e-6


def test_float32_kernel_is_the_float64_kernel_of_the_same_parameters(generator):
    # dt A is rounded to float32, and the kernel magnifies that by up to |Im A / Re A| / e, here 72.
    ssm = build(generator, "lin", d_state=64).float()
    with torch.no_grad():
        assert (
            relative_error(ssm.impulse_response(2000), copy.deepcopy(ssm).double().impulse_response(2000)) < 72 * 2**-23
        )


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("split", [0, 1, 23, 49, 50])
def test_forward_state_is_stepping_and_splits_anywhere(discretization, split, generator):
    ssm = build(generator, "legs", discretization)
    u = torch.randn(3, 4, 50, dtype=torch.float64, generator=generator)
    start = torch.randn(3, 4, 8, dtype=torch.complex128, generator=generator)
    with torch.no_grad():
        _, want = run(ssm, u, start)
        got = ssm.forward_state(u[..., split:], ssm.forward_state(u[..., :split], start))
    assert relative_error(got, want) < 1e-12


def test_forward_state_keeps_the_phase_of_a_weakly_damped_state_over_1e5_steps():
    A = torch.tensor([complex(-1e-4, 9.7), complex(-1e-4, 3.1)])
    ssm = DiagonalSSM(2, 4, init=(A, torch.ones_like(A)), dt_min=0.1, dt_max=0.1)
    start = torch.ones(1, 2, 2, dtype=torch.complex64)
    L = 100_000
    with torch.no_grad():
        got = ssm.forward_state(torch.zeros(1, 2, L), start)
        x = copy.deepcopy(ssm).double().discretize()[0]
    assert relative_error(got, torch.exp(L * x)[None]) < 2e-6


def test_gradients_of_step_and_forward_state_are_those_of_the_dense_recurrence(generator):
    ssm = build(generator, "legs", "bilinear")
    u = torch.randn(2, 4, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    start = torch.randn(2, 4, 8, dtype=torch.complex128, generator=generator, requires_grad=True)
    A_bar, B_bar, C = dense(ssm)
    state, outputs = torch.cat((start, start.conj()), -1), []
    for position in range(12):
        state = torch.einsum("hij,bhj->bhi", A_bar, state) + B_bar * u[..., position, None]
        outputs.append(torch.einsum("chn,bhn->bch", C, state).real)
    y, last = run(ssm, u, start)
    for got, want in ((y, torch.stack(outputs, -1)), (last, state[..., :8]), (ssm.forward_state(u, start), last)):
        assert_close(gradients(ssm, got, u, start), gradients(ssm, want, u, start), 1e-10)


def test_copies_of_A_and_B_are_shared_in_turn(generator):
    ssm = build(generator, "rand", d_model=6, n_ssm=3)
    assert torch.equal(ssm.A()[:3], ssm.A()[3:])
    other = build(generator, "rand", d_model=6, n_ssm=None)
    assert other.n_ssm == 6 and other.A_real.shape == (6, 8)


def test_parameters_have_the_official_names_and_shapes(generator):
    shapes = {name: tuple(t.shape) for name, t in build(generator).state_dict().items()}
    assert shapes == {
        "inv_dt": (4, 1), "A_real": (2, 8), "A_imag": (2, 8), "B": (1, 2, 8, 2), "C": (2, 4, 8, 2),
    }  # fmt: skip


def test_init_takes_tensors_of_each_shared_copy(generator):
    A, B = initialization.diagonal("legs", 8)
    ssm = DiagonalSSM(4, 8, init=(torch.stack((A, 2 * A)), torch.stack((B, 3 * B))), n_ssm=2, generator=generator)
    torch.testing.assert_close(ssm.A()[:2], torch.stack((A, 2 * A)).to(torch.complex64))
    torch.testing.assert_close(torch.view_as_complex(ssm.B)[0, 1], 3 * B.to(torch.complex64))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init": "nope"}, ValueError, "DiagonalSSM: unknown init 'nope'; expected .*lin, inv,.*legs"),
        ({"init": torch.ones(8)}, TypeError, r"name or the tensors \(A, B\)"),
        ({"init": (torch.ones(8),)}, TypeError, r"name or the tensors \(A, B\)"),
        ({"init": (torch.full((8,), 0.1 + 1j), torch.ones(8) + 0j)}, ValueError, r"Re <= 0.*8 of 8"),
        ({"init": (torch.full((3,), -1 + 1j), torch.ones(3) + 0j)}, ValueError, r"d_state = 16, got A \(3,\)"),
        ({"discretization": "euler"}, ValueError, r"'euler'.*zoh, bilinear"),
        ({"d_state": 7}, ValueError, r"even.*7"),
        ({"d_state": 0}, ValueError, r"0"),
        ({"d_model": 0}, ValueError, r"d_model must be at least 1, got 0"),
        ({"channels": True}, TypeError, r"channels must be an int, got bool"),
        ({"n_ssm": 3}, ValueError, r"n_ssm = 3, d_model = 4"),
        ({"dt_min": 0.2}, ValueError, r"dt_min = 0.2"),
        ({"lr": float("nan")}, ValueError, r"lr must be at least 0, got nan"),
        ({"lr": -1.0}, ValueError, r"lr must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        DiagonalSSM(**{"d_model": 4, "d_state": 16, **options})


@pytest.mark.parametrize("L", [0, -1])
def test_kernel_refuses_lengths_below_one(L, generator):
    with pytest.raises(ValueError, match=f"L >= 1, got L = {L}"):
        build(generator).impulse_response(L)


def test_compiled_kernel_and_gradients(generator):
    ssm = build(generator)
    compiled = torch.compile(ssm.impulse_response, fullgraph=True, backend="aot_eager")
    got, want = compiled(33), ssm.impulse_response(33)
    assert_close({"kernel": got}, {"kernel": want}, 1e-14)
    assert_close(gradients(ssm, got), gradients(ssm, want), 1e-13)
