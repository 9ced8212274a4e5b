"""Every line of examples/VERIFICATION_vs_official_s4d.md, checked against the definition."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn.functional import gelu, glu, linear

pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

from train_mini_s4d import MiniS4D, S4DKernel, export_minimal

from s4_fast import DropoutNd, get_ssm_param_groups
from s4_fast.state_spaces import S4D
from s4_fast.state_spaces import S4DKernel as OfficialKernel
from tests.helpers import normal, relative_error

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "examples" / "VERIFICATION_vs_official_s4d.md"
GOLDEN = ("s4d_default", "s4d_default_pert", "s4d_nodrop_untransposed")
DOUBLE = torch.float64
CHECKS: dict[str, Callable[[Generator], None]] = {}


def line(name: str) -> Callable[[Callable[[Generator], None]], Callable[[Generator], None]]:
    def register(check: Callable[[Generator], None]) -> Callable[[Generator], None]:
        CHECKS[name] = check
        return check

    return register


def modes(kernel: S4DKernel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dt (H, 1), A, B and C (H, n), as line K1 to K6 define them."""
    A = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag)
    return kernel.log_dt.exp()[:, None], A, torch.view_as_complex(kernel.B), torch.view_as_complex(kernel.C)


def disturb(module: torch.nn.Module, generator: Generator) -> None:
    """Weights as after some training: B is not 1, A not the initial one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * normal(generator, *parameter.shape, dtype=parameter.dtype)


def trained(generator: Generator, *args: int, **options: str) -> MiniS4D:
    model = MiniS4D(*args, **options).double()
    disturb(model, generator)
    return model


def kernel_by_definition(kernel: S4DKernel, L: int) -> Tensor:
    """``Re sum_n C_n (exp(dt A_n) - 1) / A_n B_n exp(dt A_n)^l``, power by power."""
    dt, A, B, C = modes(kernel)
    weights, samples = C * (torch.exp(dt * A) - 1) / A * B, []
    for _ in range(L):
        samples.append(weights.sum(-1).real)
        weights = weights * torch.exp(dt * A)
    return torch.stack(samples, -1)


def convolution(K: Tensor, u: Tensor) -> Tensor:
    """``y[l] = sum_{j <= l} K[l - j] u[j]`` for K (H, L) and u (B, H, L)."""
    L = u.shape[-1]
    return torch.stack([(K[:, : l + 1].flip(-1) * u[..., : l + 1]).sum(-1) for l in range(L)], -1)


def block_by_definition(model: MiniS4D, u: Tensor) -> Tensor:
    y = gelu(convolution(kernel_by_definition(model.kernel_gen, u.shape[-1]), u) + model.D[:, None] * u)
    return glu(linear(y.mT, model.output_linear[0].weight[..., 0], model.output_linear[0].bias)).mT


@line("K1")
def step_size(generator: Generator) -> None:
    dt = S4DKernel(2000, 1).log_dt.detach().double()
    assert dt.shape == (2000,)
    place = (dt - math.log(0.001)) / math.log(100)
    assert -1e-6 <= place.min() < 0.01 and 0.99 < place.max() <= 1 + 1e-6
    assert abs(place.mean() - 0.5) < 0.04  # six deviations of a uniform mean
    kernel = trained(generator, 3, 2, 5).kernel_gen
    before = kernel_by_definition(kernel, 5)
    with torch.no_grad():
        kernel.log_dt += 0.3
    assert relative_error(kernel(5), kernel_by_definition(kernel, 5).detach()) <= 1e-12
    assert relative_error(kernel(5), before.detach()) > 1e-3


@line("K2")
def matrix_A(generator: Generator) -> None:
    for kernel in (S4DKernel(3, 5), OfficialKernel(3, 10)):
        A = torch.complex(-kernel.log_A_real.exp(), kernel.A_imag).detach()
        expected = torch.complex(torch.full((3, 5), -0.5), math.pi * torch.arange(5.0).expand(3, -1))
        assert relative_error(A, expected) <= 1e-6


@line("K3")
def vector_B(generator: Generator) -> None:
    kernel = S4DKernel(3, 4)
    assert isinstance(kernel.B, torch.nn.Parameter)
    assert torch.equal(torch.view_as_complex(kernel.B.detach()), torch.ones(3, 4, dtype=torch.complex64))
    assert not hasattr(OfficialKernel(3, 8), "B")
    kernel = trained(generator, 3, 4, 20).kernel_gen
    before = kernel(20).detach()
    factor = normal(generator, 3, 4, dtype=torch.complex128)
    with torch.no_grad():
        for parameter, scale in ((kernel.B, factor), (kernel.C, 1 / factor)):
            parameter.copy_(torch.view_as_real(torch.view_as_complex(parameter) * scale))
    assert relative_error(kernel(20), before) <= 1e-12


@line("K4")
def zero_order_hold(generator: Generator) -> None:
    kernel = trained(generator, 4, 3, 9).kernel_gen
    assert relative_error(kernel(1), kernel_by_definition(kernel, 1).detach()) <= 1e-12
    # exp(dt A) is then 1 in float32, and the formula as it stands gives 0; its limit is dt.
    small = S4DKernel(2, 3, dt_min=1e-9, dt_max=1e-9)
    _, _, B, C = modes(small)
    assert relative_error(small(1)[:, 0], (1e-9 * (B * C).sum(-1).real).detach()) <= 1e-5


@line("K5")
def sum_over_modes(generator: Generator) -> None:
    kernel = trained(generator, 3, 5, 30).kernel_gen
    assert kernel.A_imag.shape == (3, 5)
    official = OfficialKernel(3, N=10).double()
    _, _, B, C = modes(kernel)
    state = {name: getattr(kernel, name) for name in ("log_dt", "log_A_real", "A_imag")}
    official.load_state_dict({**state, "C": torch.view_as_real(B * C / 2)})
    assert relative_error(kernel(30), official(30).detach()) <= 1e-12


@line("K6")
def vector_C(generator: Generator) -> None:
    for kernel in (S4DKernel(100, 50), OfficialKernel(100, 100)):
        assert kernel.C.shape == (100, 50, 2)
        assert abs(kernel.C.detach().square().sum(-1).mean() - 1) < 0.1
        assert (kernel.C.detach().mean((0, 1)).abs() < 0.06).all()
    mini, official = S4DKernel(3, 4), OfficialKernel(3, 8)
    official.load_state_dict({name: t for name, t in mini.state_dict().items() if name != "B"})
    assert relative_error(2 * mini(20), official(20).detach()) <= 1e-6


@line("K7")
def kernel(generator: Generator) -> None:
    for H, n, L in ((1, 1, 1), (3, 5, 37), (2, 8, 200)):
        kernel = trained(generator, H, n, L).kernel_gen
        expected = kernel_by_definition(kernel, L).detach()
        assert relative_error(kernel(L), expected) <= 1e-12
    single = S4DKernel(3, 8)
    exact = S4DKernel(3, 8).double()
    exact.load_state_dict(single.state_dict())
    assert relative_error(single(1000), kernel_by_definition(exact, 1000).detach()) <= 2e-6


@line("B1")
def causal_convolution(generator: Generator) -> None:
    model = trained(generator, 3, 4, 17, variant="minimal")
    model.activation = torch.nn.Identity()
    u = normal(generator, 2, 3, 17, dtype=DOUBLE)
    expected = convolution(kernel_by_definition(model.kernel_gen, 17), u).detach()
    assert relative_error(model.block(u), expected) <= 1e-12


@line("B2")
def skip(generator: Generator) -> None:
    D = MiniS4D(1000, 1).D.detach()
    assert D.shape == (1000,) and abs(D.mean()) < 0.2 and abs(D.std() - 1) < 0.15
    model = trained(generator, 3, 4, 17)
    model.activation = model.output_linear = torch.nn.Identity()
    u = normal(generator, 2, 3, 17, dtype=DOUBLE)
    expected = (convolution(kernel_by_definition(model.kernel_gen, 17), u) + model.D[:, None] * u).detach()
    assert relative_error(model.block(u), expected) <= 1e-12


@line("B3")
def mixing(generator: Generator) -> None:
    model = trained(generator, 3, 4, 17)
    assert model.output_linear[0].weight.shape == (6, 3, 1)
    u = normal(generator, 2, 3, 17, dtype=DOUBLE)
    assert relative_error(model.block(u), block_by_definition(model, u).detach()) <= 1e-12
    model = MiniS4D(50, 2, 9, dropout=0.5).double()
    assert isinstance(model.dropout, DropoutNd) and isinstance(S4D(50, dropout=0.5).dropout, DropoutNd)
    model.output_linear = torch.nn.Identity()
    u = normal(generator, 2, 50, 9, dtype=DOUBLE)
    y, whole = model.block(u), model.eval().block(u)
    dropped = (y == 0).all(-1)
    assert 20 < dropped.sum() < 80
    assert relative_error(y, (2 * whole * ~dropped[..., None]).detach()) <= 1e-12


@line("B4")
def official_arrays(generator: Generator) -> None:
    for name in GOLDEN:
        arrays = np.load(ROOT / "tests" / "data" / f"{name}.npz")
        config = json.loads(str(arrays["config"]))
        stored = {key: torch.tensor(arrays[key]) for key in arrays if key != "config"}
        if not config["kwargs"].get("transposed", True):
            stored |= {key: stored[key].mT for key in ("u", "y", "g", "grad_u")}
        H, n = config["kwargs"]["d_model"], config["kwargs"]["d_state"] // 2
        model = MiniS4D(H, n, config["L"]).double()
        official = {key[3:].replace("kernel.", "kernel_gen."): t for key, t in stored.items() if key.startswith("sd.")}
        # K5: twice the real part comes from B = 2.
        two = torch.view_as_real(torch.full((H, n), 2, dtype=torch.complex128))
        missing, unexpected = model.load_state_dict({**official, "kernel_gen.B": two}, strict=False)
        assert set(missing) == {"decoder.weight", "decoder.bias"} and not unexpected
        y = model.block(u := stored["u"].requires_grad_())
        assert relative_error(y, stored["y"]) <= 1e-10
        parameters = dict(model.named_parameters())
        names = [key for key in parameters if key in official]
        grads = torch.autograd.grad(y, [u, *(parameters[key] for key in names)], stored["g"])
        expected = [stored["grad_u"], *(stored[f"grad.{key.replace('kernel_gen.', 'kernel.')}"] for key in names)]
        errors = [relative_error(a, b) for a, b in zip(grads, expected, strict=True)]
        assert len(errors) == 8 and all(error <= 1e-10 for error in errors), errors


@line("H1")
def head(generator: Generator) -> None:
    model = trained(generator, 3, 4, 17)
    u = normal(generator, 2, 3, 17, dtype=DOUBLE)
    mean = block_by_definition(model, u).sum(-1) / 17
    expected = (mean @ model.decoder.weight.T + model.decoder.bias).detach()
    assert relative_error(model(u), expected) <= 1e-12
    assert S4D(3, 8).double()(u)[0].shape == u.shape


@line("H2")
def shapes(generator: Generator) -> None:
    model = MiniS4D(3, 4, 17)
    assert model(torch.zeros(5, 3, 17)).shape == (5, 1)
    for shape in ((5, 3, 16), (5, 4, 17), (3, 17)):
        with pytest.raises(ValueError, match=r"expected u of shape \(B, 3, 17\)"):
            model(torch.zeros(shape))
    assert S4D(3, 8)(torch.zeros(5, 3, 16))[0].shape == (5, 3, 16)


@line("T1")
def weight_decay(generator: Generator) -> None:
    ssm = {"log_dt", "log_A_real", "A_imag"}
    for model, named in ((MiniS4D(), ssm | {"B"}), (S4D(4, 16), ssm)):
        ordinary, slow = get_ssm_param_groups(model, lr=0.1, ssm_lr=0.2, weight_decay=0.3)
        assert (slow["lr"], slow["weight_decay"], ordinary["lr"], ordinary["weight_decay"]) == (0.2, 0.0, 0.1, 0.3)
        names = {id(parameter): name.split(".")[-1] for name, parameter in model.named_parameters()}
        assert {names[id(parameter)] for parameter in slow["params"]} == named


@line("T2")
def names(generator: Generator) -> None:
    mini = {key.replace("kernel_gen.", "kernel."): tuple(t.shape) for key, t in MiniS4D(4, 8).state_dict().items()}
    official = {key: tuple(t.shape) for key, t in S4D(4, 16).state_dict().items()}
    extra = {"kernel.B": (4, 8, 2), "decoder.weight": (1, 4), "decoder.bias": (1,)}
    assert mini == official | extra


@line("T3")
def complex_checkpoints(generator: Generator) -> None:
    model, other = trained(generator, 3, 4, 17), MiniS4D(3, 4, 17).double()
    state = model.state_dict()
    pairs = dict.fromkeys(("kernel_gen.B", "kernel_gen.C"))
    assert all(state[key].shape == (3, 4, 2) for key in pairs)
    other.load_state_dict({key: torch.view_as_complex(t) if key in pairs else t for key, t in state.items()})
    assert all(torch.equal(t, state[key]) for key, t in other.state_dict().items())


@line("M1")
def minimal_parameters(generator: Generator) -> None:
    minimal, full = (MiniS4D(4, 8, variant=variant).state_dict().keys() for variant in ("minimal", "full"))
    assert full - minimal == {"D", "output_linear.0.weight", "output_linear.0.bias"}
    assert {key.split(".")[0] for key in minimal} == {"kernel_gen", "decoder"}
    with pytest.raises(ValueError, match=r"the minimal variant has no dropout, got 0\.1"):
        MiniS4D(dropout=0.1, variant="minimal")


@line("M2")
def toeplitz(generator: Generator) -> None:
    model = trained(generator, 3, 4, 17, variant="minimal")
    K, u = kernel_by_definition(model.kernel_gen, 17).detach(), normal(generator, 2, 3, 17, dtype=DOUBLE)
    for i in range(3):
        T = model.export_toeplitz(i)
        rows = [[K[i, row - column].item() if column <= row else 0.0 for column in range(17)] for row in range(17)]
        assert not T.requires_grad
        assert relative_error(T, torch.tensor(rows, dtype=DOUBLE)) <= 1e-12
        assert relative_error(u[:, i] @ T.mT, convolution(K, u)[:, i]) <= 1e-12


@line("M3")
def one_product(generator: Generator) -> None:
    model = trained(generator, 3, 4, 17, variant="minimal")
    M, u = export_minimal(model)["M"], normal(generator, 2, 3, 17, dtype=DOUBLE)
    assert M.shape == (51, 51)
    expected = convolution(kernel_by_definition(model.kernel_gen, 17), u).flatten(1).detach()
    assert relative_error(u.flatten(1) @ M, expected) <= 1e-12
    same = torch.arange(51)[:, None] // 17 == torch.arange(51) // 17
    assert (M[~same] == 0).all()


@line("M4")
def second_product(generator: Generator) -> None:
    model = trained(generator, 3, 4, 17, variant="minimal")
    arrays, y = export_minimal(model), normal(generator, 2, 3, 17, dtype=DOUBLE)
    assert arrays["W"].shape == (51, 1)
    expected = (y.mean(-1) @ model.decoder.weight.T + model.decoder.bias).detach()
    assert relative_error(y.flatten(1) @ arrays["W"] + arrays["b"], expected) <= 1e-12


@line("M5")
def export(generator: Generator) -> None:
    model = trained(generator, 3, 4, 17, variant="minimal")
    arrays, u = export_minimal(model), normal(generator, 2, 3, 17, dtype=DOUBLE)
    assert arrays.keys() == {"M", "W", "b"}
    assert not any(t.requires_grad for t in arrays.values())
    expected = model(u).detach()
    assert relative_error(gelu(u.flatten(1) @ arrays["M"]) @ arrays["W"] + arrays["b"], expected) <= 1e-12
    with pytest.raises(ValueError, match="only the minimal variant is one matrix product, got 'full'"):
        export_minimal(MiniS4D())


@pytest.mark.parametrize("name", re.findall(r"^\| ([A-Z]\d+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
def test_line(name: str, generator: Generator, seed: int) -> None:
    torch.manual_seed(seed)
    assert name in CHECKS, f"nothing checks line {name}"
    CHECKS[name](generator)


def test_every_check_has_a_line() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert not [name for name in CHECKS if f"\n| {name} |" not in text]
