from __future__ import annotations

import copy
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from s4_fast import BackendUnavailableError, get_ssm_param_groups, use_backend
from s4_fast.ssm import hippo, with_conjugates
from s4_fast.state_spaces import SSMKernelDiag, SSMKernelDPLR
from tests.helpers import KEOPS, normal, relative_error

H, N = 4, 6
DOUBLE = torch.float64
Kernel = SSMKernelDiag | SSMKernelDPLR
TRANSFORMS = {
    "none": lambda v: v,
    "exp": torch.exp,
    "relu": lambda v: v.clamp(min=0) + 1e-4,
    "sigmoid": lambda v: 1 / (1 + torch.exp(-v)),
    "softplus": lambda v: torch.log(1 + torch.exp(v)),
}
DIAGONAL: list[dict[str, Any]] = [
    {},
    {"disc": "bilinear"},
    {"disc": "bilinear", "is_real": True, "dt_min": 0.5, "dt_max": 30.0},
    {"is_real": True},
    {"is_real": True, "d_state": 1, "n_ssm": 1},
    {"is_real": True, "bandlimit": 0.1},
    {"bandlimit": 0.1},
    {"bandlimit": 0.1, "n_ssm": 2, "dt_tie": False},
    {"dt_tie": False},
    {"dt_fast": True, "dt_transform": "softplus"},
    {"dt_transform": "sigmoid"},
    {"dt_transform": "none"},
    {"dt_transform": "relu"},
    {"real_transform": "softplus", "imag_transform": "exp"},
    {"real_transform": "sigmoid", "imag_transform": "relu"},
    {"real_transform": "relu", "imag_transform": "softplus"},
    {"real_transform": "none"},
    {"n_ssm": 2, "channels": 3},
    {"init": "diag"},
    {"init": "hippo", "n_ssm": 2},
    {"init": "all"},
    {"init": ["legs", "diag-real", "lagt", "legt"]},
    {"init": "diag-rand", "B_init": "random", "imag_random": True},
    {"init": "diag-lin", "d_state": 7},
    {"init": "diag-inv", "d_state": 3},
    {"d_state": 2},
    {"deterministic": True, "init": "diag-lin"},
    {"backend": "naive"},
]
LOW_RANK: list[dict[str, Any]] = [
    {},
    {"rank": 2},
    {"rank": 2, "init": "legt", "n_ssm": 2},
    {"init": "dplr-lin", "rank": 3, "channels": 2},
    {"init": "dplr-inv", "d_state": 3},
    {"init": "dplr"},
    {"init": "diag-legs", "B_init": "hippo"},
    {"init": "lagt"},
    {"init": "fout", "l_max": 20},
    {"init": "hippo", "l_max": 5},
    {"dt_tie": False},
    {"dt_tie": False, "rank": 2, "l_max": 20},
    {"bandlimit": 0.1, "l_max": 9},
    {"dt_fast": True, "dt_transform": "softplus", "real_transform": "softplus"},
    {"d_state": 2},
    {"deterministic": True},
    {"lr": 0, "backend": "keops"},
]
SETTINGS = [(SSMKernelDiag, options) for options in DIAGONAL] + [(SSMKernelDPLR, options) for options in LOW_RANK]
EVERY = pytest.mark.parametrize(
    ("cls", "options"), SETTINGS, ids=lambda v: v.__name__[9:] if isinstance(v, type) else str(v)
)
BOTH = pytest.mark.parametrize("cls", [SSMKernelDiag, SSMKernelDPLR])


def build(cls: type[Kernel], generator: torch.Generator, move: float = 0.1, **options: Any) -> Kernel:
    """In float64, the parameters moved away from where they start.

    Steps are not so small that the plain C is hard to find again from one that is truncated after few of them.
    """
    kernel = cls(H, **{"d_state": N, "verbose": False, "dt_min": 0.02, **options}).double()
    with torch.no_grad():
        for name in ("inv_dt", "A_real", "A_imag", "B", "C", "P"):
            if hasattr(kernel, name):
                p = getattr(kernel, name)
                p.mul_(1 + move * (2 * torch.rand(p.shape, dtype=DOUBLE, generator=generator) - 1))
    return kernel


