"""One step of DiagonalSSM and DPLRSSM: which backend runs, what is remembered, and exactness over many steps."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Generator, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from s4_fast import DPLRSSM, BackendUnavailableError, DiagonalSSM, dispatch, native_library, use_backend
from s4_fast.ops.dplr import reference as dplr_reference
from s4_fast.ops.scan import reference as scan_reference
from s4_fast.ssm.memo import Memo
from s4_fast.ssm.parameters import SSMParameters
from tests.helpers import needs_native, relative_error

BOTH = pytest.mark.parametrize("cls", [DiagonalSSM, DPLRSSM])
OPS = {DiagonalSSM: "ssm_step", DPLRSSM: "dplr_step"}
BACKENDS = ["pytorch", "reference", pytest.param("native", marks=needs_native)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def make(cls: type[SSMParameters], generator: Generator, **options: Any) -> SSMParameters:
    return cls(**{"d_model": 5, "d_state": 34, **options}, generator=generator)


def inputs(ssm: SSMParameters, generator: Generator, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """u, state and D."""
    state = ssm.init_state(batch)
    u = torch.randn(state.shape[:2], dtype=ssm.C.dtype, generator=generator)
    D = torch.randn(u.shape[1], dtype=u.dtype, generator=generator)
    return u, torch.randn(state.shape, dtype=state.dtype, generator=generator), D


def expected(ssm: SSMParameters, u: Tensor, state: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """In float64, of the discretisation in the module's precision."""
    coefficients = [t.to(torch.complex128) for t in ssm.discretize()]
    given, D = (u.double(), state.to(torch.complex128)), torch.zeros(5).double() if D is None else D.double()
    if isinstance(ssm, DPLRSSM):
        return dplr_reference.dplr_step(*given, *coefficients, D)
    x, B, C = coefficients
    outputs = [scan_reference.ssm_step(*given, x, B, channel, D) for channel in C]
    return torch.stack([y for y, _ in outputs], 1), outputs[0][1]


@contextmanager
def calls() -> Iterator[dict[str, int]]:
    """How often each backend steps in this block: native by prepared calls, pytorch where no other does."""
    seen = {"native": 0, "reference": 0}

    def counted(name: str, function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return function(*args, **kwargs)

        return wrapper

    with (
        mock.patch.object(native_library.Prepared, "__call__", counted("native", native_library.Prepared.__call__)),
        mock.patch.object(dplr_reference, "dplr_step", counted("reference", dplr_reference.dplr_step)),
        mock.patch.object(scan_reference, "ssm_step", counted("reference", scan_reference.ssm_step)),
    ):
        yield seen


# Which backend


@BOTH
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_backend_and_any_number_of_channels(cls, backend, channels, dtype, batch, generator):
    ssm = make(cls, generator, channels=channels, **({"init": "legt", "rank": 2} if cls is DPLRSSM else {})).to(dtype)
    u, state, D = inputs(ssm, generator, batch)
    before = state.clone()
    tolerance = 2e-6 if dtype is torch.float32 else 1e-12
    for skip in (None, D):
        for recording in (False, True):
            if recording and backend == "native" and cls is DPLRSSM:
                continue  # it has no gradients
            with torch.set_grad_enabled(recording), use_backend(backend):
                y, after = ssm.step(u, state, skip)
            want = expected(ssm, u, state, skip)
            assert y.shape == (batch, channels, 5) and (y.dtype, after.dtype) == (dtype, state.dtype)
            assert y.requires_grad is after.requires_grad is recording
            assert relative_error(y, want[0].detach()) <= tolerance
            assert relative_error(after, want[1].detach()) <= tolerance
    assert torch.equal(state, before)


@BOTH
def test_a_backend_chosen_between_two_steps_runs_the_second(cls, generator, monkeypatch):
    ssm = make(cls, generator)
    native = not native_library.cause()
    automatic = {"native": 1, "reference": 0} if native else {"native": 0, "reference": 0}
    wanted = {
        "pytorch": {"native": 0, "reference": 0},
        "reference": {"native": 0, "reference": 1},
        "auto": automatic,
        **({"native": automatic} if native else {}),
    }
    u, state, _ = inputs(ssm, generator, 2)

    def seen() -> dict[str, int]:
        with calls() as counts, torch.no_grad():
            ssm.step(u, state)
        return counts

    for _ in range(2):
        for name, want in wanted.items():
            assert seen() == automatic
            with use_backend(name):
                assert seen() == want, name
            monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, name)
            assert seen() == want, name
            with use_backend("pytorch"):
                assert seen() == wanted["pytorch"]
            monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE)
        for name in ("triton", "keops"):
            refused = pytest.raises(BackendUnavailableError, match=f"'{name}' .* cannot run {OPS[cls]}")
            with use_backend(name, strict=True), refused:
                seen()
            if dispatch.backends()[name].usable:
                with use_backend(name):
                    assert seen() == automatic
        monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "nope")
        with pytest.raises(ValueError, match="unknown backend 'nope'"):
            seen()
        monkeypatch.delenv(dispatch.ENVIRONMENT_VARIABLE)


