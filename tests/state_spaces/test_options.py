"""One test, or more, for every row of the table of options of docs/drop-in.md."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu, linear

from s4_fast import DropoutNd, get_ssm_param_groups
from s4_fast.state_spaces.activation import ACTIVATIONS, Activation, LinearActivation
from s4_fast.state_spaces.block import S4Block
from s4_fast.state_spaces.convolution import FFTConv
from tests.helpers import relative_error
from tests.state_spaces.definition import convolution, last_state, system

F = TypeVar("F", bound=Callable[..., Any])
H, L = 6, 19
ROWS: set[str] = set()


def row(*names: str) -> Callable[[F], F]:
    """Marks a test as that of these rows."""
    ROWS.update(names)
    return lambda test: test


def off(actual: Tensor, expected: Tensor) -> float:
    return relative_error(actual, expected.detach())


def signal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def layer(**options: Any) -> FFTConv:
    return FFTConv(H, **{"d_state": 8, "activation": None, "verbose": False, **options}).double().eval()


def block(**options: Any) -> S4Block:
    return S4Block(H, **{"d_state": 8, "mode": "diag", "verbose": False, **options}).double().eval()


# Every option of the kernel and the convolution around it, as what is given beside mode.
KERNELS: dict[str, list[dict[str, Any]]] = {
    "d_state": [{"d_state": n} for n in (2, 4, 10)],
    "l_max": [{"l_max": n} for n in (7, L, 40)],
    "channels": [{"channels": 3}],
    "swap_channels": [{"channels": 2, "swap_channels": True}],
    "bidirectional": [{"bidirectional": True}, {"bidirectional": True, "channels": 2, "l_max": 5}],
    "n_ssm": [{"n_ssm": n} for n in (1, 2, 6)],
    "dt_min, dt_max": [{"dt_min": 0.05, "dt_max": 0.05}],
    "dt_tie": [{"dt_tie": False}, {"dt_tie": False, "dt_transform": "softplus"}],
    "dt_transform": [{"dt_transform": t} for t in ("none", "exp", "relu", "sigmoid", "softplus")],
    "dt_fast": [{"dt_fast": True}, {"dt_fast": True, "dt_transform": "softplus"}],
    "real_transform": [{"real_transform": t} for t in ("none", "exp", "relu", "sigmoid", "softplus")],
    "imag_transform": [{"imag_transform": t} for t in ("none", "exp", "relu", "softplus")],
    "bandlimit": [{"bandlimit": 0.2, "dt_min": 0.1, "dt_max": 0.5}, {"bandlimit": 1.0, "n_ssm": 2}],
    "rank": [{"rank": 3}],
    "backend": [{"backend": name} for name in ("cuda", "naive", "pytorch", "reference")],
}
DIAGONAL: dict[str, list[dict[str, Any]]] = {
    "disc": [{"disc": name} for name in ("zoh", "bilinear")],
    "is_real": [{"is_real": True, "d_state": n} for n in (1, 3, 8)] + [{"is_real": True, "disc": "bilinear"}],
    "init": [{"init": f"diag-{name}"} for name in ("lin", "inv", "inv2", "quad", "legs", "real", "rand")]
    + [{"init": "diag"}, {"init": ["diag-lin", "diag-legs", "legs"]}],
}
LOW_RANK: dict[str, list[dict[str, Any]]] = {
    "init": [{"init": name} for name in ("legs", "fout", "fourier", "hippo", "dplr-lin", "dplr-inv", "dplr-legs")]
    + [
        {"init": "legt", "rank": 2},
        {"init": "lagt"},
        {"init": "all", "n_ssm": 4, "d_model": 8},
        {"init": ["legs", "dplr"]},
    ],
    "rank": [{"rank": 2}, {"rank": 3, "init": "legt"}],
}
CASES = [
    pytest.param(mode, options, id=f"{mode}-{options}")
    for mode, rows in (("diag", {**KERNELS, **DIAGONAL}), ("dplr", {**KERNELS, **LOW_RANK}))
    for settings in rows.values()
    for options in settings
]


def of_case(mode: str, options: dict[str, Any]) -> FFTConv:
    options = dict(options)
    return FFTConv(
        options.pop("d_model", H), **{"d_state": 8, "mode": mode, "activation": None, "verbose": False, **options}
    ).double()


def stored(mode: str, options: dict[str, Any]) -> int | None:
    """The length for which S4 has C set up at the first pass, where that makes a difference: the band is C's then."""
    return (options.get("l_max") or L) if mode == "dplr" and "bandlimit" in options else None


