from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from s4_fast import DPLRSSM, DiagonalSSM, dispatch, fft_conv, use_backend
from s4_fast.ssm import initialization
from s4_fast.ssm.discretization import bilinear
from s4_fast.ssm.parameters import SSMParameters
from tests.helpers import needs_native, relative_error

DATA = Path(__file__).parents[1] / "data"
INITS = [("legs", 1), ("legt", 2), ("fout", 1), ("legs", 3)]
C128 = torch.complex128


def build(generator: torch.Generator, init: str = "legs", rank: int = 1, **options) -> DPLRSSM:
    options = {"d_model": 4, "d_state": 16, "channels": 2, "n_ssm": 2, **options}
    return DPLRSSM(**options, init=init, rank=rank, generator=generator).double()


def dense(ssm: DPLRSSM) -> tuple[Tensor, Tensor, Tensor]:
    """A_bar (H, N, N), B_bar (H, N), C (c, H, N) on all conjugate pairs, differentiable in the parameters."""

    def both(t: Tensor) -> Tensor:
        return torch.cat((t, t.conj()), -1)

    def shared(t: Tensor) -> Tensor:
        return both(torch.cat([t] * (ssm.d_model // ssm.n_ssm), -2))

    P = shared(torch.view_as_complex(ssm.P))
    A = torch.diag_embed(shared(torch.complex(-ssm.A_real.exp(), -ssm.A_imag)))
    A = A - torch.einsum("rhi,rhj->hij", P, P.conj())
    A_bar, B_bar = bilinear(A, shared(torch.view_as_complex(ssm.B)[0]), ssm.inv_dt.exp()[:, 0])
    return A_bar, B_bar, both(torch.view_as_complex(ssm.C))


def definition(ssm: DPLRSSM, L: int) -> Tensor:
    """K[l] = C A_bar^l B_bar, by powers."""
    A_bar, state, C = dense(ssm)
    taps = []
    for _ in range(L):
        taps.append(torch.einsum("chn,hn->ch", C, state).real)
        state = torch.einsum("hij,hj->hi", A_bar, state)
    return torch.stack(taps, -1)


def run(ssm: SSMParameters, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (batch, channels, d_model, L) and the last state of stepping through u."""
    outputs = []
    for position in range(u.shape[-1]):
        y, state = ssm.step(u[..., position], state)
        outputs.append(y)
    return torch.stack(outputs, -1), state


def gradients(ssm: DPLRSSM, output: Tensor, *inputs: Tensor, retain: bool = True) -> dict[str, Tensor]:
    """Of a weighted sum of the output, also where the output does not depend on a leaf."""
    leaves = {**dict(ssm.named_parameters()), **{f"input {i}": t for i, t in enumerate(inputs)}}
    weights = torch.polar(torch.ones(()).double(), torch.arange(output.numel()).double()).view(output.shape)
    loss = (output * weights).real.sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=retain, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    errors = {name: relative_error(got[name].detach(), want[name].detach()) for name in want}
    assert max(errors.values()) < tolerance, errors


class Golden:
    def __init__(self, path: Path) -> None:
        self.arrays = np.load(path)
        self.options = json.loads(str(self.arrays["config"]))["kwargs"]

    def __getitem__(self, key: str) -> Tensor:
        return torch.tensor(self.arrays[key])

    def load(self, when: str, dtype: torch.dtype = torch.float64) -> DPLRSSM:
        prefix = f"{when}.layer.kernel."
        state_dict = {key.removeprefix(prefix): self[key] for key in self.arrays if key.startswith(prefix)}
        options = {name: self.options[name] for name in ("d_model", "d_state") if name in self.options}
        ssm = DPLRSSM(**options, channels=len(state_dict["C"])).to(dtype)
        ssm.load_state_dict(state_dict)
        return ssm


NAMES = sorted(path.stem for path in DATA.glob("dplr_*.npz"))


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(DATA / f"{request.param}.npz")


# Checkpoints of the official code


@pytest.mark.parametrize("when", ["sd", "sd_after"])  # before and after the first forward: C, and C_tilde in its place
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_official_checkpoints_give_the_official_kernel(golden, when, dtype, tolerance):
    kernel = golden["k"]
    with torch.no_grad():
        got = golden.load(when, dtype).impulse_response(kernel.shape[-1])
    assert relative_error(got, kernel) < tolerance


def test_official_checkpoints_are_converted_and_say_so(golden, caplog):
    plain = golden.load("sd")
    assert not caplog.records
    converted = golden.load("sd_after")
    assert relative_error(converted.C.detach(), plain.C.detach()) < 1e-10
    length = int(golden["sd_after.layer.kernel.l_kernel"])
    assert [r.getMessage() for r in caplog.records] == [
        f"C: C of the checkpoint was truncated for length {length}; it is loaded as plain C"
    ]
    assert "l_kernel" not in converted.state_dict()


# The official bidirectional layer cannot step.
@pytest.mark.parametrize("golden", [name for name in NAMES if name != "dplr_bidirectional"], indirect=True)
@pytest.mark.parametrize("when", ["sd", "sd_after"])
def test_official_checkpoints_step_to_the_official_state(golden, when):
    ssm = golden.load(when)
    with torch.no_grad():
        _, state = run(ssm, golden["u"], ssm.init_state(2))
        A_bar, B_bar, _ = dense(ssm)
    assert relative_error(state, golden["step_state"][..., : state.shape[-1]]) < 1e-10
    assert relative_error(A_bar, golden["step_dA"]) < 1e-10
    assert relative_error(B_bar, golden["step_dB"]) < 1e-10


# Kernel, step and state against the definition


@pytest.mark.parametrize(("init", "rank"), INITS)
@pytest.mark.parametrize("L", [2, 40, 41])
def test_kernel_is_made_of_powers_of_the_dense_discretisation(init, rank, L, generator):
    ssm = build(generator, init, rank)
    with torch.no_grad():
        plain = definition(ssm, L)
    got = ssm.impulse_response(L)
    assert got.shape == (2, 4, L)
    assert relative_error(got.detach(), plain) < 1e-11
    # FouT has a mode that stands still, w = -1e-4: its gradient loses |1 - lambda^L|^-2 of float64's digits.
    assert_close(gradients(ssm, got), gradients(ssm, definition(ssm, L)), 1e-5 if init == "fout" else 1e-9)


@pytest.mark.parametrize(("init", "rank"), INITS)
def test_stepping_is_the_convolution(init, rank, generator):
    ssm = build(generator, init, rank)
    with torch.no_grad():
        kernel = definition(ssm, 90)
        u = torch.randn(3, 4, 90, dtype=torch.float64, generator=generator)
        y, _ = run(ssm, u, ssm.init_state(3))
    assert relative_error(y, fft_conv(u, kernel)) < 1e-12


# FouT turns by up to pi 32 dt a step, with little damping: the rounding of dt A alone is 3e-6.
@pytest.mark.parametrize(("init", "rank", "tolerance"), [("legs", 1, 4e-6), ("legt", 2, 4e-6), ("fout", 1, 1e-5)])
def test_stepping_in_float32_stays_the_convolution_for_2000_steps(init, rank, tolerance, generator):
    ssm = build(generator, init, rank, d_model=2, d_state=64).float()
    u = torch.randn(1, 2, 2000, generator=generator)
    with torch.no_grad():
        y, state = run(ssm, u, ssm.init_state(1))
        assert relative_error(y, fft_conv(u, ssm.impulse_response(2000))) < tolerance
        assert relative_error(ssm.forward_state(u, ssm.init_state(1)), state) < tolerance


@pytest.mark.parametrize(("init", "rank"), INITS)
@pytest.mark.parametrize("split", [0, 1, 23, 49, 50])
def test_forward_state_is_stepping_and_splits_anywhere(init, rank, split, generator):
    ssm = build(generator, init, rank)
    u = torch.randn(3, 4, 50, dtype=torch.float64, generator=generator)
    start = torch.randn(3, 4, 8, dtype=C128, generator=generator)
    with torch.no_grad():
        _, want = run(ssm, u, start)
        got = ssm.forward_state(u[..., split:], ssm.forward_state(u[..., :split], start))
    assert relative_error(got, want) < 1e-12


def test_gradients_of_step_and_forward_state_are_those_of_the_dense_recurrence(generator):
    ssm = build(generator, "legt", 2)
    u = torch.randn(2, 4, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    start = torch.randn(2, 4, 8, dtype=C128, generator=generator, requires_grad=True)
    A_bar, B_bar, C = dense(ssm)
    state, outputs = torch.cat((start, start.conj()), -1), []
    for position in range(12):
        state = torch.einsum("hij,bhj->bhi", A_bar, state) + B_bar * u[..., position, None]
        outputs.append(torch.einsum("chn,bhn->bch", C, state).real)
    y, last = run(ssm, u, start)
    for got, want in ((y, torch.stack(outputs, -1)), (last, state[..., :8]), (ssm.forward_state(u, start), last)):
        assert_close(gradients(ssm, got, u, start), gradients(ssm, want, u, start), 1e-9)


# Lengths


@pytest.mark.parametrize(("init", "rank"), INITS)
def test_a_shorter_kernel_is_a_prefix(init, rank, generator):
    ssm = build(generator, init, rank)
    before = {name: t.clone() for name, t in ssm.state_dict().items()}
    with torch.no_grad():
        want = definition(ssm, 300)
        for L in (8, 150, 37, 300, 1):
            assert relative_error(ssm.impulse_response(L), want[..., :L]) < 1e-10, L
    assert all(torch.equal(t, before[name]) for name, t in ssm.state_dict().items())


@pytest.mark.parametrize(("init", "rank", "tolerance"), [("legs", 1, 2e-6), ("legt", 2, 2e-6), ("fout", 1, 1e-5)])
def test_a_shorter_kernel_in_float32_is_a_prefix(init, rank, tolerance, generator):
    ssm = build(generator, init, rank, d_state=64).float()
    with torch.no_grad():
        want = ssm.impulse_response(500)
        for L in (1, 8, 100, 500, 37):
            assert relative_error(ssm.impulse_response(L), want[..., :L]) < tolerance, L


@pytest.mark.parametrize(("init", "rank"), INITS)
@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_response_and_free_response_are_powers_at_the_rate(init, rank, rate, generator):
    ssm = build(generator, init, rank)
    state = torch.randn(3, 4, 8, dtype=C128, generator=generator)
    coarse = copy.deepcopy(ssm)
    with torch.no_grad():
        coarse.inv_dt.add_(torch.tensor(rate, dtype=torch.float64).log())
        A_bar, _, C = dense(coarse)
        rows, s = [], torch.cat((state, state.conj()), -1)
        for _ in range(12):
            rows.append(torch.einsum("chn,bhn->bch", C, s).real)
            s = torch.einsum("hij,bhj->bhi", A_bar, s)
        want = torch.stack(rows, -1)
        assert relative_error(ssm.response(state, 11, rate), want[..., :11]) < 1e-12
        assert relative_error(ssm.free_response(state, 11, rate), want[..., 1:]) < 1e-12
        assert relative_error(ssm.propagator(rate)(state, 12), s[..., :8]) < 1e-12
        assert relative_error(ssm.impulse_response(9, rate), definition(coarse, 9)) < 1e-11


def test_rows_of_all_lengths_end_where_they_should(generator):
    ssm = build(generator)
    u = torch.randn(4, 4, 20, dtype=torch.float64, generator=generator)
    start = torch.randn(4, 4, 8, dtype=C128, generator=generator)
    lengths = torch.tensor([1, 20, 7, 16])
    with torch.no_grad():
        for state in (None, start):
            got = ssm.forward_state(u, state, lengths)
            for row, length in enumerate(lengths):
                before = None if state is None else state[row : row + 1]
                want = ssm.forward_state(u[row : row + 1, :, :length], before)
                assert relative_error(got[row : row + 1], want) < 1e-12


# Checkpoints of earlier versions


def test_earlier_checkpoints_that_are_damaged_are_refused(generator):
    ssm = build(generator)
    before = {name: t.clone() for name, t in ssm.state_dict().items()}
    good = {name: torch.randn_like(t) for name, t in before.items()}
    for wrong, message in (
        (torch.tensor(-3), "l_kernel: expected a length of at least 0, got -3"),
        (torch.tensor(2.5), "l_kernel: expected a length of at least 0, got 2.5"),
        (torch.tensor([3, 4]), "l_kernel: expected one whole number"),
        (torch.tensor(float("nan")), "l_kernel: expected a length of at least 0, got nan"),
    ):
        for module in (ssm, torch.nn.Sequential(ssm)):
            prefix = "" if module is ssm else "0."
            state_dict = {prefix + name: t for name, t in {**good, "l_kernel": wrong}.items()}
            with pytest.raises(RuntimeError, match=message):
                module.load_state_dict(state_dict)
            assert all(torch.equal(t, before[name]) for name, t in ssm.state_dict().items())


def test_a_length_that_is_missing_from_an_earlier_checkpoint_is_missed(generator):
    ssm = build(generator)
    state_dict = ssm.state_dict()
    state_dict._metadata[""]["version"] = 1
    with pytest.raises(RuntimeError, match="l_kernel: missing beside C, which is truncated"):
        ssm.load_state_dict(state_dict)
    ssm.load_state_dict({**state_dict, "l_kernel": torch.tensor(0)})
    ssm.load_state_dict(ssm.state_dict())


def test_a_checkpoint_in_half_precision_is_converted_in_full(generator):
    ssm = build(generator)
    half = {name: t.bfloat16() for name, t in ssm.state_dict().items()}
    ssm.load_state_dict(half)
    A_bar, _, C = dense(ssm)
    plain = torch.linalg.solve(torch.eye(16) - torch.linalg.matrix_power(A_bar, 9), C.transpose(0, 1), left=False)
    other = build(generator)
    other.load_state_dict({**half, "l_kernel": torch.tensor(9)})
    assert relative_error(torch.view_as_complex(other.C).detach(), plain.transpose(0, 1)[..., :8].detach()) < 1e-2
    assert half["C"].dtype == torch.bfloat16


@needs_native
@pytest.mark.parametrize(("init", "rank"), INITS)
def test_native_steps_are_those_of_pytorch(init, rank, generator):
    ssm = build(generator, init, rank).float()
    u, state = torch.randn(3, 4, 50, generator=generator), ssm.init_state(3)
    with torch.no_grad(), mock.patch.object(dispatch, "load", wraps=dispatch.load) as load:
        got = run(ssm, u, state)
    assert {call.args for call in load.call_args_list} == {("dplr_step", "native")}
    with torch.no_grad(), use_backend("pytorch"):
        want = run(ssm.double(), u.double(), state.to(C128))
    assert all(relative_error(*pair) < 1e-5 for pair in zip(got, want, strict=True))


# What DPLRSSM and DiagonalSSM share

BOTH = pytest.mark.parametrize("cls", [DiagonalSSM, DPLRSSM])
Change = Callable[[SSMParameters, SSMParameters], object]


def optimise(ssm: SSMParameters, optimiser: type[torch.optim.Optimizer], **options) -> None:
    with torch.enable_grad():
        step = optimiser(ssm.parameters(), lr=0.1, **options)
        ssm.impulse_response(6).square().sum().backward()
        step.step()


def assign_data(ssm: SSMParameters, times: int) -> None:
    for _ in range(times):
        ssm.C.data = ssm.C.data * 2


CHANGES: dict[str, Change] = {
    "SGD": lambda ssm, other: optimise(ssm, torch.optim.SGD, foreach=True),
    "AdamW": lambda ssm, other: optimise(ssm, torch.optim.AdamW, fused=True),
    "load_state_dict": lambda ssm, other: ssm.load_state_dict(other.state_dict()),
    "assign": lambda ssm, other: ssm.load_state_dict(other.state_dict(), assign=True),
    "to": lambda ssm, other: ssm.to(torch.float64),
    "data": lambda ssm, other: assign_data(ssm, 1),
    "in place": lambda ssm, other: ssm.A_imag.mul_(2),
    "detached": lambda ssm, other: ssm.inv_dt.detach().sub_(1),
    "swap": lambda ssm, other: torch.utils.swap_tensors(ssm.C, torch.nn.Parameter(ssm.C.detach() * 2)),
    "data in place": lambda ssm, other: ssm.C.data.mul_(2),
    "numpy": lambda ssm, other: np.multiply(ssm.A_real.detach().numpy(), 1.1, out=ssm.A_real.detach().numpy()),
    "vector": lambda ssm, other: torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(other.parameters()), ssm.parameters()
    ),
}


def make(cls: type[SSMParameters], generator: torch.Generator, **options) -> SSMParameters:
    return cls(**{"d_model": 4, "d_state": 8, **options}, generator=generator)


def output(ssm: SSMParameters) -> Tensor:
    """Of two steps, the second from a state that depends on A and B."""
    u = torch.ones(1, 4, 2, dtype=ssm.C.dtype)
    return run(ssm, u, ssm.init_state(1))[0]


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[SSMParameters], list[int]]:
    """The list that grows by an entry whenever the module is discretised."""

    def watch(ssm: SSMParameters) -> list[int]:
        calls: list[int] = []
        discretize = ssm._stepper
        monkeypatch.setattr(ssm, "_stepper", lambda: (calls.append(1), discretize())[1])
        return calls

    return watch


@BOTH
def test_steps_discretise_once_while_nothing_changes(cls, generator, count):
    ssm = make(cls, generator)
    calls = count(ssm)
    with torch.no_grad():
        for _ in range(3):
            output(ssm)
    with torch.inference_mode():
        output(ssm)
    assert len(calls) == 1
    ssm.train()
    ssm.state_dict()
    copy.deepcopy(ssm)
    with torch.no_grad():
        output(ssm)
    assert len(calls) == 1


@BOTH
def test_steps_that_record_gradients_remember_nothing(cls, generator):
    ssm = make(cls, generator)
    with torch.no_grad():
        want = output(ssm)
    got = output(ssm)
    assert relative_error(got.detach(), want) <= 2e-6
    got.sum().backward()
    assert all(p.grad is not None for p in ssm.parameters())


# Inference mode neither trains nor replaces parameters.
IN_INFERENCE = ("load_state_dict", "to", "in place", "detached", "data in place", "numpy")


@BOTH
@pytest.mark.parametrize(
    ("change", "context"),
    [*((name, torch.no_grad) for name in CHANGES), *((name, torch.inference_mode) for name in IN_INFERENCE)],
)
def test_steps_notice_changed_parameters(cls, change, context, generator):
    ssm, other = make(cls, generator), make(cls, generator)
    with torch.no_grad():
        before = output(ssm)
    with context():
        CHANGES[change](ssm, other)
    with torch.no_grad():
        after, want = output(ssm), output(copy.deepcopy(ssm))
    assert torch.equal(after, want)
    # The test would show nothing if the change did not change the output.
    unchanged = change == "to"
    assert torch.allclose(after.float(), before, rtol=1e-4, atol=1e-6) == unchanged


@BOTH
def test_steps_notice_new_memory_at_an_old_address(cls, generator):
    # Whether the allocator returns the address again is its choice: of 20 times, it mostly does some.
    ssm = make(cls, generator, d_state=64)
    with torch.no_grad():
        for _ in range(20):
            before = output(ssm)
            assign_data(ssm, 2)
            assert relative_error(output(ssm), 4 * before) < 1e-4


@BOTH
def test_inference_tensors_are_loaded_like_others(cls, generator):
    with torch.inference_mode():
        ssm, other = make(cls, generator), make(cls, generator)
        output(ssm)
        ssm.load_state_dict(other.state_dict())
        assert torch.equal(output(ssm), output(other))


@BOTH
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda ssm: pickle.loads(pickle.dumps(ssm))])
def test_copies_keep_the_marks_and_forget_the_cache(cls, duplicate, generator):
    ssm = make(cls, generator, lr=2e-4)
    ssm.B._optim["lr"] = 5e-4  # as somebody may have set it
    with torch.no_grad():
        ssm.impulse_response(10)
        want = output(ssm)
        double = duplicate(ssm)
        assert double._memo._kept is None
        assert torch.equal(output(double), want)
        double.C.mul_(2)
        assert torch.equal(output(ssm), want)
    assert marks(double) == marks(ssm)
    assert double.B._optim is not ssm.B._optim


def marks(ssm: SSMParameters) -> dict[str, dict[str, float]]:
    return {name: dict(getattr(p, "_optim", {})) for name, p in ssm.named_parameters()}


@BOTH
@pytest.mark.parametrize(("lr", "mark"), [(None, {"weight_decay": 0.0}), (2e-4, {"weight_decay": 0.0, "lr": 2e-4})])
def test_all_parameters_but_C_are_marked(cls, lr, mark, generator):
    ssm = make(cls, generator, lr=lr)
    assert marks(ssm) == {name: {} if name == "C" else mark for name in dict(ssm.named_parameters())}


@BOTH
def test_marks_survive_what_replaces_parameters(cls, generator):
    with torch.device("meta"):
        ssm = make(cls, generator, lr=2e-4)
    want, checkpoint = marks(ssm), make(cls, generator).state_dict()
    assert marks(ssm.to_empty(device="cpu")) == want
    ssm.load_state_dict(checkpoint, assign=True)
    assert marks(ssm) == want
    assert marks(ssm.double()) == want


@BOTH
def test_modules_are_made_on_the_default_device_and_filled_later(cls, generator):
    source = make(cls, generator)
    want = source.impulse_response(12)
    for assign in (False, True):
        with torch.device("meta"):
            ssm = make(cls, generator)
        assert {t.device.type for t in ssm.state_dict().values()} == {"meta"}
        if not assign:
            ssm.to_empty(device="cpu")
        ssm.load_state_dict(source.state_dict(), assign=assign)
        assert torch.equal(ssm.impulse_response(12), want)


@BOTH
def test_modules_follow_the_default_dtype(cls, generator):
    torch.set_default_dtype(torch.float64)
    try:
        ssm = make(cls, generator)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in ssm.parameters()} == {torch.float64}
    assert ssm.impulse_response(5).dtype == torch.float64 and ssm.init_state(2).dtype == C128


@BOTH
def test_a_generator_fixes_the_initial_values(cls):
    one, same, other = (make(cls, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["C"], other["C"]) and not torch.equal(one["inv_dt"], other["inv_dt"])


@BOTH
def test_autocast_does_not_touch_the_precision(cls, generator):
    ssm = make(cls, generator)
    u, state = torch.randn(2, 4, 30, generator=generator).bfloat16(), ssm.init_state(2)
    with torch.no_grad():
        want = ssm.impulse_response(30), ssm.forward_state(u.float(), state), ssm.step(u[..., 0].float(), state)[0]
        with torch.autocast("cpu", torch.bfloat16):
            got = ssm.impulse_response(30), ssm.forward_state(u, state), ssm.step(u[..., 0], state)[0]
    assert got[2].dtype == torch.bfloat16
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w.to(g.dtype))


@BOTH
@pytest.mark.parametrize(
    ("u", "state", "error", "message"),
    [
        ((2, 5), (2, 4, 4), ValueError, r"u of shape \(batch, 4(, L)?\), got \(2, 5"),
        ((2,), (2, 4, 4), ValueError, r"u of shape \(batch, 4(, L)?\), got \(2"),
        ((2, 4), (1, 4, 4), ValueError, r"state of shape \(2, 4, 4\) .* got \(1, 4, 4\)"),
        ((2, 4), (2, 4, 8), ValueError, r"state of shape \(2, 4, 4\) .* got \(2, 4, 8\)"),
        ((2, 4), (4, 4), ValueError, r"state of shape \(2, 4, 4\) .* got \(4, 4\)"),
        ((2, 4), torch.zeros(2, 4, 4), TypeError, r"complex64, got torch.float32"),
        ((2, 4), torch.zeros(2, 4, 4, dtype=C128), TypeError, r"complex64, got torch.complex128"),
        (torch.zeros(2, 4, 3, dtype=torch.float64), (2, 4, 4), TypeError, r"u to be torch.float32, got torch.float64"),
        ((2, 4), torch.zeros(2, 4, 4, dtype=torch.complex64, device="meta"), ValueError, r"u on cpu, state on meta"),
    ],
)
def test_wrong_inputs_are_refused_with_their_shapes(cls, u, state, error, message, generator):
    ssm = make(cls, generator)
    u = u if isinstance(u, Tensor) else torch.zeros(*u, 3)
    state = state if isinstance(state, Tensor) else torch.zeros(state, dtype=torch.complex64)
    with pytest.raises(error, match=message):
        ssm.forward_state(u, state)
    with pytest.raises(error, match=message):
        ssm.step(u[..., 0], state)


# Construction


def test_parameters_have_the_official_names_and_shapes(generator):
    shapes = {name: tuple(t.shape) for name, t in build(generator, "legt", 2).state_dict().items()}
    assert shapes == {
        "inv_dt": (4, 1), "A_real": (2, 8), "A_imag": (2, 8), "B": (1, 2, 8, 2), "C": (2, 4, 8, 2),
        "P": (2, 2, 8, 2),
    }  # fmt: skip


def test_init_takes_tensors(generator):
    w, P, B = initialization.dplr("legs", 16)
    given, named = (make(DPLRSSM, torch.Generator().manual_seed(0), d_state=16, init=i) for i in ((w, P, B), "legs"))
    assert all(torch.equal(given.state_dict()[name], t) for name, t in named.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init": "nope"}, ValueError, "DPLRSSM: unknown init 'nope'; expected .*legs, legt, lagt, fout.*diag-lin"),
        ({"init": "diag-nope"}, ValueError, "unknown init 'diag-nope'; expected .*diag-lin, diag-inv"),
        ({"init": torch.ones(8)}, TypeError, r"name or the tensors \(Lambda, P, B\)"),
        ({"init": (torch.full((8,), 0.1 + 1j), torch.ones(1, 8) + 0j, torch.ones(8) + 0j)}, ValueError, r"Re <= 0"),
        ({"init": (torch.full((8,), -1 + 1j), torch.ones(8) + 0j, torch.ones(8) + 0j)}, ValueError, r"\(rank, 8\)"),
        ({"init": "legt"}, ValueError, r"'legt' needs rank >= 2, got rank = 1"),
        ({"d_state": 7}, ValueError, r"even.*7"),
        ({"n_ssm": 3}, ValueError, r"n_ssm = 3, d_model = 4"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        DPLRSSM(**{"d_model": 4, "d_state": 16, **options})


@pytest.mark.parametrize("L", [0, -1])
def test_lengths_below_one_are_refused(L, generator):
    with pytest.raises(ValueError, match=f"L >= 1, got L = {L}"):
        build(generator).impulse_response(L)


# torch.compile


@pytest.mark.slow
def test_compiled_kernel_and_gradients(generator):
    ssm = build(generator, "legt", 2)
    compiled = torch.compile(ssm.impulse_response, fullgraph=True, backend="aot_eager")
    for L in (33, 40):
        got, want = compiled(L), ssm.impulse_response(L)
        assert relative_error(got.detach(), want.detach()) < 1e-14
        assert_close(gradients(ssm, got, retain=False), gradients(ssm, want), 1e-13)