@needs_native
@BOTH
def test_native_is_asked_for_once(cls, generator):
    ssm = make(cls, generator)
    u, state, D = inputs(ssm, generator, 2)
    with torch.no_grad(), mock.patch.object(dispatch, "load", wraps=dispatch.load) as load, calls() as seen:
        for _ in range(4):
            ssm.step(u, state, D)
    assert [call.args for call in load.call_args_list] == [(OPS[cls], "native")] and seen["native"] == 4


@BOTH
def test_without_the_library_pytorch_steps_and_native_is_refused(cls, generator):
    ssm = make(cls, generator)
    u, state, D = inputs(ssm, generator, 2)
    with torch.no_grad(), mock.patch.object(native_library, "_loaded", return_value="not built"), calls() as seen:
        got = ssm.step(u, state, D)
        with use_backend("native"), pytest.raises(BackendUnavailableError, match="not built"):
            ssm.step(u, state, D)
    assert seen["native"] == 0
    assert all(relative_error(*pair) <= 2e-6 for pair in zip(got, expected(ssm, u, state, D), strict=True))


def test_a_rank_that_the_library_does_not_take(generator):
    ssm = make(DPLRSSM, generator, rank=9, d_state=8)
    u, state, D = inputs(ssm, generator, 2)
    with torch.no_grad(), calls() as seen:
        got = ssm.step(u, state, D)
        assert seen["native"] == 0
        want = expected(ssm, u, state, D)
    assert all(relative_error(*pair) <= 2e-6 for pair in zip(got, want, strict=True))


# What a step takes


@BOTH
@pytest.mark.parametrize("backend", ["auto", "pytorch"])
def test_memory_layout_does_not_matter(cls, backend, generator):
    ssm = make(cls, generator)
    u, state, D = inputs(ssm, generator, 3)
    views = {
        "transposed": (u.T.contiguous().T, state.mT.contiguous().mT, D),
        "strided": (*(torch.stack((t, t + 1), -1)[..., 0] for t in (u, state)), torch.stack((D, D), -1)[:, 0]),
        "conjugated": (u, state.conj().resolve_conj().conj(), D),
        "negated": (torch.complex(u, -u).conj().imag, state, D),
        "parameters": (torch.nn.Parameter(u), state, torch.nn.Parameter(D)),
    }
    assert views["negated"][0].is_neg() and views["conjugated"][1].is_conj()
    with torch.no_grad(), use_backend(backend):
        want = ssm.step(u, state, D)
        for name, given in views.items():
            for got, w in zip(ssm.step(*given), want, strict=True):
                assert relative_error(got, w) <= 1e-6, name


@BOTH
@pytest.mark.parametrize("recording", [False, True])
def test_no_rows(cls, recording, generator):
    ssm = make(cls, generator, channels=2)
    u, state, D = inputs(ssm, generator, 0)
    with torch.set_grad_enabled(recording):
        y, after = ssm.step(u, state, D)
    assert y.shape == (0, 2, 5) and after.shape == state.shape


@BOTH
def test_inference_mode_and_a_state_from_elsewhere(cls, generator):
    ssm = make(cls, generator)
    u, state, D = inputs(ssm, generator, 2)
    with torch.inference_mode():
        y, after = ssm.step(u, state, D)
    assert y.is_inference()
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(ssm.step(u, state, D), (y, after), strict=True))
        ssm.step(u, after, D)


@BOTH
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_inputs_of_less_precision_are_computed_with_in_full(cls, autocast, dtype, generator):
    ssm = make(cls, generator)
    u, state, D = inputs(ssm, generator, 2)
    u = (10 * u).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got, want = ssm.step(u, state, D), ssm.step(u.float(), state, D)
    assert got[0].dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert torch.equal(got[0], want[0].to(got[0].dtype)) and torch.equal(got[1], want[1])


FLOAT, PAIR = torch.float32, torch.complex64