@row(*KERNELS, *DIAGONAL, *LOW_RANK)
@pytest.mark.parametrize(("mode", "options"), CASES)
@pytest.mark.sample(40)
def test_outputs_are_those_of_the_definition(mode, options, generator):
    conv = of_case(mode, options)
    x = signal(generator, 2, conv.d_model, L)
    expected = convolution(system(conv.kernel, options, length=stored(mode, options)), conv.D, x, options)
    assert off(conv(x)[0], expected) <= 1e-10


@row("step", "default_state", "setup_step")
@pytest.mark.parametrize(("mode", "options"), [case for case in CASES if "bidirectional" not in case.values[1]])
@pytest.mark.sample(25)
def test_steps_are_those_of_the_definition(mode, options, generator):
    conv = of_case(mode, {name: value for name, value in options.items() if name != "l_max"})
    x = signal(generator, 2, conv.d_model, L)
    expected = convolution(system(conv.kernel, options), conv.D, x, {**options, "l_max": None})
    conv.setup_step()
    state, outputs = conv.default_state(2), []
    for position in range(L):
        y, state = conv.step(x[..., position], state)
        outputs.append(y)
    assert off(torch.stack(outputs, -1), expected) <= 1e-10


@row("state", "forward_state")
@pytest.mark.parametrize(("mode", "options"), [case for case in CASES if "bidirectional" not in case.values[1]])
@pytest.mark.sample(25)
def test_states_are_those_of_the_definition(mode, options, generator):
    conv = of_case(mode, options)
    exact = system(conv.kernel, options, length=stored(mode, options))
    x = signal(generator, 2, conv.d_model, L)
    state = conv.default_state(2)
    state = state + torch.randn(state.shape, dtype=state.dtype, generator=generator)
    full = state if state.shape[-1] == exact.A.shape[-1] else torch.cat((state, state.conj()), -1)
    full = full.to(torch.complex128)
    if full.shape[-1] == state.shape[-1] and mode == "dplr":
        n = full.shape[-1] // 2
        full = torch.cat((full[..., :n], full[..., :n].conj()), -1)
        state = full
    y, after = conv(x, state=state)
    assert off(y, convolution(exact, conv.D, x, options, s=full)) <= 1e-10
    expected = last_state(exact, x, full)[..., : after.shape[-1]]
    assert off(after, expected if after.is_complex() else expected.real) <= 1e-10
    assert off(conv.kernel.forward_state(x, state), after) <= 1e-12


@row("rate")
@pytest.mark.parametrize("rate", [0.5, 2.0])
@pytest.mark.parametrize(("mode", "options"), [("diag", {}), ("diag", {"bandlimit": 1.0}), ("dplr", {"l_max": 2 * L})])
def test_another_rate_is_another_step_size(mode, options, rate, generator):
    conv = layer(mode=mode, **options)
    exact = system(conv.kernel, options, rate)
    x = signal(generator, 2, H, L)
    y, after = conv(x, state=conv.default_state(2), rate=rate)
    assert off(y, convolution(exact, conv.D, x, options, rate)) <= 1e-10
    full = last_state(exact, x, torch.zeros(2, *exact.B.shape, dtype=torch.complex128))
    assert off(after, full[..., : after.shape[-1]]) <= 1e-10


@row("rate", "state")
def test_a_block_hands_the_rate_and_the_state_on(generator):
    made, x = block(mode="dplr"), signal(generator, 2, H, L)
    state = made.default_state(2) + 0.5
    y, after = made(x, rate=2.0, state=state)
    inner, expected = made.layer(x.mT, rate=2.0, state=state)
    assert torch.equal(y, made.output_linear(inner).mT) and torch.equal(after, expected)