def given(value: Any, real: bool) -> Tensor:
    return value.to(torch.complex128) if real else torch.complex(value[..., 0], value[..., 1])


def both(t: Tensor) -> Tensor:
    return torch.cat((t, t.conj()), -1)


def mean_of_exp(z: Tensor) -> Tensor:
    """The integral of exp(z t) over 0 <= t <= 1, by Gauss and Legendre."""
    nodes, weights = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(40))
    return (torch.exp(z[..., None] * (nodes + 1) / 2) * weights).sum(-1) / 2


def definition(kernel: Kernel, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """A_bar (H, 2n, 2n), B_bar (H, 2n) and the plain C (c, H, 2n), from the stored numbers, by dense matrices."""
    real = kernel.is_real
    inv_dt = kernel.inv_dt.sinh() if kernel.dt_fast else kernel.inv_dt
    dt = TRANSFORMS[kernel.dt_transform](inv_dt)
    A = -TRANSFORMS[kernel.real_transform](kernel.A_real).to(torch.complex128)
    if not real:
        A = A - 1j * TRANSFORMS[kernel.imag_transform](kernel.A_imag)
    rows = torch.arange(H) % kernel.n_ssm  # the copies in turn
    A, B, C = A[rows], given(kernel.B, real)[0, rows], given(kernel.C, real)
    if kernel.bandlimit is not None:
        kept = dt * A.imag.abs() / (2 * math.pi) < kernel.bandlimit / 2
        C = torch.where(kept, C, 0)
    step = both((rate * dt).expand_as(A).to(torch.complex128))
    full = torch.diag_embed(both(A))
    if isinstance(kernel, SSMKernelDPLR):
        P = both(given(kernel.P, False)[:, rows])
        full = full - torch.einsum("rhm,rhn->hmn", P, P.conj())
    eye = torch.eye(step.shape[-1], dtype=torch.complex128)
    if getattr(kernel, "disc", "bilinear") == "bilinear":
        backward = torch.linalg.inv(eye - step[..., None] / 2 * full)
        A_bar, B_bar = backward @ (eye + step[..., None] / 2 * full), (backward @ (step * both(B))[..., None])[..., 0]
    else:
        w = step * both(A)
        A_bar, B_bar = torch.diag_embed(torch.exp(w)), step * mean_of_exp(w) * both(B)
    C = both(C)
    length = int(getattr(kernel, "l_kernel", 0))
    if length:  # of C, at the parameters' own rate
        power = torch.linalg.matrix_power(A_bar if rate == 1 else definition(kernel)[0], length)
        C = torch.linalg.solve(eye - power, C.transpose(0, 1), left=False).transpose(0, 1)
    return A_bar, B_bar, C


def powers(A: Tensor, v: Tensor, L: int) -> Tensor:
    """A^l v for 0 <= l < L along a new last dimension, v (..., H, N)."""
    found = [v]
    while len(found) < L:
        found.append(torch.einsum("hmn,...hn->...hm", A, found[-1]))
    return torch.stack(found, -1)


def defined_kernel(kernel: Kernel, L: int, rate: float = 1.0) -> Tensor:
    A, B, C = definition(kernel, rate)
    return torch.einsum("chn,hnl->chl", C, powers(A, B, L)).real


def a_state(kernel: Kernel, generator: torch.Generator, batch: int = 3, form: str = "half") -> Tensor:
    if kernel.is_real:
        return normal(generator, batch, H, kernel.d_state // 2, dtype=DOUBLE)
    half = normal(generator, batch, H, kernel.d_state // 2, dtype=torch.complex128)
    return half if form == "half" else with_conjugates(half)


def whole(state: Tensor, kernel: Kernel) -> Tensor:
    """Both members of each pair, in the order (s, s*)."""
    return state.to(torch.complex128) if state.shape[-1] == kernel.d_state and not kernel.is_real else both(state + 0j)


@EVERY
@pytest.mark.sample(15)
def test_kernels_are_those_of_the_definition(cls, options, generator):
    kernel = build(cls, generator, **options)
    for L, rate in ((11, 1.0), (1, 1.0), (11, 0.5), (11, 2.0), (30, 1.0), (7, 0.7)):
        k, rest = kernel(L=L, rate=rate)
        assert rest is None and k.shape == (kernel.channels, H, L)
        assert relative_error(k.detach(), defined_kernel(kernel, L, rate).detach()) <= 1e-9, (L, rate)
        with torch.no_grad():
            assert relative_error(kernel(L=L, rate=rate)[0], k.detach()) <= 1e-10


@EVERY
@pytest.mark.sample(15)
def test_gradients_are_those_of_the_definition(cls, options, generator):
    if options.get("lr") == 0:
        return
    kernel = build(cls, generator, **options)
    kernel(L=11)  # sets up
    wrt = dict(kernel.named_parameters())
    for rate in (1.0, 0.5):
        g = normal(generator, kernel.channels, H, 11, dtype=DOUBLE)
        got, want = kernel(L=11, rate=rate)[0], defined_kernel(kernel, 11, rate)
        # In the definition with the truncated C: its gradient goes through the plain C.
        grads = [torch.autograd.grad(k, list(wrt.values()), g, allow_unused=True) for k in (got, want)]
        for name, actual, expected in zip(wrt, *grads, strict=True):
            if expected is None or float(expected.abs().max()) == 0:
                assert actual is None or float(actual.abs().max()) <= 1e-12, name
            else:
                assert relative_error(actual, expected) <= 1e-7, (name, rate)


@EVERY
@pytest.mark.sample(12)
def test_states_are_those_of_the_definition(cls, options, generator):
    kernel = build(cls, generator, **options)
    u = normal(generator, 3, H, 9, dtype=DOUBLE)
    lengths = torch.tensor([4, 9, 1])
    for form in ("half",) if cls is SSMKernelDiag else ("half", "full"):
        state = a_state(kernel, generator, form=form)
        for rate in (1.0, 0.5):
            _, after = kernel(L=13, state=state, rate=rate)
            A, B, C = definition(kernel, rate)
            trace = powers(A, whole(state, kernel), 14)
            want = torch.einsum("chn,bhnl->bchl", C, trace[..., 1:]).real
            assert relative_error(after.detach(), want.detach()) <= 1e-9

            states = [whole(state, kernel)]
            for l in range(9):
                states.append(torch.einsum("hmn,bhn->bhm", A, states[-1]) + B * u[:, :, l, None])
            for counts in (None, lengths):
                got = kernel.forward_state(u, state, counts, rate=rate)
                ends = [9, 9, 9] if counts is None else counts.tolist()
                want = torch.stack([states[end][row] for row, end in enumerate(ends)])
                assert got.shape == state.shape and got.dtype == state.dtype
                assert relative_error(whole(got, kernel).detach(), want.detach()) <= 1e-10


@EVERY
@pytest.mark.sample(12)
def test_steps_are_the_convolution(cls, options, generator):
    kernel = build(cls, generator, **options)
    u = normal(generator, 3, H, 12, dtype=DOUBLE)
    for mode in ("dense", "linear", "diagonal"):
        k = defined_kernel(kernel, 12).detach()
        want = torch.zeros(3, kernel.channels, H, 12, dtype=DOUBLE)
        for l in range(12):
            for j in range(l + 1):
                want[..., l] += k[..., l - j] * u[:, None, :, j]
        kernel._setup_step(mode=mode)
        state = kernel.default_state(3)
        assert state.shape[-1] == (kernel.d_state if cls is SSMKernelDPLR and mode != "linear" else kernel.d_state // 2)
        for gradients in (False, True):
            s, outputs = state, []
            with torch.set_grad_enabled(gradients):
                for l in range(12):
                    y, s = kernel.step(u[..., l], s)
                    outputs.append(y.detach())
            assert s.shape == state.shape and s.dtype == state.dtype
            assert relative_error(torch.stack(outputs, -1), want) <= 1e-10
        kernel(L=12)  # from here on C is the truncated one


@pytest.mark.parametrize("real_transform", ["exp", "none"])
def test_dss_normalises_each_mode_by_its_sum(real_transform, generator):
    """Re sum_n C B (exp(z) - 1) / (A (exp(z L) - 1)) exp(z l): the modes' geometric series, each divided by its sum."""
    kernel = build(SSMKernelDiag, generator, disc="dss", real_transform=real_transform, channels=2, dt_max=0.5)
    if real_transform == "none":
        with torch.no_grad():
            kernel.A_real[::2] *= -1  # Re A > 0
    for L, rate in ((12, 1.0), (1, 1.0), (9, 0.5)):
        A = -TRANSFORMS[real_transform](kernel.A_real) - 1j * kernel.A_imag
        z = rate * kernel.inv_dt.exp() * A
        grows = A.real > 0
        sign = torch.where(grows, -1, 1)
        sums = (torch.exp(sign * z * L) - 1) * A
        v = given(kernel.C, False) * given(kernel.B, False)[0] * (torch.exp(sign * z) - 1) / (sums + 1e-7 / sums.conj())
        l = torch.arange(L, dtype=DOUBLE) - torch.where(grows, L - 1, 0)[..., None]
        want = torch.einsum("chn,hnl->chl", v, torch.exp(z[..., None] * l)).real
        got, _ = kernel(L=L, rate=rate)
        assert got.dtype == DOUBLE and relative_error(got.detach(), want.detach()) <= 1e-9
        g = normal(generator, 2, H, L, dtype=DOUBLE)
        wrt = list(kernel.parameters())
        for actual, expected in zip(*(torch.autograd.grad(k, wrt, g) for k in (got, want)), strict=True):
            assert relative_error(actual, expected) <= 1e-7
    with pytest.raises(RuntimeError, match="no recurrence"):
        kernel.step(torch.zeros(1, H, dtype=DOUBLE), kernel.default_state(1))
    with pytest.raises(RuntimeError, match="no recurrence"):
        kernel(L=4, state=kernel.default_state(1))


@pytest.mark.parametrize("init", ["legs", "legt", "fout"])
def test_a_deterministic_s4_kernel_is_the_first_coordinate_of_hippo(init):
    kernel = SSMKernelDPLR(H, d_state=8, init=init, rank=2, deterministic=True, dt_min=0.01, dt_max=0.4).double()
    A, B = hippo.transition(init, 8)
    eye = torch.eye(8, dtype=DOUBLE)
    A = A if init == "legs" else A - 1e-4 * eye  # the least decay that is stored
    rows = []
    for h in range(H):
        dt = 0.01 * (0.4 / 0.01) ** (h / (H - 1))
        inverse = torch.linalg.inv(eye - dt / 2 * A)
        A_bar, s, row = inverse @ (eye + dt / 2 * A), inverse @ (dt * B), []
        for _ in range(10):
            row.append(s[0])
            s = A_bar @ s
        rows.append(torch.stack(row))
    # The parameters started in float32.
    assert relative_error(kernel(L=10)[0][0].detach(), torch.stack(rows)) <= 2e-5


def test_deterministic_kernels_do_not_depend_on_the_seed():
    for options in ({"init": "legs"}, {"init": "diag-lin", "dt_tie": False, "dt_transform": "softplus"}):
        first, second = (SSMKernelDiag(H, d_state=N, deterministic=True, **options) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        dt = first.dt().detach().double()
        assert relative_error(dt[:, 0], 0.001 * 100 ** (torch.arange(H, dtype=DOUBLE) / (H - 1))) <= 1e-5


@EVERY
def test_dt_starts_in_its_range(cls, options):
    kernel = cls(
        64,
        d_state=N,
        dt_min=0.01,
        dt_max=0.2,
        **{k: v for k, v in options.items() if k in ("dt_tie", "dt_transform", "dt_fast")},
    )
    dt = kernel.dt().detach()
    assert dt.shape == (64, 1 if options.get("dt_tie", True) else N // 2)
    slack = 1.1e-4 if options.get("dt_transform") == "relu" else 1e-6
    assert float(dt.min()) >= 0.01 - slack and float(dt.max()) <= 0.2 + slack
    assert float(dt.max() / dt.min()) > 3  # they are spread


def test_shapes_are_the_official_ones():
    shapes = lambda kernel: {name: tuple(t.shape) for name, t in kernel.state_dict().items()}  # noqa: E731
    common = {"inv_dt": (6, 1), "C": (2, 6, 4, 2), "B": (1, 3, 4, 2), "A_real": (3, 4), "A_imag": (3, 4)}
    options: dict[str, Any] = {"channels": 2, "n_ssm": 3, "d_state": 8}
    assert shapes(SSMKernelDiag(6, **options)) == common
    assert shapes(SSMKernelDPLR(6, rank=2, **options)) == {**common, "P": (2, 3, 4, 2), "l_kernel": ()}
    assert shapes(SSMKernelDiag(6, dt_tie=False, **options)) == {**common, "inv_dt": (6, 4)}
    real = {"inv_dt": (6, 1), "C": (2, 6, 8), "B": (1, 3, 8), "A_real": (3, 8)}
    assert shapes(SSMKernelDiag(6, is_real=True, **options)) == real
    assert SSMKernelDiag(6).C.shape == (1, 6, 32, 2) and SSMKernelDiag(6, is_real=True).C.shape == (1, 6, 32)
    assert list(SSMKernelDPLR(6, **options).state_dict()) == ["inv_dt", "C", "B", "A_real", "A_imag", "P", "l_kernel"]


@BOTH
def test_learning_rates_and_decays_are_marks(cls):
    parts = {"A": ("A_real", "A_imag", "P"), "B": ("B",), "C": ("C",), "dt": ("inv_dt",)}

    def marks(**options: Any) -> dict[str, Any]:
        kernel = cls(H, d_state=N, **options)
        found = {name: getattr(p, "_optim", {}) for name, p in kernel.named_parameters()}
        return {group: found[names[0]] for group, names in parts.items() if names[0] in found}

    assert marks() == {"A": {"weight_decay": 0.0}, "B": {"weight_decay": 0.0}, "C": {}, "dt": {"weight_decay": 0.0}}
    both = {"lr": 0.5, "weight_decay": 0.0}
    assert marks(lr=0.5) == {"A": both, "B": both, "C": {"lr": 0.5}, "dt": both}
    assert marks(lr=2)["A"] == {"lr": 2.0, "weight_decay": 0.0}
    assert marks(lr={"A": 0.5, "C": None}, wd=None) == {"A": {"lr": 0.5}, "B": {}, "C": {}, "dt": {}}
    assert marks(wd={"B": 1})["B"] == {"weight_decay": 1.0} and marks(wd={"B": 1})["A"] == {}
    frozen = cls(H, d_state=N, lr={"A": 0.0, "dt": 0})
    assert sorted(name for name, _ in frozen.named_parameters()) == ["B", "C"]
    assert set(frozen.state_dict()) == set(cls(H, d_state=N).state_dict())
    assert not list(cls(H, d_state=N, lr=0).parameters())
    cls(H, d_state=N, lr=0).load_state_dict(cls(H, d_state=N).state_dict())

    copied = copy.deepcopy(cls(H, d_state=N, lr=0.5)).double()
    assert copied.B._optim == both
    groups = get_ssm_param_groups(nn.Sequential(copied, nn.Linear(2, 2)))
    assert sorted(group["lr"] for group in groups) == [1e-3, 0.5]


def test_training_sets_up_once_and_nothing_else_does():
    kernel = SSMKernelDPLR(H, d_state=N, l_max=10).double()
    plain = {name: t.clone() for name, t in kernel.state_dict().items()}
    with torch.no_grad():
        want = kernel(L=25)[0]
    kernel.requires_grad_(False)(L=4)
    kernel.requires_grad_(True)
    assert all(torch.equal(t, plain[name]) for name, t in kernel.state_dict().items())
    short = kernel(L=4)[0]
    assert int(kernel.l_kernel) == 10
    trained = {name: t.clone() for name, t in kernel.state_dict().items()}
    long = kernel(L=25)[0]
    assert relative_error(long.detach(), want) <= 1e-10 and relative_error(short.detach(), want[..., :4]) <= 1e-10
    assert all(torch.equal(t, trained[name]) for name, t in kernel.state_dict().items())
    kernel.setup_length(25)
    assert int(kernel.l_kernel) == 40 and relative_error(kernel(L=25)[0].detach(), want) <= 1e-10
    assert kernel(rate=2.0)[0].shape[-1] == 20 and kernel()[0].shape[-1] == 40
    fresh = SSMKernelDPLR(H, d_state=N)
    fresh(L=7, rate=2.0)
    assert int(fresh.l_kernel) == 14
    coarse = SSMKernelDPLR(H, d_state=N).double()
    assert coarse(L=1, rate=0.1)[0].shape[-1] == 1 and int(coarse.l_kernel) == 1


def test_verbose_says_what_changes(caplog):
    with caplog.at_level(logging.INFO, logger="s4_fast.state_spaces"):
        SSMKernelDPLR(H, d_state=N, verbose=False)(L=3)
        assert not caplog.records
        SSMKernelDPLR(H, d_state=N)(L=3)
    assert "d_model=4" in caplog.text and "from length 0 to 3" in caplog.text


@BOTH
def test_float32_is_as_accurate_as_the_ops(cls, generator):
    kernel = build(cls, generator, channels=2).float()
    kernel(L=64)
    wide = copy.deepcopy(kernel).double()
    u, state = normal(generator, 3, H, 64, dtype=torch.float32), kernel.default_state(3)
    assert relative_error(kernel(L=50)[0].detach(), wide(L=50)[0].detach()) <= 5e-6
    want = wide.forward_state(u.double(), wide.default_state(3))
    got = kernel.forward_state(u, state)
    assert got.dtype == torch.complex64 and relative_error(got.detach(), want.detach()) <= 5e-6


@pytest.mark.parametrize("name", ["naive", "pytorch", "reference", KEOPS])
def test_backends_are_those_asked_for(name, generator):
    kernel = build(SSMKernelDiag, generator, backend=name).float()
    k = kernel(L=20)[0]
    wide = copy.deepcopy(kernel).double()
    wide.backend = "reference"
    assert relative_error(k.detach(), wide(L=20)[0].detach()) <= 5e-6
    assert (
        relative_error(build(SSMKernelDPLR, generator, backend=name)(L=20)[0].detach().double(), torch.ones(1, H, 20))
        > 0
    )


def test_the_automatic_choice_is_use_backend_s():
    kernel = SSMKernelDiag(H, d_state=N)
    with use_backend("triton", strict=True), pytest.raises(BackendUnavailableError):
        kernel(L=4)
    asked = SSMKernelDiag(H, d_state=N, backend="naive")
    with use_backend("triton", strict=True):
        asked(L=4)


def test_states_of_any_form_and_none(generator):
    kernel = build(SSMKernelDPLR, generator)
    u = normal(generator, 2, H, 5, dtype=DOUBLE)
    from_nothing = kernel.forward_state(u)
    assert from_nothing.shape == (2, H, N) and not from_nothing.requires_grad
    kernel._setup_step(mode="linear")
    assert relative_error(from_nothing, with_conjugates(kernel.forward_state(u))) == 0
    diagonal = build(SSMKernelDiag, generator)
    assert diagonal.forward_state(u).requires_grad
    assert kernel.default_state().shape == (H, N // 2) and kernel.default_state(2, 3).shape == (2, 3, H, N // 2)
    half = a_state(diagonal, generator)
    assert relative_error(*(diagonal(L=4, state=s)[1].detach() for s in (half, with_conjugates(half)))) <= 1e-15


def test_bad_states_are_refused():
    kernel, real = SSMKernelDPLR(H, d_state=N), SSMKernelDiag(H, d_state=N, is_real=True)
    state = kernel.default_state(2)
    for bad in (state[:, :3], state[..., :1], state[0]):
        with pytest.raises(ValueError, match="expected state of shape"):
            kernel(L=3, state=bad)
    with pytest.raises(ValueError, match="conjugate"):
        kernel(L=3, state=state + 1j)
    with pytest.raises(TypeError, match="complex64"):
        kernel(L=3, state=state[..., :3].to(torch.complex128))
    with pytest.raises(TypeError, match="is_real"):
        real(L=3, state=torch.zeros(2, H, N, dtype=torch.complex64))
    with pytest.raises(ValueError, match="expected u of shape"):
        kernel.forward_state(torch.zeros(2, H + 1, 3), state)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "n_ssm must divide", {"n_ssm": 3}),
        (ValueError, "unknown init 'lges'.*legs.*diag-NAME.*lin", {"init": "lges"}),
        (ValueError, "unknown init 'diag-lin-x'", {"init": "diag-lin-x"}),
        (ValueError, "unknown init 3", {"init": [3, "legs"]}),
        (ValueError, "multiple of the 4 inits", {"init": "all", "n_ssm": 2}),
        (ValueError, "must not be empty", {"init": []}),
        (ValueError, "init must be a name", {"init": None}),
        (ValueError, "older name of init", {"init": "fout", "measure": "legs"}),
        (TypeError, "unknown option foo.*B_clip", {"foo": 1}),
        (TypeError, "unknown option B_clip.*B_scale", {"init": "diag-lin", "B_clip": 1}),
        (ValueError, "unknown B_init", {"init": "diag-lin", "B_init": "x"}),
        (ValueError, "real_scale", {"init": "diag-lin", "real_scale": 0.0}),
        (ValueError, "unknown dt_transform 'log'.*softplus", {"dt_transform": "log"}),
        (ValueError, "unknown real_transform", {"real_transform": "x"}),
        (ValueError, "unknown imag_transform", {"imag_transform": "x"}),
        (ValueError, "sigmoid stays below 1", {"imag_transform": "sigmoid"}),
        (ValueError, "unknown backend 'cpu'.*cuda.*keops.*naive", {"backend": "cpu"}),
        (ValueError, "dt_min", {"dt_min": 0.0}),
        (ValueError, "dt_min", {"dt_min": 1.0, "deterministic": True}),
        (ValueError, "l_max must be at least 1", {"l_max": 0}),
        (ValueError, "d_state must be at least 1|d_state must be at least 2", {"d_state": 1}),
        (ValueError, "even number", {"d_state": 7}),
        (TypeError, "d_state must be an int", {"d_state": 8.0}),
        (ValueError, "lr names dt_.*A, B, C, dt", {"lr": {"dt_": 1.0}}),
        (TypeError, "lr must be a number", {"lr": "1"}),
        (ValueError, "wd must be at least 0", {"wd": -1}),
        (ValueError, "rank must be at least 1", {"rank": 0}),
    ],
)
@BOTH
def test_bad_options_are_refused(cls, error, message, options):
    with pytest.raises(error, match=message):
        cls(H, **{"d_state": N, **options})


def test_options_of_the_other_kernel_are_refused():
    for disc in ("zoh", "dss", "x"):
        with pytest.raises(ValueError, match="bilinear"):
            SSMKernelDPLR(H, disc=disc)
    SSMKernelDPLR(H, disc="bilinear")
    with pytest.raises(ValueError, match="is_real"):
        SSMKernelDPLR(H, is_real=True)
    with pytest.raises(ValueError, match=r"unknown disc 'euler'.*zoh, bilinear, dss"):
        SSMKernelDiag(H, disc="euler")
    with pytest.raises(ValueError, match="rank >= 2"):
        SSMKernelDPLR(H, init="legt")
    SSMKernelDiag(H, init="legt")
    with pytest.raises(ValueError, match=r"unknown step mode 'fast'.*dense, linear, diagonal"):
        SSMKernelDPLR(H)._setup_step(mode="fast")
    for rate in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="rate"):
            SSMKernelDiag(H)(L=3, rate=rate)
    with pytest.raises(ValueError, match="give L"):
        SSMKernelDiag(H)()
    assert SSMKernelDiag(H, l_max=12)()[0].shape[-1] == 12
    assert SSMKernelDiag(H, measure="fout").C.shape == SSMKernelDiag(H, measure="fout", init=None).C.shape