@BOTH
@pytest.mark.parametrize(
    ("u", "state", "error", "message"),
    [
        (torch.ones(2, 6), torch.ones(2, 5, 17, dtype=PAIR), ValueError, r"u of shape \(batch, 5\), got \(2, 6\)"),
        (torch.ones(2, 5, 1), torch.ones(2, 5, 17, dtype=PAIR), ValueError, r"u of shape .* got \(2, 5, 1\)"),
        (torch.ones(5), torch.ones(1, 5, 17, dtype=PAIR), ValueError, r"u of shape .* got \(5,\)"),
        (torch.ones(2, 5).double(), torch.ones(2, 5, 17, dtype=PAIR), TypeError, "u to be torch.float32, got .*64"),
        (torch.ones(2, 5) + 0j, torch.ones(2, 5, 17, dtype=PAIR), TypeError, "u to be torch.float32, got .*complex64"),
        (torch.ones(2, 5), torch.ones(1, 5, 17, dtype=PAIR), ValueError, r"state .*\(2, 5, 17\) .* got \(1, 5, 17\)"),
        (torch.ones(2, 5), torch.ones(2, 4, 17, dtype=PAIR), ValueError, r"state .*\(2, 5, 17\) .* got \(2, 4, 17\)"),
        (torch.ones(2, 5), torch.ones(2, 5, 34, dtype=PAIR), ValueError, r"state .*\(2, 5, 17\) .* got \(2, 5, 34\)"),
        (torch.ones(2, 5), torch.ones(2, 5, 17), TypeError, "state to be torch.complex64, got torch.float32"),
        (torch.ones(2, 5), torch.ones(2, 5, 17, dtype=torch.complex128), TypeError, "complex64, got torch.complex128"),
        (torch.ones(2, 5), torch.ones(2, 5, 17, dtype=PAIR, device="meta"), ValueError, "u on cpu, state on meta"),
        (torch.ones(2, 5, device="meta"), torch.ones(2, 5, 17, dtype=PAIR), ValueError, "on cpu, .* u on meta"),
        (
            torch.ones(2, 5, device="meta"),
            torch.ones(2, 5, 17, dtype=PAIR, device="meta"),
            ValueError,
            "u and state on cpu, where the parameters are, got u on meta, state on meta",
        ),
    ],
)
@pytest.mark.parametrize("recording", [False, True])
def test_bad_input_is_refused(cls, u, state, error, message, recording, generator):
    ssm = make(cls, generator)
    with torch.set_grad_enabled(recording):
        for _ in range(2):
            with pytest.raises(error, match=f"^{cls.__name__}: expected .*{message}"):
                ssm.step(u, state)
            ssm.step(torch.ones(2, 5), ssm.init_state(2))


@BOTH
def test_a_skip_that_does_not_fit_is_refused(cls, generator):
    ssm = make(cls, generator)
    u, state, D = inputs(ssm, generator, 2)
    for context in (torch.no_grad(), nullcontext()):
        with context:
            for wrong in (D[:3], D[:1], D[None], torch.zeros(())):
                with pytest.raises(ValueError, match=r"D of shape \(5,\)"):
                    ssm.step(u, state, wrong)
            with pytest.raises(TypeError, match=r"D to be torch.float32, got torch.float64"):
                ssm.step(u, state, D.double())
            with pytest.raises(ValueError, match=r"D on meta"):
                ssm.step(u, state, D.to("meta"))


# What is remembered


@BOTH
def test_what_a_native_call_points_to_lives_on(cls, generator):
    ssm = make(cls, generator, n_ssm=1)
    u, state, D = inputs(ssm, generator, 2)
    with torch.no_grad():
        want = ssm.step(u, state, D)
        stepper = ssm.remembered("stepper", ssm._stepper)
        ssm._memo = Memo()
        for name in ("x", "B", "C", "lam", "coefficients"):
            stepper.__dict__.pop(name, None)
        gc.collect()
        filled = [torch.full((5, 17), torch.nan, dtype=torch.complex128) for _ in range(50)]
        if not native_library.cause():
            y, after = stepper.step(u, state, D)
            assert torch.equal(y.view_as(want[0]), want[0]) and torch.equal(after, want[1])
        del filled


@BOTH
def test_steps_under_a_mode_leave_nothing_behind(cls, generator):
    ssm = make(cls, generator)
    u, state, D = inputs(ssm, generator, 2)
    with torch.no_grad():
        want = expected(ssm, u, state, D)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            y, _ = ssm.step(mode.from_tensor(u), mode.from_tensor(state), D)
        assert y.shape == (2, 1, 5)
        assert all(relative_error(*pair) <= 2e-6 for pair in zip(ssm.step(u, state, D), want, strict=True))