@row("mode, kernel")
@pytest.mark.parametrize(
    ("names", "kernel"), [(("diag", "s4d"), "SSMKernelDiag"), (("dplr", "nplr", "s4"), "SSMKernelDPLR")]
)
def test_kernels_have_several_names(names, kernel):
    for name in names:
        assert type(layer(mode=name).kernel).__name__ == kernel
        assert type(layer(mode=None, kernel=name).kernel).__name__ == kernel
    with pytest.raises(ValueError, match=r"dense.*diag"):
        layer(mode="dense")
    with pytest.raises(ValueError, match=r"mode.*kernel"):
        layer(mode="diag", kernel="s4")


@row("disc")
def test_dss_divides_by_the_sum_over_the_sequence(generator):
    """DSS-softmax (Gupta et al. 2022): the kernel depends on the length, and has neither step nor state."""
    conv = layer(mode="diag", disc="dss")
    p = {name: t.detach() for name, t in conv.kernel.state_dict().items()}
    A = torch.complex(-p["A_real"].exp(), -p["A_imag"])
    dA = A * p["inv_dt"].exp()
    x = (torch.exp(dA * L) - 1) * A
    weight = torch.view_as_complex(p["B"]) * torch.view_as_complex(p["C"]) * (torch.exp(dA) - 1)
    weight = weight * x.conj() / (x * x.conj() + 1e-7)
    k = torch.einsum("chn,hnl->chl", weight, torch.exp(dA[..., None] * torch.arange(L))).real
    assert off(conv.kernel(L)[0], k) <= 1e-10
    with pytest.raises(RuntimeError, match="dss"):
        conv.setup_step()
    with pytest.raises(RuntimeError, match="dss"):
        conv(signal(generator, 2, H, L), state=conv.default_state(2))
    with pytest.raises(ValueError, match=r"unknown disc 'euler'.*zoh, bilinear, dss"):
        layer(mode="diag", disc="euler")
    with pytest.raises(ValueError, match="disc"):
        layer(mode="dplr", disc="zoh")


@row("init")
def test_an_unknown_init_lists_the_others():
    for mode in ("diag", "dplr"):
        with pytest.raises(ValueError, match=r"legz.*legs"):
            layer(mode=mode, init="legz")


@row("n_ssm")
def test_n_ssm_must_divide_the_features():
    with pytest.raises(ValueError, match="n_ssm must divide d_model"):
        layer(n_ssm=4)


@row("measure")
def test_measure_is_another_name_of_init():
    torch.manual_seed(3)
    named = layer(mode="dplr", measure="fout", init=None)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(named.parameters(), layer(init="fout").parameters(), strict=True))


@row("init_args")
def test_initial_values_take_their_arguments():
    scaled = layer(mode="diag", init="diag-lin", real_scale=2.0, imag_scale=3.0, B_scale=0.5).kernel
    assert off(scaled.A_real, torch.full_like(scaled.A_real, math.log(1.0))) <= 1e-6
    assert off(scaled.A_imag[:, 1:], 3 * math.pi * torch.arange(1.0, 4).expand(H, 3)) <= 1e-6
    assert off(scaled.B[..., 0], torch.full_like(scaled.B[..., 0], 0.5)) <= 1e-6
    with pytest.raises(TypeError, match="imag_scal"):
        layer(mode="diag", init="diag-lin", imag_scal=2.0)


