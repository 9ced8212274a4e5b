from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from s4_fast import get_ssm_param_groups
from s4_fast.state_spaces import S4, HippoSSKernel, S4Block, SSKernel
from tests.helpers import relative_error

USES: dict[str, dict[str, Any]] = {
    "graphs": dict(d_model=8, l_max=64, bidirectional=True, postact=None),
    "reinforcement": dict(
        d_model=8, d_state=8, mode="diag", measure="diag-lin", disc="zoh", real_type="exp", transposed=False
    ),
    "video": dict(H=8, l_max=64, transposed=True),
    "release 3": dict(d_model=8, hyper_act=None, measure_args={}, keops=False),
    "release 2": dict(d_model=8, l_max=64, trainable=None, hurwitz=True, tie_state=True),
}


@pytest.mark.parametrize("made", [S4, S4Block])
@pytest.mark.parametrize("options", USES.values(), ids=USES)
def test_options_of_projects_on_older_releases(made, options):
    layer = made(**options)
    u = torch.randn(2, 8, 30) if layer.transposed else torch.randn(2, 30, 8)
    assert layer(u)[0].shape == u.shape
    has_glu = isinstance(layer.output_linear[-1], nn.GLU)
    assert has_glu == ("postact" not in options and getattr(layer, "release", 3) == 3)


@pytest.mark.parametrize(
    ("options", "final"),
    [
        ({}, nn.GLU),
        ({"postact": None}, nn.Identity),
        ({"postact": None, "final_act": "glu"}, nn.GLU),  # both, as release 4's own configuration gives them
        ({"postact": "tanh"}, nn.Tanh),
        ({"final_act": "id"}, nn.Identity),
    ],
)
def test_the_last_activation_of_a_block(options, final):
    assert type(S4Block(4, d_state=4, **options).output_linear[-1]) is final
    assert isinstance(S4Block(4, d_state=4, final_act=None).output_linear, nn.Identity)


@pytest.mark.parametrize(
    ("options", "release"),
    [
        ({}, 3),
        ({"H": 4}, 1),
        ({"input_linear": True}, 1),
        ({"hurwitz": True}, 2),
        ({"trainable": {"dt": True}}, 2),
        ({"release": 1, "trainable": {"dt": True}}, 1),
        ({"release": 2}, 2),
        ({"bottleneck": 2}, 3),
    ],
)
def test_the_release_is_told_by_its_options(options, release):
    sizes = {} if "H" in options else {"d_model": 4}
    layer = S4(**sizes, d_state=4, **options)
    assert layer.release == release
    assert f"release={release}" in repr(layer)
    assert isinstance(layer.output_linear[-1], nn.GLU if release == 3 else nn.Identity)


def trained(layer: nn.Module) -> set[str]:
    return {name.removeprefix("layer.kernel.") for name, _ in layer.named_parameters() if "kernel" in name}


ALL = {"C", "B", "P", "A_real", "A_imag", "inv_dt"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"release": 2}, {"C"}),
        ({"trainable": False}, {"C"}),
        ({"trainable": True}, ALL),
        ({"trainable": {"A": True, "dt": 1}}, {"C", "A_real", "A_imag", "inv_dt"}),
        ({"trainable": {"P": True, "B": True}}, {"C", "P", "B"}),
        ({"release": 1}, ALL),
        ({"release": 1, "trainable": {"B": 0, "dt": 0}}, {"C", "A_real", "A_imag"}),
        ({"release": 1, "trainable": {"C": 0}}, ALL - {"C"}),
        ({}, ALL),
        ({"lr": {"A": 0.0}}, {"C", "B", "inv_dt"}),
    ],
)
def test_what_is_trained(options, names):
    assert trained(S4(4, d_state=4, **options)) == names


def test_learning_rates_of_the_releases():
    def rates(**options: Any) -> set[float]:
        groups = get_ssm_param_groups(S4(4, d_state=4, **options), lr=0.5)
        return {group["lr"] for group in groups}

    assert rates(release=1) == {0.5, 1e-3}
    assert rates(release=1, lr={"dt": 0.1}) == {0.5, 1e-3, 0.1}
    assert rates(trainable=True, lr=0.01, lr_dt=0.02) == {0.5, 0.01, 0.02}
    assert rates(lr=0.01) == {0.5, 0.01}


def test_l_max_ends_the_kernel_in_release_3_alone():
    u = torch.randn(1, 4, 50)
    short = u.clone()
    short[..., 0] += 1
    for release, ends in ((3, True), (2, False), (1, False)):
        layer = S4(4, d_state=4, l_max=10, release=release).eval()
        same = torch.equal(layer(u)[0][..., 20:], layer(short)[0][..., 20:])
        late = (layer(u)[0] - layer(short)[0])[..., 20:].abs().max()
        assert same or (late < 1e-6) == ends