@BOTH
def test_transforms_see_the_operations(cls, generator):
    ssm = make(cls, generator).double()
    u, state, D = inputs(ssm, generator, 3)
    for context in (torch.no_grad(), nullcontext()):
        with context:
            y, after = ssm.step(u, state, D)
            mapped = torch.func.vmap(lambda a, s: ssm.step(a[None], s[None], D))(u, state)
            assert relative_error(mapped[0][:, 0], y.detach()) <= 1e-14
            assert relative_error(mapped[1][:, 0], after.detach()) <= 1e-14
            at_zero, _ = ssm.step(torch.zeros_like(u), state, D)
            _, tangent = torch.func.jvp(lambda a: ssm.step(a, state, D)[0], (u,), (u,))
            assert relative_error(tangent, (y - at_zero).detach()) <= 1e-12
            _, pulled = torch.func.vjp(lambda a: ssm.step(a, state, D)[0], u)
            ones = torch.ones_like(y)
            assert abs(float(((pulled(ones)[0] * u).sum() - (y - at_zero).sum()).detach())) <= 1e-12
            ssm.step(u, state, D)  # nothing of the transforms is remembered
            assert torch.equal(ssm.step(u, state, D)[0], y)


def test_an_ensemble_steps_by_vmap(generator):
    members = [make(DiagonalSSM, generator) for _ in range(3)]
    u, state, _ = inputs(members[0], generator, 2)
    parameters, buffers = torch.func.stack_module_state(members)
    base = copy.deepcopy(members[0])

    def step(values: Any, kept: Any) -> Tensor:
        with mock.patch.object(DiagonalSSM, "forward", DiagonalSSM.step, create=True):
            return torch.func.functional_call(base, (values, kept), (u, state))[0]

    for context in (torch.no_grad(), nullcontext()):
        with context:
            base.step(u, state)
            got = torch.func.vmap(step)(parameters, buffers)
            for y, member in zip(got, members, strict=True):
                assert relative_error(y, member.step(u, state)[0].detach()) <= 1e-6


@BOTH
@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.sample(1)
def test_a_compiled_step_is_the_eager_one(cls, recording, generator):
    ssm = make(cls, generator, channels=2)
    u, state, D = inputs(ssm, generator, 2)
    with torch.set_grad_enabled(recording):
        compiled = torch.compile(ssm.step, fullgraph=True, backend="aot_eager")
        for _ in range(2):
            for got, want in zip(compiled(u, state, D), ssm.step(u, state, D), strict=True):
                assert relative_error(got, want.detach()) <= 1e-6


@needs_native
def test_a_compiled_step_by_the_native_op(generator):
    ssm = make(DiagonalSSM, generator)
    u, state, D = inputs(ssm, generator, 2)
    with use_backend("native"):
        compiled = torch.compile(ssm.step, fullgraph=True, backend="aot_eager")
        got, want = compiled(u, state, D), expected(ssm, u, state, D)
    assert all(relative_error(g, w.detach()) <= 2e-6 for g, w in zip(got, want, strict=True))
    got[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ssm.parameters())


@BOTH
def test_parametrized_modules_are_followed(cls, generator):
    class Doubled(torch.nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return 2 * t

    ssm = make(cls, generator)
    u, state, _ = inputs(ssm, generator, 2)
    with torch.no_grad():
        plain = ssm.step(u, state)[0]
        torch.nn.utils.parametrize.register_parametrization(ssm, "C", Doubled())
        assert relative_error(ssm.step(u, state)[0], 2 * plain) <= 1e-6
        ssm.parametrizations.C.original.mul_(3)
        assert relative_error(ssm.step(u, state)[0], 6 * plain) <= 1e-6


# Exactness

# Rounded to complex64, S4's increment alone costs 1e-6 (LegT) and 3e-6 (FouT) of the state within 20000 steps.
SETTINGS: list[tuple[type[SSMParameters], dict[str, Any]]] = [
    (DiagonalSSM, {}),
    (DPLRSSM, {}),
    (DPLRSSM, {"init": "legt", "rank": 2}),
    (DPLRSSM, {"init": "fout"}),
]


@pytest.mark.parametrize("backend", ["pytorch", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize(("cls", "options"), SETTINGS)
@pytest.mark.parametrize("L", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.sample(2)
def test_a_float32_state_stays_that_of_the_whole_sequence(cls, options, L, backend, generator):
    ssm = make(cls, generator, d_model=8, d_state=64, **options)
    u = torch.randn(1, 8, L, generator=generator)
    with torch.no_grad(), use_backend(backend):
        state = ssm.init_state(1)
        for row in u.permute(2, 0, 1).contiguous():
            _, state = ssm.step(row, state)
        whole = ssm.forward_state(u)
    assert relative_error(state, whole) <= 1e-6