@row("deterministic")
@pytest.mark.parametrize("mode", ["diag", "dplr"])
def test_deterministic_kernels_are_always_the_same(mode):
    first, second = (layer(mode=mode, deterministic=True).kernel.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = torch.logspace(-3, -1, H, dtype=torch.float64)
    assert off(first["inv_dt"].exp().flatten(), steps) <= 1e-6
    other = layer(mode=mode, deterministic=True, dt_tie=False, dt_transform="softplus").kernel.inv_dt
    assert off(torch.log1p(other.exp()), steps[:, None].expand(H, 4)) <= 1e-5


@row("d_state")
@pytest.mark.parametrize(("mode", "init"), [("diag", "diag-lin"), ("dplr", "dplr-inv")])
@pytest.mark.parametrize("d_state", [2, 3, 5])
def test_an_odd_number_of_states_counts_as_the_even_one_below(mode, init, d_state, generator):
    conv = layer(mode=mode, d_state=d_state, init=init)
    assert conv.kernel.C.shape == (1, H, d_state // 2, 2)
    x = signal(generator, 2, H, L)
    expected = convolution(system(conv.kernel, {}), conv.D, x, {})
    assert off(conv(x)[0], expected) <= 1e-10


@row("d_state")
def test_what_has_no_conjugate_pairs_is_refused():
    with pytest.raises(ValueError, match="d_state"):
        layer(mode="diag", d_state=1, init="diag-lin")
    for init in ("legs", "fout", "legt", "diag-legs"):
        with pytest.raises(ValueError, match=r"d_state = N must be a positive even number.*got 5"):
            layer(mode="dplr", d_state=5, init=init, rank=2)


@row("lr", "wd")
@pytest.mark.parametrize("lr", [1, 0.25, {"dt": 0.25, "C": 0.5}, 0])
def test_learning_rates_are_marks_for_the_optimiser(lr):
    conv = layer(mode="dplr", lr=lr, wd=0.125)
    rates = lr if isinstance(lr, dict) else dict.fromkeys(("dt", "A", "B", "C"), lr)
    owners = {"inv_dt": "dt", "A_real": "A", "A_imag": "A", "P": "A", "B": "B", "C": "C"}
    parameters = dict(conv.kernel.named_parameters())
    for name, owner in owners.items():
        rate = rates.get(owner)
        assert (name in parameters) is (rate != 0)
        if name in parameters:
            mark = {} if rate is None else {"lr": rate}
            assert parameters[name]._optim == (mark if name == "C" else {**mark, "weight_decay": 0.125})
    groups = get_ssm_param_groups(conv, lr=0.01, weight_decay=0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(conv.parameters()))
    assert conv.state_dict().keys() == layer(mode="dplr").state_dict().keys()


@row("verbose")
def test_verbose_kernels_say_what_they_do(caplog, generator):
    x = signal(generator, 1, H, L)
    with caplog.at_level(logging.INFO):
        layer(mode="dplr", verbose=False)(x)
        assert not caplog.records
        layer(mode="dplr", verbose=True)(x)
    assert str(L) in caplog.text


@row("backend")
def test_an_unknown_backend_lists_the_others():
    with pytest.raises(ValueError, match=r"fast.*cuda.*keops.*naive"):
        layer(backend="fast")


@row("unknown options")
@pytest.mark.parametrize("mode", ["diag", "dplr"])
def test_an_unknown_option_is_refused(mode):
    said = r"unknown option d_sate \(did you mean d_state\?\); .*d_model, .*d_state, .*dt_min, .*disc, .*B_clip"
    for made in (layer, block):
        with pytest.raises(TypeError, match=said):
            made(mode=mode, init="legs", d_sate=4)
    with pytest.raises(TypeError, match="return_output"):
        block(mode=mode)(torch.zeros(1, H, 4, dtype=torch.float64), return_output=True)


@row("setup_step")
@pytest.mark.parametrize("mode", ["dense", "linear", "diagonal"])
def test_steps_have_three_modes(mode, generator):
    made = block(mode="dplr", init="fout")
    x = signal(generator, 2, H, L)
    y, _ = made(x)
    made.setup_step(mode=mode)
    state, outputs = made.default_state(2), []
    for position in range(L):
        out, state = made.step(x[..., position], state)
        outputs.append(out)
    assert off(torch.stack(outputs, -1), y) <= 1e-8
    with pytest.raises(ValueError, match=r"fast.*dense.*linear.*diagonal"):
        made.setup_step(mode="fast")


@row("setup_length")
def test_training_sets_a_fresh_kernel_up_once(generator):
    conv = layer(mode="dplr")
    exact = system(conv.kernel, {})
    for length, prepared in ((8, 8), (9, 8), (50, 8), (3, 8)):
        x = signal(generator, 2, H, length)
        assert off(conv(x)[0], convolution(exact, conv.D, x, {})) <= 1e-10
        assert int(conv.kernel.l_kernel) == prepared
    conv.kernel.setup_length(65)
    assert int(conv.kernel.l_kernel) == 128
    assert off(conv(x)[0], convolution(exact, conv.D, x, {})) <= 1e-10


@row("drop_kernel")
def test_kernel_dropout_drops_samples_of_the_kernel(generator):
    conv = layer(mode="diag", drop_kernel=0.5).train()
    with torch.no_grad():
        conv.D.zero_()
    impulse = torch.zeros(1, H, 64, dtype=torch.float64)
    impulse[..., 0] = 1
    k = conv.kernel(64)[0][0]
    dropped = conv(impulse)[0][0] / k
    assert bool(((dropped.abs() < 1e-9) | ((dropped - 2).abs() < 1e-9)).all())
    assert 0 < float((dropped < 1).double().mean()) < 1
    assert off(conv.eval()(impulse)[0][0], k) <= 1e-10


@row("activation")
@pytest.mark.parametrize("name", [None, "gelu", "glu", "glu-relu"])
def test_the_activation_follows_the_convolution(name, generator):
    conv = layer(mode="diag", activation=name, channels=2)
    x = signal(generator, 2, H, L)
    linear_part = convolution(system(conv.kernel, {}), conv.D, x, {})
    assert linear_part.shape[1] == H * (4 if str(name).startswith("glu") else 2)
    assert off(conv(x)[0], Activation(name, dim=1)(linear_part)) <= 1e-10
    assert conv.d_output == 2 * H


@row("activation")
def test_every_activation_is_its_formula(generator):
    x = signal(generator, 3, 8)
    a, b = x.chunk(2, -1)
    formulas = {
        "tanh": x.tanh(),
        "relu": x.clamp(min=0),
        "gelu": x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "elu": torch.where(x > 0, x, x.exp() - 1),
        **dict.fromkeys(("swish", "silu"), x / (1 + torch.exp(-x))),
        "sigmoid": 1 / (1 + torch.exp(-x)),
        "softplus": torch.log1p(x.exp()),
        **dict.fromkeys(("sqrelu", "relu2"), x.clamp(min=0) ** 2),
        "laplace": (1 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))) / 2,
        **dict.fromkeys(("none", "id", "identity", "linear"), x),
    }
    halved = {name: a * Activation(name)(b) for name in formulas}
    known = {**formulas, "glu": a / (1 + torch.exp(-b)), **{f"glu-{name}": y for name, y in halved.items()}}
    assert {*known, "modrelu"} == set(ACTIVATIONS)
    assert all(off(Activation(name)(x), y) <= 1e-14 for name, y in known.items())
    mod = Activation("modrelu", size=8).double()
    assert off(mod(x), x.sign() * (x.abs() + mod.b).clamp(min=0)) <= 1e-14
    assert torch.equal(Activation(None)(x), x)
    with pytest.raises(ValueError, match="modrelu needs the size"):
        Activation("modrelu")