def test_a_kernel_without_length_correction_starts_truncated():
    layer = S4(4, d_state=4, l_max=16, release=1)
    assert int(layer.kernel.l_kernel) == 16
    assert int(S4(4, d_state=4, l_max=16, release=1, length_correction=True).kernel.l_kernel) == 0
    assert int(HippoSSKernel(4, 4, 16, length_correction=False).kernel.l_kernel) == 16
    u = torch.randn(2, 4, 16)
    y, C = layer(u)[0], layer.kernel.C.detach().clone()
    y.sum().backward()
    assert torch.equal(layer.kernel.C, C)
    longer = layer(torch.cat((u, u), -1))[0]
    assert relative_error(longer[..., :16], y) < 1e-5


def test_state_stands_second_as_in_release_3():
    layer = S4(4, d_state=6).eval()
    u = torch.randn(2, 4, 30)
    y, _ = layer(u)
    first, state = layer(u[..., :13], layer.default_state(2))
    second, _ = layer(u[..., 13:], state)
    assert relative_error(torch.cat((first, second), -1), y) < 1e-5
    assert relative_error(layer(u, rate=2.0, lengths=torch.tensor([30, 7]))[0][0], layer(u, rate=2.0)[0][0]) < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"gate": 2, "bottleneck": 2},
        {"hyper_act": "tanh", "channels": 2},
        {"release": 1, "hyper_act": "sigmoid", "input_linear": True, "postact": "glu"},
        {"mode": "diag", "transposed": False},
    ],
)
def test_steps_are_the_sequence(options):
    layer = S4(4, d_state=6, **options).double().eval()
    u = torch.randn(2, 4, 20).double()
    y = layer(u if layer.transposed else u.mT)[0]
    y = y if layer.transposed else y.mT
    layer.setup_step()
    state, outputs = layer.default_state(2), []
    for l in range(20):
        out, state = layer.step(u[..., l], state)
        outputs.append(out)
    assert relative_error(torch.stack(outputs, -1), y) < 1e-10


def test_dropout_has_one_place():
    layer = S4(64, d_state=4, dropout=0.5, activation=None, postact=None).train()
    assert isinstance(layer.layer.drop, nn.Identity)
    layer.output_linear = nn.Identity()
    dropped = layer(torch.randn(4, 64, 50))[0] == 0
    assert 0.4 < dropped.float().mean() < 0.6
    assert not (dropped.all(-1) | ~dropped.any(-1)).any()
    tied = S4(64, d_state=4, dropout=0.5, activation=None, release=2).train()
    tied.output_linear = nn.Identity()
    dropped = tied(torch.randn(4, 64, 50))[0] == 0
    assert (dropped.all(-1) | ~dropped.any(-1)).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"d_model": 4, "H": 5}, ValueError, "H and d_model"),
        ({"d_model": 4, "release": 4}, ValueError, "S4Block"),
        ({"d_model": 4, "stride": 2}, ValueError, "stride=2 is not supported"),
        ({"d_model": 4, "use_state": True}, ValueError, "use_state"),
        ({"d_model": 4, "resample": True}, ValueError, "resample"),
        ({"d_model": 4, "precision": 2}, ValueError, "precision"),
        ({"d_model": 4, "gate": 1, "release": 2}, ValueError, "release 3"),
        ({"d_model": 4, "trainable": {"Q": True}}, ValueError, "trainable names Q"),
        ({"d_model": 4, "hyper_act": 3}, TypeError, "hyper_act"),
        ({"d_model": 4, "real_type": "exp", "real_transform": "none"}, ValueError, "real_type and real_transform"),
        ({"d_model": 4, "measure": "nothing"}, ValueError, "unknown init"),
        ({"d_model": 4, "quadrature": "simpson"}, TypeError, "quadrature"),
        ({}, TypeError, "d_model"),
    ],
)
def test_options_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        S4(d_state=4, **options)


def test_kernels_return_what_their_release_does():
    new = SSKernel(4, 8, measure="diag-lin", mode="diag", channels=2)
    k, left = new(L=20)
    assert k.shape == (2, 4, 20)
    assert left is None
    state = torch.randn(3, 4, 4, dtype=torch.complex64)
    assert new(state, 20)[1].shape == (3, 2, 4, 20)
    old = HippoSSKernel(H=4, N=8, L=20)
    assert old(L=20).shape == (1, 4, 20)
    k, left = old(old.default_state(3), L=20)
    assert left.shape == (3, 1, 4, 20)
    y, after = old.step(torch.randn(3, 4), old.default_state(3))
    assert (y.shape, after.shape) == ((3, 1, 4), (3, 4, 8))
    assert (
        relative_error(old.forward_state(torch.ones(3, 4, 1), old.default_state(3)), old.kernel.dB.expand(3, -1, -1))
        < 1e-5
    )


def test_a_diagonal_kernel_starts_with_B_in_C():
    torch.manual_seed(1)
    plain = S4Block(4, d_state=8, mode="diag", init="diag-lin", B_init="random", disc="bilinear").layer.kernel
    torch.manual_seed(1)
    ours = S4(4, d_state=8, mode="diag", measure="diag-lin", B_init="random").kernel
    B, C = torch.view_as_complex(plain.B), torch.view_as_complex(plain.C)
    assert relative_error(torch.view_as_complex(ours.C), B * C) < 1e-6