@row("bottleneck")
def test_a_bottleneck_narrows_the_layer(generator):
    made, x = block(bottleneck=3), signal(generator, 2, H, L)
    assert made.layer.d_model == H // 3 and made.input_linear.weight.shape == (H // 3, H)
    inner, _ = made.layer(made.input_linear(x.mT))
    assert off(made(x)[0], made.output_linear(inner).mT) <= 1e-12
    assert made(x)[0].shape == x.shape


@row("gate", "gate_act", "mult_act")
@pytest.mark.parametrize(("gate", "mapped"), [(1, False), (2, True)])
def test_a_gate_multiplies(gate, mapped, generator):
    made, x = block(gate=gate, gate_act="gelu", mult_act="tanh"), signal(generator, 2, H, L)
    assert ("output_gate.weight" in made.state_dict()) is mapped
    v = gelu(linear(x.mT, made.input_gate[0].weight, made.input_gate[0].bias))
    y = made.layer(x.mT)[0]
    y = linear(y, made.output_gate.weight, made.output_gate.bias) if mapped else y
    assert off(made(x)[0], made.output_linear(torch.tanh(y * v)).mT) <= 1e-12


@row("final_act", "postact")
def test_the_last_map_has_its_activation(generator):
    made, x = block(postact="glu"), signal(generator, 2, H, L)
    inner = made.layer(x.mT)[0]
    mix = made.output_linear[0]
    assert off(made(x)[0], glu(linear(inner, mix.weight, mix.bias)).mT) <= 1e-12
    assert isinstance(block(postact="tanh").output_linear[1], nn.Tanh)
    assert isinstance(block(postact="tanh", final_act=None).output_linear[1], nn.Tanh)
    assert isinstance(block(final_act="id").output_linear[1], nn.Identity)
    assert isinstance(block(final_act=None).output_linear, nn.Identity)


@row("initializer")
@pytest.mark.parametrize("activation", ["glu", "gelu", "id", "tanh"])
def test_initializers_of_the_last_map(activation):
    gain = {"glu": 1.0, "id": 1.0, "gelu": math.sqrt(2), "tanh": 5 / 3}[activation]
    width = 64 if activation == "glu" else 32

    def weight(name: str) -> Tensor:
        return LinearActivation(400, 32, activation=activation, activate=True, initializer=name)[0].weight.detach()

    assert bool((weight("zero") == 0).all()) and bool((weight("one") == 1).all())
    uniform = weight("uniform")
    bound = gain * math.sqrt(3 / 400)
    assert 0.99 * bound <= float(uniform.abs().max()) <= bound * (1 + 1e-6)
    for name, std in (("uniform", gain / 20), ("normal", gain / 20), ("xavier", math.sqrt(2 / (400 + width)))):
        assert abs(float(weight(name).std()) / std - 1) <= 0.05, name
    assert bool((block(initializer="one").output_linear[0].weight == 1).all())


@row("weight_norm")
def test_weight_norm_separates_size_and_direction(generator):
    made, x = block(weight_norm=True), signal(generator, 2, H, L)
    expected = made(x)[0]
    with torch.no_grad():
        made.output_linear[0].weight_v.mul_(3)
    assert off(made(x)[0], expected) <= 1e-12
    assert off(made.output_linear[0].weight.norm(dim=1), made.output_linear[0].weight_g[:, 0]) <= 1e-12
    mapped = LinearActivation(5, 4, transposed=True, activation="glu", activate=True, weight_norm=True).double()
    y = signal(generator, 2, 5, 7)
    assert off(mapped(y), glu(linear(y.mT, mapped[0].weight[..., 0], mapped[0].bias)).mT) <= 1e-12


@row("dropout", "tie_dropout")
@pytest.mark.parametrize(("tie", "kind"), [(False, nn.Dropout), (True, DropoutNd)])
def test_dropout_lies_in_the_layer_and_before_the_last_map(tie, kind, generator):
    made = block(dropout=0.25, tie_dropout=tie)
    assert all(type(d) is kind and d.p == 0.25 for d in (made.drop, made.layer.drop))
    x = signal(generator, 2, H, L)
    whole = made(x)[0]
    for off_place, on in ((made.layer, made), (made, made.layer)):
        made.train()
        off_place.drop.eval()
        assert on.drop.training and not torch.equal(made(x)[0], whole)
    made.eval()
    assert torch.equal(made(x)[0], whole)


@row("transposed")
def test_features_come_second_or_last(generator):
    made, x = block(), signal(generator, 2, H, L)
    other = block(transposed=False)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x.mT)[0].mT, made(x)[0])


@row("lengths")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_cut_the_rows(bidirectional, generator):
    made, x = block(bidirectional=bidirectional, bottleneck=2), signal(generator, 2, H, L)
    alone = made(x[..., :7])[0]
    for lengths in (7, torch.tensor([7]), torch.tensor([7, 7])):
        assert off(made(x, lengths)[0][..., :7], alone) <= 1e-10


def test_every_row_of_the_table_has_a_test():
    guide = (Path(__file__).parents[2] / "docs/drop-in.md").read_text("utf-8")
    table = guide.split("| option | original | here |")[1].split("\n\n")[0].splitlines()[2:]
    assert {line.split("|")[1].strip().replace("`", "") for line in table} == ROWS
